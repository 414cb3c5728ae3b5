"""Checkpoints: DeepSpeed's own files for resuming, and plain weights for the artifact, side by side."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from safetensors.torch import load_file, save_file

from data.errors import TrainingError
from data.storage import write_json
from trainer.ranks import Ranks
from trainer.table import Table

WEIGHTS = "weights.safetensors"
LOOP = "loop.json"
ENGINE = "engine"
TABLE = "item_table"
METRIC = "ndcg@10"


@dataclass
class LoopState:
    """Where a run stands; the same on all ranks."""

    epoch: int = 0  # epochs that are complete
    step: int = 0  # batches that are complete
    best: float = -1.0  # best validation NDCG@10
    validations_since_best: int = 0
    seconds: float = 0.0  # spent training, over all attempts


def report_checkpoint(
    engine: Any,
    weights: Mapping[str, torch.Tensor],
    state: LoopState,
    ranks: Ranks,
    metrics: Mapping[str, float],
    table: Table | None = None,
) -> None:
    """Save on every rank and report to Ray Train, which keeps the best and the newest. A collective."""
    with tempfile.TemporaryDirectory(prefix="farsight-checkpoint-") as directory:
        engine.save_checkpoint(directory, tag=ENGINE)
        if table is not None:
            Path(directory, TABLE).mkdir()
            table.rows.save(Path(directory, TABLE))
        if ranks.rank == 0:
            save_file(dict(weights), Path(directory) / WEIGHTS)
            write_json(Path(directory) / LOOP, {"world": ranks.world, "state": asdict(state)})
        ray.train.report(
            {**metrics, "epoch": state.epoch, "step": state.step},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_dir_name=f"epoch-{state.epoch:05d}",
        )


def resume(engine: Any, ranks: Ranks, table: Table | None = None) -> LoopState:
    """Load the newest checkpoint of the run, if there is one.

    Raises:
        TrainingError: it was written by another number of workers.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return LoopState()
    with checkpoint.as_directory() as directory:
        loop = json.loads(Path(directory, LOOP).read_text(encoding="utf-8"))
        if loop["world"] != ranks.world:
            raise TrainingError(
                f"{checkpoint.path}: written by {loop['world']} workers, and this run has {ranks.world}; set "
                f"train.workers.num_workers={loop['world']}, or choose another train.run_dir"
            )
        engine.load_checkpoint(directory, tag=ENGINE)
        if table is not None:
            table.rows.load(Path(directory, TABLE))
        # Ray may delete the directory once the first rank leaves it.
        ranks.all(True)
    return LoopState(**loop["state"])


@contextmanager
def checkpoint_weights(checkpoint: ray.train.Checkpoint) -> Iterator[tuple[dict[str, torch.Tensor], Path | None]]:
    """The plain weights inside a checkpoint, and the directory of its sharded item table, if it has one."""
    with checkpoint.as_directory() as directory:
        table = Path(directory, TABLE)
        yield load_file(Path(directory) / WEIGHTS), table if table.is_dir() else None
