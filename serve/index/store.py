"""The index directory: the files of its kind, and a manifest that names the artifact the vectors came from.

index.faiss          flat, ivf, hnsw, cagra: the vectors, arranged; ivfpq, binary: codes of them
vectors.safetensors  ivfpq, binary: the vectors in fp16; matrix: as it keeps them

An index of several shards (`index.shards`) has these in a folder for each: shard-0/, shard-1/, ...
"""

from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import numpy.typing as npt
from jaxtyping import Float32
from safetensors.numpy import load_file, save_file

from data.errors import ArtifactError, RecipeError
from data.storage import MANIFEST, directory_hashes, file_hash, read_manifest, write_json
from serve.index.contract import Index
from serve.index.on_faiss import FaissIndex, build_faiss, set_search_threads
from serve.index.on_gpu import built_cagra, moved_to_gpu
from serve.index.on_torch import MatrixIndex
from serve.index.rescored import RescoredIndex, build_rescored, graph_vectors
from serve.index.settings import (
    BinarySettings,
    CagraSettings,
    FlatSettings,
    HnswSettings,
    IndexKind,
    IndexSettings,
    IvfPqSettings,
    IvfSettings,
    MatrixSettings,
)
from serve.index.sharded import ShardedIndex, shard_sizes

KIND = "index"
FORMAT_VERSION = 1
ON_FAISS = "index.faiss"
VECTORS = "vectors.safetensors"

# What raises the recall of a kind, for the message of a build that is refused.
_MORE_RECALL = {
    "flat": "",
    "matrix": "",
    "ivf": "raise index.search.num_probes or ",
    "ivfpq": "raise index.search.num_probes, candidates_per_hit or code_bytes, or ",
    "hnsw": "raise index.search.ef_search or ef_construction, or ",
    "cagra": "raise index.search.ef_search, links or build_links, or ",
    "binary": "raise index.search.candidates_per_hit or ",
}

SHARD = "shard-{}"

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
    index = _built(item_VD, settings)
    k = min(settings.recall_k, index.num_items)
    recall = measured_recall(index, item_VD, query_QD, k)
    if recall < settings.min_recall:
        raise ArtifactError(
            f"index: recall@{k} against exact search is {recall:.4f}, expected at least index.min_recall="
            f"{settings.min_recall}; {_MORE_RECALL[settings.search.kind]}use index.search.kind=flat"
        )
    write_files(index, directory)
    hashes = directory_hashes(directory)
    manifest = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "artifact_hash": artifact_hash,
        "metric": "inner_product",
        "counts": {
            "items": index.num_items,
            "width": index.width,
            "bytes": sum((directory / name).stat().st_size for name in hashes),
        },
        "hashes": hashes,
        "recall": {"value": recall, "k": k, "queries": len(query_QD), "query_source": query_source},
        "settings": settings.model_dump(mode="json"),
    }
    write_json(directory / MANIFEST, manifest)
    return manifest


def open_index(directory: Path, device: str = "cpu") -> tuple[Index, dict[str, Any]]:
    """Read an index and its manifest; each file's hash is checked before FAISS, which trusts it, parses it.

    Args:
        device: where it is searched, if its kind can be there (`serve.index.on_gpu`).

    Raises:
        ArtifactError: missing, unfinished or damaged.
    """
    manifest = read_index_manifest(directory)
    settings = IndexSettings.model_validate(manifest["settings"])
    if settings.shards == 1:
        _check_files(directory, manifest)
        return read_files(directory, settings.search, device), manifest
    return ShardedIndex([open_shard(directory, number, device) for number in range(settings.shards)]), manifest


def open_shard(directory: Path, number: int, device: str = "cpu") -> Index:
    """Read one shard of an index, the others' files unread; an index that is not in shards is its own shard 0.

    Raises:
        ArtifactError: missing, unfinished or damaged.
    """
    manifest = read_index_manifest(directory)
    settings = IndexSettings.model_validate(manifest["settings"])
    if settings.shards == 1:
        return open_index(directory, device)[0]
    folder = SHARD.format(number)
    _check_files(directory, manifest, f"{folder}/")
    return read_files(directory / folder, settings.search, device)


