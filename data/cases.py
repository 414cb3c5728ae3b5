"""Evaluation cases: users of one split, what was known before their targets, and the targets."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.batch import Batch, collate
from data.dataset import PreparedDataset, Split
from data.encode import encode_histories

COLUMNS = ("user_id", "user_key", "items", "times", "actions", "num_train", "num_validation", "num_test")


@dataclass(frozen=True)
class Cases:
    """B users of one split: what was known before their targets, and the targets."""

    user_ids: list[str]
    user_keys: list[int]
    items: list[npt.NDArray[np.int64]]  # the whole history before the first target, item rows
    times: list[npt.NDArray[np.int64]]
    actions: list[npt.NDArray[np.int64]]
    query_times: list[int]  # time of the first target
    targets: list[npt.NDArray[np.int64]]  # distinct item rows, at least one

    def __len__(self) -> int:
        return len(self.user_ids)

    def batch(self, max_events: int) -> Batch:
        """The histories as the model sees them."""
        return collate(
            encode_histories(
                self.items, self.times, self.actions, self.query_times, max_events=max_events, users=self.user_keys
            )
        )


def split_cases(
    dataset: PreparedDataset,
    split: Split,
    *,
    users_per_batch: int,
    min_events: int = 0,
    max_users: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Cases]:
    """Users with targets in a split, similar history lengths together; each user on exactly one rank.

    The history of a validation target is the training part; of a test target, the training and
    validation part. The request time is the time of the first target.

    Args:
        min_events: users with a shorter history are left out.
        max_users: users of this rank at most: the first of the dataset, of all lengths, since ingest
            dealt them to shards by hash.
    """
    left = dataset.num_users if max_users is None else max_users
    for table in dataset.history_tables(COLUMNS, rank=rank, world=world):
        train, validation, test = (
            table.column(name).to_numpy().astype(np.int64) for name in ("num_train", "num_validation", "num_test")
        )
        starts = train if split == "validation" else train + validation
        stops = starts + (validation if split == "validation" else test)
        users = np.flatnonzero((stops > starts) & (starts >= min_events))[:left]
        left -= len(users)
        users = users[np.argsort(starts[users], kind="stable")]
        for first in range(0, len(users), users_per_batch):
            chosen = users[first : first + users_per_batch]
            yield _cases(table.take(pa.array(chosen)), starts[chosen], stops[chosen])
        if not left:
            return


def _cases(rows: pa.Table, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]) -> Cases:
    lists = {
        name: [np.asarray(row.values.to_numpy(), np.int64) for row in rows.column(name)]
        for name in ("items", "times", "actions")
    }
    return Cases(
        user_ids=rows.column("user_id").to_pylist(),
        user_keys=rows.column("user_key").to_pylist(),
        items=[row[:start] for row, start in zip(lists["items"], starts, strict=True)],
        times=[row[:start] for row, start in zip(lists["times"], starts, strict=True)],
        actions=[row[:start] for row, start in zip(lists["actions"], starts, strict=True)],
        query_times=[int(row[start]) for row, start in zip(lists["times"], starts, strict=True)],
        targets=[np.unique(row[start:stop]) for row, start, stop in zip(lists["items"], starts, stops, strict=True)],
    )
