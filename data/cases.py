"""Evaluation cases: users of one split, what was known before their targets, and the targets."""

from collections.abc import Collection, Iterator
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
    target_actions: Collection[str] | None = None,
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
        target_actions: only events with these actions are targets; users without any are left out. What is visible,
            and when they ask, goes by the first event of the split all the same.

    Raises:
        DatasetError: a gap is asked for, and the log had no times; or the log lacks an action.
    """
    if gap_seconds and not dataset.has_times:
        raise DatasetError(
            f"{dataset.directory}: the log had no times, so a gap of {gap_seconds} s cannot be left; set "
            "evaluate.gap_seconds=0 or ingest a log with times"
        )
    codes = None if target_actions is None else _action_codes(dataset, target_actions)
    left = dataset.num_users if max_users is None else max_users
    for table in dataset.history_tables(COLUMNS, rank=rank, world=world):
        rows = table.combine_chunks()
        train, validation, test = (
            rows.column(name).to_numpy().astype(np.int64) for name in ("num_train", "num_validation", "num_test")
        )
        starts = train if split == "validation" else train + validation
        stops = starts + (validation if split == "validation" else test)
        users = _users_with_targets(rows, starts, stops, codes)
        visible = _visible_events(rows, users, starts[users], gap_seconds)
        lengths = np.array([len(events) for events in visible], np.int64)
        chosen = np.flatnonzero(lengths >= min_events)[:left]
        left -= len(chosen)
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
        for first in range(0, len(chosen), users_per_batch):
            part = chosen[first : first + users_per_batch]
            cuts = (users[part], starts[users[part]], stops[users[part]])
            yield _cases(rows, *cuts, [visible[place] for place in part], request_time, codes)
        if not left:
            return


def _action_codes(dataset: PreparedDataset, names: Collection[str]) -> IntArray:
    found: list[str] = dataset.manifest["actions"]
    unknown = sorted(set(names) - set(found))
    if unknown:
        raise DatasetError(
            f"{dataset.directory}: no event has the action {', '.join(unknown)}; there are {', '.join(found) or 'none'}"
        )
    return np.array([found.index(name) + 1 for name in names], np.int64)


def _users_with_targets(rows: pa.Table, starts: IntArray, stops: IntArray, codes: IntArray | None) -> IntArray:
    """The users who have events between two places of their history; with codes, events of these actions."""
    users = np.flatnonzero(stops > starts)
    if codes is None:
        return users
    column = list_column(rows, "actions")
    begins = column.offsets.to_numpy().astype(np.int64)[users]
    before = np.concatenate([[0], np.cumsum(np.isin(column.values.to_numpy(), codes))])
    with_targets: IntArray = users[before[begins + stops[users]] > before[begins + starts[users]]]
    return with_targets


def check_targets(dataset: PreparedDataset, split: Split, target_actions: Collection[str] | None) -> None:
    """Refuse a split in which no event has one of some actions.

    Raises:
        DatasetError: it says which.
    """
    if target_actions is None:
        return
    found = split_cases(dataset, split, users_per_batch=1, max_users=1, target_actions=target_actions)
    if next(found, None) is None:
        raise DatasetError(
            f"{dataset.directory}: no user has a {split} target with the actions {', '.join(target_actions)}; hold out "
            "more events (ingest.split), or name other actions in evaluate.target_actions"
        )


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
    codes: IntArray | None,
) -> Cases:
    columns = {name: list_column(rows, name) for name in ("items", "times", "actions")}
    flat = {name: column.values.to_numpy() for name, column in columns.items()}
    begins_B = columns["items"].offsets.to_numpy()[users_B].astype(np.int64)
    times = [flat["times"][events].astype(np.int64) for events in visible]
    held_out = [
        slice(begin + start, begin + stop) for begin, start, stop in zip(begins_B, starts_B, stops_B, strict=True)
    ]
    following = [flat["items"][events].astype(np.int64) for events in held_out]
    if codes is not None:
        kept = [np.isin(flat["actions"][events], codes) for events in held_out]
        following = [row[own] for row, own in zip(following, kept, strict=True)]
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
