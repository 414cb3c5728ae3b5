"""`farsight evaluate`: full-catalogue metrics of an artifact, beside popularity and other rankings."""

from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm

from data.cases import split_cases
from data.dataset import PreparedDataset, Split
from data.errors import DatasetError
from data.settings import Recipe, read_section
from modeling.artifact import Artifact
from trainer.baselines import ExternalRanking, Popularity
from trainer.evaluation import RetrieverScorer, Scorer, evaluate_cases
from trainer.settings import EvaluateSettings


def run(
    artifact: str,
    dataset: str,
    *,
    split: Split = "test",
    rankings: Mapping[str, str] | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Evaluate an artifact on one split of the dataset it was trained on.

    Args:
        rankings: name -> Parquet file of `trainer.baselines.ExternalRanking`.
        recipe: its `evaluate` section holds cut-offs and whether seen items are removed.

    Returns:
        `protocol` (what was ranked, how ties are broken, which history) and `rows`, one mapping of
        metrics per ranking, the artifact last.

    Raises:
        ArtifactMismatch: the dataset has another vocabulary.
        DatasetError: the split has no targets.
    """
    settings = read_section(recipe or {}, "evaluate", EvaluateSettings)
    opened, prepared = Artifact.open(artifact), PreparedDataset.open(dataset)
    opened.check_dataset(prepared)
    if not prepared.manifest["counts"].get(f"users_with_{split}"):
        raise DatasetError(f"{dataset}: no user has {split} targets; ingest with another split")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scorers: dict[str, Scorer] = {"popularity": Popularity(prepared)}
    for name, path in (rankings or {}).items():
        scorers[name] = ExternalRanking(path, prepared.vocabulary(), split)
    scorers["model"] = RetrieverScorer(opened.load_retriever(device), max_events=opened.max_events)
    rows: list[dict[str, Any]] = []
    for name, scorer in scorers.items():
        cases = split_cases(prepared, split, users_per_batch=settings.users_per_batch)
        totals = evaluate_cases(
            scorer,
            tqdm(cases, desc=f"evaluate {name}", unit="batch", disable=None),
            num_rows=prepared.num_rows,
            ks=settings.ks,
            remove_seen=settings.seen == "removed",
        )
        rows.append({"model": name, **totals.means()})
    protocol = {
        "split": split,
        "split_rule": prepared.manifest["split"],
        "seen": settings.seen,
        "catalogue_items": prepared.num_rows - 1,
        "history": "stable sort by (time, order, log order); request time = time of the first target",
        "ties": "equal scores by item row",
    }
    return {"artifact": opened.content_hash, "dataset": dataset, "protocol": protocol, "rows": rows}
