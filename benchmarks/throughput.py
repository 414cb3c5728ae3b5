"""Tokens per second of a training step by history length, and the share of the device's peak that is used.

    python -m benchmarks.throughput --json FILE

Needs torch and `modeling` alone: no Ray, no DeepSpeed, no data set. A step is forward, backward and AdamW on random
histories of one length; tokens are events. FLOPs are those of the matrix products as counted by torch, with the masked
half of attention, which is computed too. On a GPU weights and activations are bf16, on a CPU fp32.
"""

import time
from argparse import Namespace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import parser, publish, spread
from data.batch import Batch, collate, to_device
from data.encode import EncodedHistories
from modeling.build import build_retriever
from modeling.retriever import Retriever
from modeling.settings import HstuSettings, ModelSettings, TransformerSettings, UniformNegatives

NUM_ITEMS = 100_000
# Dense bf16 matrix products of the data sheets, in FLOP/s; other devices need --peak-tflops.
PEAKS = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12}
ENCODERS = {
    "hstu": HstuSettings(blocks=4, heads=4, query_width=64, value_width=64),
    "hstu_without_time": HstuSettings(blocks=4, heads=4, query_width=64, value_width=64, time_bias=False),
    "transformer": TransformerSettings(blocks=4, heads=4, feedforward_width=1024, gated_residuals=True),
}


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--lengths", type=int, nargs="+", help="200 1024 4096; with --quick 200")
    arguments.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    arguments.add_argument("--tokens", type=int, help="events per batch; 65,536 on a GPU, 4,096 on a CPU")
    arguments.add_argument("--width", type=int, default=256, help="D; heads are 64 wide")
    arguments.add_argument("--steps", type=int, default=20, help="steps of each of 5 rounds; with --quick 3")
    arguments.add_argument("--peak-tflops", type=float, help="of the device, where it is not a known one")
    chosen = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    peak = chosen.peak_tflops * 1e12 if chosen.peak_tflops else None
    peak = peak or next((value for start, value in PEAKS.items() if name.startswith(start)), None)
    rows = [
        measure(encoder, length, chosen, device, peak)
        for length in chosen.lengths or ([200] if chosen.quick else [200, 1024, 4096])
        for encoder in chosen.encoders
    ]
    publish("throughput", {"device": name, "peak_flops": peak, "width": chosen.width, "rows": rows}, chosen)


def measure(encoder: str, length: int, chosen: Namespace, device: torch.device, peak: float | None) -> dict[str, Any]:
    """Median and spread over rounds for one encoder and length."""
    torch.manual_seed(0)
    settings = ModelSettings(
        width=chosen.width,
        max_events=length,
        encoder=ENCODERS[encoder],
        negatives=UniformNegatives(num_uniform=1024),
    )
    retriever = build_retriever(
        settings, num_rows=NUM_ITEMS + 1, num_actions=0, train_counts=np.ones(NUM_ITEMS + 1, np.int64)
    ).to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    tokens = chosen.tokens or (65_536 if device.type == "cuda" else 4096)
    batch = to_device(random_batch(max(1, tokens // length), length), device)
    optimizer = torch.optim.AdamW(retriever.parameters(), fused=True)
    with FlopCounterMode(display=False) as counter:
        step(retriever, optimizer, batch)
    flops = counter.get_total_flops()
    seconds = [
        _round(retriever, optimizer, batch, 3 if chosen.quick else chosen.steps)
        for _ in range(2 if chosen.quick else 5)
    ]
    median = spread(seconds)["median"]
    return {
        "encoder": encoder,
        "length": length,
        "rows": len(batch["lengths_B"]),
        "seconds_per_step": spread(seconds),
        "tokens_per_second": batch["items_BL"].numel() / median,
        "flops_per_step": flops,
        "share_of_peak": None if peak is None else flops / median / peak,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }


def random_batch(rows: int, length: int) -> Batch:
    """Histories of `length` events, a random second to an hour apart; every event has a target."""
    random = np.random.default_rng(0)
    gaps = random.integers(1, 3600, (rows, length + 1))
    times = 1_700_000_000 + gaps.cumsum(1)
    items = random.integers(1, NUM_ITEMS + 1, (rows, length + 1))
    return collate(
        EncodedHistories(
            items_E=items[:, :-1].flatten(),
            times_E=times[:, :-1].flatten(),
            actions_E=np.zeros(rows * length, np.int64),
            requests_E=np.full(rows * length, -1, np.int64),
            offsets_B1=np.arange(rows + 1) * length,
            query_times_B=times[:, -1],
            next_items_B=items[:, -1],
            next_requests_B=np.full(rows, -1, np.int64),
            next_actions_B=np.zeros(rows, np.int64),
            users_B=np.arange(rows),
        )
    )


def step(retriever: Retriever, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One training step."""
    optimizer.zero_grad(set_to_none=True)
    retriever(batch)["loss"].backward()
    optimizer.step()


def _round(retriever: Retriever, optimizer: torch.optim.Optimizer, batch: Batch, steps: int) -> float:
    """Seconds per step, from two readings of the clock with the device idle at both."""
    step(retriever, optimizer, batch)
    began = _now(batch)
    for _ in range(steps):
        step(retriever, optimizer, batch)
    return (_now(batch) - began) / steps


def own_seconds(device: torch.device) -> float:
    """A clock: the wall's, a GPU idle when it is read; with one torch thread on a CPU the process's own.

    The process's own is not moved by other programs that take the core.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def _now(batch: Batch) -> float:
    if batch["items_BL"].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
