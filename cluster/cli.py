"""The `farsight` command: parses, starts a floor by its import string, prints what came back.

Exit codes: 0 done, 1 a defect of ours (with a traceback), 2 wrong usage or recipe, 3 log or dataset, 4 artifact or
release, 5 training, 6 machine, 7 endpoint (`data.errors`), 130 interrupted.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cluster import floors
from cluster.output import Output, keep_standard_output_clean, set_up_logging
from cluster.tables import print_answer, print_checks, print_rankings, print_suite
from data.errors import FarsightError, MachineError

INTERRUPTED = 130
# Where `farsight serve` listens unless told otherwise, and where `farsight retrieve` asks.
DEFAULT_URL = "http://127.0.0.1:8000"

SEEN = click.Choice(["removed", "kept"])

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
            _show(result)

    return wrapped


def _show(result: dict[str, Any], table: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Print a result once: as the JSON document, as the command's own table, or as lines."""
    context = click.get_current_context()
    if table is not None and not context.params["as_json"]:
        table(result)
        return
    output: Output = context.obj or Output()
    output.write(result, as_json=context.params["as_json"])


def _recipe(words: tuple[str, ...], *, required: bool = False) -> dict[str, Any]:
    """The recipe of `[RECIPE] [a.b=c ...]`."""
    # Here and not above: pydantic and yaml take longer to load than all the rest of `farsight --help`.
    from cluster.recipe_files import read_recipe, split_words

    name, overrides = split_words(words)
    if required and name is None:
        raise click.UsageError("Missing argument 'RECIPE': a path that ends in .yaml, or the name of a shipped recipe.")
    return read_recipe(name, overrides)


def _pairs(values: tuple[str, ...], option: str) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping."""
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise click.UsageError(f"{option} {value!r}: expected NAME=VALUE")
        pairs[name] = rest
    return pairs


def _recipe_words(function: Command) -> Command:
    return click.argument("words", nargs=-1, metavar="[RECIPE] [a.b=c ...]")(function)


@click.group(cls=Farsight, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="farsight")
def cli() -> None:
    """Generative retrieval, from log files to a served endpoint, on Ray.

    A RECIPE is a YAML file, or the name of one that is shipped: demo, smoke, movielens_1m_cpu. Every setting can be
    given on the command line as section.name=value.
    """


@cli.command()
@click.option("--out", required=True, type=click.Path(), help="Log directory to write.")
@_recipe_words
@command
def simulate(out: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Write a sharded log and a catalogue from the simulator.

    Example: farsight simulate --out runs/demo/log demo simulate.num_users=1000
    """
    return floors.start(floors.SIMULATE, recipe=_recipe(words), out=out)


@cli.command(name="import")
@click.argument("name")
@click.option(
    "--source", required=True, type=click.Path(), help="Folder of the published files; of a table also a file or glob."
)
@click.option("--out", required=True, type=click.Path(), help="Log directory to write.")
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="A column of the table; repeat it.")
@click.option(
    "--timestamp-unit", default="s", show_default=True, help="Unit of the table's times: s, ms, us, ns or iso."
)
@click.option("--catalogue", type=click.Path(), help="Catalogue file; the data set's own by default.")
@click.option("--catalogue-column", "catalogue_columns", multiple=True, metavar="OURS=THEIRS", help="As --column.")
@click.option("--category-separator", help="What stands between an item's categories where they are one text.")
@click.option("--separator", default=",", show_default=True, help="What stands between the fields of a CSV line.")
@click.option("--encoding", default="utf-8", show_default=True, help="Encoding of text files.")
@click.option("--field-order", type=click.Choice(["user-first", "item-first"]), help="Of Amazon CSV without a header.")
@click.option("--max-bad-share", default=0.01, show_default=True, help="Share of rows that may be refused.")
@click.option("--replace", is_flag=True, help="Replace a log that stands at --out.")
@command
def import_(columns: tuple[str, ...], catalogue_columns: tuple[str, ...], **stated: Any) -> dict[str, Any]:
    """Turn a public data set, or any table, into a log directory.

    NAME is movielens-100k, movielens-1m, movielens-20m, amazon or table.

    Example: farsight import table --source plays.csv --out runs/plays/log --column item_id=track
    """
    return floors.start(
        floors.IMPORT,
        columns=_pairs(columns, "--column"),
        catalogue_columns=_pairs(catalogue_columns, "--catalogue-column"),
        **stated,
    )


@cli.command()
@_recipe_words
@command
def ingest(words: tuple[str, ...]) -> dict[str, Any]:
    """Turn a log into a prepared dataset (Ray Data).

    Example: farsight ingest demo ingest.log=runs/demo/log
    """
    return floors.start(floors.INGEST, recipe=_recipe(words, required=True))


@cli.command()
@_recipe_words
@command
def train(words: tuple[str, ...]) -> dict[str, Any]:
    """Train a retriever on a prepared dataset (Ray Train, DeepSpeed) and write its artifact.

    Example: farsight train demo train.epochs=3
    """
    return floors.start(floors.TRAIN, recipe=_recipe(words, required=True))


