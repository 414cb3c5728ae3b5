"""RecTools' SASRec, one epoch at a time. Run by RecTools' own environment, started by `benchmarks.train_speed`.

    PEER/bin/python -m benchmarks.peers.rectools_sasrec --histories FILE --threads N

Standard output: one JSON line when the model stands (`ready`) and one per epoch. Standard input: a
line `epoch` before each epoch, anything else or its end to finish; between epochs nothing is
computed. `seconds` are those of training alone; evaluation is ours (`benchmarks.peers.histories`).
"""

import argparse
import json
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

from benchmarks.peers.histories import Histories, IntArray, hits

# Of the published eSASRec comparison, with the width, blocks and heads of the run it stands beside.
SETTINGS: dict[str, Any] = {
    "n_factors": 64,
    "n_blocks": 2,
    "n_heads": 1,
    "session_max_len": 200,
    "dropout_rate": 0.1,
    "loss": "sampled_softmax",
    "n_negatives": 256,
    "lr": 1e-3,
    "batch_size": 128,
}
# Nothing that costs time and is not training: no bar, no logger, no checkpoints, no validation of its own.
TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 100_000,  # ended through standard input
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
    "num_sanity_val_steps": 0,
}
PACKAGES = ("rectools", "torch", "pytorch-lightning", "numpy", "pandas")
USERS_PER_BATCH = 256


def main() -> None:
    """Train until told to stop."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--histories", type=Path, required=True)
    arguments.add_argument("--threads", type=int, required=True)
    arguments.add_argument("--workers", type=int, default=0, help="processes that draw negatives and build batches")
    arguments.add_argument("--seed", type=int, default=0)
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    pytorch_lightning.seed_everything(chosen.seed, workers=True)
    histories = Histories.load(chosen.histories)
    named = {
        "settings": {**SETTINGS, "dataloader_num_workers": chosen.workers, "trainer": TRAINER, "seed": chosen.seed},
        "threads": torch.get_num_threads(),
        "versions": {"python": sys.version.split()[0], **{name: metadata.version(name) for name in PACKAGES}},
    }
    turns = Turns(histories, named)

    def trainer() -> pytorch_lightning.Trainer:
        return pytorch_lightning.Trainer(**TRAINER, callbacks=[turns])

    model = SASRecModel(**SETTINGS, dataloader_num_workers=chosen.workers, get_trainer_func=trainer)
    model.fit(training_log(histories))


def training_log(histories: Histories) -> Dataset:
    """The training part of every history; its order stands in for the time, so it is exactly ours."""
    lengths_B = np.diff(histories.offsets_B1)
    user_E = np.repeat(np.arange(len(lengths_B)), lengths_B)
    place_E = np.arange(len(user_E)) - histories.offsets_B1[user_E]
    kept_E = place_E < histories.num_train_B[user_E]
    columns = {
        Columns.User: user_E[kept_E],
        Columns.Item: histories.items_E[kept_E],
        Columns.Weight: np.ones(kept_E.sum()),
        Columns.Datetime: pd.to_datetime(place_E[kept_E], unit="s"),
    }
    return Dataset.construct(pd.DataFrame(columns))


class Turns(pytorch_lightning.Callback):
    """Waits for its turn before every epoch; times it, measures and reports it after."""

    def __init__(self, histories: Histories, named: dict[str, Any]) -> None:
        self.histories = histories
        self.began = 0.0
        self.named = named
        self.seconds = 0.0

    def on_train_start(self, trainer: pytorch_lightning.Trainer, pl_module: Any) -> None:
        """Say what was set and how much there is to learn from."""
        interactions = pl_module.data_preparator.train_dataset.interactions.df
        report(
            "ready",
            **self.named,
            num_targets=len(interactions) - interactions[Columns.User].nunique(),
            num_items=len(pl_module.data_preparator.get_known_item_ids()),
        )
        trainer.should_stop = not told_to_go_on()

    def on_train_epoch_start(self, trainer: pytorch_lightning.Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer: pytorch_lightning.Trainer, pl_module: Any) -> None:
        """Stop the clock, measure, report, and wait."""
        now = time.perf_counter()
        epoch_seconds = now - self.began
        self.seconds += epoch_seconds
        figures = {split: measured(pl_module, self.histories, split) for split in ("validation", "test")}
        report(
            "epoch",
            epoch=trainer.current_epoch + 1,
            epoch_seconds=epoch_seconds,
            seconds=self.seconds,
            evaluation_seconds=time.perf_counter() - now,
            memory_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            **figures,
        )
        trainer.should_stop = not told_to_go_on()


def measured(module: Any, histories: Histories, split: str) -> dict[str, float]:
    """NDCG@10 and HR@10 over all users, the whole catalogue ranked, seen items removed."""
    known_rows = module.data_preparator.get_known_item_ids().astype(np.int64)
    own_id_V = np.zeros(int(histories.num_rows), np.int64)  # 0 is RecTools' padding
    own_id_V[known_rows] = np.arange(1, len(known_rows) + 1)
    users = histories.users()
    sums = np.zeros(2)
    module.torch_model.eval()
    with torch.no_grad():
        items_VD = module.torch_model.item_model.get_all_embeddings()
        for first in range(0, len(users), USERS_PER_BATCH):
            chosen = users[first : first + USERS_PER_BATCH]
            sessions_BL = torch.from_numpy(padded(histories, chosen, split, own_id_V))
            query_BD = module.torch_model.encode_sessions({"x": sessions_BL}, items_VD)[:, -1]
            scores_BV = np.full((len(chosen), len(own_id_V)), -np.inf, np.float32)
            scores_BV[:, known_rows] = (query_BD @ items_VD[1:].T).numpy()
            sums += hits(scores_BV, histories, chosen, split)
    module.torch_model.train()
    ndcg, hit_rate = sums / len(users)
    return {"ndcg@10": float(ndcg), "hr@10": float(hit_rate)}


def padded(histories: Histories, users: IntArray, split: str, own_id_V: IntArray) -> IntArray:
    """Histories as RecTools encodes them: unknown items left out, the newest at the right, zeros at the left."""
    max_events = SETTINGS["session_max_len"]
    sessions_BL = np.zeros((len(users), max_events), np.int64)
    for place, user in enumerate(users):
        own_ids = own_id_V[histories.known(user, split)]
        newest = own_ids[own_ids > 0][-max_events:]
        sessions_BL[place, max_events - len(newest) :] = newest
    return sessions_BL


def report(kind: str, **figures: Any) -> None:
    """One JSON line for whoever started us."""
    print(json.dumps({"kind": kind, **figures}), flush=True)


def told_to_go_on() -> bool:
    """Wait for a line; whether it asks for another epoch."""
    return sys.stdin.readline().strip() == "epoch"


if __name__ == "__main__":
    main()
