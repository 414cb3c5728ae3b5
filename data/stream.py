"""The training stream: prepared histories through Ray Data to batches on a worker."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch

from data.batch import Batch, collate, to_device
from data.dataset import PreparedDataset
from data.encode import encode_windows
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


class TrainingStream:
    """One rank's part of `window_dataset`, epoch after epoch, as batches of similar length.

    The order is a function of (seed, epoch, rank) and of the order in which Ray Data delivers.
    Starting a Ray Data execution costs seconds, so a part that fits into `cache_bytes` is kept in
    memory after the first epoch that was read to its end; a rank gets the same part every epoch.

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

    def batches(self, *, seed: int, epoch: int, rank: int) -> Iterator[Batch]:
        """The batches of one epoch, on the stream's device."""
        random = np.random.default_rng([seed, epoch, rank])
        for windows in self._buffers() if self._kept is None else self._kept:
            encoded = encode_windows(windows)
            for rows in length_buckets(encoded.lengths_B, events_per_batch=self._events_per_batch, random=random):
                yield to_device(collate(encoded, rows), self._device)

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
