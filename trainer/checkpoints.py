"""Checkpoints: DeepSpeed's own files for resuming, and plain weights for the artifact, side by side.

A checkpoint is gone on from by as many workers as wrote it or by others: the item table and the
position in the data know no number of workers, and DeepSpeed's shards are converted first. Each
worker notes the sizes of the files that it wrote, so a checkpoint that lost some of them is known.
"""

import json
import logging
import tempfile
from collections.abc import Mapping
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
from trainer.engine import load_engine
from trainer.ranks import Ranks
from trainer.table import Table

logger = logging.getLogger(__name__)

RAY = "ray"  # of the run's directory, what Ray Train stores
WEIGHTS = "weights.safetensors"
LOOP = "loop.json"
ENGINE = "engine"
TABLE = "item_table"
POSITION = "position"
SIZES = "sizes"
METRIC = "ndcg@10"
NOT_VALIDATED = -1.0  # below every metric


@dataclass
class LoopState:
    """Where a run stands; the same on all ranks."""

    events_per_batch: int  # padded events of a batch, over all ranks; the same for the whole run
    run_id: str = ""  # by which trackers know the run
    epoch: int = 0  # epochs that are complete
    step: int = 0  # batches that are complete
    events: int = 0  # of the epoch that is under way, over all ranks; each is a target
    best: float = -1.0  # best validation NDCG@10
    validations_since_best: int = 0
    seconds: float = 0.0  # spent training, over all attempts


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from."""

    directory: Path
    world: int  # workers that wrote it
    state: LoopState
    metrics: dict[str, float]  # of its validation; none where it stands inside an epoch

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The plain weights of the retriever."""
        return load_file(self.directory / WEIGHTS)

    @property
    def table(self) -> Path | None:
        """The directory of the sharded item table, where there is one."""
        return self.directory / TABLE if (self.directory / TABLE).is_dir() else None

    def consumed(self) -> pa.Table | None:
        """The windows of the epoch under way that are done, if it stands inside one."""
        parts = [pq.read_table(path) for path in sorted(self.directory.glob(f"{POSITION}-*.parquet"))]
        return pa.concat_tables(parts) if parts else None

    def load(self, engine: Any, ranks: Ranks, table: Table | None) -> None:
        """Load the weights and the states of the optimisers. A collective."""
        load_engine(engine, self.directory, ENGINE, ranks, written_by=self.world)
        if table is not None:
            table.rows.load(self.directory / TABLE)


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
            write_json(Path(directory) / LOOP, {"world": ranks.world, "state": asdict(state), "metrics": dict(metrics)})
        _note_sizes(Path(directory), ranks.rank)
        inside = "" if position is None else f"-step-{state.step:08d}"
        ray.train.report(
            {METRIC: NOT_VALIDATED, **metrics, "epoch": state.epoch, "step": state.step},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            # A name of its own for every attempt: files of an earlier one, of other workers, must not stay between.
            checkpoint_dir_name=f"epoch-{state.epoch:05d}{inside}-{ranks.born:x}",
        )


def _note_sizes(directory: Path, rank: int) -> None:
    files = (path for path in directory.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(directory)): path.stat().st_size for path in files}
    write_json(directory / f"{SIZES}-{rank:05d}.json", sizes)


def what_is_missing(directory: Path) -> str | None:
    """What a checkpoint lacks of the files that its workers wrote, or None where it is whole."""
    try:
        world = json.loads((directory / LOOP).read_text(encoding="utf-8"))["world"]
        for rank in range(world):
            sizes = json.loads((directory / f"{SIZES}-{rank:05d}.json").read_text(encoding="utf-8"))
            for name, size in sizes.items():
                found = (directory / name).stat().st_size
                if found != size:
                    return f"{name} has {found} bytes of {size}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is not there"
    except ValueError as error:
        return f"a file of sizes is damaged ({error})"
    return None


def whole_checkpoints(run_dir: Path) -> list[Found]:
    """The checkpoints of a run that lack nothing, newest first.

    Found by looking, not by Ray's own note of them: a full disk can leave that empty.
    """
    whole, damaged = [], []
    for directory in sorted(path.parent for path in (run_dir / RAY).glob(f"*/{LOOP}")):
        missing = what_is_missing(directory)
        if missing is None:
            loop = json.loads((directory / LOOP).read_text(encoding="utf-8"))
            whole.append(Found(directory, loop["world"], LoopState(**loop["state"]), loop["metrics"]))
        else:
            damaged.append(f"{directory}: {missing}")
    if damaged:
        logger.warning("damaged checkpoints are passed over: %s", "; ".join(damaged))
    return sorted(whole, key=lambda found: (found.state.epoch, found.state.step), reverse=True)


def newest_checkpoint(run_dir: Path, ranks: Ranks) -> Found | None:
    """What a run goes on from, as rank 0 finds it; None at its first start. A collective.

    Raises:
        TrainingError: Ray knows of a checkpoint, and none is whole.
    """
    found = ranks.first(next(iter(whole_checkpoints(run_dir)), None) if ranks.rank == 0 else None)
    if found is not None:
        return found
    known = ray.train.get_checkpoint()
    if known is not None:
        raise TrainingError(
            f"{known.path}: {what_is_missing(Path(known.path))}, and no other checkpoint of the run is whole; restore "
            f"its files, or remove {run_dir} to start again"
        )
    return None


def mend_snapshot(run_dir: Path) -> None:
    """Remove Ray's note of the checkpoints where it cannot be read: Ray would refuse to start, and we need it not."""
    snapshot = run_dir / RAY / "checkpoint_manager_snapshot.json"
    try:
        json.loads(snapshot.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        snapshot.unlink()
