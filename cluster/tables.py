"""The tables of the commands whose result reads best as one."""

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cluster.output import shown


def print_rankings(result: dict[str, Any]) -> None:
    """Accuracy of every ranking of an evaluation, then what else the same lists are, as far as it says something."""
    rows, protocol = result["rows"], result["protocol"]
    first, *others = sorted(int(name.partition("@")[2]) for name in rows[0] if name.startswith("ndcg@"))
    columns = ["model", *(f"{metric}@{first}" for metric in ("ndcg", "hr", "recall", "mrr", "coverage"))]
    columns += [f"{metric}@{k}" for k in others for metric in ("ndcg", "recall")]
    title = f"{protocol['split']} split, {rows[0]['users']:,} users, all {protocol['catalogue_items']:,} items ranked"
    title += f", seen items {protocol['seen']}"
    if protocol.get("gap_seconds"):
        title += f", a gap of {protocol['gap_seconds']:,} s"
    if protocol.get("share_without_history"):
        title += f", {protocol['share_without_history']:.1%} of users without history"
    print_table(title, columns, rows)
    # In this order, and a table only where it has more than the names: zeros and single points say nothing.
    lists = [f"{name}@{first}" for name in ("head_share", "novelty", "category_diversity", "repeat_rate")]
    lists = [name for name in lists if any(row.get(name) for row in rows)]
    if lists:
        print_table(f"Lists of the first {first}", ["model", *lists], rows)
    buckets = {name[8:-1]: rows[0][name] for name in rows[0] if name.startswith("targets[") and rows[0][name]}
    if len(buckets) > 1:
        held = ", ".join(f"{count:,} {bucket}" for bucket, count in buckets.items())
        recalls = [
            {"model": row["model"], **{name: row[f"recall@{first}[{name}]"] for name in buckets}} for row in rows
        ]
        print_table(f"recall@{first} by popularity of the target: {held}", ["model", *buckets], recalls)
    steps = {name.partition("[")[2][:-1]: name for name in rows[0] if name.startswith("hit@")}
    if len(steps) > 1:
        cut_off = steps["t+1"].partition("[")[0]
        users = [rows[0][f"users[{step}]"] for step in steps]
        title = f"{cut_off} by events ahead, of {users[0]:,} users at the first and {users[-1]:,} at the last"
        curves = [{"model": row["model"], **{step: row[name] for step, name in steps.items()}} for row in rows]
        print_table(title, ["model", *steps], curves)


def print_conditional(result: dict[str, Any]) -> None:
    """Every way to answer under a condition: hits, how much of the lists satisfies it, how often they are full."""
    rows, protocol = result["rows"], result["protocol"]
    cut_offs = sorted(int(name.partition("@")[2]) for name in rows[0] if name.startswith("ndcg@"))
    columns = ["model", *(f"{metric}@{k}" for k in cut_offs[:2] for metric in ("hr", "ndcg", "cc", "fill"))]
    title = f"{protocol['split']} split, condition by {protocol['condition']}, {rows[0]['users']:,} users"
    print_table(f"{title}, seen items {protocol['seen']}", columns, rows)


def print_panels(result: dict[str, Any]) -> None:
    """The panels of the dashboards that have no data."""
    title = f"{result['with_data']} of {result['panels']} panels have data"
    rows = [{**row, "metrics": " ".join(row["metrics"])} for row in result["empty"]]
    print_table(f"{title}; without:" if rows else title, ["dashboard", "row", "panel", "metrics"], rows)


def print_inspection(result: dict[str, Any]) -> None:
    """One user: the newest events, then an answer per head and condition."""
    history = [{**event, "time": moment(event["time"])} for event in result["history"]]
    columns = ["event", "part", "time", "item_id", "title", "categories", "visible_from"]
    print_table(f"User {result['user']}: the newest of {result['events']:,} events", filled(columns, history), history)
    for name, items in result["answers"].items():
        rows = [{"rank": rank, **item} for rank, item in enumerate(items, start=1)]
        columns = ["rank", "item_id", "title", "categories"]
        print_table(f"Answer of {name}, asked at {moment(result['request_time'])}", filled(columns, rows), rows)
    if "picture" in result:
        print(f"mask: {result['picture']}")


def filled(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that say something in any row."""
    return [name for name in columns if any(row.get(name) not in (None, "") for row in rows)]


def moment(seconds: int) -> str:
    """A time as a person reads it, UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def print_suite(result: dict[str, Any]) -> None:
    """Accuracy of every row of a suite under its first protocol, by data set; the rest is in the report."""
    for data in result["data"].values():
        figures: dict[str, Any] = next(iter(data["figures"].values()), {})
        rows = [
            {"model": model, "seeds": found["ndcg@10"]["runs"]}
            | {metric: found[metric]["mean"] for metric in ("ndcg@10", "hr@10", "coverage@10")}
            | {"deviation": found["ndcg@10"]["deviation"]}
            for model, found in figures.items()
        ]
        print_table(data["title"], ["model", "seeds", "ndcg@10", "deviation", "hr@10", "coverage@10"], rows)
    print(f"report: {result['report']}")


def print_releases(result: dict[str, Any]) -> None:
    """The releases of a registry, newest first, and what was added or removed just before."""
    for change in ("added", "removed"):
        if result[change]:
            print(f"{change}: {' '.join([result[change]] if isinstance(result[change], str) else result[change])}")
    rows = [
        {
            **release,
            "release": release["release_id"],
            "names": ", ".join(release["names"]),
            "added": moment(release["added"]),
            "deployed": release["deployed"] and moment(release["deployed"]),
            "recall": release.get("recall", {}).get("value"),
        }
        for release in result["releases"]
    ]
    columns = ["release", "names", "added", "deployed", "items", "index", "recall", "problem"]
    print_table(f"Releases of {result['registry']}, newest first", filled(columns, rows), rows)


def print_jobs(result: dict[str, Any]) -> None:
    """Jobs of a cluster, newest first."""
    rows = [
        {
            **job,
            "id": job["submission_id"],
            "exit": job["exit_code"],
            "started": job["started"] and moment(int(job["started"])),
            "seconds": job["seconds"] and round(job["seconds"]),
            "command": job["command"].removeprefix("python -m cluster.cli "),
        }
        for job in result["jobs"]
    ]
    print_table("Jobs, newest first", ["id", "status", "exit", "started", "seconds", "command"], rows)


def print_checks(title: str, result: dict[str, Any]) -> None:
    """The rows of doctor."""
    print_table(title, ["check", "state", "found", "what to do"], result["checks"])


def print_answer(answer: dict[str, Any]) -> None:
    """The items of an answer, best first."""
    rows = [{"rank": rank, **item} for rank, item in enumerate(answer["items"], start=1)]
    columns = filled(["rank", "item_id", "score", "title", "condition"], rows)
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
    # No colours and a fixed width when piped, so that logs and tests read the same everywhere; no markup, or a title
    # such as [REC] would vanish.
    width = None if sys.stdout.isatty() else 120
    Console(file=sys.stdout, width=width, highlight=False, markup=False).print(table)
