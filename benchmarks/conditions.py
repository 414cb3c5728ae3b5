"""Ways to follow a condition: each fine-tuned from one artifact, and every way to answer measured.

    python -m benchmarks.conditions --artifact DIR --dataset DIR --json FILE

`--conditions`: oracle, one of the user's next item; favourite, the category that most of the history has; rare, one
that the least of it has. The figures that compare ways are under the first of them. Runs go beside the artifact's run;
those that stand are not trained again.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow.compute as pc

import serve.build
import trainer.conditional
import trainer.train
from benchmarks.report import parser, publish, run
from data.dataset import PreparedDataset
from data.settings import apply_override
from modeling.artifact import Artifact
from serve.answer import Query
from serve.engine import Engine
from serve.instructions import Wish

KINDS = ("cgsa", "adaln", "head", "token")
PLAIN = "no condition"  # the artifact that fine-tuning starts from
TOLD = ("conditioned", "conditioned, filtered")
CONDITIONS = ("oracle", "favourite", "rare")
METRICS = ("hr@10", "hr@50", "ndcg@10", "cc@10", "cc@50", "fill@10", "fill@50")

Table = dict[str, dict[str, float]]


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--artifact", type=Path, required=True, help="what fine-tuning starts from")
    arguments.add_argument("--dataset", type=Path, required=True, help="prepared dataset that it was trained on")
    arguments.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="ways to take a condition")
    arguments.add_argument("overrides", nargs="*", metavar="a.b=c", help="laid over fine-tuning's settings")
    arguments.add_argument("--conditions", nargs="+", default=["oracle"], choices=CONDITIONS)
    chosen = arguments.parse_args()
    kinds = chosen.kinds[:1] if chosen.quick else chosen.kinds
    tuned = {kind: fine_tuned(chosen.artifact, chosen.dataset, kind, 0, chosen.overrides) for kind in kinds}
    tables = conditional_tables(chosen.dataset, {PLAIN: chosen.artifact, **tuned}, chosen.conditions)
    publish("conditions", {**compared(tables[chosen.conditions[0]]), "tables": tables}, chosen)


def compared(tables: dict[str, Table]) -> dict[str, float]:
    """Relative differences of HR@50 that the method stands or falls by, from the tables under one condition."""
    if "cgsa" not in tables:
        return {}
    told, filtered = tables["cgsa"]["conditioned"], tables["cgsa"]["conditioned, filtered"]
    figures = {
        f"cgsa_over_{kind}": told["hr@50"] / table["conditioned"]["hr@50"] - 1
        for kind, table in tables.items()
        if kind not in ("cgsa", PLAIN)
    }
    prefiltered = tables[PLAIN]["plain, filtered"]["hr@50"]
    return {**figures, "cgsa_prefilter_over_prefilter": filtered["hr@50"] / prefiltered - 1}


def fine_tuned(start: Path, dataset: Path, kind: str, seed: int, overrides: Sequence[str]) -> Path:
    """The artifact of one way to take a condition, trained from a pre-trained one unless it stands."""
    run_dir = start.parent / kind
    settings = Artifact.open(start).settings.model_dump(mode="json")
    recipe: dict[str, Any] = {
        "model": {**settings, "condition": {"kind": kind}},
        "train": {
            "dataset": str(dataset),
            "run_dir": str(run_dir),
            "start_from": str(start),
            "seed": seed,
            "events_per_batch": 4096,
        },
        "tracking": {"to": []},
    }
    for override in overrides:
        apply_override(recipe, override)
    recipe["train"] |= {"epochs": 4, "evaluate_every_epochs": 4}
    recipe["train"]["optimizer"] = {"learning_rate": 3e-4, "decay": "cosine"}
    return Path(trainer.train.run(recipe)["artifact"])


def conditional_tables(
    dataset: Path, artifacts: dict[str, Path], conditions: Sequence[str]
) -> dict[str, dict[str, Table]]:
    """By condition and artifact: the ways to answer, of a fine-tuned one those that it was tuned for."""
    recipe = {"evaluate": {"ks": [10, 50]}}
    return {
        condition: {
            name: {
                row["model"]: {metric: row[metric] for metric in METRICS}
                for row in trainer.conditional.run(
                    str(place),
                    str(dataset),
                    condition=cast(trainer.conditional.Choice, condition),
                    recipe=recipe,
                    only=None if name == PLAIN else TOLD,
                )["rows"]
            }
            for name, place in artifacts.items()
        }
        for condition in conditions
    }


def hard_compliance(place: Path, artifact: Path, *, users: int = 200) -> float:
    """Share of the served items that satisfy the hard condition that was asked for."""
    release = artifact.parent / "release"
    shutil.rmtree(release, ignore_errors=True)
    serve.build.run(str(artifact), str(release), {"index": {}})
    engine, dataset = Engine.open(release), PreparedDataset.open(place)
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
