"""How good a recipe is on a data set: import, ingest, train, and evaluate on the test split.

    python -m benchmarks.quality --dataset movielens-1m --recipe movielens_1m_cpu --json FILE

The public data sets are read from the folder that FARSIGHT_DATA names; `simulator` needs none. With
several seeds the report holds every run, the mean and the deviation.
"""

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import data.importers
import data.ingest
import data.simulate
import trainer.evaluate
import trainer.train
from benchmarks.report import parser, publish, run
from cluster.recipe_files import read_recipe
from cluster.suite import import_arguments, load_suite

METRICS = ("ndcg@10", "hr@10")

# How each published file set becomes a log: as the suites say; places are inside FARSIGHT_DATA.
SOURCES: dict[str, dict[str, Any]] = {
    "movielens-1m": load_suite("movielens_1m").data["last-out"].source or {},
    "amazon-beauty": load_suite("amazon").data["beauty"].source or {},
    "amazon-sports": load_suite("amazon").data["sports"].source or {},
}


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--dataset", required=True, choices=["simulator", *SOURCES])
    arguments.add_argument("--recipe", required=True, help="a shipped recipe's name, or a file")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="with --quick only the first")
    arguments.add_argument("--out", type=Path, help="directory of the runs; runs/quality/DATASET by default")
    arguments.add_argument("overrides", nargs="*", metavar="a.b=c")
    chosen = arguments.parse_args()
    out = chosen.out or Path("runs/quality") / chosen.dataset
    shutil.rmtree(out, ignore_errors=True)
    runs = []
    for seed in chosen.seeds[:1] if chosen.quick else chosen.seeds:
        runs.append(measure(chosen.dataset, chosen.recipe, [*chosen.overrides, f"train.seed={seed}"], out, seed))
    figures = {name: statistics.fmean(run["model"][name] for run in runs) for name in METRICS}
    deviations = {
        f"{name} deviation": statistics.stdev(run["model"][name] for run in runs) for name in METRICS if runs[1:]
    }
    seconds = statistics.fmean(run["seconds"] for run in runs)
    named = {"dataset": chosen.dataset, "recipe": chosen.recipe}
    publish("quality", {**named, **figures, **deviations, "seconds": seconds, "runs": runs}, chosen)


def measure(dataset: str, recipe_name: str, overrides: list[str], out: Path, seed: int) -> dict[str, Any]:
    """One run: seconds cover everything from the published files to the test metrics."""
    began = time.perf_counter()
    log, prepared, run_dir = out / "log", out / "dataset", out / f"seed-{seed}"
    recipe = read_recipe(
        recipe_name,
        [
            *overrides,
            f"ingest.log={log}",
            f"ingest.out={prepared}",
            f"train.dataset={prepared}",
            f"train.run_dir={run_dir}",
        ],
    )
    if not prepared.exists():
        _make_log(dataset, log, recipe)
        data.ingest.run(recipe)
    trained = trainer.train.run(recipe)
    report = trainer.evaluate.run(trained["artifact"], str(prepared), split="test", recipe=recipe)
    rows = {row["model"]: row for row in report["rows"]}
    return {
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "train_seconds": trained["seconds"],
        "validation": trained["validation"],
        "model": rows["model"],
        "popularity": rows["popularity"],
        "protocol": report["protocol"],
    }


def _make_log(dataset: str, log: Path, recipe: dict[str, Any]) -> None:
    if dataset == "simulator":
        data.simulate.run(recipe, str(log))
        return
    data.importers.run(out=str(log), **import_arguments(dataset, SOURCES[dataset]))


if __name__ == "__main__":
    run(main)
