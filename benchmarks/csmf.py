"""What stages of objectives in one vector (CSMF) bring: the suite `csmf`, then weights laid on its last stage.

    python -m benchmarks.csmf --quick --json FILE
    FARSIGHT_DATA=DIR python -m benchmarks.csmf --data movielens-100k

First the rows of `farsight benchmark csmf` on the data set named; those that stand already are not
measured again. Then the artifact of the last stage is evaluated under weights from one objective to the
next, once per seed, and its release is searched with and without weights. With --quick one seed and half
the epochs, otherwise three seeds.

`verdict`: "on by default" if, on these data, the last stage ranks both clicks and conversions at least as
well (recall@50, means over the seeds) as the better of one model each and all at once; otherwise "off".
"""

import json
import shutil
import statistics
import time
from argparse import Namespace
from collections.abc import Sequence
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

LAST = "conversion"
OBJECTIVES = ("exposure", "click", "conversion")
METRICS = ("recall@50", "ndcg@50")
# What the last stage is measured against for each objective.
RIVALS = {
    "exposure": ("plain", "shared_bottom", "mmoe"),
    "click": ("single_click", "shared_bottom", "mmoe"),
    "conversion": ("single_conversion", "shared_bottom", "mmoe"),
}
# Of the weights of two objectives, the share of the later one.
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
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
    overrides = [*(["train.epochs=8"] if chosen.quick else []), *chosen.overrides]
    cluster.benchmark.run("csmf", data=[chosen.data], seeds=seeds, out=str(chosen.out), overrides=overrides)
    means, deviations = over_seeds([measured(seed, chosen) for seed in seeds])
    facts = {"data": chosen.data, "seeds": seeds, "verdict": verdict(means["rows"])}
    publish("csmf", {**facts, **means, "deviation": deviations, "latency": latency(chosen, seeds[0])}, chosen)


def measured(seed: int, chosen: Namespace) -> dict[str, Any]:
    """The figures of one seed: those of the rows, and those of the last stage under weights."""
    folder = chosen.out / chosen.data
    files = {name: folder / name / f"seed-{seed}" / cluster.benchmark.ROW_FILE for name in load_suite("csmf").models}
    found = {
        name: json.loads(file.read_text(encoding="utf-8"))["metrics"] for name, file in files.items() if file.is_file()
    }
    rows = {
        name: {objective: _of(metrics[objective]) for objective in OBJECTIVES if objective in metrics}
        for name, metrics in found.items()
        if name != "popularity"  # the same for every seed
    }
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


def verdict(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Whether the last stage holds against what it would replace."""
    behind = []
    for objective in ("click", "conversion"):
        own = rows["click_recovered" if objective == "click" else LAST][objective]["recall@50"]
        best = max(rows[name][objective]["recall@50"] for name in RIVALS[objective])
        if own < best:
            behind.append(f"{objective} {own:.4f}, {best:.4f} without stages")
    return "on by default" if not behind else f"off: recall@50 of {'; '.join(behind)}"


def latency(chosen: Namespace, seed: int) -> dict[str, Any]:
    """Milliseconds of one answer of one process, with the release's own weights and with a request's."""
    folder = chosen.out / chosen.data
    release = folder / LAST / f"seed-{seed}" / "release"
    shutil.rmtree(release, ignore_errors=True)
    serve.build.run(str(release.parent / cluster.benchmark.ARTIFACT), str(release), {"index": {}})
    engine = Engine.open(release)
    queries = history_queries(PreparedDataset.open(folder / "dataset"), TIMED_ANSWERS)
    weighted = [type(query)(**{**vars(query), "objective_weights": {"click": 1.0, LAST: 0.5}}) for query in queries]
    engine.answer(queries[:10])
    return {"own": _milliseconds(engine, queries), "weighted": _milliseconds(engine, weighted)}


def _milliseconds(engine: Engine, queries: Sequence[Any]) -> dict[str, float]:
    medians = []
    for _ in range(3):
        times = []
        for query in queries:
            began = time.perf_counter()
            engine.answer([query])
            times.append(1_000 * (time.perf_counter() - began))
        medians.append(statistics.median(times))
    return spread(medians)


def _of(metrics: dict[str, Any]) -> dict[str, float]:
    return {metric: float(metrics[metric]) for metric in METRICS}


if __name__ == "__main__":
    run(main)
