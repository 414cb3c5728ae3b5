"""Checkpoints: DeepSpeed's own files for resuming, and plain weights for the artifact, side by side."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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
POSITION = "position"
METRIC = "ndcg@10"
NOT_VALIDATED = -1.0  # below every metric


@dataclass
class LoopState:
    """Where a run stands; the same on all ranks."""

    epoch: int = 0  # epochs that are complete
    step: int = 0  # batches that are complete
    events: int = 0  # of the epoch that is under way, over all ranks; each is a target
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
    position: pa.Table | None = None,
) -> None:
    """Save on every rank and report to Ray Train, which keeps the best and the newest. A collective.

    Args:
        metrics: of validation; inside an epoch there are none, and the checkpoint is the worst of all.
        position: the windows of an epoch under way that this rank has to answer for; None between epochs.
    """
    with tempfile.TemporaryDirectory(prefix="farsight-checkpoint-") as directory:
        engine.save_checkpoint(directory, tag=ENGINE)
        if table is not None:
            Path(directory, TABLE).mkdir()
            table.rows.save(Path(directory, TABLE))
        if position is not None:
            pq.write_table(position, Path(directory, f"{POSITION}-{ranks.rank:05d}.parquet"))
        if ranks.rank == 0:
            save_file(dict(weights), Path(directory) / WEIGHTS)
            write_json(Path(directory) / LOOP, {"world": ranks.world, "state": asdict(state)})
        ray.train.report(
            {METRIC: NOT_VALIDATED, **metrics, "epoch": state.epoch, "step": state.step},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_dir_name=f"epoch-{state.epoch:05d}" + ("" if position is None else f"-step-{state.step:08d}"),
        )


def resume(engine: Any, ranks: Ranks, table: Table | None = None) -> tuple[LoopState, pa.Table | None]:
    """Load the newest checkpoint of the run, if there is one.

    Returns:
        where the run stands, and the windows of its epoch that are done, if it stands inside one.

    Raises:
        TrainingError: it was written by another number of workers.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return LoopState(), None
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
        parts = [pq.read_table(path) for path in sorted(Path(directory).glob(f"{POSITION}-*.parquet"))]
        # Ray may delete the directory once the first rank leaves it.
        ranks.all(True)
    return LoopState(**loop["state"]), pa.concat_tables(parts) if parts else None


@contextmanager
def checkpoint_weights(checkpoint: ray.train.Checkpoint) -> Iterator[tuple[dict[str, torch.Tensor], Path | None]]:
    """The plain weights inside a checkpoint, and the directory of its sharded item table, if it has one."""
    with checkpoint.as_directory() as directory:
        table = Path(directory, TABLE)
        yield load_file(Path(directory) / WEIGHTS), table if table.is_dir() else None
