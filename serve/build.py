"""An artifact becomes a release: its index is built and measured, and golden requests are answered and kept."""

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float32

from data.cases import split_cases
from data.dataset import PreparedDataset
from data.errors import ArtifactError
from data.progress import progress
from data.ragged import joined_ranges, list_column
from data.settings import Recipe, read_section
from data.storage import MANIFEST, file_hash, published_directory, read_manifest, write_json
from modeling.artifact import Artifact
from modeling.retriever import Retriever
from serve.answer import Query, own_top_scores
from serve.engine import Engine
from serve.golden import NUM_REQUESTS, golden_of, history_queries, made_up_queries
from serve.index.settings import IndexSettings
from serve.index.store import open_index, write_index_directory
from serve.release import ARTIFACT, FORMAT_VERSION, GOLDEN, INDEX, KIND, Release, release_id

logger = logging.getLogger(__name__)

QUERY_BATCH = 64
# Below this many scores their tenths say nothing.
MIN_DECILE_SCORES = 50
# Held-out events after which their share of unknown items is known well enough.
MAX_HELD_OUT_EVENTS = 1_000_000


def run(artifact: str, out: str, recipe: Recipe, dataset: str | None = None) -> dict[str, Any]:
    """Build the index of an artifact and write both as a release.

    Args:
        artifact: directory of an artifact.
        out: directory of the release; an earlier release there is replaced.
        recipe: section `index` is read.
        dataset: prepared dataset whose test histories are the queries on which recall is measured, and the golden
            requests; without it item vectors are, and golden requests have made-up histories.

    Raises:
        ArtifactError: a damaged artifact, a recall below the floor, or something else stands at `out`.
        ArtifactMismatch: the dataset has another vocabulary.
        RecipeError: wrong settings.
    """
    settings = read_section(recipe, "index", IndexSettings)
    _check_replaceable(Path(out))
    source = Artifact.open(artifact)
    retriever = source.load_retriever()
    num_items = source.vocabulary().num_items
    item_VD = item_vectors(retriever, num_items, settings.chunk_rows)
    prepared = None if dataset is None else PreparedDataset.open(dataset)
    if prepared is None:
        picked = np.random.default_rng(0).permutation(num_items)[: settings.num_recall_queries]
        query_QD = item_VD[picked]
    else:
        query_QD = dataset_queries(source, retriever, prepared, settings.num_recall_queries)
    with published_directory(out, replace=True) as aside:
        shutil.copytree(source.directory, aside / ARTIFACT)
        (aside / INDEX).mkdir()
        index_manifest = write_index_directory(
            aside / INDEX,
            item_VD,
            query_QD,
            query_source="items" if dataset is None else "histories",
            artifact_hash=source.content_hash,
            settings=settings,
        )
        name = release_id(source.content_hash, index_manifest)
        engine = Engine(Release(aside, name, Artifact.open(aside / ARTIFACT), open_index(aside / INDEX)[0], golden=[]))
        timeless = prepared is not None and engine.needs_times and not prepared.has_times
        real = [] if prepared is None or timeless else history_queries(prepared, settings.num_recall_queries)
        write_json(aside / GOLDEN, golden_of(engine, real[:NUM_REQUESTS] or made_up_queries(source)))
        manifest = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "release_id": name,
            "artifact_hash": source.content_hash,
            "golden_hash": file_hash(aside / GOLDEN),
            "counts": index_manifest["counts"],
            "recall": index_manifest["recall"],
            "top_score_deciles": top_score_deciles(engine, real),
            "unknown_share": None if prepared is None else unknown_share(prepared),
            "built_at": int(time.time()),
        }
        write_json(aside / MANIFEST, manifest)
    logger.info("release %s: %d items, %s index", name, num_items, settings.search.kind)
    return {"release": str(out), "search": settings.search.kind, **manifest}


def _check_replaceable(out: Path) -> None:
    """Only a release, or nothing, may stand where a release goes."""
    if out.exists():
        try:
            read_manifest(out, KIND, FORMAT_VERSION, ArtifactError)
        except ArtifactError as error:
            raise ArtifactError(f"{out}: exists and is not a release ({error}); choose another --out") from None


def top_score_deciles(engine: Engine, queries: Sequence[Query]) -> list[float] | None:
    """The nine scores that cut the best scores of these requests into tenths, to see later whether scores have
    drifted; None for too few requests.
    """
    starts = range(0, len(queries), QUERY_BATCH)
    answers = [answer for start in starts for answer in engine.answer(queries[start : start + QUERY_BATCH])]
    scores = own_top_scores(answers)
    if len(scores) < MIN_DECILE_SCORES:
        return None
    deciles: list[float] = np.quantile(scores, np.arange(1, 10) / 10).tolist()
    return deciles


def unknown_share(dataset: PreparedDataset) -> float | None:
    """Of the validation and test events, those whose item no training event has: how much an endpoint would not know of
    what users did just after a release that knew the items of training. None where nothing was held out.
    """
    train_counts_R = dataset.train_counts()
    held_out = unknown = 0
    for table in dataset.history_tables(["items", "num_train"]):
        items = list_column(table.combine_chunks(), "items")
        offsets_B1 = items.offsets.to_numpy().astype(np.int64)
        num_train_B = table["num_train"].to_numpy().astype(np.int64)
        places_E, _ = joined_ranges(offsets_B1[:-1] + num_train_B, np.diff(offsets_B1) - num_train_B)
        rows_E = items.values.to_numpy()[places_E]
        held_out += len(rows_E)
        unknown += int((train_counts_R[rows_E] == 0).sum())
        if held_out >= MAX_HELD_OUT_EVENTS:
            break
    return unknown / held_out if held_out else None


def item_vectors(retriever: Retriever, num_items: int, chunk_rows: int) -> Float32[npt.NDArray[np.float32], "V D"]:
    """Vectors of rows 1 to `num_items`, so many rows through the model at a time."""
    starts = range(1, num_items + 1, chunk_rows)
    parts = []
    with torch.inference_mode():
        for start in progress(starts, doing="item vectors", unit="chunk"):
            rows_C = torch.arange(start, min(start + chunk_rows, num_items + 1))
            parts.append(retriever.item_vectors(rows_C).float().numpy())
    return np.concatenate(parts)


def dataset_queries(
    artifact: Artifact, retriever: Retriever, dataset: PreparedDataset, num_queries: int
) -> Float32[npt.NDArray[np.float32], "Q D"]:
    """Query vectors of the dataset's first test histories, as evaluation encodes them."""
    artifact.check_dataset(dataset)
    parts: list[npt.NDArray[np.float32]] = []
    objectives, width = artifact.settings.objectives, artifact.settings.width
    scales_D = torch.tensor([1.0] * width if objectives is None else objectives.scales(width))
    with torch.inference_mode():
        for cases in split_cases(dataset, "test", users_per_batch=QUERY_BATCH, min_events=1, max_users=num_queries):
            query_BD = retriever.query_vectors(cases.batch(artifact.max_events)).float()
            parts.append((query_BD * scales_D).numpy())
    if not parts:
        raise ArtifactError(f"{dataset.directory}: no test histories to measure recall with; leave the dataset out")
    return np.concatenate(parts)
