"""Every kind of index side by side, and its peers: recall, queries per second, build time, bytes, what a filter costs.

    python -m benchmarks.index_kinds --artifact DIR --dataset DIR --json FILE
    python -m benchmarks.index_kinds --items 1000000 --json FILE

Vectors and queries are those of a trained artifact and its test histories, or, with `--items`, drawn around
directions of unequal popularity. Recall is against exact search. Searches and builds take one thread; the kinds, FAISS
without our contract (`direct`, call by call beside ours) and the peers take turns, and figures are medians of the
rounds. `overhead` is our time over that of FAISS on the same index with the same effort, the median of the ratios
inside a round. Speeds count seconds of the processor, which other programs lengthen less than those of the clock.
"""

import argparse
import hashlib
import json
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import product
from operator import truediv
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.peers.ann import ROUND_QUERIES, Vectors, seconds_per_query, timed_build
from benchmarks.peers.process import PINS, Peer, peer_python
from benchmarks.report import parser, publish, run
from data.dataset import PreparedDataset
from modeling.artifact import Artifact
from serve.build import dataset_queries, item_vectors
from serve.index.contract import Index
from serve.index.on_faiss import FaissIndex, set_search_threads
from serve.index.settings import (
    BinarySettings,
    FlatSettings,
    HnswSettings,
    IndexKind,
    IvfPqSettings,
    IvfSettings,
    MatrixSettings,
)
from serve.index.store import build_index, read_files, write_files

K = 100
SELECTIVITIES = (0.5, 0.1, 0.01, 0.001)
PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
KINDS: dict[str, IndexKind] = {
    "flat": FlatSettings(),
    "matrix": MatrixSettings(),
    "ivf": IvfSettings(),
    "ivfpq": IvfPqSettings(),
    "hnsw": HnswSettings(),
    "binary": BinarySettings(),
}
PEERS = ("hnswlib", "voyager", "usearch")

Figures = dict[str, dict[str, Any]]
Search = Callable[[Vectors], object]
Rows = npt.NDArray[np.int64]


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--artifact", type=Path, help="take the item vectors of this artifact")
    arguments.add_argument("--dataset", type=Path, help="and the test histories of this dataset")
    arguments.add_argument("--items", type=int, default=100_000, help="otherwise: vectors drawn (default 100,000)")
    arguments.add_argument("--width", type=int, default=64)
    arguments.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS))
    arguments.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    arguments.add_argument("--peer-python", type=Path, help="an environment with peers/ann.txt; else it is built")
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--out", type=Path, default=Path("runs/index_kinds"), help="indexes, kept for the next time")
    chosen = arguments.parse_args()
    if (chosen.artifact is None) != (chosen.dataset is None):
        arguments.error("--artifact and --dataset go together")
    set_search_threads(1)
    torch.set_num_threads(1)
    item_VD, query_QD = (
        _trained(chosen) if chosen.artifact else drawn(5_000 if chosen.quick else chosen.items, chosen.width)
    )
    place = vectors_written(chosen.out, item_VD, query_QD)
    kinds = {name: KINDS[name] for name in chosen.kinds}
    with ExitStack() as running:
        python = chosen.peer_python or (chosen.peers and peer_python("ann", Path("runs/peers/ann")))
        peers = {name: running.enter_context(started(name, python, place)) for name in chosen.peers}
        figures = measured(item_VD, query_QD, kinds, 3 if chosen.quick else chosen.rounds, place, peers)
    shape = {"items": len(item_VD), "width": item_VD.shape[1], "queries": len(query_QD), "k": K, "threads": 1}
    versions = {"faiss": faiss.__version__, **{name: of.ready["version"] for name, of in peers.items()}}
    publish(
        "index_kinds",
        {**shape, "source": str(chosen.artifact or "drawn"), "versions": versions, "kinds": figures},
        chosen,
    )


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


