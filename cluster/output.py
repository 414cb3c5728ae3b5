"""What a command prints: one JSON document, or lines and tables for people.

With `--json` nothing else may reach standard output. Ray copies its workers' output there, from a thread and for
some time after the work is done, so `main` moves the file descriptor itself to standard error and keeps a private
copy for the document.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import click

HOUSE = ("benchmarks", "cluster", "data", "modeling", "serve", "trainer")
LINE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


@dataclass
class Output:
    """Where the result of a command goes. `document` is None where standard output is used as it is."""

    document: TextIO | None = None

    def write(self, result: Mapping[str, Any], *, as_json: bool) -> None:
        """Print a result: as one JSON document, or as `name: value` lines."""
        if as_json:
            click.echo(json.dumps(result, indent=2, default=str), file=self.document)
            return
        for name, value in _plain_values(result):
            click.echo(f"{name}: {shown(value)}")


def _plain_values(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values of a result with their paths; lists are for `--json`."""
    for name, value in result.items():
        if isinstance(value, Mapping):
            yield from _plain_values(value, f"{prefix}{name}.")
        elif value is not None and not isinstance(value, list | tuple):
            yield f"{prefix}{name}", value


def keep_standard_output_clean() -> Output:
    """Send everything that is printed from now on to standard error; the document still goes to standard output."""
    sys.stdout.flush()
    document = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return Output(document)


def shown(value: Any) -> str:
    """A value as a person reads it: four decimals, thousands set apart."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
    return str(value)


class _LineHandler(logging.Handler):
    """One line per record on standard error, looked up at each record because tests replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


def set_up_logging(*, verbose: bool) -> None:
    """INFO from our packages and WARNING from others; DEBUG and INFO with `verbose`.

    What Ray's workers print is shown with `verbose` only: `data.session.connect` goes by the level set here.
    """
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _LineHandler)]
    lines = _LineHandler()
    lines.setFormatter(logging.Formatter(LINE, datefmt="%H:%M:%S"))
    root.addHandler(lines)
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    for package in HOUSE:
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)