@cli.command()
@click.option("--artifact", type=click.Path(), help="Artifact that training wrote; without one, baselines alone.")
@click.option("--dataset", required=True, type=click.Path(), help="Prepared dataset.")
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
@click.option("--seen", type=SEEN, help="Whether the history can be answers; short for evaluate.seen=...")
@click.option("--rankings", multiple=True, metavar="NAME=FILE", help="Another model's rankings, as a row beside ours.")
@click.option("--users-out", type=click.Path(), help="Directory to write: the metrics of every user, a file per row.")
@_recipe_words
@command
def evaluate(seen: str | None, rankings: tuple[str, ...], words: tuple[str, ...], **chosen: Any) -> None:
    """Measure an artifact over the whole catalogue, with baselines beside it.

    Example: farsight evaluate --artifact runs/demo/artifact --dataset runs/demo/dataset
    """
    chosen["recipe"] = _recipe(words if seen is None else (*words, f"evaluate.seen={seen}"))
    _show(floors.start(floors.EVALUATE, rankings=_pairs(rankings, "--rankings"), **chosen), print_rankings)


@cli.command()
@click.option("--artifact", required=True, type=click.Path(), help="Artifact that training wrote.")
@click.option("--out", type=click.Path(), help="Release to write; by default `release` beside the artifact.")
@click.option("--dataset", type=click.Path(), help="Measure the index's recall on this dataset's histories.")
@_recipe_words
@command
def index(artifact: str, out: str | None, dataset: str | None, words: tuple[str, ...]) -> dict[str, Any]:
    """Build the FAISS index of an artifact's item vectors and write both as a release.

    Example: farsight index --artifact runs/demo/artifact index.search.kind=ivf
    """
    place = out or str(Path(artifact).parent / "release")
    return floors.start(floors.INDEX, artifact=artifact, out=place, recipe=_recipe(words), dataset=dataset)


@cli.command()
@click.argument("release", type=click.Path())
@click.option("--port", type=click.IntRange(1, 65535), help="TCP port; short for serve.port=N.")
@_recipe_words
@command
def serve(release: str, port: int | None, words: tuple[str, ...]) -> None:
    """Serve a release over HTTP (Ray Serve) until interrupted.

    Example: farsight serve runs/demo/release --port 8000
    """
    overrides = () if port is None else (f"serve.port={port}",)
    # Printed when the endpoint answers, not when it stops.
    floors.start(floors.SERVE, release=release, recipe=_recipe(words + overrides), blocking=True, on_ready=_show)


@cli.command()
@click.option("--url", default=DEFAULT_URL, show_default=True, help="Address that `farsight serve` printed.")
@click.option("--item", "items", multiple=True, help="Id of an item in the history; repeat it, oldest first.")
@click.option(
    "--history", type=click.Path(), help="JSON file: a list of ids or of events (item_id, timestamp, action)."
)
@click.option("--k", type=click.IntRange(min=1), default=10, show_default=True, help="Items wanted.")
@click.option("--request-time", type=int, help="Seconds UTC at which the answer is wanted; now by default.")
@click.option("--exclude", "excluded", multiple=True, help="Id of an item to leave out; repeat it.")
@click.option("--seen", type=SEEN, default="removed", show_default=True, help="Whether the history can be answers.")
@click.option("--deadline-ms", type=click.IntRange(min=1), help="Milliseconds that the endpoint may take.")
@command
def retrieve(
    url: str, items: tuple[str, ...], history: str | None, seen: str, excluded: tuple[str, ...], **asked: Any
) -> None:
    """Ask a running endpoint for items.

    Example: farsight retrieve --item i00012 --item i00340 --k 5
    """
    if bool(items) == bool(history):
        raise click.UsageError("Give the history either as --item ID (repeated) or as --history FILE.")
    answer = floors.start(
        floors.RETRIEVE,
        url=url,
        history=history or list(items),
        exclude_seen=seen == "removed",
        exclude_item_ids=list(excluded),
        **asked,
    )
    _show(answer, print_answer)


@cli.command()
@click.argument("suite")
@click.argument("overrides", nargs=-1, metavar="[a.b=c ...]")
@click.option("--models", multiple=True, metavar="NAME", help="Measure this row only; repeat it.")
@click.option("--data", multiple=True, metavar="NAME", help="Measure on this data set only; repeat it.")
@click.option("--seeds", multiple=True, type=int, metavar="N", help="Measure this seed only; repeat it.")
@click.option("--out", type=click.Path(), help="Directory of runs and report; runs/benchmarks/SUITE by default.")
@click.option("--report-only", is_flag=True, help="Measure nothing; write the report of what was measured.")
@command
def benchmark(suite: str, **chosen: Any) -> None:
    """Measure every model of a suite on every data set and seed, and write a report with plots.

    SUITE is a YAML file, or the name of one that is shipped: smoke, movielens_1m, amazon. Rows that stand are not
    measured again, so an interrupted suite goes on where it stopped.

    Example: farsight benchmark smoke
    """
    _show(floors.start(floors.BENCHMARK, suite=suite, **chosen), print_suite)


@cli.command()
@click.argument("path", type=click.Path(), default="runs")
@command
def doctor(path: str) -> None:
    """Check this machine: versions, accelerator, storage at PATH, and that the packages are this tree's.

    Example: farsight doctor runs
    """
    result = floors.start("cluster.doctor:run", path=path)
    _show(result, print_checks)
    if not result["ok"]:
        raise MachineError("this machine lacks something that Farsight needs: see the rows marked 'broken'")


def main() -> None:
    """Entry point of the console command."""
    output = keep_standard_output_clean() if "--json" in sys.argv[1:] else Output()
    cli.main(obj=output, prog_name="farsight")


if __name__ == "__main__":
    main()