def vectors_written(out: Path, item_VD: Vectors, query_QD: Vectors) -> Path:
    """The folder of these vectors, for them and for what is built of them."""
    place = out / hashlib.sha256(item_VD.tobytes() + query_QD.tobytes()).hexdigest()[:12]
    place.mkdir(parents=True, exist_ok=True)
    np.save(place / "vectors.npy", item_VD)
    np.save(place / "queries.npy", query_QD)
    return place


def started(name: str, python: Path, place: Path) -> Peer:
    """A peer with a graph of the vectors in `place`, of as many links and as much effort as our `hnsw`.

    Raises:
        MachineError: it ended before its graph stood.
    """
    effort = HnswSettings()
    folder = _folder(place, name, effort.model_dump_json() + (PINS / "ann.txt").read_text(encoding="utf-8"))
    folder.mkdir(exist_ok=True)
    files = {"vectors": place / "vectors.npy", "queries": place / "queries.npy", "out": folder}
    numbers = {"k": K, "links": effort.links, "ef-construction": effort.ef_construction, "ef-search": effort.ef_search}
    arguments = [f"--{option}={file.absolute()}" for option, file in files.items()]
    arguments += [f"--{option}={number}" for option, number in numbers.items()]
    module = "benchmarks.peers.ann"
    return Peer(python, module, [f"--library={name}", *arguments], threads=1, log=folder / "log")


def measured(
    item_VD: Vectors,
    query_QD: Vectors,
    kinds: Mapping[str, IndexKind],
    rounds: int,
    place: Path,
    peers: Mapping[str, Peer],
) -> Figures:
    """Figures of each kind and of each peer.

    Args:
        place: folder of these vectors; indexes that stand there are not built again.
    """
    figures: Figures = {name: dict(of.ready) for name, of in peers.items()}
    indexes: dict[str, Index] = {}
    for name, settings in kinds.items():
        indexes[name], figures[name] = _built(_folder(place, name, settings.model_dump_json()), item_VD, settings)
    exact = faiss.IndexFlatIP(item_VD.shape[1])
    exact.add(item_VD)
    best_QK = exact.search(query_QD, K)[1] + 1
    for name, index in indexes.items():
        figures[name][f"recall@{K}"] = _recall(best_QK, index.search(query_QD, K).rows_QK)
    for name in peers:
        found_QK = np.load(figures[name].pop("found")).astype(np.int64) + 1
        figures[name][f"recall@{K}"] = _recall(best_QK, found_QK)
    for name, found in _speeds(indexes, peers, query_QD, rounds).items():
        figures[name] |= found
    for name, index in indexes.items():
        for selectivity in SELECTIVITIES:
            figures[name] |= _filtered(index, query_QD[:8], selectivity, rounds)
    if isinstance(ivf := indexes.get("ivf"), FaissIndex):
        figures["ivf"]["probes"] = _by_probes(ivf, query_QD, best_QK, rounds)
    return figures


