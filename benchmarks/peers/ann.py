"""hnswlib, voyager or usearch over the same vectors. Run by their own environment, started by `benchmarks.index_kinds`.

    PEER/bin/python -m benchmarks.peers.ann --library hnswlib --vectors FILE --queries FILE --out DIR --threads 1

The graph is built once and saved in DIR; a graph that stands there is read. Standard output: one JSON line when it
stands (`ready`) and one per round; `found.npy` in DIR then holds the positions found. Standard input: a line `search`
before each round, its end to finish.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Queries of a round for each size of a batch: at batch 1 an exact search takes most of the benchmark's time.
ROUND_QUERIES = {1: 64, 64: 256}

Vectors = npt.NDArray[np.float32]


class Hnswlib:
    """hnswlib by inner product."""

    def __init__(self, width: int, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.index = importlib.import_module("hnswlib").Index(space="ip", dim=width)

    def build(self, item_VD: Vectors) -> None:
        """Put all vectors into the graph."""
        effort = {"M": self.chosen.links, "ef_construction": self.chosen.ef_construction}
        self.index.init_index(max_elements=len(item_VD), **effort)
        self.index.add_items(item_VD, num_threads=self.chosen.threads)

    def save(self, file: Path) -> None:
        """Write the graph."""
        self.index.save_index(str(file))

    def load(self, file: Path) -> None:
        """Read it."""
        self.index.load_index(str(file))

    def search(self, query_QD: Vectors) -> Any:
        """Positions of the k best, [Q, k]."""
        self.index.set_ef(self.chosen.ef_search)
        return self.index.knn_query(query_QD, self.chosen.k, num_threads=self.chosen.threads)[0]


class Voyager:
    """Spotify's voyager by inner product."""

    def __init__(self, width: int, chosen: argparse.Namespace) -> None:
        self.chosen, self.width = chosen, width
        self.voyager = importlib.import_module("voyager")

    def build(self, item_VD: Vectors) -> None:
        """Put all vectors into the graph."""
        effort = {"M": self.chosen.links, "ef_construction": self.chosen.ef_construction}
        space = self.voyager.Space.InnerProduct
        self.index = self.voyager.Index(space, self.width, max_elements=len(item_VD), **effort)
        self.index.add_items(item_VD, num_threads=self.chosen.threads)

    def save(self, file: Path) -> None:
        """Write the graph."""
        self.index.save(str(file))

    def load(self, file: Path) -> None:
        """Read it."""
        self.index = self.voyager.Index.load(str(file))

    def search(self, query_QD: Vectors) -> Any:
        """Positions of the k best, [Q, k]."""
        effort = {"num_threads": self.chosen.threads, "query_ef": self.chosen.ef_search}
        return self.index.query(query_QD, self.chosen.k, **effort)[0]


class Usearch:
    """usearch by inner product, its vectors in fp32."""

    def __init__(self, width: int, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.index = importlib.import_module("usearch.index").Index(
            ndim=width,
            metric="ip",
            dtype="f32",
            connectivity=chosen.links,
            expansion_add=chosen.ef_construction,
            expansion_search=chosen.ef_search,
        )

    def build(self, item_VD: Vectors) -> None:
        """Put all vectors into the graph."""
        self.index.add(np.arange(len(item_VD)), item_VD, threads=self.chosen.threads)

    def save(self, file: Path) -> None:
        """Write the graph."""
        self.index.save(str(file))

    def load(self, file: Path) -> None:
        """Read it."""
        self.index.load(str(file))
        self.index.expansion_search = self.chosen.ef_search

    def search(self, query_QD: Vectors) -> Any:
        """Positions of the k best, [Q, k]."""
        return self.index.search(query_QD, self.chosen.k, threads=self.chosen.threads).keys


LIBRARIES: dict[str, type[Hnswlib | Voyager | Usearch]] = {"hnswlib": Hnswlib, "voyager": Voyager, "usearch": Usearch}


def main() -> None:
    """Build or read the graph, then search whenever told to."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--library", choices=LIBRARIES, required=True)
    arguments.add_argument("--vectors", type=Path, required=True)
    arguments.add_argument("--queries", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--threads", type=int, required=True)
    arguments.add_argument("--k", type=int, default=100)
    arguments.add_argument("--links", type=int, default=32)
    arguments.add_argument("--ef-construction", type=int, default=128)
    arguments.add_argument("--ef-search", type=int, default=256)
    chosen = arguments.parse_args()
    item_VD, query_QD = np.load(chosen.vectors), np.load(chosen.queries)
    graph = LIBRARIES[chosen.library](item_VD.shape[1], chosen)
    file, built = chosen.out / "graph", chosen.out / "built.json"
    if not built.is_file():
        chosen.out.mkdir(parents=True, exist_ok=True)
        took = timed_build(lambda: graph.build(item_VD))
        graph.save(file)
        built.write_text(json.dumps({**took, "bytes_per_item": file.stat().st_size / len(item_VD)}), encoding="utf-8")
    graph.load(file)
    del item_VD
    found = chosen.out / "found.npy"
    np.save(found, graph.search(query_QD))
    took = json.loads(built.read_text(encoding="utf-8"))
    _say("ready", version=metadata.version(chosen.library), found=str(found), **took)
    for line in sys.stdin:
        if line.strip() != "search":
            break
        _say("search", seconds={batch: seconds_per_query([graph.search], query_QD, batch) for batch in ROUND_QUERIES})


def timed_build(build: Callable[[], object]) -> dict[str, float]:
    """Seconds of a build by the clock, and of the processor, which other programs lengthen less."""
    began, began_cpu = time.perf_counter(), time.process_time()
    build()
    return {"build_seconds": time.perf_counter() - began, "build_cpu_seconds": time.process_time() - began_cpu}


def seconds_per_query(searches: Sequence[Callable[[Vectors], object]], query_QD: Vectors, batch: int) -> list[float]:
    """Processor seconds that a query takes by each of the searches, medians over a round's batches.

    The searches alternate, each on other queries than the one before it, so that none finds its vectors in the cache.
    """
    starts = range(0, min(ROUND_QUERIES[batch], len(query_QD)), batch)
    took: list[list[float]] = [[] for _ in searches]
    for turn in range(len(starts)):
        for number in range(len(searches))[:: 1 if turn % 2 else -1]:
            start = starts[(turn + number * len(starts) // len(searches)) % len(starts)]
            queries = query_QD[start : start + batch]
            began = time.process_time()
            searches[number](queries)
            took[number].append((time.process_time() - began) / len(queries))
    return [statistics.median(of) for of in took]


def _say(kind: str, **row: object) -> None:
    print(json.dumps({"kind": kind, **row}), flush=True)


if __name__ == "__main__":
    main()
