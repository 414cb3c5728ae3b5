"""History in, top-100 out on one device, without HTTP: requests per second whose 99th percentile stays within 50 ms.

    python -m benchmarks.serve_device --json FILE

Encoder and search of a replica, one batch after the other as its queue hands them over, at growing sizes of batch. A
request comes while a batch is worked on and waits for it, so its latency is that of two batches. `matrix` needs torch
alone; the kinds of FAISS are measured where it sees the device. Item vectors are drawn.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.report import parser, publish, spread
from data.encode import EncodedHistories, encode_histories
from modeling.build import build_retriever
from modeling.settings import HstuSettings, ModelSettings
from serve.index.contract import Hits, Index
from serve.index.on_gpu import installed_build, moved_to_gpu
from serve.index.on_torch import MatrixIndex
from serve.index.settings import CagraSettings, FlatSettings, IndexKind, IvfSettings, MatrixSettings
from serve.index.store import build_index
from serve.query_encoder import QueryEncoder
from serve.settings import CompiledShapes, Encoding

K = 100
WITHIN_SECONDS = 0.05
WIDTH = 64
NUM_ROWS = 1_001  # of the encoder's item table
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ENCODINGS = {
    "fp32": Encoding(),
    "bf16": Encoding(precision="bf16"),
    "bf16 compiled": Encoding(precision="bf16", compiled=CompiledShapes(histories=(1, 8, 64, 256))),
}
KINDS: dict[str, IndexKind] = {
    "matrix": MatrixSettings(),
    "matrix float16": MatrixSettings(float16=True),
    "flat": FlatSettings(),
    "flat float16": FlatSettings(float16=True),
    "ivf": IvfSettings(),
    "cagra": CagraSettings(),
}


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--items", type=int, nargs="+", help="1000000 10000000; with --quick 20000")
    arguments.add_argument("--lengths", type=int, nargs="+", help="200 1000; with --quick 50")
    arguments.add_argument("--filters", type=float, nargs="+", default=[1, 0.9, 0.5, 0.1, 0.01], help="shares of items")
    chosen = arguments.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, build = [], installed_build()
    encoders = {length: list(_encoders(length, device)) for length in chosen.lengths or _sizes(chosen, [200, 1000], 50)}
    for num_items in chosen.items or _sizes(chosen, [1_000_000, 10_000_000], 20_000):
        item_VD = _drawn(num_items)
        for name, kind in KINDS.items():
            if name.startswith("matrix") or (build.gpus and (name != "cagra" or build.cuvs)):
                began = time.perf_counter()
                index = _placed(build_index(item_VD, kind), device)
                built = {"items": num_items, "kind": name, "build_seconds": time.perf_counter() - began}
                rows += [{**built, **row} for row in _measured(index, encoders, device, chosen)]
    figures = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "faiss": vars(build),
        "k": K,
        "within_seconds": WITHIN_SECONDS,
        "rows": rows,
    }
    publish("serve_device", figures, chosen)


def _sizes(chosen: Namespace, usual: list[int], quick: int) -> list[int]:
    return [quick] if chosen.quick else usual


def _drawn(num_items: int) -> npt.NDArray[np.float32]:
    vectors_VD = np.random.default_rng(0).standard_normal((num_items, WIDTH), np.float32)
    return vectors_VD / np.linalg.norm(vectors_VD, axis=1, keepdims=True)


def _placed(index: Index, device: str) -> Index:
    if isinstance(index, MatrixIndex):
        return MatrixIndex(index.vectors_VD(), device)
    return moved_to_gpu(index)


def _encoders(length: int, device: str) -> Iterator[tuple[str, QueryEncoder]]:
    """Encoders of histories of one length, at each precision; their items are few, because a table's size does not
    change what a lookup costs.
    """
    for name, encoding in ENCODINGS.items():
        torch.manual_seed(0)
        settings = ModelSettings(
            width=WIDTH, max_events=length, encoder=HstuSettings(blocks=2, heads=2, query_width=32, value_width=32)
        )
        retriever = build_retriever(settings, num_rows=NUM_ROWS, num_actions=0, catalogue=None, item_hashes=None)
        encoder = QueryEncoder(retriever.to(device).eval(), encoding, device, length)
        encoder.prepare()
        yield name, encoder


def _measured(
    index: Index, encoders: dict[int, list[tuple[str, QueryEncoder]]], device: str, chosen: Namespace
) -> Iterator[dict[str, Any]]:
    """Searches alone under each filter, then whole answers of each encoder."""
    random, rounds = np.random.default_rng(1), 20 if chosen.quick else 200
    query_QD = _drawn(256)[random.permutation(256)]
    for share in chosen.filters:
        allowed_V = None if share == 1 else random.random(index.num_items) < share
        for batch in (1, 64):
            seconds = [_timed(partial(index.search, query_QD[:batch], K, allowed_V)) for _ in range(rounds)]
            yield {"search": {"filter": share, "batch": batch, **_percentiles(seconds)}}
    for length, several in encoders.items():
        for name, encoder in several:
            best: dict[str, Any] = {"requests_per_second": 0.0}
            for batch in BATCHES:
                call = partial(_answered, index, encoder, _histories(batch, length))
                call()  # warms up, and is not counted
                seconds = [_timed(call) for _ in range(rounds)]
                figures = _percentiles([2 * one for one in seconds])
                if figures["p99"] > WITHIN_SECONDS:
                    break
                speed = batch / spread(seconds)["median"]
                best = max(best, {"requests_per_second": speed, "batch": batch, **figures}, key=_speed)
            yield {"answers": {"length": length, "encoder": name, **best}}


def _answered(index: Index, encoder: QueryEncoder, histories: EncodedHistories) -> Hits:
    return index.search(encoder(histories, [[0]] * len(histories)), K)


def _speed(row: dict[str, Any]) -> float:
    return float(row["requests_per_second"])


def _histories(count: int, length: int) -> EncodedHistories:
    random = np.random.default_rng(2)
    return encode_histories(
        random.integers(1, NUM_ROWS, (count, length)),
        1_700_000_000 + random.integers(1, 3_600, (count, length)).cumsum(axis=1),
        np.zeros((count, length), np.int64),
        [1_710_000_000] * count,
        max_events=length,
    )


def _timed(call: Callable[[], Hits]) -> float:
    """Seconds of a call whose result is on the host, so that a device is done when it returns."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, [50, 99]).tolist()
    return {"p50": p50, "p99": p99, "runs": len(seconds)}


if __name__ == "__main__":
    main()