def _speeds(
    indexes: Mapping[str, Index], peers: Mapping[str, Peer], query_QD: Vectors, rounds: int
) -> dict[str, dict[str, float]]:
    """Queries per second, and our time over FAISS's, of rounds in which all take a turn."""
    ways = {name: _way(index, query_QD) for name, index in indexes.items()}
    ways |= {name: partial(_peer_seconds, of) for name, of in peers.items()}
    took: dict[str, list[dict[int, list[float]]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            seconds = way()
            if number:  # the first round warms up
                took[name].append(seconds)
    found: dict[str, dict[str, float]] = {name: {} for name in ways}
    for name, batch in product(ways, ROUND_QUERIES):
        ours, *theirs = zip(*(of[batch] for of in took[name]), strict=True)
        found[name][f"queries_per_second_{batch}"] = 1 / statistics.median(ours)
        for straight in theirs:
            found[name][f"direct_queries_per_second_{batch}"] = 1 / statistics.median(straight)
            found[name][f"overhead_{batch}"] = statistics.median(map(truediv, ours, straight))
    return found


def _way(index: Index, query_QD: Vectors) -> Callable[[], dict[int, list[float]]]:
    """Seconds of a query of our search, and of FAISS's beside it, by the size of a batch."""
    searches = [_search(index), *filter(None, [direct(index)])]
    return lambda: {batch: seconds_per_query(searches, query_QD, batch) for batch in ROUND_QUERIES}


def _peer_seconds(of: Peer) -> dict[int, list[float]]:
    return {int(batch): seconds for batch, seconds in of.turn("search")["seconds"].items()}


def _search(index: Index, allowed_V: npt.NDArray[np.bool_] | None = None) -> Search:
    return lambda query_QD: index.search(query_QD, K, allowed_V)


def direct(index: Index) -> Search | None:
    """FAISS on the same index, which is set to our effort, if it does all that the kind does."""
    if isinstance(index, FaissIndex) or isinstance(getattr(index, "faiss_index", None), faiss.IndexHNSWFlat):
        return lambda query_QD: index.faiss_index.search(query_QD, K)  # type: ignore[attr-defined]
    return None


def _filtered(index: Index, query_QD: Vectors, selectivity: float, rounds: int) -> dict[str, float]:
    """Milliseconds of a query of which a random share of the items may be found, and how full its answers are."""
    allowed_V = np.random.default_rng(1).random(index.num_items) < selectivity
    search = _search(index, allowed_V)
    rows_QK = index.search(query_QD, K, allowed_V).rows_QK
    wanted = len(query_QD) * min(K, int(allowed_V.sum()))
    seconds = statistics.median(seconds_per_query([search], query_QD, 64)[0] for _ in range(rounds))
    return {
        f"filter_{selectivity:g}_milliseconds": 1e3 * seconds,
        f"filter_{selectivity:g}_fill": float((rows_QK > 0).sum() / max(wanted, 1)),
    }


def _by_probes(index: FaissIndex, query_QD: Vectors, best_QK: Rows, rounds: int) -> dict[int, dict[str, float]]:
    """Recall and speed of an ivf index by the lists that a query looks into."""
    found = {}
    for probes in PROBES:
        if probes > index.faiss_index.nlist:
            break
        index.faiss_index.nprobe = probes
        looking = FaissIndex(index.faiss_index)
        seconds = statistics.median(seconds_per_query([_search(looking)], query_QD, 64)[0] for _ in range(rounds))
        recall = _recall(best_QK, looking.search(query_QD, K).rows_QK)
        found[probes] = {f"recall@{K}": recall, "queries_per_second_64": 1 / seconds}
    return found


def _recall(best_QK: Rows, found_QK: Rows) -> float:
    return float(np.mean([np.isin(best, found).mean() for best, found in zip(best_QK, found_QK, strict=True)]))


def _built(folder: Path, item_VD: Vectors, settings: IndexKind) -> tuple[Index, dict[str, float]]:
    """An index as it is read from its folder, where it is built if it does not stand there, and what building took."""
    file = folder / "built.json"
    if not file.is_file():
        (folder / "files").mkdir(parents=True, exist_ok=True)
        took = timed_build(lambda: write_files(build_index(item_VD, settings), folder / "files"))
        size = sum(file.stat().st_size for file in (folder / "files").iterdir())
        file.write_text(json.dumps({**took, "bytes_per_item": size / len(item_VD)}), encoding="utf-8")
    return read_files(folder / "files", settings), json.loads(file.read_text(encoding="utf-8"))


def _folder(place: Path, name: str, settings: str) -> Path:
    return place / f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def _trained(chosen: argparse.Namespace) -> tuple[Vectors, Vectors]:
    artifact = Artifact.open(chosen.artifact)
    retriever = artifact.load_retriever()
    queries = dataset_queries(artifact, retriever, PreparedDataset.open(chosen.dataset), 256)
    return item_vectors(retriever, artifact.vocabulary().num_items, 65_536), queries


if __name__ == "__main__":
    run(main)
