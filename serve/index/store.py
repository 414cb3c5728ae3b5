"""The index directory: `index.faiss` and a manifest that names the artifact the vectors came from."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from data.errors import ArtifactError
from data.storage import MANIFEST, file_hash, read_manifest, write_json
from serve.index.contract import Index
from serve.index.on_faiss import FaissIndex, build_index, read_index, set_search_threads, write_index
from serve.settings import FlatSettings, IndexSettings

KIND = "index"
FORMAT_VERSION = 1
FILE_NAME = "index.faiss"

QuerySource = Literal["histories", "items"]


def write_index_directory(
    directory: Path,
    item_VD: Float32[npt.NDArray[np.float32], "V D"],
    query_QD: Float32[npt.NDArray[np.float32], "Q D"],
    *,
    query_source: QuerySource,
    artifact_hash: str,
    settings: IndexSettings,
) -> dict[str, Any]:
    """Build, check and write an index; return its manifest.

    Args:
        directory: an existing, empty directory.
        item_VD: vectors of rows 1 to V.
        query_QD: queries on which recall is measured: real ones, or item vectors.

    Raises:
        ArtifactError: vectors that are not finite, or a recall below `settings.min_recall`.
        RecipeError: settings that do not fit the number of items.
    """
    broken = int((~np.isfinite(item_VD)).any(axis=1).sum())
    if broken:
        raise ArtifactError(
            f"{broken} of {len(item_VD)} item vectors hold NaN or infinity, expected none; "
            "the training run diverged: train again with a lower learning rate"
        )
    set_search_threads(settings.threads)
    index = build_index(item_VD, settings.search)
    k = min(settings.recall_k, index.num_items)
    recall = measured_recall(index, item_VD, query_QD, k)
    if recall < settings.min_recall:
        raise ArtifactError(
            f"index: recall@{k} against exact search is {recall:.4f}, expected at least index.min_recall="
            f"{settings.min_recall}; raise index.search.num_probes or use index.search.kind=flat"
        )
    path = directory / FILE_NAME
    write_index(index, str(path))
    manifest = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "artifact_hash": artifact_hash,
        "metric": "inner_product",
        "counts": {"items": index.num_items, "width": index.width, "bytes": path.stat().st_size},
        "hashes": {FILE_NAME: file_hash(path)},
        "recall": {"value": recall, "k": k, "queries": len(query_QD), "query_source": query_source},
        "settings": settings.model_dump(mode="json"),
    }
    write_json(directory / MANIFEST, manifest)
    return manifest


def open_index(directory: Path) -> tuple[FaissIndex, dict[str, Any]]:
    """Read an index and its manifest; the file's hash is checked before FAISS parses it.

    Raises:
        ArtifactError: missing, unfinished or damaged.
    """
    manifest = read_manifest(directory, KIND, FORMAT_VERSION, ArtifactError)
    path = directory / FILE_NAME
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; build the index again")
    found, expected = file_hash(path), manifest["hashes"][FILE_NAME]
    if found != expected:
        raise ArtifactError(
            f"{path}: found SHA-256 {found[:12]}, expected {expected[:12]} as in {MANIFEST}; "
            "the file was changed or cut short: build the index again"
        )
    return read_index(str(path)), manifest


def measured_recall(
    index: Index,
    item_VD: Float32[npt.NDArray[np.float32], "V D"],
    query_QD: Float32[npt.NDArray[np.float32], "Q D"],
    k: int,
) -> float:
    """Mean share of the exact top-k that the index finds. A flat index is measured like any other."""
    if not len(query_QD):
        raise ArtifactError("index: no queries to measure recall with; expected at least one item or history")
    exact = build_index(item_VD, FlatSettings()).search(query_QD, k)
    found = index.search(query_QD, k)
    shares = [np.isin(exact.rows_QK[q], found.rows_QK[q]).mean() for q in range(len(query_QD))]
    return float(np.mean(shares))
