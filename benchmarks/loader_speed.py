"""The worker's part of loading beside the model: events per second of each, in turns in one process.

    python -m benchmarks.loader_speed --json FILE

Histories in the shape of MovieLens-1M (`benchmarks.step_profile`), prepared as shards. `kept`: a part that stands in
memory after its first epoch, to batches. `streamed`: the same part through Ray Data, Parquet to windows to batches,
epoch after epoch; with the seconds until its first batch, in which an execution of Ray Data starts, and without.
`model`: steps of the row's model on batches that stand ready. `loader_over_model` is the median over rounds of
loader / model, `..._streamed` that of whole epochs.

By the wall's clock, since Ray Data works in other processes; on a busy machine compare what one round measured.
"""

import tempfile
import time
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import torch

from benchmarks.report import parser, publish, run, spread
from benchmarks.step_profile import NUM_USERS, Loop, histories, row_settings
from data.dataset import HISTORIES, PreparedDataset
from data.session import connect
from data.stream import TrainingStream, window_dataset
from modeling.settings import ModelSettings
from trainer.settings import TrainSettings

NUM_SHARDS = 8


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--model", default="hstu", help="row of the suite movielens_1m")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--threads", type=int, help="torch threads")
    chosen = arguments.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    model, train = row_settings(chosen.model)
    connect()
    with tempfile.TemporaryDirectory(prefix="farsight-loader-") as folder:
        dataset = write_shards(Path(folder), NUM_USERS // 4 if chosen.quick else NUM_USERS)
        kept, streamed = (new_stream(dataset, model, train, keep=keep) for keep in (True, False))
        loop = Loop(chosen.model, torch.device("cpu"))
        steps = 10 if chosen.quick else 60
        rounds = [measured(loop, kept, streamed, number, steps) for number in range(chosen.rounds)]
    figures = {name: spread([each[name] for each in rounds]) for name in rounds[0]}
    ratios = {
        "loader_over_model": [each["kept_events_per_second"] / each["model_events_per_second"] for each in rounds],
        "loader_over_model_streamed": [
            each["streamed_events_per_second"] / each["model_events_per_second"] for each in rounds
        ],
    }
    medians = {name: spread(values)["median"] for name, values in ratios.items()}
    spreads = {f"{name}_spread": spread(values) for name, values in ratios.items()}
    publish("loader_speed", {**medians, **spreads, **figures, "model": chosen.model}, chosen)


def measured(loop: Loop, kept: TrainingStream, streamed: TrainingStream, number: int, steps: int) -> dict[str, float]:
    """One round: the model, then an epoch from memory, then one through Ray Data."""
    batches = list(islice(kept.batches(seed=0, epoch=number, rank=0), steps))
    began = time.perf_counter()
    of_model = loop.steps(batches)
    model_seconds = time.perf_counter() - began
    _, kept_seconds, kept_events = epoch(kept, number)
    first_seconds, streamed_seconds, streamed_events = epoch(streamed, number)
    return {
        "model_events_per_second": of_model["events"] / model_seconds,
        "kept_events_per_second": kept_events / kept_seconds,
        "streamed_events_per_second": streamed_events / streamed_seconds,
        "streamed_events_per_second_after_first": streamed_events / (streamed_seconds - first_seconds),
        "streamed_seconds_to_first_batch": first_seconds,
    }


def epoch(stream: TrainingStream, number: int) -> tuple[float, float, int]:
    """Seconds to the first batch of an epoch, seconds of all, and its events without padding."""
    began = time.perf_counter()
    first_seconds, events = 0.0, 0
    for batch in stream.batches(seed=0, epoch=number, rank=0):
        first_seconds = first_seconds or time.perf_counter() - began
        events += int(batch["lengths_B"].sum())
    return first_seconds, time.perf_counter() - began, events


def new_stream(dataset: PreparedDataset, model: ModelSettings, train: TrainSettings, *, keep: bool) -> TrainingStream:
    """The stream of a run's only rank, past its first epoch."""
    [part] = window_dataset(dataset, max_events=model.max_events, rule=train.windows).streaming_split(1, equal=True)
    stream = TrainingStream(
        part,
        events_per_batch=train.events_per_batch,
        windows_per_buffer=train.windows_per_buffer,
        cache_bytes=2**30 if keep else 0,
        device=torch.device("cpu"),
    )
    epoch(stream, 0)
    stream.keep()
    return stream


def write_shards(directory: Path, num_users: int) -> PreparedDataset:
    """Histories as ingest writes them, of which only the shards are there."""
    table = histories(num_users)
    (directory / HISTORIES).mkdir()
    names = [f"{HISTORIES}/part-{number:05d}.parquet" for number in range(NUM_SHARDS)]
    for number, name in enumerate(names):
        pq.write_table(table.take(list(range(number, num_users, NUM_SHARDS))), directory / name, row_group_size=2000)
    return PreparedDataset(directory, {"shards": [{"file": name} for name in names]})


if __name__ == "__main__":
    run(main)
