"""The steps of a day, each the call of a floor, with what it goes by and the figures that it leaves.

Places change from day to day and are the pipeline's; everything else is the recipe's.
"""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster import floors
from cluster.pipeline.deployment import deploy
from cluster.pipeline.judge import MODEL, POPULARITY, coverage_name, relative
from cluster.pipeline.settings import PipelineSettings
from cluster.pipeline.state import Day, Result
from data.errors import RecipeError
from data.settings import Recipe, merged

DAY_SECONDS = 86_400
# Of the section `train`, what may differ between two attempts of one training (as in `trainer.train`).
NOT_LEARNED_FROM = ("workers", "tracking", "max_minutes", "checkpoints_kept", "checkpoint_every_batches")


@dataclass(frozen=True)
class Base:
    """The dataset that a day extends."""

    name: str  # of the day that it is from
    dataset: str
    digest: str  # of its files
    counts: dict[str, int]


@dataclass(frozen=True)
class InUse:
    """The release in use."""

    release_id: str
    release: str
    trained_until: int | None  # seconds UTC before which its training events are; None if it is not the pipeline's

    @property
    def artifact(self) -> str:
        """Its artifact."""
        return str(Path(self.release) / "artifact")


@dataclass(frozen=True)
class Task:
    """One day as it is to be done."""

    recipe: Recipe
    settings: PipelineSettings
    day: Day
    logs: list[str]
    log_digest: str
    base: Base | None
    in_use: InUse | None

    @property
    def start(self) -> int:
        """First second of the day, UTC."""
        return int(datetime.datetime.fromisoformat(f"{self.day.name}T00:00:00+00:00").timestamp())

    @property
    def trained_until(self) -> int:
        """Seconds UTC from which on events are validation or test."""
        return self.start - round(self.settings.validation_hours * 3600)

    def section(self, name: str) -> Recipe:
        """A section of the recipe; empty if it is not there."""
        return dict(self.recipe.get(name) or {})

    @property
    def tracking(self) -> Recipe:
        """The section `tracking` alone, where there is one: who is told of a step does not change what it makes."""
        return {"tracking": self.recipe["tracking"]} if "tracking" in self.recipe else {}

    @property
    def in_use_id(self) -> str | None:
        """Id of the release in use, if there is one."""
        return None if self.in_use is None else self.in_use.release_id


def ingest(task: Task) -> Result:
    """Put the log of the day behind the dataset of the days before; what is tested is the day."""
    section = ingest_section(task)
    inputs = {"section": section, "base": task.base and task.base.digest, "log": task.log_digest}

    def work() -> Result:
        recipe = {"ingest": section, **task.tracking}
        ingested = floors.tracked("ingest", floors.INGEST, recipe=recipe, out=str(task.day.place("ingest")))
        made, newest = ingested["counts"], ingested["time_range"][1]
        before = {} if task.base is None else task.base.counts
        return {
            "counts": made,
            "rows_read": made["events_read"] - before.get("events_read", 0),
            "quarantined": made["quarantined"] - before.get("quarantined", 0),
            "duplicates": made["duplicates"] - before.get("duplicates", 0),
            "new_items": made["items"] - before.get("items", 0),
            "events": made["test_events"],
            "users": made["users_with_test"],
            "silence_hours": round((task.start + DAY_SECONDS - newest) / 3600, 2),
        }

    return task.day.take("ingest", inputs, work)


def ingest_section(task: Task) -> Recipe:
    """The section `ingest` of a day: tested is what happened from its first second (UTC) on."""
    section = task.section("ingest")
    if len(task.logs) > 1 and not section.get("catalogue"):
        # Of several logs ingest does not know which one's own catalogue is meant: the day's, which comes last.
        own = Path(task.logs[-1]) / "catalogue.parquet"
        section["catalogue"] = str(own) if own.is_file() else None
    extends = {"extends": task.base.dataset, "items_from": None} if task.base else {"extends": None}
    split = {"kind": "time", "validation_start": task.trained_until, "test_start": task.start}
    log: str | list[str] = task.logs[0] if len(task.logs) == 1 else task.logs
    return {**section, "log": log, "out": None, "replace": True, **extends, "split": split}


def check(task: Task) -> Result:
    """Measure popularity and the release in use on the day, which neither has learned from."""
    inputs = {"ingest": task.day.made_from("ingest"), "evaluate": task.section("evaluate"), "in_use": task.in_use_id}

    def work() -> Result:
        result: Result = {"release_id": task.in_use_id, "cold_share": None}
        if not task.day.result("ingest")["users"]:
            return result  # nothing to measure on, which is a finding
        found = _evaluated(task, "check", task.in_use.artifact if task.in_use else None, [{"kind": POPULARITY}])
        return {**result, "cold_share": 1 - found["protocol"]["share_warm_targets"], **found}

    return task.day.take("check", inputs, work)


