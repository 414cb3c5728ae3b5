"""The tables of the commands whose result reads best as one."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.output import shown


def print_rankings(result: dict[str, Any]) -> None:
    """Metrics of every ranking of an evaluation, with what was ranked in the title."""
    rows, protocol = result["rows"], result["protocol"]
    first, *others = sorted(int(name.partition("@")[2]) for name in rows[0] if name.startswith("ndcg@"))
    columns = ["model", *(f"{metric}@{first}" for metric in ("ndcg", "hr", "recall", "mrr", "coverage"))]
    columns += [f"{metric}@{k}" for k in others for metric in ("ndcg", "recall")]
    title = f"{protocol['split']} split, {rows[0]['users']:,} users, all {protocol['catalogue_items']:,} items ranked"
    print_table(f"{title}, seen items {protocol['seen']}", columns, rows)


def print_checks(result: dict[str, Any]) -> None:
    """The rows of doctor."""
    print_table("This machine", ["check", "state", "found", "what to do"], result["checks"])


def print_answer(answer: dict[str, Any]) -> None:
    """The items of an answer, best first."""
    rows = [{"rank": rank, **item} for rank, item in enumerate(answer["items"], start=1)]
    columns = [name for name in ("rank", "item_id", "score", "title") if any(row.get(name) for row in rows)]
    title = f"Release {answer['release']}, from {answer['history_events_used']} events"
    if answer["unknown_items"]:
        title += f", {answer['unknown_items']} unknown left out"
    if answer["fallback"]:
        title += f"; the model had nothing to go by: {answer['fallback']}"
    print_table(title, columns, rows)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table; numbers stand right."""
    # Here and not above: rich costs a fifth of the time that `farsight --help` may take.
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in columns:
        numeric = any(isinstance(row.get(column), int | float) for row in rows)
        # Paths and advice fold instead of being cut: a table that hides its end helps nobody.
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[shown(row.get(column)) for column in columns])
    # Not the table's own title, which would be folded to the table's width.
    print(title)
    # No colours and a fixed width when piped, so that logs and tests read the same everywhere.
    width = None if sys.stdout.isatty() else 120
    Console(file=sys.stdout, width=width, highlight=False).print(table)
