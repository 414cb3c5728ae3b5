"""A release: one artifact and the index built from it, addressed by a content id.

DIR/manifest.json   release id, hashes
DIR/artifact/       copy of the artifact
DIR/index/          index.faiss and its manifest
"""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float32
from tqdm import tqdm

from data.cases import split_cases
from data.dataset import PreparedDataset
from data.errors import ArtifactError, ArtifactMismatch
from data.settings import Recipe, read_section
from data.storage import MANIFEST, published_directory, read_manifest, write_json
from modeling.artifact import Artifact
from modeling.retriever import Retriever
from serve.index.contract import Index
from serve.index.store import open_index, write_index_directory
from serve.settings import IndexSettings

logger = logging.getLogger(__name__)

KIND = "release"
FORMAT_VERSION = 1
ARTIFACT = "artifact"
INDEX = "index"
QUERY_BATCH = 64


@dataclass(frozen=True)
class Release:
    """An opened release: its pieces were checked against each other."""

    directory: Path
    release_id: str
    artifact: Artifact
    index: Index

    @classmethod
    def open(cls, directory: str | Path, device: str = "cpu") -> "Release":
        """Open a release and check every hash.

        Args:
            device: where an index that is searched by torch keeps its vectors.

        Raises:
            ArtifactError: missing, unfinished or damaged.
            ArtifactMismatch: the index was not built from this artifact.
        """
        place = Path(directory)
        manifest = read_manifest(place, KIND, FORMAT_VERSION, ArtifactError)
        artifact = Artifact.open(place / ARTIFACT)
        index, index_manifest = open_index(place / INDEX, device)
        built_from = index_manifest["artifact_hash"]
        if built_from != artifact.content_hash:
            raise ArtifactMismatch(
                f"{place}: the index was built from artifact {built_from[:12]}, but {ARTIFACT}/ is "
                f"{artifact.content_hash[:12]}; build the release again with farsight index"
            )
        num_items = artifact.vocabulary().num_items
        if index.num_items != num_items:
            raise ArtifactMismatch(
                f"{place}: the index holds {index.num_items} items and the vocabulary {num_items}; "
                "build the release again with farsight index"
            )
        found = release_id(artifact.content_hash, index_manifest)
        if manifest["release_id"] != found:
            raise ArtifactMismatch(
                f"{place}: {MANIFEST} names release {manifest['release_id']}, but its pieces make {found}; "
                "build the release again with farsight index"
            )
        return cls(place, found, artifact, index)


def run(artifact: str, out: str, recipe: Recipe, dataset: str | None = None) -> dict[str, Any]:
    """Build the index of an artifact and write both as a release.

    Args:
        artifact: directory of an artifact.
        out: directory of the release; an earlier release there is replaced.
        recipe: section `index` is read.
        dataset: prepared dataset whose test histories are the queries on which recall is measured;
            without it item vectors are.

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
    if dataset is None:
        picked = np.random.default_rng(0).permutation(num_items)[: settings.num_recall_queries]
        query_QD = item_VD[picked]
    else:
        query_QD = dataset_queries(source, retriever, PreparedDataset.open(dataset), settings.num_recall_queries)
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
        manifest = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "release_id": name,
            "artifact_hash": source.content_hash,
            "counts": index_manifest["counts"],
            "recall": index_manifest["recall"],
        }
        write_json(aside / MANIFEST, manifest)
    logger.info("release %s: %d items, %s index", name, num_items, settings.search.kind)
    return {"release": str(out), "search": settings.search.kind, **manifest}


def release_id(artifact_hash: str, index_manifest: dict[str, Any]) -> str:
    """First 12 hex digits of a SHA-256 over the artifact's and the index's hashes."""
    content = json.dumps([artifact_hash, index_manifest["hashes"]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _check_replaceable(out: Path) -> None:
    """Only a release, or nothing, may stand where a release goes."""
    if out.exists():
        try:
            read_manifest(out, KIND, FORMAT_VERSION, ArtifactError)
        except ArtifactError as error:
            raise ArtifactError(f"{out}: exists and is not a release ({error}); choose another --out") from None


def item_vectors(retriever: Retriever, num_items: int, chunk_rows: int) -> Float32[npt.NDArray[np.float32], "V D"]:
    """Vectors of rows 1 to `num_items`, so many rows through the model at a time."""
    starts = range(1, num_items + 1, chunk_rows)
    parts = []
    with torch.inference_mode():
        for start in tqdm(starts, desc="item vectors", unit="chunk", disable=None):
            rows_C = torch.arange(start, min(start + chunk_rows, num_items + 1))
            parts.append(retriever.item_vectors(rows_C).float().numpy())
    return np.concatenate(parts)


def dataset_queries(
    artifact: Artifact, retriever: Retriever, dataset: PreparedDataset, num_queries: int
) -> Float32[npt.NDArray[np.float32], "Q D"]:
    """Query vectors of the dataset's first test histories, as evaluation encodes them."""
    artifact.check_dataset(dataset)
    parts: list[npt.NDArray[np.float32]] = []
    with torch.inference_mode():
        for cases in split_cases(dataset, "test", users_per_batch=QUERY_BATCH, min_events=1, max_users=num_queries):
            parts.append(retriever.query_vectors(cases.batch(artifact.max_events)).float().numpy())
    if not parts:
        raise ArtifactError(f"{dataset.directory}: no test histories to measure recall with; leave the dataset out")
    return np.concatenate(parts)
