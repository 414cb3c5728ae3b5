"""Tells trackers of commands that returned, ingest, evaluate and index, and of what a person must know.

Called by the roof with what a command returned, so that the floors that do the work need not know who follows it.
"""

import json
from pathlib import Path
from typing import Any, Literal

from data.settings import Recipe
from data.tracking.build import start_tracking, tracked, tracking_settings
from data.tracking.contract import Step
from data.tracking.facts import run_facts, stable_id
from data.tracking.figures import plain_name
from data.tracking.following import Tracking
from data.tracking.published import Published
from data.tracking.settings import TrackingSettings

# Beside what a command wrote, since nothing may be added to a published directory.
FOLDER = "tracking"
# In the tables of evaluation one metric a column; the others are in the command's own result.
SHOWN = ("ndcg@10", "recall@10", "hr@10", "mrr@10", "coverage@10")

Result = dict[str, Any]


def check(recipe: Recipe) -> Result:
    """Refuse a wrong `tracking` section, or a tracker that is not installed, before the work begins.

    Raises:
        RecipeError: wrong settings.
        MachineError: a tracker's package is not installed.
    """
    return {"to": list(tracking_settings(recipe).to)}


def track(
    step: Literal["ingest", "evaluate", "index"], recipe: Recipe, result: Result, artifact: str | None = None
) -> Result:
    """Tell the recipe's trackers of a command that returned.

    The same content again goes on with the same run, so that a repeated command adds none.

    Args:
        recipe: of the command; its `tracking` section says who is told.
        result: what the command returned.
        artifact: directory of the artifact that it was given.

    Returns:
        `problems` by tracker, of those that had any.
    """
    settings = tracking_settings(recipe)
    if not settings.to or step not in settings.steps:
        return {"problems": {}}
    match step:
        case "ingest":
            return _ingested(settings, recipe, result)
        case "evaluate":
            return _evaluated(settings, recipe, result, artifact)
        case "index":
            return _indexed(settings, recipe, result)


def alert(recipe: Recipe, directory: str, title: str, text: str) -> Result:
    """Tell a person that something outside a training run needs them, such as a gate that held a release back.

    Args:
        directory: of the pipeline that asks; its alerts are those of one run.

    Returns:
        `problems` by tracker, of those that had any.
    """
    settings = tracking_settings(recipe)
    facts = run_facts("pipeline", Path(directory), {})
    tracking = start_tracking(settings, facts)
    tracking.alert(title, text)
    tracking.finish(failed=True)
    return {"problems": tracking.problems}


def _ingested(settings: TrackingSettings, recipe: Recipe, result: Result) -> Result:
    dataset = Published.of(result["directory"])
    facts = run_facts(
        "ingest",
        dataset.directory.parent / FOLDER,
        {"ingest": recipe.get("ingest", {})},
        name=dataset.label,
        run_id=stable_id("ingest", dataset.content_hash),
        dataset=dataset,
    )
    with tracked(settings, facts) as tracking:
        counts = dataset.manifest.get("counts", {})
        tracking.log({f"data/{plain_name(name)}": float(count) for name, count in counts.items()}, {})
        tracking.made(dataset)
    return {"problems": tracking.problems}


def _evaluated(settings: TrackingSettings, recipe: Recipe, result: Result, artifact: str | None) -> Result:
    dataset, content_hash = Published.of(result["dataset"]), result.get("artifact", "no artifact")
    protocol, rows = result["protocol"], result["rows"]
    measured = {"evaluate": recipe.get("evaluate", {}), "protocol": protocol, "artifact": content_hash}
    run_id = stable_id("evaluate", content_hash, dataset.content_hash, json.dumps(protocol, sort_keys=True))
    place, name = dataset.directory.parent / FOLDER, dataset.label if artifact is None else Published.of(artifact).label
    facts = run_facts("evaluate", place, measured, name=name, run_id=run_id, dataset=dataset)
    with tracked(settings, facts) as tracking:
        tracking.used(dataset)
        if artifact is not None:
            tracking.used(Published.of(artifact))
        _log_rows(tracking, rows, result.get("intervals", {}))
    return {"problems": tracking.problems}


def _log_rows(tracking: Tracking, rows: list[Result], intervals: dict[str, dict[str, float]]) -> None:
    """The last row, which is the model's, as figures; all rows, baselines among them, as a table."""
    last = {**rows[-1], **intervals.get(rows[-1]["model"], {})}
    numbers = {name: value for name, value in last.items() if isinstance(value, int | float)}
    tracking.log({f"eval/{plain_name(name)}": float(value) for name, value in numbers.items()}, {})
    shown = [name for name in SHOWN if name in rows[-1]]
    cells = [[row["model"], *(row.get(name) for name in shown)] for row in rows]
    tracking.table("rankings", ["ranking", *shown], cells, {})


def _indexed(settings: TrackingSettings, recipe: Recipe, result: Result) -> Result:
    """Two runs, so that the lineage reads artifact, index, release: each is made from the one before it."""
    release = Published.of(result["release"])
    artifact, index = Published.of(release.directory / "artifact"), Published.of(release.directory / "index")
    place, asked = release.directory.parent / FOLDER, {"index": recipe.get("index", {})}
    problems: dict[str, str] = {}
    steps: tuple[tuple[Step, Published, Published], ...] = (("index", artifact, index), ("release", index, release))
    for step, used, made in steps:
        facts = run_facts(step, place, asked, name=made.label, run_id=stable_id(step, made.content_hash))
        with tracked(settings, facts) as tracking:
            tracking.used(used)
            if step == "index":
                counts, recall = index.manifest.get("counts", {}), index.manifest.get("recall", {})
                sizes = {f"index/{name}": float(count) for name, count in counts.items()}
                tracking.log({**sizes, "index/recall": float(recall["value"])} if recall else sizes, {})
            tracking.made(made)
        problems |= tracking.problems
    return {"problems": problems}
