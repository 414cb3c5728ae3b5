"""What a request's weights do to a model of several objectives (CSMF): the last stage of the suite `csmf` under them.

    python -m benchmarks.csmf --quick --json FILE
    FARSIGHT_DATA=DIR python -m benchmarks.csmf --data movielens-100k

First the stages, and a model of one objective, as rows of `farsight benchmark csmf`; those that stand
already are not measured again. Then the artifact of the last stage is evaluated under weights from one
objective to the next, once per seed: `last_stage_by_objective` has to be what the stages' own rows have.
`latency` is of one answer of one process, in turn: of a model of one objective, of the last stage, and
with a request's weights. With --quick one seed, otherwise three.

Whether stages are worth it is told by `benchmarks.methods`.
"""

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import cluster.benchmark
import serve.build
import trainer.evaluate
from benchmarks.climber_pilot import over_seeds
from benchmarks.report import parser, publish, run, spread
from cluster.suite import load_suite
from data.dataset import PreparedDataset
from serve.engine import Engine
from serve.golden import history_queries

LAST, ALONE = "conversion", "single_exposure"
STAGES = ("exposure", "exposure_recovered", "click", "click_recovered", LAST)
OBJECTIVES = ("exposure", "click", "conversion")
METRICS = ("recall@50", "ndcg@50")
# Of the weights of two objectives, the share of the later one.
SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
TIMED_ANSWERS = 300


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--data", default="simulated", help="a data set of the suite `csmf`")
    arguments.add_argument("--seeds", type=int, nargs="+", help="0 1 2; with --quick 0")
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/csmf"), help="directory of the rows")
    arguments.add_argument("overrides", nargs="*", metavar="a.b=c", help="laid over the suite's settings")
    chosen = arguments.parse_args()
    seeds = chosen.seeds or ([0] if chosen.quick else [0, 1, 2])
    cluster.benchmark.run(
        "csmf",
        models=[*STAGES, ALONE],
        data=[chosen.data],
        seeds=seeds,
        out=str(chosen.out),
        overrides=chosen.overrides,
    )
    means, deviations = over_seeds([measured(chosen.out / chosen.data, seed) for seed in seeds])
    times = latency(chosen.out / chosen.data, seeds[0])
    publish("csmf", {"data": chosen.data, "seeds": seeds, **means, "deviation": deviations, "latency": times}, chosen)


def measured(folder: Path, seed: int) -> dict[str, Any]:
    """The figures of one seed: those of the stages' rows, and those of the last stage under weights."""
    rows = {}
    for name in STAGES:
        file = folder / name / f"seed-{seed}" / cluster.benchmark.ROW_FILE
        metrics = json.loads(file.read_text(encoding="utf-8"))["metrics"]
        rows[name] = {objective: _of(metrics[objective]) for objective in OBJECTIVES}
    artifact, dataset = folder / LAST / f"seed-{seed}" / cluster.benchmark.ARTIFACT, folder / "dataset"
    alone = {name: under({name: 1.0}, artifact, dataset) for name in OBJECTIVES}
    sweep = {
        f"{1 - share:g} {first} + {share:g} {second}": under({first: 1 - share, second: share}, artifact, dataset)
        for first, second in (("exposure", "click"), ("exposure", "conversion"), ("click", "conversion"))
        for share in SHARES
    }
    return {"rows": rows, "last_stage_by_objective": alone, "sweep": sweep}


def under(weights: dict[str, float], artifact: Path, dataset: Path) -> dict[str, dict[str, float]]:
    """Metrics of each objective's targets when the last stage answers under these weights."""
    figures = {}
    for name, protocol in load_suite("csmf").protocols.items():
        section = {**protocol, "baselines": [], "objective_weights": weights}
        report = trainer.evaluate.run(str(artifact), str(dataset), recipe={"evaluate": section})
        figures[name] = _of(report["rows"][-1])
    return figures


def latency(folder: Path, seed: int) -> dict[str, Any]:
    """Milliseconds of one answer of one process; the models are asked in turn, history by history."""
    alone, last = (_engine(folder / name / f"seed-{seed}") for name in (ALONE, LAST))
    queries = history_queries(PreparedDataset.open(folder / "dataset"), TIMED_ANSWERS)
    weighted = [type(query)(**{**vars(query), "objective_weights": {"click": 1.0, LAST: 0.5}}) for query in queries]
    asked = {"one_objective": (alone, queries), "three": (last, queries), "three_weighted": (last, weighted)}
    medians: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(3):
        times: dict[str, list[float]] = {name: [] for name in asked}
        for number in range(len(queries)):
            for name, (engine, each) in asked.items():
                began = time.perf_counter()
                engine.answer([each[number]])
                times[name].append(1_000 * (time.perf_counter() - began))
        for name, found in times.items():
            medians[name].append(statistics.median(found))
    return {name: spread(found) for name, found in medians.items()}


def _engine(row: Path) -> Engine:
    release = row / "release"
    shutil.rmtree(release, ignore_errors=True)
    serve.build.run(str(row / cluster.benchmark.ARTIFACT), str(release), {"index": {}})
    return Engine.open(release)


def _of(metrics: dict[str, Any]) -> dict[str, float]:
    return {metric: float(metrics[metric]) for metric in METRICS}


if __name__ == "__main__":
    run(main)
