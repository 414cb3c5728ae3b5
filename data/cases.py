"""Evaluation cases: users of one split, what was known before their targets, and the targets."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from data.batch import Batch, collate
from data.dataset import PreparedDataset, Split
from data.encode import encode_histories
from data.errors import DatasetError
from data.ragged import IntArray, joined_ranges, list_column

COLUMNS = ("user_id", "user_key", "items", "times", "actions", "num_train", "num_validation", "num_test")

RequestTime = Literal["target", "last_event"]


@dataclass(frozen=True)
class Cases:
    """B users of one split: what was known before their targets, and the targets."""

    user_ids: list[str]
    user_keys: list[int]
    items: list[IntArray]  # the visible history: before the first target and its gap, item rows
    times: list[IntArray]
    actions: list[IntArray]
    query_times: list[int]  # seconds UTC of the requests
    targets: list[IntArray]  # distinct item rows, ascending, at least one
    following: list[IntArray]  # item rows of the split's events in time order, repeats included

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
    gap_seconds: int = 0,
    request_time: RequestTime = "target",
    rank: int = 0,
    world: int = 1,
) -> Iterator[Cases]:
    """Users with targets in a split, similar history lengths together; each user on exactly one rank.

    The history of a validation target is the training part; of a test target, the training and
    validation part. Without a gap all of it is visible, also events at the time of the first target.

    Args:
        min_events: users who see fewer events are left out; events that fall into the gap do not count.
        max_users: users of this rank at most: the first of the dataset, of all lengths, since ingest
            dealt them to shards by hash.
        gap_seconds: delay of the data: events of a history later than the time of its first target
            minus this are not visible, as in a system whose data arrives that much later. With a gap
            a history may be empty.
        request_time: target: the time of the first target, which tells a model that reads times when
            the next event happens; last_event: the time of the newest visible event, 0 where none is.

    Raises:
        DatasetError: a gap is asked for, and the log had no times.
    """
    if gap_seconds and not dataset.has_times:
        raise DatasetError(
            f"{dataset.directory}: the log had no times, so a gap of {gap_seconds} s cannot be left; set "
            "evaluate.gap_seconds=0 or ingest a log with times"
        )
    left = dataset.num_users if max_users is None else max_users
    for table in dataset.history_tables(COLUMNS, rank=rank, world=world):
        rows = table.combine_chunks()
        train, validation, test = (
            rows.column(name).to_numpy().astype(np.int64) for name in ("num_train", "num_validation", "num_test")
        )
        starts = train if split == "validation" else train + validation
        stops = starts + (validation if split == "validation" else test)
        users = np.flatnonzero(stops > starts)
        visible = _visible_events(rows, users, starts[users], gap_seconds)
        lengths = np.array([len(events) for events in visible], np.int64)
        chosen = np.flatnonzero(lengths >= min_events)[:left]
        left -= len(chosen)
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
        for first in range(0, len(chosen), users_per_batch):
            part = chosen[first : first + users_per_batch]
            cuts = (users[part], starts[users[part]], stops[users[part]])
            yield _cases(rows, *cuts, [visible[place] for place in part], request_time)
        if not left:
            return


def _visible_events(rows: pa.Table, users_B: IntArray, starts_B: IntArray, gap_seconds: int) -> list[IntArray]:
    """Positions, in the lists of a table laid end to end, of the events that each user's request may know."""
    if not len(users_B):
        return []
    column = list_column(rows, "times")
    begins_B = column.offsets.to_numpy()[users_B].astype(np.int64)
    positions_E, offsets_B1 = joined_ranges(begins_B, starts_B)
    if gap_seconds:
        times = column.values.to_numpy()
        newest_B = times[begins_B + starts_B] - gap_seconds
        # Not a prefix: a history that is sorted by `order` alone may go back in time.
        known_E = times[positions_E] <= np.repeat(newest_B, starts_B)
        offsets_B1 = np.concatenate([[0], np.cumsum(known_E)])[offsets_B1]
        positions_E = positions_E[known_E]
    return np.split(positions_E, offsets_B1[1:-1])


def _cases(
    rows: pa.Table,
    users_B: IntArray,
    starts_B: IntArray,
    stops_B: IntArray,
    visible: list[IntArray],
    request_time: RequestTime,
) -> Cases:
    columns = {name: list_column(rows, name) for name in ("items", "times", "actions")}
    flat = {name: column.values.to_numpy() for name, column in columns.items()}
    begins_B = columns["items"].offsets.to_numpy()[users_B].astype(np.int64)
    times = [flat["times"][events].astype(np.int64) for events in visible]
    following = [
        flat["items"][begin + start : begin + stop].astype(np.int64)
        for begin, start, stop in zip(begins_B, starts_B, stops_B, strict=True)
    ]
    if request_time == "target":
        query_times = flat["times"][begins_B + starts_B].tolist()
    else:
        # Not the last: without order by time the newest may stand before it.
        query_times = [int(row.max(initial=0)) for row in times]
    return Cases(
        user_ids=rows.column("user_id").take(pa.array(users_B)).to_pylist(),
        user_keys=rows.column("user_key").take(pa.array(users_B)).to_pylist(),
        items=[flat["items"][events].astype(np.int64) for events in visible],
        times=times,
        actions=[flat["actions"][events].astype(np.int64) for events in visible],
        query_times=query_times,
        targets=[np.unique(row) for row in following],
        following=following,
    )
