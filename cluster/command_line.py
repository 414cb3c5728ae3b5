"""What every subcommand shares: errors as one line and an exit code, `--json`, recipes on the command line."""

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cluster.output import Output, set_up_logging
from data.errors import FarsightError, MachineError

INTERRUPTED = 130
STARTED_IN = "farsight.started_in"

Command = Callable[..., Any]


class Farsight(click.Group):
    """A group that turns our errors into one line and an exit code; other exceptions keep their traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the path from log to answer, as they stand in this file."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except FarsightError as error:
            # Ray hands over an error of a worker with the worker's traceback in its text; the cause is ours.
            cause = getattr(error, "cause", None)
            click.echo(f"error: {cause if isinstance(cause, FarsightError) else error}", err=True)
            ctx.exit(error.exit_code)


def command(function: Command) -> Command:
    """Give a command `--json` and `-v`, and print what it returns."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else, on stdout.")
    @click.option("-v", "--verbose", is_flag=True, help="Log more, and show what workers print.")
    @functools.wraps(function)
    def wrapped(as_json: bool, verbose: bool, **arguments: Any) -> None:
        set_up_logging(verbose=verbose)
        result = function(**arguments)
        if result is not None:
            show(result)

    return wrapped


def show(result: dict[str, Any], table: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Print a result once: as the JSON document, as the command's own table, or as lines."""
    context = click.get_current_context()
    if table is not None and not context.params["as_json"]:
        table(result)
        return
    output: Output = context.obj or Output()
    output.write(result, as_json=context.params["as_json"])


def work_in(context: click.Context, storage: str | None) -> None:
    """Make `--storage` the working directory while the command runs; `started_in` tells where it was begun."""
    if storage is None:
        return
    if not Path(storage).is_dir():
        raise MachineError(
            f"--storage {storage}: no such directory on {os.uname().nodename}; give one that every node of the "
            "cluster shares, or mount it here"
        )
    context.meta[STARTED_IN] = Path.cwd()
    context.with_resource(contextlib.chdir(storage))


def started_in() -> Path:
    """The directory that the command was begun in, which the path of a RECIPE starts from."""
    found: Path = click.get_current_context().meta.get(STARTED_IN, Path())
    return found


def recipe_of(words: tuple[str, ...], *, required: bool = False) -> dict[str, Any]:
    """The recipe of `[RECIPE] [a.b=c ...]`."""
    # Here and not above: pydantic and yaml take longer to load than all the rest of `farsight --help`.
    from cluster.recipe_files import read_recipe, split_words

    name, overrides = split_words(words)
    if required and name is None:
        raise click.UsageError("Missing argument 'RECIPE': a path that ends in .yaml, or the name of a shipped recipe.")
    return read_recipe(name, overrides, started_in())


def pairs_of(values: tuple[str, ...], option: str) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping."""
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise click.UsageError(f"{option} {value!r}: expected NAME=VALUE")
        pairs[name] = rest
    return pairs


def recipe_words(function: Command) -> Command:
    return click.argument("words", nargs=-1, metavar="[RECIPE] [a.b=c ...]")(function)