def train(task: Task) -> Result:
    """Train a candidate, from the release in use or from nothing."""
    start = task.in_use if task.settings.start == "in_use" else None
    section = task.section("train")
    if start is not None:
        since = start.trained_until if task.settings.continued_on == "new" else None
        section = {"since": since, **merged(section, task.settings.continued), "start_from": start.artifact}
    learned = {name: value for name, value in section.items() if name not in (*NOT_LEARNED_FROM, "start_from")}
    inputs = {
        "ingest": task.day.made_from("ingest"),
        "train": learned,
        "model": task.section("model"),
        "evaluate": task.section("evaluate"),
        "start_from": start.release_id if start else section.get("start_from"),
    }
    places = {"dataset": str(task.day.place("ingest")), "run_dir": str(task.day.place("train"))}

    def work() -> Result:
        recipe = {"train": {**section, **places}, **task.tracking}
        recipe |= {name: task.section(name) for name in ("model", "evaluate")}
        made = floors.start(floors.TRAIN, recipe=recipe)
        return {name: made[name] for name in ("artifact", "content_hash", "validation", "seconds")} | {
            "start_from": start and start.release_id
        }

    return task.day.take("train", inputs, work)


def evaluate(task: Task) -> Result:
    """Measure the candidate on the cases of step `check`, and compare user by user."""
    inputs = {"train": task.day.made_from("train"), "check": task.day.made_from("check")}

    def work() -> Result:
        found = _evaluated(task, "evaluate", task.day.result("train")["artifact"], [])
        before = task.day.result("check")
        assert found["protocol"] == before["protocol"]  # one dataset and one section
        in_use = before["rows"].get(MODEL)
        change = None
        if in_use is not None:
            metric, files = task.settings.metric, [task.day.place(step) / f"{MODEL}.parquet" for step in _MEASURING]
            ours, theirs = (pq.read_table(file, columns=["user_id", metric]) for file in files)
            assert ours["user_id"].equals(theirs["user_id"])
            comparison = floors.start(floors.PAIRED, a_U=ours[metric].to_numpy(), b_U=theirs[metric].to_numpy())
            change = relative(comparison, in_use[metric])
        return {**found, "change": change}

    return task.day.take("evaluate", inputs, work)


_MEASURING = ("evaluate", "check")


def index(task: Task) -> Result:
    """Build the candidate's release, and ask it as a replica that has just started."""
    section = {**task.section("index"), "min_recall": 0}  # the gate judges, with a reason in the report
    inputs = {"train": task.day.made_from("train"), "index": section, "in_use": task.in_use_id}

    def work() -> Result:
        places = {"out": str(task.day.place("index")), "dataset": str(task.day.place("ingest"))}
        artifact = task.day.result("train")["artifact"]
        recipe = {"index": section, **task.tracking}
        made = floors.tracked("index", floors.INDEX, artifact=artifact, recipe=recipe, **places)
        asked = floors.start(
            floors.REHEARSE, release=places["out"], against=task.in_use.release if task.in_use else None
        )
        return {
            "release_id": made["release_id"],
            "search": made["search"],
            "recall": made["recall"]["value"],
            "recall_k": made["recall"]["k"],
            **asked,
        }

    return task.day.take("index", inputs, work)


def promote(task: Task) -> Result:
    """Add the candidate to the registry, deploy it if the recipe says where, and remove old releases."""
    settings = task.settings
    inputs = {"index": task.day.made_from("index"), "in_use": task.in_use_id}

    def work() -> Result:
        release_id = task.day.result("index")["release_id"]
        floors.start(floors.RELEASES, registry=settings.registry, add=str(task.day.place("index")))
        if settings.deploy is not None:
            release = str(Path(settings.registry) / release_id)
            deploy(release, settings.deploy, task.section("serve"), task.day.place("promote"))
        pruned = floors.start(floors.RELEASES, registry=settings.registry, keep=settings.keep_releases)
        return {"release_id": release_id, "deployed": settings.deploy is not None, "removed": pruned["removed"]}

    return task.day.take("promote", inputs, work)


def _evaluated(task: Task, step: str, artifact: str | None, baselines: list[dict[str, Any]]) -> Result:
    """`farsight evaluate` on the day, the figures of each user kept: the protocol, and rows by name."""
    report = floors.start(
        floors.EVALUATE,
        artifact=artifact,
        dataset=str(task.day.place("ingest")),
        recipe={"evaluate": {**task.section("evaluate"), "baselines": baselines}},
        users_out=str(task.day.place(step)),
    )
    rows = {row["model"]: row for row in report["rows"]}
    metric = task.settings.metric
    for row in rows.values():
        if metric not in row or coverage_name(metric) not in row:
            known = ", ".join(name for name in row if f"coverage@{name.partition('@')[2]}" in row)
            raise RecipeError(f"pipeline.metric: {metric!r} is not measured; set evaluate.ks, or take one of: {known}")
    return {"protocol": report["protocol"], "rows": rows, "unknown_items": report.get("unknown_items", 0)}
