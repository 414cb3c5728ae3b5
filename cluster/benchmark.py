"""`farsight benchmark`: every row of a suite, one after the other, and a report of what is there.

DIR/DATA/{log,dataset}          made once
DIR/DATA/MODEL/seed-N/          the run of `farsight train`, and beside it
DIR/DATA/MODEL/seed-N/row.json  metrics under every protocol, with what they were made with
DIR/DATA/MODEL/seed-N/users/    metrics of every user, per protocol
DIR/report.md, report.json, *.png

A row whose row.json was made with the same settings from the same dataset is not measured again, so an interrupted
suite goes on where it stopped, and rows may be measured in any order, by several commands.
"""

import json
import logging
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import floors
from cluster.suite import DataSettings, ModelSettings, SuiteSettings, import_arguments, load_suite, row_recipe
from cluster.suite_report import write_report
from data.errors import RecipeError
from data.provenance import commit, surroundings
from data.settings import Recipe, apply_override
from data.storage import MANIFEST, write_json

logger = logging.getLogger(__name__)

ROW_FILE = "row.json"
USERS = "users"
ARTIFACT = "artifact"  # as training calls it


@dataclass(frozen=True)
class Row:
    """One run of a suite; baselines without randomness have the single seed 0."""

    data: str
    model: str
    seed: int

    def folder(self, out: Path) -> Path:
        """Where everything of this row lies."""
        return out / self.data / self.model / f"seed-{self.seed}"


def run(
    suite: str,
    *,
    models: Sequence[str] = (),
    data: Sequence[str] = (),
    seeds: Sequence[int] = (),
    out: str | None = None,
    overrides: Sequence[str] = (),
    report_only: bool = False,
) -> dict[str, Any]:
    """Measure the rows of a suite that are missing, and write the report of all that are there.

    Args:
        models, data, seeds: measure these only; the report covers every row that was ever measured in `out`.
        out: directory; `runs/benchmarks/SUITE` by default.
        overrides: `train.epochs=3` and the like, laid over every trained row. They are part of what a row is.

    Raises:
        RecipeError: no such suite, row or data set, or a setting is wrong.
        DatasetError: FARSIGHT_DATA is needed and not set.
    """
    settings = load_suite(suite)
    _check_names("--models", models, settings.models)
    _check_names("--data", data, settings.data)
    for override in overrides:
        apply_override({}, override)  # before anything is measured, and also where only baselines are asked for
    place = Path(out or Path("runs/benchmarks") / Path(suite).stem)
    # The commit of the code that runs, not of what it is edited to meanwhile.
    made_with = {"suite": suite, "commit": commit(), **surroundings()}
    wanted = [] if report_only else list(_rows(settings, data, models, seeds))
    for number, row in enumerate(wanted, start=1):
        logger.info("row %d of %d: %s, %s, seed %d", number, len(wanted), row.data, row.model, row.seed)
        _prepare(row.data, settings.data[row.data], place)
        _measure(row, settings, place, overrides, made_with)
    return write_report(settings, Path(suite).stem, place)


