"""What foresight (TAMIP) and conditions (CGSA) bring: the suite `foresight`, then fine-tuning under conditions.

    python -m benchmarks.climber_pilot --quick --json FILE
    FARSIGHT_DATA=DIR python -m benchmarks.climber_pilot --data movielens-1m

First the rows of `farsight benchmark foresight` that are compared, on the data set named; those that
stand already are not measured again. Then the artifact of `strict` (`next_item` with --pretrained) is
fine-tuned once per way to take a condition, and every way to answer is measured under the condition of
the user's next item. With --quick one seed, otherwise three.
"""

import shutil
import statistics
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

import cluster.benchmark
import serve.release
import trainer.conditional
import trainer.train
from benchmarks.report import parser, publish, run
from data.dataset import PreparedDataset
from data.settings import apply_override
from modeling.artifact import Artifact
from serve.answer import Query
from serve.engine import Engine
from serve.instructions import Wish

ROWS = ("next_item", "multi_item", "faithful", "strict")
KINDS = ("cgsa", "adaln", "head", "token")
METRICS = ("hr@10", "hr@50", "ndcg@10", "cc@10", "cc@50", "fill@10", "fill@50")


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
    tuned = {
        kind: [fine_tuned(folder, chosen.pretrained, kind, seed, chosen.overrides) for seed in seeds]
        for kind in chosen.kinds
    }
    tables = {kind: conditional_table(folder, places) for kind, places in tuned.items()}
    plain = conditional_table(folder, [folder / chosen.pretrained / f"seed-{seed}" / "artifact" for seed in seeds])
    relative = {
        "gap_tamip_over_mip": hits["faithful"] / hits["multi_item"] - 1,
        "gap_strict_over_mip": hits["strict"] / hits["multi_item"] - 1,
        "gap_strict_over_faithful": hits["strict"] / hits["faithful"] - 1,
        "gap_strict_over_next_item": hits["strict"] / hits["next_item"] - 1,
    }
    if "cgsa" in tables:
        told, filtered = tables["cgsa"]["conditioned"], tables["cgsa"]["conditioned, filtered"]
        if "adaln" in tables:
            relative["cgsa_over_adaln"] = told["hr@50"] / tables["adaln"]["conditioned"]["hr@50"] - 1
        if "head" in tables:
            relative["cgsa_over_head"] = told["hr@50"] / tables["head"]["conditioned"]["hr@50"] - 1
        relative["cgsa_prefilter_over_prefilter"] = filtered["hr@50"] / plain["plain, filtered"]["hr@50"] - 1
        relative["hard_condition_compliance"] = hard_compliance(folder, tuned["cgsa"][0])
    figures = {**relative, "gap_hr@10": hits, "pretrained": plain, "fine_tuned": tables, "seeds": seeds}
    publish("climber_pilot", {"data": chosen.data, **figures}, chosen)


def fine_tuned(folder: Path, pretrained: str, kind: str, seed: int, overrides: list[str]) -> Path:
    """The artifact of one way to take a condition, trained from a pre-trained one unless it stands."""
    start = folder / pretrained / f"seed-{seed}" / "artifact"
    run_dir = folder / f"{pretrained}_{kind}" / f"seed-{seed}"
    settings = Artifact.open(start).settings.model_dump(mode="json")
    recipe: dict[str, Any] = {
        "model": {**settings, "condition": {"kind": kind}},
        "train": {
            "dataset": str(folder / "dataset"),
            "run_dir": str(run_dir),
            "start_from": str(start),
            "seed": seed,
            "events_per_batch": 4096,
            "tracking": {"wandb": "disabled"},
        },
    }
    for override in overrides:
        apply_override(recipe, override)
    recipe["train"] |= {"epochs": 4, "evaluate_every_epochs": 4}
    recipe["train"]["optimizer"] = {"learning_rate": 3e-4, "decay": "cosine"}
    return Path(trainer.train.run(recipe)["artifact"])


def conditional_table(folder: Path, artifacts: list[Path]) -> dict[str, dict[str, float]]:
    """Every way to answer, means over the seeds."""
    recipe = {"evaluate": {"ks": [10, 50]}}
    reports = [
        trainer.conditional.run(str(place), str(folder / "dataset"), condition="oracle", recipe=recipe)["rows"]
        for place in artifacts
    ]
    table = {}
    for rows in zip(*reports, strict=True):
        means = {name: statistics.fmean(row[name] for row in rows) for name in METRICS}
        if len(rows) > 1:
            means["hr@50 deviation"] = statistics.stdev(row["hr@50"] for row in rows)
        table[rows[0]["model"]] = means
    return table


def hard_compliance(folder: Path, artifact: Path, *, users: int = 200) -> float:
    """Share of the served items that satisfy the hard condition that was asked for."""
    release = artifact.parent / "release"
    shutil.rmtree(release, ignore_errors=True)
    serve.release.run(str(artifact), str(release), {"index": {}})
    engine, dataset = Engine.open(release), PreparedDataset.open(folder / "dataset")
    catalogue = dataset.catalogue()
    item_ids = catalogue.column("item_id").to_pylist()
    categories = dict(zip(item_ids, catalogue.column("categories").to_pylist(), strict=True))
    names = sorted(set(pc.list_flatten(catalogue.column("categories")).to_pylist()))
    shown = fitting = 0
    for table in dataset.history_tables(["items", "times"]):
        for number, row in enumerate(table.slice(0, users).to_pylist()):
            name = names[number % len(names)]
            history = [item_ids[item - 1] for item in row["items"]]
            query = Query(history, 50, row["times"][-1], timestamps=row["times"], wishes=[Wish([name], hard=True)])
            [answer] = engine.answer([query])
            shown += len(answer.item_ids)
            fitting += sum(name in categories[item] for item in answer.item_ids)
        break
    return fitting / shown


if __name__ == "__main__":
    run(main)
