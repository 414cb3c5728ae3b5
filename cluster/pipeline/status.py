"""`farsight pipeline status`: the days, where each stands, what is in use, and what waits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import floors
from cluster.output import shown
from cluster.pipeline.report import percent
from cluster.pipeline.run import SECTION, waiting
from cluster.pipeline.settings import PipelineSettings
from cluster.pipeline.state import PLACES, Day, days, running
from cluster.tables import filled, moment, print_table
from data.settings import Recipe, read_section
from data.storage import MANIFEST


def run(recipe: Recipe, newest: int = 10) -> dict[str, Any]:
    """What stands; changes nothing.

    Args:
        newest: days listed at most.

    Returns:
        `dir`, `running` (who, or None), `waiting` (days with a complete log), `days` (newest first, each with its
        `steps`), and `releases` of the registry.

    Raises:
        RecipeError: wrong settings.
        LogError: the place of the logs cannot be reached.
    """
    settings = read_section(recipe, SECTION, PipelineSettings)
    directory = Path(settings.dir)
    who = running(directory)
    found = days(directory)[::-1][:newest]
    releases = []
    if (Path(settings.registry) / MANIFEST).is_file():
        releases = floors.start(floors.RELEASES, registry=settings.registry)["releases"]
    return {
        "dir": settings.dir,
        "registry": settings.registry,
        "running": who,
        "waiting": waiting(settings),
        "days": [_standing(day, running=who is not None) for day in found],
        "releases": releases,
    }


def _standing(day: Day, *, running: bool) -> dict[str, Any]:
    """One day: its report if it is finished, else how far it has come."""
    report = day.report
    if report:
        return {"day": day.name, "state": report["outcome"], "steps": report["steps"], "report": report}
    taken = {name: day.step(name) for name in PLACES}
    last = next((name for name in reversed(PLACES) if taken[name]), None)
    state = "not begun"
    if last is not None:
        stands = taken[last]["state"]
        ended = {"begun": "stopped in", "done": "stopped after", "failed": "failed in"}[stands]
        state = f"running, {last}" if running and stands != "failed" else f"{ended} {last}"
    steps = {
        name: {key: step.get(key) for key in ("state", "began", "seconds", "error")} for name, step in taken.items()
    }
    return {"day": day.name, "state": state, "steps": steps, "report": None}


def print_status(result: dict[str, Any]) -> None:
    """Days as a table, then the steps of the newest."""
    standing = {name: release["release_id"] for release in result["releases"] for name in release["names"]}
    print(f"in use: {standing.get('current') or standing.get('latest') or 'no release yet'} ({result['registry']})")
    print(f"running: {result['running'] or 'no'}")
    print(f"waiting: {', '.join(result['waiting']) or 'no day'}")
    rows = [_row(day) for day in result["days"]]
    columns = ["day", "state", "seconds", "events", "accuracy", "in use", "change", "release"]
    print_table(f"Days in {result['dir']}, newest first", filled(columns, rows), rows)
    for day in result["days"]:
        for reason in (day["report"] or {}).get("why", []):
            print(f"{day['day']} held back: {reason}")
    if result["days"]:
        newest = result["days"][0]
        steps = [
            {
                **step,
                "step": name,
                "state": step["state"] or "-",
                "began": step["began"] and moment(step["began"]),
                "seconds": _whole(step["seconds"]),
            }
            for name, step in ((name, newest["steps"][name]) for name in PLACES)
        ]
        columns = ["step", "state", "began", "seconds", "error"]
        print_table(f"Steps of {newest['day']}", filled(columns, steps), steps)


def _row(day: Mapping[str, Any]) -> dict[str, Any]:
    report = day["report"] or {}
    accuracy = report.get("accuracy", {})
    return {
        "day": day["day"],
        "state": day["state"],
        "seconds": _whole(sum(step["seconds"] or 0 for step in day["steps"].values())),
        "events": report.get("data", {}).get("events"),
        "accuracy": accuracy.get("candidate"),
        "in use": accuracy.get("in_use"),
        "change": percent(accuracy["change"]) if accuracy.get("change") else None,
        "release": report.get("candidate"),
    }


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def print_run(result: dict[str, Any]) -> None:
    """A line per day that was done."""
    if not result["days"]:
        print("no day waits")
    for report in result["days"]:
        accuracy = report["accuracy"]
        print(f"{report['day']}: {report['outcome']}")
        figures = {
            "release": report["candidate"],
            "after": report["in_use"],
            report["metric"]: accuracy["candidate"],
            f"{report['metric']} of the release in use": accuracy["in_use"],
            "change": accuracy["change"] and percent(accuracy["change"]),
            "seconds": _whole(report["seconds"]),
            "report": str(Path(result["dir"]) / report["day"] / "report.md"),
        }
        for name, value in figures.items():
            if value is not None:
                print(f"  {name}: {shown(value)}")
        for reason in report["why"]:
            print(f"  held back: {reason}")