def _check_names(option: str, names: Sequence[str], known: dict[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise RecipeError(f"{option} {name}: the suite has {', '.join(known)}")


def _rows(settings: SuiteSettings, data: Sequence[str], models: Sequence[str], seeds: Sequence[int]) -> Iterator[Row]:
    """Rows to measure: the first seed of every model first, so that a suite that is stopped early shows them all."""
    longest = max(len(row.seeds or settings.seeds) for row in settings.models.values())
    for nth in range(longest):
        for data_name in data or settings.data:
            for name in models or settings.models:
                model = settings.models[name]
                if model.data is not None and data_name not in model.data:
                    continue
                own = _seeds(settings, name)
                if nth < len(own) and (not seeds or own[nth] in seeds or model.baseline is not None):
                    yield Row(data_name, name, own[nth])


def _seeds(settings: SuiteSettings, model: str) -> list[int]:
    row = settings.models[model]
    return row.seeds or ([0] if row.baseline is not None else settings.seeds)


def _prepare(name: str, settings: DataSettings, out: Path) -> None:
    """Make the log and the prepared dataset of a data set, unless they stand."""
    log, dataset = out / name / "log", out / name / "dataset"
    if (dataset / MANIFEST).is_file():
        return
    if not (log / MANIFEST).is_file():
        if settings.simulate is not None:
            floors.start(floors.SIMULATE, recipe={"simulate": settings.simulate}, out=str(log))
        else:
            floors.start(floors.IMPORT, out=str(log), **import_arguments(name, settings.source or {}))
    floors.start(floors.INGEST, recipe={"ingest": {**settings.ingest, "log": str(log), "out": str(dataset)}})


def _recipe(row: Row, settings: SuiteSettings, out: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe of a row, the command line's overrides laid over it."""
    if settings.models[row.model].baseline is not None:
        return {}
    recipe: Recipe = row_recipe(settings, row.data, row.model)
    for override in overrides:
        apply_override(recipe, override)
    recipe["train"] |= {
        "dataset": str(out / row.data / "dataset"),
        "run_dir": str(row.folder(out)),
        "seed": row.seed,
    }
    before = settings.models[row.model].begins_with
    if before is not None:
        recipe["train"]["start_from"] = str(_artifact_of(Row(row.data, before, row.seed), out))
    return recipe


def _artifact_of(row: Row, out: Path) -> Path:
    """The artifact of a row that was measured before.

    Raises:
        RecipeError: it was not.
    """
    found = row.folder(out) / ARTIFACT
    if not (found / MANIFEST).is_file():
        raise RecipeError(f"{found}: not there; measure {row.model} with seed {row.seed} on {row.data} first")
    return found


def _settled(recipe: Recipe) -> Recipe:
    """A recipe without what may differ between two measurements of one row: where it runs and who watches."""
    places = ("dataset", "run_dir", "workers", "start_from")
    train = {name: value for name, value in recipe.get("train", {}).items() if name not in places}
    begun = recipe.get("train", {}).get("start_from")
    if begun is not None:
        train["begun_with"] = json.loads((Path(begun) / MANIFEST).read_text(encoding="utf-8"))["content_hash"]
    return {**{name: section for name, section in recipe.items() if name != "tracking"}, "train": train}


def _command(row: Row, suite: str, model: ModelSettings, overrides: Sequence[str]) -> str:
    """The command that measures this row again."""
    seed = [] if model.baseline is not None else ["--seeds", str(row.seed)]
    return shlex.join(["farsight", "benchmark", suite, "--data", row.data, "--models", row.model, *seed, *overrides])


def _measure(row: Row, settings: SuiteSettings, out: Path, overrides: Sequence[str], made_with: dict[str, Any]) -> None:
    """Train and evaluate one row, unless it was measured before with the same settings."""
    folder, dataset = row.folder(out), out / row.data / "dataset"
    recipe = _recipe(row, settings, out, overrides)
    model = settings.models[row.model]
    baseline = model.baseline
    manifest = json.loads((dataset / MANIFEST).read_text(encoding="utf-8"))
    identity = {
        "recipe": _settled(recipe),
        "baseline": baseline,
        "protocols": settings.protocols,
        "dataset": manifest["files"],
    }
    path = folder / ROW_FILE
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["identity"] == identity:
        return
    began = time.perf_counter()
    trained = floors.start(floors.TRAIN, recipe=recipe) if baseline is None else {}
    baselines = [] if baseline is None else [{**baseline, **({"seed": row.seed} if row.seed else {})}]
    metrics, statements = {}, {}
    path.unlink(missing_ok=True)  # before what it vouches for goes
    shutil.rmtree(folder / USERS, ignore_errors=True)
    for name, section in settings.protocols.items():
        report = floors.start(
            floors.EVALUATE,
            artifact=trained.get("artifact"),
            dataset=str(dataset),
            recipe={"evaluate": {**section, "baselines": baselines}},
            users_out=str(folder / USERS / name),
        )
        metrics[name], statements[name] = report["rows"][-1], report["protocol"]
    result = {
        "data": row.data,
        "model": row.model,
        "seed": row.seed,
        "metrics": metrics,
        "protocols": statements,
        "training": {name: trained[name] for name in ("seconds", "validation", "content_hash") if name in trained},
        "seconds": round(time.perf_counter() - began, 1),
        "command": _command(row, made_with["suite"], model, overrides),
        "made_with": made_with,
        "identity": identity,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, json.loads(json.dumps(result, default=str)))