def read_index_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an index.

    Raises:
        ArtifactError: no finished index is there.
    """
    return read_manifest(directory, KIND, FORMAT_VERSION, ArtifactError)


def _check_files(directory: Path, manifest: dict[str, Any], prefix: str = "") -> None:
    for name, expected in manifest["hashes"].items():
        if not name.startswith(prefix):
            continue
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; build the index again")
        found = file_hash(path)
        if found != expected:
            raise ArtifactError(
                f"{path}: found SHA-256 {found[:12]}, expected {expected[:12]} as in {MANIFEST}; "
                "the file was changed or cut short: build the index again"
            )


def _built(item_VD: npt.NDArray[np.float32], settings: IndexSettings) -> Index:
    if settings.shards == 1:
        return build_index(item_VD, settings.search)
    if settings.shards > len(item_VD):
        raise RecipeError(
            f"index.shards: found {settings.shards} with {len(item_VD)} items; expected no more than items"
        )
    ends = np.cumsum(shard_sizes(len(item_VD), settings.shards))[:-1]
    return ShardedIndex([build_index(part_VD, settings.search) for part_VD in np.split(item_VD, ends)])


def build_index(item_VD: Float32[npt.NDArray[np.float32], "V D"], settings: IndexKind) -> Index:
    """Arrange the vectors of rows 1 to V.

    Raises:
        RecipeError: settings that do not fit the width or the number of items.
    """
    item_VD = np.ascontiguousarray(item_VD, np.float32)
    match settings:
        case FlatSettings() | IvfSettings():
            return build_faiss(item_VD, settings)
        case MatrixSettings():
            return MatrixIndex(item_VD.astype(np.float16) if settings.float16 else item_VD)
        case CagraSettings():
            graph = built_cagra(item_VD, settings)
            return RescoredIndex(graph, graph_vectors(graph), settings)
        case _:
            return build_rescored(item_VD, settings)


def write_files(index: Index, directory: Path) -> None:
    """Write the files of an index of any kind."""
    match index:
        case ShardedIndex():
            for number, shard in enumerate(index.shards):
                (directory / SHARD.format(number)).mkdir()
                write_files(shard, directory / SHARD.format(number))
        case MatrixIndex():
            save_file({VECTORS: index.vectors_VD()}, directory / VECTORS)
        case FaissIndex():
            faiss.write_index(index.faiss_index, str(directory / ON_FAISS))
        case RescoredIndex():
            write = faiss.write_index_binary if isinstance(index.faiss_index, faiss.IndexBinary) else faiss.write_index
            write(index.faiss_index, str(directory / ON_FAISS))
            if not isinstance(index.faiss_index, faiss.IndexHNSW):
                save_file({VECTORS: index.vectors_VD}, directory / VECTORS)


def read_files(directory: Path, settings: IndexKind, device: str = "cpu") -> Index:
    """Read what `write_files` wrote of these settings; unlike `open_index` it trusts the files."""
    index = _read_files(directory, settings, device)
    return moved_to_gpu(index) if device.startswith("cuda") else index


def _read_files(directory: Path, settings: IndexKind, device: str) -> Index:
    on_faiss = str(directory / ON_FAISS)
    match settings:
        case FlatSettings() | IvfSettings():
            return FaissIndex(faiss.read_index(on_faiss))
        case MatrixSettings():
            return MatrixIndex(load_file(directory / VECTORS)[VECTORS], device)
        case HnswSettings() | CagraSettings():
            graph = faiss.read_index(on_faiss)
            return RescoredIndex(graph, graph_vectors(graph), settings)
        case IvfPqSettings():
            return RescoredIndex(faiss.read_index(on_faiss), load_file(directory / VECTORS)[VECTORS], settings)
        case BinarySettings():
            return RescoredIndex(faiss.read_index_binary(on_faiss), load_file(directory / VECTORS)[VECTORS], settings)


def measured_recall(
    index: Index,
    item_VD: Float32[npt.NDArray[np.float32], "V D"],
    query_QD: Float32[npt.NDArray[np.float32], "Q D"],
    k: int,
) -> float:
    """Mean share of the exact top-k that the index finds. A flat index is measured like any other."""
    if not len(query_QD):
        raise ArtifactError("index: no queries to measure recall with; expected at least one item or history")
    exact = build_faiss(np.ascontiguousarray(item_VD, np.float32), FlatSettings()).search(query_QD, k)
    found = index.search(query_QD, k)
    shares = [np.isin(exact.rows_QK[q], found.rows_QK[q]).mean() for q in range(len(query_QD))]
    return float(np.mean(shares))
