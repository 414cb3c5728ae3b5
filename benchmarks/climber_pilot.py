"""What foresight (TAMIP) and conditions (CGSA) bring: the suite `foresight`, then fine-tuning under conditions.

    python -m benchmarks.climber_pilot --quick --json FILE
    FARSIGHT_DATA=DIR python -m benchmarks.climber_pilot --data movielens-1m

First the rows of `farsight benchmark foresight` that are compared, on the data set named; those that
stand already are not measured again. Then the artifact of `strict` (`next_item` with --pretrained) is
fine-tuned once per way to take a condition, and every way to answer is measured under conditions
(`benchmarks.conditions`). All of that once per seed: figures are means over the seeds, `deviation` is
that of each between them. With --quick one seed, otherwise three.
"""

import json
import statistics
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cluster.benchmark
from benchmarks.conditions import (
    CONDITIONS,
    KINDS,
    PLAIN,
    compared,
    conditional_tables,
    fine_tuned,
    hard_compliance,
)
from benchmarks.report import parser, publish, run

ROWS = ("next_item", "multi_item", "faithful", "strict")


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--data", default="simulated", help="a data set of the suite `foresight` with categories")
    arguments.add_argument("--pretrained", default="strict", choices=ROWS, help="the row that conditions start from")
    arguments.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="ways to take a condition")
    arguments.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS)
    arguments.add_argument("--seeds", type=int, nargs="+", help="0 1 2; with --quick 0")
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/foresight"), help="directory of the rows")
    arguments.add_argument("overrides", nargs="*", metavar="a.b=c", help="laid over the suite's settings")
    chosen = arguments.parse_args()
    seeds = chosen.seeds or ([0] if chosen.quick else [0, 1, 2])
    cluster.benchmark.run(
        "foresight",
        models=ROWS,
        data=[chosen.data],
        seeds=seeds,
        out=str(chosen.out),
        overrides=chosen.overrides,
    )
    means, deviations = over_seeds([measured(seed, chosen) for seed in seeds])
    tables = {"tables": means.pop("tables"), "tables_deviation": deviations.pop("tables", {})}
    publish("climber_pilot", {"data": chosen.data, "seeds": seeds, **means, "deviation": deviations, **tables}, chosen)


def measured(seed: int, chosen: Namespace) -> dict[str, Any]:
    """The figures of one seed."""
    folder = chosen.out / chosen.data
    start, dataset = folder / chosen.pretrained / f"seed-{seed}" / "artifact", folder / "dataset"
    tuned = {kind: fine_tuned(start, dataset, kind, seed, chosen.overrides) for kind in chosen.kinds}
    tables = conditional_tables(dataset, {PLAIN: start, **tuned}, chosen.conditions)
    figures: dict[str, Any] = {**foresight(folder, seed), **compared(tables[chosen.conditions[0]])}
    if "cgsa" in tuned:
        figures["hard_condition_compliance"] = hard_compliance(dataset, tuned["cgsa"])
    return {**figures, "tables": tables}


def foresight(folder: Path, seed: int) -> dict[str, Any]:
    """HR@10 under the gap of the suite's rows, and their relative differences."""
    files = {row: folder / row / f"seed-{seed}" / cluster.benchmark.ROW_FILE for row in ROWS}
    hits = {
        row: float(json.loads(file.read_text(encoding="utf-8"))["metrics"]["gap"]["hr@10"])
        for row, file in files.items()
    }
    return {
        "gap_tamip_over_mip": hits["faithful"] / hits["multi_item"] - 1,
        "gap_strict_over_mip": hits["strict"] / hits["multi_item"] - 1,
        "gap_strict_over_faithful": hits["strict"] / hits["faithful"] - 1,
        "gap_strict_over_next_item": hits["strict"] / hits["next_item"] - 1,
        "gap_hr@10": hits,
    }


def over_seeds(figures: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Means of nested figures over the seeds, and in the same form their deviations; none of a single seed."""
    means: dict[str, Any] = {}
    deviations: dict[str, Any] = {}
    for name, first in figures[0].items():
        values = [each[name] for each in figures]
        if isinstance(first, dict):
            means[name], deviations[name] = over_seeds(values)
            continue
        means[name] = statistics.fmean(values)
        if len(values) > 1:
            deviations[name] = statistics.stdev(values)
    return means, deviations


if __name__ == "__main__":
    run(main)
