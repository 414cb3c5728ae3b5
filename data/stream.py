"""The training stream: prepared histories through Ray Data to batches on a worker."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.train import DataConfig

from data.batch import Batch, collate, to_device
from data.dataset import PreparedDataset
from data.encode import encode_histories, encode_windows
from data.ragged import IntArray
from data.windows import (
    WINDOW_COLUMNS,
    WINDOW_KEY,
    WindowRule,
    WindowSet,
    cut_windows,
    filler_windows,
    length_buckets,
    window_bounds,
)


def window_dataset(
    dataset: PreparedDataset, *, max_events: int, rule: WindowRule, since: int | None = None
) -> ray.data.Dataset:
    """Training windows of all users as a Ray dataset, cut while streaming; see `data.windows.cut_windows`.

    Needs a Ray session. Users were dealt to shards by hash at ingest, so the order of the shards
    carries no meaning.
    """
    # Absolute: Ray's workers stand in the directory where Ray was started, not in ours.
    histories = ray.data.read_parquet([str(shard.absolute()) for shard in dataset.shards])
    histories.context.enable_progress_bars = False  # training shows its own
    # Ray's guard cannot tell a stream that is stuck from a worker that does not ask, because it trains or evaluates.
    histories.context.execution_no_progress_timeout_s = -1
    cut: Any = functools.partial(cut_windows, max_events=max_events, rule=rule, since=since)
    return histories.select_columns([*WINDOW_COLUMNS, "num_train"]).map_batches(cut, batch_format="pyarrow")


@dataclass(frozen=True)
class EpochSize:
    """What one epoch over `window_dataset` holds."""

    windows: int
    targets: int


def epoch_size(dataset: PreparedDataset, *, max_events: int, rule: WindowRule, since: int | None = None) -> EpochSize:
    """The size of an epoch, from the counts of events alone; with `since` also from their times."""
    windows = targets = 0
    if since is not None:
        for table in dataset.history_tables(["times", "num_train"]):
            bounds = window_bounds(table.combine_chunks(), max_events=max_events, rule=rule, since=since)
            windows += len(bounds[0])
            targets += int((bounds[3] - bounds[2] - 1).sum())
        return EpochSize(windows, targets)
    for table in dataset.history_tables(["num_train"]):
        targets_B = np.maximum(table.column("num_train").to_numpy().astype(np.int64) - 1, 0)
        if rule == "last":
            targets_B = np.minimum(targets_B, max_events)
        windows += int((-(-targets_B // max_events)).sum())
        targets += int(targets_B.sum())
    return EpochSize(windows, targets)


class EqualParts(DataConfig):
    """Splits `window_dataset` into parts of equally many windows, and leaves none out.

    Ray's split leaves out what is over when the windows do not divide by the workers, so as many
    windows of padding are added as make them divide, for whatever number of workers has started.
    """

    def __init__(self, num_windows: int) -> None:
        super().__init__()
        self._num_windows = num_windows

    def configure(self, datasets: dict[str, Any], world_size: int, *arguments: Any, **keywords: Any) -> Any:
        """The parts of every worker, as `ray.train.DataConfig` gives them."""
        missing = -self._num_windows % world_size
        if missing:
            filler = ray.data.from_arrow(filler_windows(missing))
            datasets = {name: dataset.union(filler) for name, dataset in datasets.items()}
        return super().configure(datasets, world_size, *arguments, **keywords)


class TrainingStream:
    """One rank's part of `window_dataset`, epoch after epoch, as batches of similar length.

    The order is a function of (seed, epoch, rank) and of the order in which Ray Data delivers.
    Starting a Ray Data execution costs seconds, so parts that fit into `cache_bytes` can be kept in
    memory after an epoch that was read to its end (`keep`); a rank gets the same part every epoch.

    An epoch can be left in the middle and gone on with: `position` names the windows that were
    handed out, and `batches` leaves out those that any rank had by then. So every window is handed
    out exactly once, on as many ranks as before or on others, in whatever order Ray Data delivers.

    Args:
        shard: from `ray.train.get_dataset_shard`.
        events_per_batch: padded events per batch.
        windows_per_buffer: windows that are shuffled and bucketed together.
        cache_bytes: largest part that may be kept in memory.
    """

    def __init__(
        self, shard: Any, *, events_per_batch: int, windows_per_buffer: int, cache_bytes: int, device: torch.device
    ) -> None:
        self._shard = shard
        self._events_per_batch = events_per_batch
        self._windows_per_buffer = windows_per_buffer
        self._cache_bytes = cache_bytes
        self._device = device
        self._kept: list[pa.Table] | None = None
        self._fits: list[pa.Table] | None = None  # the part as far as it was read, while it fits into memory
        self._handed_out: list[pa.Table] = []
        self._groups_V: IntArray | None = None

    def group_by(self, groups_V: IntArray) -> None:
        """Make batches of windows whose last targets have equal or near numbers, from the next buffer on.

        Args:
            groups_V: number of each item row.
        """
        self._groups_V = groups_V

    def batches(self, *, seed: int, epoch: int, rank: int, consumed: pa.Table | None = None) -> Iterator[Batch]:
        """The batches of one epoch, on the stream's device.

        Args:
            consumed: windows of this epoch that all ranks together have had already, by `WINDOW_KEY`.
        """
        random = np.random.default_rng([seed, epoch, rank, *([] if consumed is None else [len(consumed)])])
        done = None if consumed is None else WindowSet(consumed)
        self._handed_out = []
        for whole in self._buffers() if self._kept is None else self._kept:
            windows = whole if done is None else whole.filter(pa.array(~done.holds(whole)))
            encoded = encode_windows(windows)
            groups_B = None if self._groups_V is None else self._groups_V[encoded.next_items_B]
            for rows in length_buckets(
                encoded.lengths_B, events_per_batch=self._events_per_batch, random=random, groups_B=groups_B
            ):
                self._handed_out.append(windows.select(WINDOW_KEY).take(pa.array(rows)))
                yield to_device(collate(encoded, rows), self._device)

    def idle_batch(self) -> Batch:
        """A batch without anything to learn from, for a rank that waits for the others at the end of an epoch."""
        nothing = encode_histories([[0]], [[0]], [[0]], [0], max_events=1)
        return to_device(collate(nothing), self._device)

    def position(self) -> pa.Table:
        """The windows that this rank was handed in this epoch, since it was last begun, by `WINDOW_KEY`."""
        empty = pa.table({name: pa.array([], pa.int64()) for name in WINDOW_KEY})
        return pa.concat_tables([empty, *self._handed_out])

    @property
    def fits(self) -> bool:
        """Whether the part, as the last epoch read it to its end, may be kept in memory."""
        return self._fits is not None

    def keep(self) -> None:
        """Give every further epoch from memory. Ray Data delivers to all ranks or none, so all keep, or none."""
        self._kept = self._fits

    def _buffers(self) -> Iterator[pa.Table]:
        self._fits, num_bytes = [], 0
        for table in self._shard.iter_batches(
            batch_size=self._windows_per_buffer, batch_format="pyarrow", prefetch_batches=1
        ):
            num_bytes += table.nbytes
            if num_bytes > self._cache_bytes:
                self._fits = None
            if self._fits is not None:
                self._fits.append(table)
            yield table
