"""Where the time of a training step goes: its phases, and the dearest operators.

    python -m benchmarks.step_profile --json FILE

Models, batches and optimiser are those of rows of the suite `movielens_1m`; histories are drawn in the shape of
MovieLens-1M. Needs torch, `modeling` and `data` alone: no Ray, no DeepSpeed, no data set, so it runs on a bare GPU
machine. The step is a plain loop's, which costs what the trainer's does (`benchmarks.step_overhead`).

`phases`: shares of a step. The encoder's ends with its last block; loss is what comes behind it; optimiser has the
clipping too. With --threads 1 on a CPU other programs do not move them (`benchmarks.throughput.own_seconds`).
`operators`: by own time under torch.profiler, by the wall's clock, in steps of their own. On a GPU weights and
activations are bf16, on a CPU fp32.
"""

from argparse import Namespace
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import parser, publish, run, spread
from benchmarks.throughput import own_seconds
from cluster.suite import load_suite, row_recipe
from data.batch import Batch, collate, to_device
from data.encode import encode_windows
from data.settings import read_section
from data.windows import cut_windows, length_buckets
from modeling.build import build_retriever
from modeling.retriever import Retriever
from modeling.settings import ModelSettings
from trainer.settings import TrainSettings

SUITE, DATA = "movielens_1m", "last-out"
PHASES = ("loading", "encoder", "loss", "backward", "optimiser")
# MovieLens-1M: users, items, and the median, spread of the logarithm, least and most of a user's events.
NUM_USERS, NUM_ITEMS = 6040, 3883
MEDIAN_EVENTS, LOG_SPREAD, LEAST_EVENTS, MOST_EVENTS = 96, 1.044, 20, 2314


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--models", nargs="+", default=["sasrec", "hstu"], help=f"rows of the suite {SUITE}")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--threads", type=int, help="torch threads")
    arguments.add_argument("--rounds", type=int, default=3, help="of every model, in turns")
    arguments.add_argument("--steps", type=int, help="steps of a round; 60, with --quick 10")
    arguments.add_argument("--trace", type=Path, metavar="DIR", help="also write a trace of each model for Perfetto")
    chosen = arguments.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    steps = chosen.steps or (10 if chosen.quick else 60)
    loops = {name: Loop(name, torch.device(chosen.device)) for name in chosen.models}
    for loop in loops.values():
        loop.steps(islice(loop.batches, 5))  # warms up
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    for _ in range(chosen.rounds):
        for name, loop in loops.items():
            rounds[name].append(loop.steps(islice(loop.batches, steps)))
    figures = {name: {**summary(rounds[name]), "operators": operators(loops[name], steps, chosen)} for name in loops}
    publish("step_profile", {"device": chosen.device, "threads": torch.get_num_threads(), "models": figures}, chosen)


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Shares and speed over the rounds of one model."""
    seconds = [sum(each[phase] for phase in PHASES) for each in rounds]
    return {
        "phases": {
            phase: spread([each[phase] / all_of_it for each, all_of_it in zip(rounds, seconds, strict=True)])
            for phase in PHASES
        },
        "milliseconds_per_step": spread(
            [1e3 * all_of_it / each["steps"] for each, all_of_it in zip(rounds, seconds, strict=True)]
        ),
        "events_per_second": spread(
            [each["events"] / all_of_it for each, all_of_it in zip(rounds, seconds, strict=True)]
        ),
    }


def operators(loop: "Loop", steps: int, chosen: Namespace, most: int = 10) -> list[dict[str, Any]]:
    """The operators that take most of the device's time, or of the processor's where there is no other."""
    on_gpu = loop.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        loop.steps(islice(loop.batches, steps))
    if chosen.trace:
        chosen.trace.mkdir(parents=True, exist_ok=True)
        profiled.export_chrome_trace(str(chosen.trace / f"{loop.name}.json"))
    own = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
        for event in profiled.key_averages()
    }
    total = sum(microseconds for microseconds, _ in own.values())
    dearest = sorted(own.items(), key=lambda one: -one[1][0])[:most]
    return [
        {"operator": name, "share": microseconds / total, "calls_per_step": count / steps}
        for name, (microseconds, count) in dearest
    ]


class Loop:
    """A plain training loop over one row's model, with a clock."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        model, self.train = row_settings(name)
        torch.manual_seed(0)
        self.retriever = new_retriever(model, device)
        self.optimizer = new_optimizer(self.retriever, self.train)
        self._generator = torch.Generator()
        self.batches = endless_batches(model, self.train, device)
        self._began = 0.0
        self._seconds: dict[str, float] = {}
        self.retriever.branches[-1].register_forward_hook(lambda *_: self._ended("encoder"))

    def steps(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Seconds of each phase over some batches, their number, and their events without padding."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        events = count = 0
        self._began = own_seconds(self.device)
        for batch in batches:
            self._ended("loading")
            loss = self.retriever(batch, self._generator)["loss"]
            loss.item()
            self._ended("loss")
            self.optimizer.zero_grad()
            loss.backward()
            self._ended("backward")
            torch.nn.utils.clip_grad_norm_(self.retriever.parameters(), self.train.engine.gradient_clipping)
            self.optimizer.step()
            self._ended("optimiser")
            events += int(batch["lengths_B"].sum())
            count += 1
        return {**self._seconds, "steps": count, "events": events}

    def _ended(self, phase: str) -> None:
        now = own_seconds(self.device)
        self._seconds[phase] += now - self._began
        self._began = now


def row_settings(name: str) -> tuple[ModelSettings, TrainSettings]:
    """What a row of the suite says of model and training."""
    recipe = row_recipe(load_suite(SUITE), DATA, name)
    recipe["train"] |= {"dataset": "-", "run_dir": "-"}  # neither is read
    return read_section(recipe, "model", ModelSettings), read_section(recipe, "train", TrainSettings)


def new_retriever(model: ModelSettings, device: torch.device) -> Retriever:
    """An untrained retriever over as many items as MovieLens-1M has."""
    counts = np.ones(NUM_ITEMS + 1, np.int64)
    built = build_retriever(model, num_rows=NUM_ITEMS + 1, num_actions=0, train_counts=counts)
    return built.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def new_optimizer(retriever: Retriever, train: TrainSettings) -> torch.optim.Optimizer:
    """As `trainer.engine` builds it."""
    settings = train.optimizer
    return torch.optim.AdamW(
        retriever.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )


def endless_batches(model: ModelSettings, train: TrainSettings, device: torch.device) -> Iterator[Batch]:
    """Batches of epoch after epoch, cut and padded as the trainer's are."""
    random = np.random.default_rng(0)
    encoded = encode_windows(cut_windows(histories(), max_events=model.max_events, rule=train.windows))
    while True:
        for rows in length_buckets(encoded.lengths_B, events_per_batch=train.events_per_batch, random=random):
            yield to_device(collate(encoded, rows), device)


def histories(num_users: int = NUM_USERS) -> pa.Table:
    """Histories like those of MovieLens-1M, all of them for training: columns that windows are cut from."""
    random = np.random.default_rng(0)
    lengths_B = np.exp(LOG_SPREAD * random.standard_normal(num_users)) * MEDIAN_EVENTS
    lengths_B = lengths_B.clip(LEAST_EVENTS, MOST_EVENTS).astype(np.int32)
    offsets_B1 = np.concatenate([[0], lengths_B.cumsum()]).astype(np.int32)
    num_events = int(offsets_B1[-1])
    # By the inverse of the distribution function of 1/rank: the logarithm of the rank is uniform.
    items_E = ((NUM_ITEMS + 1) ** random.random(num_events)).astype(np.int32)
    # Half of the ratings share their second with the one before.
    times_E = 1_000_000_000 + (random.integers(0, 120, num_events) * random.integers(0, 2, num_events)).cumsum()
    columns = {
        "items": pa.array(items_E),
        "times": pa.array(times_E, pa.int64()),
        "actions": pa.array(np.zeros(num_events, np.int16)),
        "requests": pa.array(np.full(num_events, -1, np.int32)),
    }
    return pa.table(
        {
            "user_key": pa.array(np.arange(num_users), pa.int64()),
            **{name: pa.ListArray.from_arrays(pa.array(offsets_B1), values) for name, values in columns.items()},
            "num_train": pa.array(lengths_B),
        }
    )


if __name__ == "__main__":
    run(main)
