"""Every kind of index side by side: recall, queries per second, build time, bytes, and what a filter costs.

    python -m benchmarks.index_kinds --artifact DIR --dataset DIR --json FILE
    python -m benchmarks.index_kinds --items 1000000 --json FILE

Vectors and queries are those of a trained artifact and its test histories, or, with `--items`, drawn around
directions of unequal popularity. Recall is against exact search. Speeds are those of one thread, the kinds
alternating, medians of the rounds; `faiss_direct` searches the vectors of `flat` without our contract.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.report import parser, publish, run
from data.dataset import PreparedDataset
from modeling.artifact import Artifact
from serve.build import dataset_queries, item_vectors
from serve.index.contract import Index
from serve.index.on_faiss import set_search_threads
from serve.index.store import build_index, write_files
from serve.settings import (
    BinarySettings,
    FlatSettings,
    HnswSettings,
    IndexKind,
    IvfPqSettings,
    IvfSettings,
    MatrixSettings,
)

K = 100
BATCHES = (1, 64)
SELECTIVITIES = (0.5, 0.1, 0.01, 0.001)
KINDS: dict[str, IndexKind] = {
    "flat": FlatSettings(),
    "matrix": MatrixSettings(),
    "ivf": IvfSettings(),
    "ivfpq": IvfPqSettings(),
    "hnsw": HnswSettings(),
    "binary": BinarySettings(),
}

Vectors = npt.NDArray[np.float32]


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--artifact", type=Path, help="take the item vectors of this artifact")
    arguments.add_argument("--dataset", type=Path, help="and the test histories of this dataset")
    arguments.add_argument("--items", type=int, default=100_000, help="otherwise: vectors drawn (default 100,000)")
    arguments.add_argument("--width", type=int, default=64)
    arguments.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS))
    arguments.add_argument("--rounds", type=int, default=5)
    chosen = arguments.parse_args()
    if (chosen.artifact is None) != (chosen.dataset is None):
        arguments.error("--artifact and --dataset go together")
    set_search_threads(1)
    torch.set_num_threads(1)
    item_VD, query_QD = (
        _trained(chosen) if chosen.artifact else drawn(5_000 if chosen.quick else chosen.items, chosen.width)
    )
    figures = measured(
        item_VD, query_QD, {name: KINDS[name] for name in chosen.kinds}, 3 if chosen.quick else chosen.rounds
    )
    shape = {"items": len(item_VD), "width": item_VD.shape[1], "queries": len(query_QD), "k": K, "threads": 1}
    publish("index_kinds", {**shape, "source": str(chosen.artifact or "drawn"), "kinds": figures}, chosen)


def drawn(num_items: int, width: int) -> tuple[Vectors, Vectors]:
    """Vectors of length 1 around directions that fewer and fewer items share, and 256 queries like them."""
    random = np.random.default_rng(0)
    num_centres = max(num_items // 200, 10)
    centres = random.standard_normal((num_centres, width)).astype(np.float32)
    share = 1 / np.arange(1, num_centres + 1) ** 0.8
    picked = random.choice(num_centres, num_items + 256, p=share / share.sum())
    vectors = centres[picked] + 0.8 * random.standard_normal((len(picked), width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:num_items], vectors[num_items:]


def measured(
    item_VD: Vectors, query_QD: Vectors, kinds: Mapping[str, IndexKind], rounds: int
) -> dict[str, dict[str, float]]:
    """Figures of each kind, and of FAISS without our contract."""
    figures: dict[str, dict[str, float]] = {}
    indexes: dict[str, Index] = {}
    for name, settings in kinds.items():
        began = time.perf_counter()
        indexes[name] = build_index(item_VD, settings)
        figures[name] = {"build_seconds": time.perf_counter() - began, "bytes_per_item": _bytes(indexes[name])}
    exact = faiss.IndexFlatIP(item_VD.shape[1])
    exact.add(item_VD)
    best_QK = exact.search(query_QD, K)[1] + 1
    for name, index in indexes.items():
        found_QK = index.search(query_QD, K).rows_QK
        shares = [np.isin(best, found).mean() for best, found in zip(best_QK, found_QK, strict=True)]
        figures[name][f"recall@{K}"] = float(np.mean(shares))
    figures["faiss_direct"] = {}
    for batch in BATCHES:
        queries = query_QD[:batch]
        ways: dict[str, Callable[[], object]] = {name: _search(index, queries) for name, index in indexes.items()}
        ways["faiss_direct"] = lambda queries=queries: exact.search(queries, K)  # type: ignore[misc]
        for name, seconds in _seconds(ways, rounds).items():
            figures[name][f"queries_per_second_{batch}"] = batch / seconds
    for selectivity in SELECTIVITIES:
        allowed_V = np.random.default_rng(1).random(len(item_VD)) < selectivity
        ways = {name: _search(index, query_QD[:8], allowed_V) for name, index in indexes.items()}
        for name, seconds in _seconds(ways, rounds).items():
            found = indexes[name].search(query_QD[:8], K, allowed_V).rows_QK
            figures[name][f"filter_{selectivity:g}_milliseconds"] = 1e3 * seconds / 8
            wanted = 8 * min(K, int(allowed_V.sum()))
            figures[name][f"filter_{selectivity:g}_fill"] = float((found > 0).sum() / max(wanted, 1))
    return figures


def _trained(chosen: argparse.Namespace) -> tuple[Vectors, Vectors]:
    artifact = Artifact.open(chosen.artifact)
    retriever = artifact.load_retriever()
    queries = dataset_queries(artifact, retriever, PreparedDataset.open(chosen.dataset), 256)
    return item_vectors(retriever, artifact.vocabulary().num_items, 65_536), queries


def _search(index: Index, query_QD: Vectors, allowed_V: npt.NDArray[np.bool_] | None = None) -> Callable[[], object]:
    return lambda: index.search(query_QD, K, allowed_V)


def _seconds(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, the ways alternating."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number:  # the first round warms up
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def _bytes(index: Index) -> float:
    with TemporaryDirectory() as folder:
        write_files(index, Path(folder))
        return sum(file.stat().st_size for file in Path(folder).iterdir()) / index.num_items


if __name__ == "__main__":
    run(main)
