"""What Ray Train, Ray Data and DeepSpeed cost a training step, against a plain PyTorch loop.

    python -m benchmarks.step_overhead --json FILE

Both loops train the same model on the same windows, with batches of the same size, in one worker
process, taking turns epoch by epoch, so that whatever else the machine does falls on both. The
plain loop reads windows from memory and calls torch alone. `ratio` is the median over rounds of
ours / plain, in seconds per batch, waiting for data included. The first epoch, in which Ray Data starts
and the windows are not yet in the worker's memory, is not in it; it stands beside it as `first_epoch_ratio`.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

import data.ingest
import data.simulate
from benchmarks.report import parser, publish, spread
from cluster.recipe_files import read_recipe
from data.batch import collate
from data.dataset import PreparedDataset
from data.encode import EncodedHistories, encode_windows
from data.session import connect
from data.settings import read_section
from data.stream import epoch_size, window_dataset
from data.tracking.contract import RunFacts
from data.windows import WINDOW_COLUMNS, cut_windows, length_buckets
from modeling.build import build_retriever
from modeling.retriever import Retriever
from modeling.settings import ModelSettings
from trainer.loop import train_epoch
from trainer.settings import EvaluateSettings, TrainSettings
from trainer.worker import set_up_worker

FIGURES = "figures.json"


def main() -> None:
    """Run the benchmark."""
    chosen = parser(__doc__ or "").parse_args()
    rounds = 4 if chosen.quick else 10
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        recipe = read_recipe(
            "movielens_1m_cpu",
            [
                f"simulate.num_users={600 if chosen.quick else 3000}",
                "simulate.num_items=4000",
                "simulate.events_per_user=165",  # MovieLens-1M's mean
                "simulate.max_events_per_user=1000",
                "simulate.oracle_users=0",
                f"ingest.log={folder / 'log'}",
                f"ingest.out={folder / 'dataset'}",
                f"train.dataset={folder / 'dataset'}",
                f"train.run_dir={folder / 'run'}",
                "tracking.to=[]",
            ],
        )
        data.simulate.run(recipe, str(folder / "log"))
        data.ingest.run(recipe)
        seconds = _fit(recipe, folder, rounds)
    first, *ratios = [ours / plain for ours, plain in zip(seconds["ours"], seconds["plain"], strict=True)]
    figures = {
        "ratio": statistics.median(ratios),
        "ratio_spread": spread(ratios),
        "first_epoch_ratio": first,
        "seconds_per_batch": {name: spread(values[1:]) for name, values in seconds.items()},
        "rounds": rounds,
    }
    publish("step_overhead", figures, chosen)


def _fit(recipe: dict[str, Any], folder: Path, rounds: int) -> dict[str, list[float]]:
    train, model = read_section(recipe, "train", TrainSettings), read_section(recipe, "model", ModelSettings)
    dataset = PreparedDataset.open(train.dataset)
    (folder / "run").mkdir()
    config = {
        "train": {**train.model_dump(mode="json"), "workers": {**train.workers.model_dump(), "num_workers": 1}},
        "model": model.model_dump(mode="json"),
        "evaluate": EvaluateSettings().model_dump(mode="json"),
        "tracking": recipe["tracking"],
        "run": RunFacts("step-overhead", "step overhead", "train", folder / "run"),
        "total_targets": epoch_size(dataset, max_events=model.max_events, rule=train.windows).targets,
        "rounds": rounds,
        "figures": str(folder / FIGURES),
    }
    connect()
    TorchTrainer(
        _worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name="ray", storage_path=str(folder / "run")),
        datasets={"train": window_dataset(dataset, max_events=model.max_events, rule=train.windows)},
    ).fit()
    result: dict[str, list[float]] = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
    return result


def _worker(config: dict[str, Any]) -> None:
    """Both loops in turns, one round more than asked for."""
    worker = set_up_worker(config)
    dataset, train = worker.dataset, worker.train
    torch.manual_seed(train.seed)
    plain = build_retriever(
        worker.model,
        num_rows=dataset.num_rows,
        num_actions=dataset.num_actions,
        train_counts=dataset.train_counts(),
    )
    optimizer = torch.optim.AdamW(plain.parameters(), lr=train.optimizer.learning_rate)
    windows = pa.concat_tables(
        cut_windows(table, max_events=worker.model.max_events, rule=train.windows)
        for table in dataset.history_tables([*WINDOW_COLUMNS, "num_train"])
    )
    encoded = encode_windows(windows)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(config["rounds"] + 1):
        step = worker.state.step
        began = time.perf_counter()
        train_epoch(worker)
        ours = (time.perf_counter() - began) / (worker.state.step - step)
        worker.state.epoch += 1
        began = time.perf_counter()
        batches = _plain_epoch(plain, optimizer, encoded, train, number)
        per_batch = (time.perf_counter() - began) / batches
        seconds["ours"].append(ours)
        seconds["plain"].append(per_batch)
    Path(config["figures"]).write_text(json.dumps(seconds), encoding="utf-8")
    if worker.telemetry is not None:
        worker.telemetry.close()


def _plain_epoch(
    retriever: Retriever, optimizer: torch.optim.Optimizer, encoded: EncodedHistories, train: TrainSettings, epoch: int
) -> int:
    """One epoch as a script without any of our trainer would write it; returns its batches."""
    random, generator = np.random.default_rng(epoch), torch.Generator().manual_seed(epoch)
    batches = 0
    for rows in length_buckets(encoded.lengths_B, events_per_batch=train.events_per_batch, random=random):
        loss = retriever(collate(encoded, rows), generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(retriever.parameters(), train.engine.gradient_clipping)
        optimizer.step()
        loss.item()
        batches += 1
    return batches


if __name__ == "__main__":
    main()
