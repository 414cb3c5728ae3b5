"""`farsight pipeline run`: the days whose logs wait, oldest first, each from its log to a verdict."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster import floors
from cluster.pipeline import steps
from cluster.pipeline.judge import Check, judge_candidate, judge_data, passed
from cluster.pipeline.notice import alert, announce
from cluster.pipeline.report import HELD, accuracy_in_use, data_accepted, write_report
from cluster.pipeline.settings import DAY, PipelineSettings
from cluster.pipeline.state import Day, alone, as_date, days, digest, plain
from cluster.pipeline.steps import Base, InUse, Task
from data.errors import DatasetError, LogError, RecipeError
from data.settings import Recipe, read_section
from data.storage import MANIFEST

logger = logging.getLogger(__name__)

SECTION = "pipeline"


def run(recipe: Recipe, day: str | None = None, logs: Sequence[str] = (), again: bool = False) -> dict[str, Any]:
    """Do the days whose logs wait, or one day.

    A day that is finished is not done again; of one that was interrupted, the steps that are done are not.

    Args:
        day: YYYY-MM-DD; all days that wait if None.
        logs: where the log of that day is, in place of `pipeline.log`; several where mended logs of earlier days come
            along, that of the day last.
        again: forget first what was done of that day.

    Returns:
        `dir`, `days` (the report of each, oldest first) and `held`, the days that were held back.

    Raises:
        RecipeError: wrong settings, or a day that is not to be done.
        LogError: the day has no log.
        MachineError: another run is under way.
        FarsightError: what a step raises; the same command again goes on there.
    """
    settings = read_section(recipe, SECTION, PipelineSettings)
    _check_asked(day, logs, again)
    floors.start(floors.CHECK_TRACKING, recipe=recipe)
    with alone(Path(settings.dir)):
        wanted = iter([day]) if day is not None else _waiting_one_by_one(settings)
        reports = [_one_day(recipe, settings, name, logs, again) for name in wanted]
    held = [report["day"] for report in reports if report["outcome"] == HELD]
    return {"dir": settings.dir, "days": reports, "held": held}


def waiting(settings: PipelineSettings) -> list[str]:
    """Days with a complete log that are not finished, later than the newest whose data were accepted.

    Raises:
        LogError: the place of the logs cannot be reached.
    """
    reports = {day.name: day.report for day in days(Path(settings.dir))}
    newest = max((name for name, report in reports.items() if data_accepted(report)), default="")
    found: list[str] = floors.start(floors.LOG_DAYS, log=settings.log, marker=settings.marker)["days"]
    return [name for name in found if name > newest and not reports.get(name) and as_date(name) is not None]


def _waiting_one_by_one(settings: PipelineSettings) -> Iterator[str]:
    """The days that wait, looked up again after each: logs may come meanwhile."""
    while found := waiting(settings):
        yield found[0]


def _check_asked(day: str | None, logs: Sequence[str], again: bool) -> None:
    if day is None and (logs or again):
        raise RecipeError("--log and --again are about one day; name it with --day YYYY-MM-DD")
    if day is not None and as_date(day) is None:
        raise RecipeError(f"--day {day}: expected a date as YYYY-MM-DD")


def _one_day(recipe: Recipe, settings: PipelineSettings, name: str, logs: Sequence[str], again: bool) -> dict[str, Any]:
    """Take a day to its verdict, or give back that of a day that stands."""
    began = time.perf_counter()
    directory = Path(settings.dir)
    day = Day(directory / name)
    later = [other.name for other in days(directory) if other.name > name and data_accepted(other.report)]
    if later:
        if day.report and not again:
            return day.report
        raise RecipeError(
            f"{name}: {later[-1]} went in after it, and days go in in order; give this log along with that of a later "
            "day: --day LATER --log THIS --log LATER'S"
        )
    if again:
        day.forget()
    if day.report and day.report["outcome"] != HELD:
        return day.report
    task = _task(recipe, settings, day, list(logs) or [settings.log.replace(DAY, name)])
    checks, held_by = _verdict(task)
    report = write_report(task, checks, held_by=held_by, seconds=time.perf_counter() - began)
    _tidy(settings)
    announce(report, settings.notify)
    alert(report, recipe, settings.dir)
    return report


def _verdict(task: Task) -> tuple[list[Check], str | None]:
    """Go the steps as far as they lead; the checks on the way, and what held the day back, if anything."""
    settings, day = task.settings, task.day
    try:
        counts = steps.ingest(task)
    except LogError as error:
        return [Check("log", False, None, None, plain(error))], "data"
    measured = steps.check(task)
    checks = judge_data(counts, measured, _before(task), settings.checks, settings.metric)
    if not passed(checks):
        return checks, "data"
    steps.train(task)
    evaluated, index = steps.evaluate(task), steps.index(task)
    checks += judge_candidate(measured, evaluated, index, settings.gate, settings.metric)
    # What has begun is ended: the candidate may be in use already.
    begun = day.step("promote").get("inputs", {}).get("index") == day.made_from("index")
    if not passed(checks) and not begun:
        return checks, "candidate"
    steps.promote(task)
    return checks, None


def _before(task: Task) -> list[dict[str, Any]]:
    """What the days before were like whose data were accepted, the newest last."""
    reports = [day.report for day in days(Path(task.settings.dir)) if day.name < task.day.name]
    return [
        {"events": report["data"]["events"], "accuracy": accuracy_in_use(report)}
        for report in reports
        if data_accepted(report)
    ]


def _task(recipe: Recipe, settings: PipelineSettings, day: Day, logs: list[str]) -> Task:
    """The day with what it extends and what is in use now.

    Where promoting has begun, the candidate may be what is in use: then it is what it was before.
    """
    release_id = _in_use(settings.registry)
    promoting = day.step("promote")
    if promoting:
        release_id = promoting["inputs"]["in_use"]
    in_use = None
    if release_id is not None:
        reports = (other.report for other in days(Path(settings.dir)))
        until = [report["trained_until"] for report in reports if report and report["candidate"] == release_id]
        in_use = InUse(release_id, str(Path(settings.registry) / release_id), until[-1] if until else None)
    file_format = (recipe.get("ingest") or {}).get("format", "auto")
    log = floors.start(floors.LOG_STATE, locations=logs, format=file_format)["digest"]
    return Task(recipe, settings, day, logs, log, _base(settings, day), in_use)


def _in_use(registry: str) -> str | None:
    """Id of the registry's current release, or of the latest where none was deployed."""
    if not (Path(registry) / MANIFEST).is_file():
        return None
    releases = floors.start(floors.RELEASES, registry=registry)["releases"]
    named: dict[str, str] = {name: release["release_id"] for release in releases for name in release["names"]}
    return named.get("current", named.get("latest"))


def _base(settings: PipelineSettings, day: Day) -> Base | None:
    """The dataset of the newest day before whose data were accepted, or the one to begin with."""
    before = [other for other in days(Path(settings.dir)) if other.name < day.name and data_accepted(other.report)]
    place = str(before[-1].place("ingest")) if before else settings.begin_with
    if place is None:
        return None
    manifest = Path(place) / MANIFEST
    if not manifest.is_file():
        raise DatasetError(
            f"{place}: not a finished dataset, and {day.name} extends it; restore it, or set "
            "pipeline.begin_with and pipeline.dir to begin anew"
        )
    content = json.loads(manifest.read_text(encoding="utf-8"))
    return Base(before[-1].name if before else place, place, digest(content["files"]), content["counts"])


def _tidy(settings: PipelineSettings) -> None:
    """Keep what the newest days wrote, and the newest dataset that the next day extends."""
    finished = [day for day in days(Path(settings.dir)) if day.report]
    accepted = [day.name for day in finished if data_accepted(day.report)][-1:]
    for day in finished[: -settings.keep_days]:
        if day.name not in accepted:
            day.tidy()
