"""What foresight (TAMIP) and conditions (CGSA) bring: the suite `foresight`, then fine-tuning under conditions.

    python -m benchmarks.climber_pilot --quick --json FILE
    FARSIGHT_DATA=DIR python -m benchmarks.climber_pilot --data movielens-1m

First the rows of `farsight benchmark foresight` that are compared, on the data set named; those that
stand already are not measured again. Then the artifact of `strict` (`next_item` with --pretrained) is
fine-tuned once per way to take a condition, and every way to answer is measured under the condition of
the user's next item. With --quick one seed, otherwise three.
"""

from pathlib import Path

import cluster.benchmark
from benchmarks.conditions import KINDS, compared, conditional_table, fine_tuned, hard_compliance
from benchmarks.report import parser, publish, run

ROWS = ("next_item", "multi_item", "faithful", "strict")


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--data", default="simulated", help="a data set of the suite `foresight` with categories")
    arguments.add_argument("--pretrained", default="strict", choices=ROWS, help="the row that conditions start from")
    arguments.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="ways to take a condition")
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/foresight"), help="directory of the rows")
    arguments.add_argument("overrides", nargs="*", metavar="a.b=c", help="laid over the suite's settings")
    chosen = arguments.parse_args()
    seeds = [0] if chosen.quick else [0, 1, 2]
    report = cluster.benchmark.run(
        "foresight",
        models=ROWS,
        data=[chosen.data],
        seeds=seeds,
        out=str(chosen.out),
        overrides=chosen.overrides,
    )
    gap = report["data"][chosen.data]["figures"]["gap"]
    hits = {row: gap[row]["hr@10"]["mean"] for row in ROWS}
    folder = chosen.out / chosen.data
    dataset = folder / "dataset"
    starts = [folder / chosen.pretrained / f"seed-{seed}" / "artifact" for seed in seeds]
    tuned = {
        kind: [
            fine_tuned(start, dataset, kind, seed, chosen.overrides) for start, seed in zip(starts, seeds, strict=True)
        ]
        for kind in chosen.kinds
    }
    plain = conditional_table(dataset, starts)
    tables = {kind: conditional_table(dataset, places) for kind, places in tuned.items()}
    relative = {
        "gap_tamip_over_mip": hits["faithful"] / hits["multi_item"] - 1,
        "gap_strict_over_mip": hits["strict"] / hits["multi_item"] - 1,
        "gap_strict_over_faithful": hits["strict"] / hits["faithful"] - 1,
        "gap_strict_over_next_item": hits["strict"] / hits["next_item"] - 1,
        **compared(plain, tables),
    }
    if "cgsa" in tuned:
        relative["hard_condition_compliance"] = hard_compliance(dataset, tuned["cgsa"][0])
    figures = {**relative, "gap_hr@10": hits, "pretrained": plain, "fine_tuned": tables, "seeds": seeds}
    publish("climber_pilot", {"data": chosen.data, **figures}, chosen)


if __name__ == "__main__":
    run(main)
