"""The training stream: prepared histories through Ray Data to batches on a worker."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch

from data.batch import Batch, collate, to_device
from data.dataset import PreparedDataset
from data.encode import encode_histories, encode_windows
from data.windows import WINDOW_COLUMNS, WindowRule, cut_windows, length_buckets


def window_dataset(dataset: PreparedDataset, *, max_events: int, rule: WindowRule) -> ray.data.Dataset:
    """Training windows of all users as a Ray dataset, cut while streaming.

    Needs a Ray session. Users were dealt to shards by hash at ingest, so the order of the shards
    carries no meaning.
    """
    # Absolute: Ray's workers stand in the directory where Ray was started, not in ours.
    histories = ray.data.read_parquet([str(shard.absolute()) for shard in dataset.shards])
    histories.context.enable_progress_bars = False  # training shows its own
    cut: Any = functools.partial(cut_windows, max_events=max_events, rule=rule)
    return histories.select_columns([*WINDOW_COLUMNS, "num_train"]).map_batches(cut, batch_format="pyarrow")


def count_targets(dataset: PreparedDataset, *, max_events: int, rule: WindowRule) -> int:
    """Targets of one epoch over `window_dataset`, from the counts alone."""
    total = 0
    for table in dataset.history_tables(["num_train"]):
        targets = pc.max_element_wise(pc.subtract(table.column("num_train"), 1), 0)
        if rule == "last":
            targets = pc.min_element_wise(targets, max_events)
        total += int(pc.sum(targets).as_py() or 0)
    return total


# What names a window.
WINDOW_KEY = ("user_key", "window")


class TrainingStream:
    """One rank's part of `window_dataset`, epoch after epoch, as batches of similar length.

    The order is a function of (seed, epoch, rank) and of the order in which Ray Data delivers.
    Starting a Ray Data execution costs seconds, so a part that fits into `cache_bytes` is kept in
    memory after the first epoch that was read to its end; a rank gets the same part every epoch.

    An epoch can be left in the middle and gone on with: `position` names the windows that were
    handed out, and `batches` leaves out those that any rank had by then. So every window is handed
    out exactly once, on as many ranks as before or on others, in whatever order Ray Data delivers.

    Args:
        shard: from `ray.train.get_dataset_shard`.
        events_per_batch: padded events per batch.
        windows_per_buffer: windows that are shuffled and bucketed together.
        cache_bytes: largest part that is kept in memory.
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
        self._handed_out: list[pa.Table] = []

    def batches(self, *, seed: int, epoch: int, rank: int, consumed: pa.Table | None = None) -> Iterator[Batch]:
        """The batches of one epoch, on the stream's device.

        Args:
            consumed: windows of this epoch that all ranks together have had already, by `WINDOW_KEY`.
        """
        random = np.random.default_rng([seed, epoch, rank, *([] if consumed is None else [len(consumed)])])
        self._handed_out = []
        for whole in self._buffers() if self._kept is None else self._kept:
            windows = whole if consumed is None else _left(whole, consumed)
            encoded = encode_windows(windows)
            for rows in length_buckets(encoded.lengths_B, events_per_batch=self._events_per_batch, random=random):
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

    def _buffers(self) -> Iterator[pa.Table]:
        """Buffers from Ray Data, read one ahead: the end is known while the last one is still in use."""
        seen: list[pa.Table] | None = []
        buffers = iter(
            self._shard.iter_batches(batch_size=self._windows_per_buffer, batch_format="pyarrow", prefetch_batches=1)
        )
        ahead = next(buffers, None)
        while ahead is not None:
            current, ahead = ahead, next(buffers, None)
            if seen is not None:
                seen.append(current)
                if sum(table.nbytes for table in seen) > self._cache_bytes:
                    seen = None
            if ahead is None:
                self._kept = seen
            yield current


def _left(windows: pa.Table, consumed: pa.Table) -> pa.Table:
    """The windows that are not among the consumed ones."""
    keys = pl.DataFrame(pl.from_arrow(windows.select(WINDOW_KEY))).with_row_index("row")
    left = keys.join(pl.DataFrame(pl.from_arrow(consumed)), on=WINDOW_KEY, how="anti", maintain_order="left")
    return windows.take(left["row"].to_arrow())
