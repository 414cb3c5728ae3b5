"""What branches and conditions cost: query latency against P conditions, training step against K heads.

    python -m benchmarks.branch_cost --quick --json FILE

Pure torch: runs on a CPU or a GPU. Every figure is a ratio inside one run, the two sides alternating:
`latency`: query vectors of a batch for P conditions over those without a branch (the shared blocks
alone), and its milliseconds; `step`: a training step with K heads over one with a single head, the last
block being the head's. With --threads 1 on a CPU by the process's own clock, so that other programs do
not move the ratios by taking the core.
"""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.report import parser, publish, run
from benchmarks.throughput import NUM_ITEMS, own_seconds, random_batch
from data.batch import Batch, to_device
from modeling.build import build_retriever
from modeling.retriever import Retriever
from modeling.settings import ModelSettings

CATEGORIES = [f"c{number:02d}" for number in range(20)]
CONDITIONS = (1, 2, 4, 8)
HEADS = (2, 4)


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--rows", type=int, default=16, help="histories per batch")
    arguments.add_argument("--length", type=int, default=200, help="events per history")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--threads", type=int, help="torch threads")
    chosen = arguments.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    rounds = 3 if chosen.quick else chosen.rounds
    batch = to_device(random_batch(chosen.rows, chosen.length), chosen.device)
    shape = {"rows": chosen.rows, "length": chosen.length, "device": chosen.device, "threads": torch.get_num_threads()}
    figures = {kind: measured(kind, batch, chosen.device, rounds) for kind in ("sasrec", "hstu")}
    publish("branch_cost", {**shape, **figures}, chosen)


def measured(encoder: str, batch: Batch, device: str, rounds: int) -> dict[str, Any]:
    """Ratios of one encoder with three shared blocks and a branch."""
    told = retriever(encoder, device, conditions=True).eval()
    num_rows = len(batch["lengths_B"])

    def shared() -> None:
        with torch.inference_mode():
            told._last(batch)

    def asked(count: int) -> Callable[[], None]:
        codes = torch.randint(1, len(CATEGORIES) + 1, (num_rows, count)).to(device)

        def answer() -> None:
            with torch.inference_mode():
                told.conditioned_query_vectors(batch, codes)

        return answer

    latency = _seconds({"shared": shared, **{f"P={count}": asked(count) for count in CONDITIONS}}, device, rounds)
    steps = {f"K={heads}": _step(retriever(encoder, device, heads=heads), batch) for heads in (1, *HEADS)}
    training = _seconds(steps, device, rounds)
    return {
        "latency": {name: seconds / latency["shared"] for name, seconds in latency.items()},
        "latency_milliseconds": {name: 1e3 * seconds for name, seconds in latency.items()},
        "step": {name: seconds / training["K=1"] for name, seconds in training.items()},
        "step_seconds": training["K=1"],
    }


def retriever(encoder: str, device: str, *, conditions: bool = False, heads: int = 1) -> Retriever:
    """Four blocks of which the last is the branch, as in the paper."""
    own: dict[str, Any] = {"query_width": 64, "value_width": 64} if encoder == "hstu" else {}
    settings = ModelSettings.model_validate(
        {
            "encoder": {"kind": encoder, "blocks": 4, "heads": 1, **own},
            "prediction": {"heads": heads, "hidden": "strict", "gap": 900},
            "condition": {"kind": "cgsa"} if conditions else None,
            "negatives": {"kind": "uniform", "num_uniform": 256},
        }
    )
    catalogue = pa.table({"categories": [[CATEGORIES[row % len(CATEGORIES)]] for row in range(NUM_ITEMS)]})
    counts = np.ones(NUM_ITEMS + 1, np.int64)
    built = build_retriever(settings, num_rows=NUM_ITEMS + 1, num_actions=0, train_counts=counts, catalogue=catalogue)
    return built.to(device)


def _step(model: Retriever, batch: Batch) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(batch)["loss"].backward()
        optimizer.step()

    return step


def _seconds(ways: dict[str, Callable[[], None]], device: str, rounds: int, repeats: int = 5) -> dict[str, float]:
    """Median seconds of each, the ways alternating."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = own_seconds(torch.device(device))
            for _ in range(repeats):
                way()
            seconds = own_seconds(torch.device(device)) - began
            if number:  # the first round warms up
                found[name].append(seconds / repeats)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


if __name__ == "__main__":
    run(main)
