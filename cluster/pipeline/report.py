"""The report of a day: what was found, what was decided, and why; as JSON and as a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.output import shown
from cluster.pipeline.judge import MODEL, POPULARITY, Check, coverage_name, why
from cluster.pipeline.state import PLACES, REPORT
from cluster.pipeline.steps import Task
from data.provenance import surroundings
from data.storage import write_json

PAGE = "report.md"
PROMOTED, HELD = "promoted", "held"
# What a held day asks of a person, by what held it.
_NEXT = {
    "data": "The next day extends the dataset of the day before this one. Once the log is mended, run this day again "
    "with --day; after a later day, give this log beside that day's (--log, repeated).",
    "candidate": "The data of this day are kept and the next day extends them. To promote this candidate all the same: "
    "farsight releases {registry} --add {release}",
}


def write_report(task: Task, checks: Sequence[Check], *, held_by: str | None, seconds: float) -> dict[str, Any]:
    """Write the report of a day; its presence says that the day is finished.

    Args:
        held_by: data, candidate, or None if the candidate was promoted.
    """
    day, metric = task.day, task.settings.metric
    counts, measured, trained, evaluated, index = (day.result(name) for name in list(PLACES)[:-1])
    promoted, in_use = day.result("promote"), _row(measured, MODEL)
    candidate = _row(evaluated, MODEL)
    report: dict[str, Any] = {
        "kind": "pipeline_report",
        "day": day.name,
        "outcome": PROMOTED if held_by is None else HELD,
        "held_by": held_by,
        "why": why(checks),
        "checks": [check.as_dict() for check in checks],
        "logs": task.logs,
        "extends": task.base and task.base.name,
        "trained_until": task.trained_until,
        "in_use": task.in_use_id,
        "candidate": index.get("release_id"),
        "artifact": trained.get("content_hash"),
        "release": str(day.place("index")) if index else None,
        "registry": task.settings.registry,
        "deployed": promoted.get("deployed", False),
        "removed": promoted.get("removed", []),
        "data": {name: counts.get(name) for name in ("events", "users", "rows_read", "duplicates", "quarantined")}
        | {"new_items": counts.get("new_items"), "cold_share": measured.get("cold_share")},
        "metric": metric,
        "accuracy": {
            "candidate": candidate.get(metric),
            "in_use": in_use.get(metric),
            "popularity": _row(measured, POPULARITY).get(metric),
            "change": evaluated.get("change"),
        },
        "coverage": {"candidate": candidate.get(coverage_name(metric)), "in_use": in_use.get(coverage_name(metric))},
        "index": {name: index.get(name) for name in ("search", "recall", "recall_k", "overlap")},
        "steps": {name: _timing(day.step(name)) for name in PLACES},
        "seconds": round(seconds, 1),
        "versions": surroundings()["versions"],
    }
    (day.folder / PAGE).write_text(page(report), encoding="utf-8")
    write_json(day.folder / REPORT, report)
    return report


def accuracy_in_use(report: Mapping[str, Any]) -> float | None:
    """How accurate on its day the release was that was in use after it."""
    found: float | None = report["accuracy"]["candidate" if report["outcome"] == PROMOTED else "in_use"]
    return found


def data_accepted(report: Mapping[str, Any]) -> bool:
    """Whether later days extend the dataset of a finished day."""
    return bool(report) and report["held_by"] != "data"


def page(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# {report['day']}: {report['outcome']}", ""]
    if report["outcome"] == PROMOTED:
        served = "deployed" if report["deployed"] else "added to the registry"
        lines += [f"Release {report['candidate']} follows {report['in_use'] or 'none'}; it was {served}.", ""]
    else:
        lines += [f"Held back by the checks of the {report['held_by']}; in use stays {report['in_use'] or 'none'}.", ""]
        lines += [f"- {reason}" for reason in report["why"]]
        lines += ["", _NEXT[report["held_by"]].format(**report), ""]
    lines += ["| check | passed | found | limit | what |", "| --- | --- | ---: | ---: | --- |"]
    lines += [
        f"| {check['name']} | {'not judged' if check['passed'] is None else shown(check['passed'])} "
        f"| {shown(check['found'])} | {shown(check['limit'])} | {check['says']} |"
        for check in report["checks"]
    ]
    accuracy, change = report["accuracy"], report["accuracy"]["change"]
    lines += ["", f"| | {report['metric']} | coverage |", "| --- | ---: | ---: |"]
    lines += [
        f"| {name} | {shown(accuracy[key])} | {shown(report['coverage'].get(key))} |"
        for name, key in (("candidate", "candidate"), ("release in use", "in_use"), ("popularity", "popularity"))
    ]
    if change:
        lines += ["", f"Change: {percent(change)}, of {change['users']:,} users."]
    data = ", ".join(f"{name} {shown(value)}" for name, value in report["data"].items() if value is not None)
    steps = ", ".join(f"{name} {step['seconds']:g} s" for name, step in report["steps"].items() if step["seconds"])
    lines += ["", f"Data: {data or 'none'}.", "", f"Steps: {steps or 'none'}.", ""]
    return "\n".join(lines)


def percent(change: Mapping[str, float]) -> str:
    """A relative change with its interval."""
    return f"{change['mean']:+.1%} ({change['low']:+.1%} to {change['high']:+.1%})"


def _row(step: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    row: Mapping[str, Any] = step.get("rows", {}).get(name, {})
    return row


def _timing(step: Mapping[str, Any]) -> dict[str, Any]:
    return {name: step.get(name) for name in ("state", "began", "seconds", "error")}
