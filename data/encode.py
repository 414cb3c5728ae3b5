"""Histories as the model sees them: the same function for training, evaluation and serving.

A history is cut to its last `max_events` events. Beside each event stands the time of the event
after it, because that is when the next answer was asked for; beside the last stands the time of
the request (HSTU feeds this time to the model, "Actions Speak Louder than Words", section 2.1 of
its research code; in production it is the clock at the request).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.ragged import IntArray, joined_ranges, list_column


@dataclass(frozen=True)
class EncodedHistories:
    """B histories laid end to end; history b holds events `offsets_B1[b]:offsets_B1[b + 1]`."""

    items_E: IntArray  # item rows
    times_E: IntArray  # seconds UTC
    actions_E: IntArray  # action codes
    requests_E: IntArray  # ordinal of each event's request in its history; -1 where not known
    offsets_B1: IntArray
    query_times_B: IntArray  # when the answer after the last event is asked for, seconds UTC
    next_items_B: IntArray  # the item that followed the last event; 0 where not known
    next_requests_B: IntArray  # the request that showed it; -1 where not known
    next_actions_B: IntArray  # what the user did with it; 0 where not known
    users_B: IntArray  # `user_key` of the dataset; -1 where there is none

    @property
    def lengths_B(self) -> IntArray:
        """Events of each history."""
        return np.diff(self.offsets_B1)

    def __len__(self) -> int:
        return len(self.query_times_B)


def encode_histories(
    items: Sequence[npt.ArrayLike],
    times: Sequence[npt.ArrayLike],
    actions: Sequence[npt.ArrayLike],
    query_times: npt.ArrayLike,
    *,
    max_events: int,
    users: npt.ArrayLike | None = None,
) -> EncodedHistories:
    """Encode histories that wait for an answer: the last `max_events` events of each, oldest first.

    Args:
        items: item rows of each history; 0 (an item outside the vocabulary) must have been dropped.
        times, actions: seconds UTC and action codes, of equal lengths.
        query_times: seconds UTC of each request.
        max_events: at least 1.
    """
    query_times_B = np.asarray(query_times, np.int64)
    lengths_B = np.array([min(len(np.atleast_1d(row)), max_events) for row in items], np.int64)
    users_B = np.full(len(items), -1, np.int64) if users is None else np.asarray(users, np.int64)
    return EncodedHistories(
        items_E=_last_events(items, max_events),
        times_E=_last_events(times, max_events),
        actions_E=_last_events(actions, max_events),
        requests_E=np.full(lengths_B.sum(), -1, np.int64),  # only training asks for them
        offsets_B1=np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int64),
        query_times_B=query_times_B,
        next_items_B=np.zeros(len(items), np.int64),
        next_requests_B=np.full(len(items), -1, np.int64),
        next_actions_B=np.zeros(len(items), np.int64),
        users_B=users_B,
    )


def _last_events(rows: Sequence[npt.ArrayLike], max_events: int) -> IntArray:
    parts = [np.atleast_1d(np.asarray(row, np.int64))[-max_events:] for row in rows]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def encode_windows(windows: pa.Table) -> EncodedHistories:
    """Encode training windows: the last event of each is what the events before it predict.

    `windows` comes from `data.windows.cut_windows`: list columns `items`, `times`, `actions` and
    `requests` of at least two events each, and `user_key`.
    """
    combined = windows.combine_chunks()
    lists = {name: list_column(combined, name) for name in ("items", "times", "actions", "requests")}
    flat = {name: column.values.to_numpy().astype(np.int64) for name, column in lists.items()}
    bounds_B1 = lists["items"].offsets.to_numpy().astype(np.int64)
    starts_B, stops_B = bounds_B1[:-1], bounds_B1[1:]
    # Every event but each window's last, which is only a target.
    kept_E, offsets_B1 = joined_ranges(starts_B, stops_B - starts_B - 1)
    return EncodedHistories(
        items_E=flat["items"][kept_E],
        times_E=flat["times"][kept_E],
        actions_E=flat["actions"][kept_E],
        requests_E=flat["requests"][kept_E],
        offsets_B1=offsets_B1,
        query_times_B=flat["times"][stops_B - 1],
        next_items_B=flat["items"][stops_B - 1],
        next_requests_B=flat["requests"][stops_B - 1],
        next_actions_B=flat["actions"][stops_B - 1],
        users_B=windows.column("user_key").to_numpy().astype(np.int64),
    )
