"""Training windows: histories cut to rows that fit the model, and batches of similar length."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.ragged import IntArray, joined_ranges, list_column
from data.schema import HISTORY_SCHEMA

WindowRule = Literal["last", "all"]
WINDOW_COLUMNS = ("user_key", "items", "times", "actions", "requests")
WINDOW_KEY = ("user_key", "window")  # what names a window
_LIST_TYPES = {name: HISTORY_SCHEMA.field(name).type for name in WINDOW_COLUMNS[1:]}


def cut_windows(histories: pa.Table, *, max_events: int, rule: WindowRule, since: int | None = None) -> pa.Table:
    """Cut the training part of each history into windows of at most `max_events` + 1 events.

    A window's last event is only a target, so the model sees at most `max_events` events. Windows
    are cut from the end of the training part backwards and overlap by that one event: under `all`
    every training event but a user's first is a target exactly once; under `last` only the newest
    window is kept. Histories with fewer than two training events give no window.

    Args:
        histories: rows of `data.schema.HISTORY_SCHEMA`.
        since: seconds UTC; of the windows only those whose last event is not earlier.

    Returns:
        Table with `user_key`, `window` (0 for the newest of a history; with `user_key` it names the window) and the
        list columns `items`, `times`, `actions`, `requests`.
    """
    combined = histories.combine_chunks()
    row_W, nth_W, start_W, stop_W = window_bounds(combined, max_events=max_events, rule=rule, since=since)
    taken_E, new_offsets = joined_ranges(start_W, stop_W - start_W)
    columns: dict[str, pa.Array] = {
        "user_key": combined.column("user_key").to_numpy()[row_W],
        "window": pa.array(nth_W, pa.int64()),
    }
    for name in ("items", "times", "actions", "requests"):
        values = list_column(combined, name).values.take(pa.array(taken_E))
        columns[name] = pa.ListArray.from_arrays(pa.array(new_offsets, pa.int32()), values)
    return pa.table(columns)


def window_bounds(
    histories: pa.Table, *, max_events: int, rule: WindowRule, since: int | None
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Where the windows of `cut_windows` are: row of the history, number, first event and the one after the last.

    Events are counted in the list columns laid end to end. Of these only `times` is read.

    Args:
        histories: in one chunk, with `times` and `num_train`.
    """
    times = list_column(histories, "times")
    offsets = times.offsets.to_numpy().astype(np.int64)
    num_train = histories.column("num_train").to_numpy().astype(np.int64)
    num_windows = np.maximum(-(-(num_train - 1) // max_events), 0)
    if rule == "last":
        num_windows = np.minimum(num_windows, 1)
    row_W = np.repeat(np.arange(len(num_train)), num_windows)
    first_W = np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    nth_W = np.arange(len(row_W)) - first_W  # 0 = newest window of its history
    stop_W = offsets[row_W] + num_train[row_W] - nth_W * max_events
    start_W = np.maximum(stop_W - max_events - 1, offsets[row_W])
    if since is None:
        return row_W, nth_W, start_W, stop_W
    kept_W = times.values.to_numpy()[stop_W - 1] >= since
    return row_W[kept_W], nth_W[kept_W], start_W[kept_W], stop_W[kept_W]


def filler_windows(count: int) -> pa.Table:
    """Windows with nothing to learn from, in the columns of `cut_windows`: two events of padding each, of no user."""
    padding = {"items": 0, "times": 0, "actions": 0, "requests": -1}
    return pa.table(
        {
            "user_key": pa.array([-1] * count, pa.int64()),
            "window": pa.array(range(count), pa.int64()),
            **{name: pa.array([[value] * 2] * count, _LIST_TYPES[name]) for name, value in padding.items()},
        }
    )


class WindowSet:
    """Windows by `WINDOW_KEY`, sorted once; 16 bytes a window.

    Asking for B windows in a set of N takes O(B log N), whatever the two numbers that name them.
    """

    def __init__(self, windows: pa.Table) -> None:
        users_N, numbers_N = (windows.column(name).to_numpy() for name in WINDOW_KEY)
        order = np.lexsort((numbers_N, users_N))
        self._users_N, self._numbers_N = users_N[order], numbers_N[order]

    def holds(self, windows: pa.Table) -> npt.NDArray[np.bool_]:
        """Which of some windows are in the set."""
        users_B, numbers_B = (windows.column(name).to_numpy() for name in WINDOW_KEY)
        first_B = np.searchsorted(self._users_N, users_B, "left")
        stop_B = np.searchsorted(self._users_N, users_B, "right")
        last_B = stop_B.copy()
        # A binary search for each window among those of its user, all of them side by side.
        while len(open_B := np.flatnonzero(first_B < last_B)):
            middle_B = (first_B[open_B] + last_B[open_B]) // 2
            below_B = self._numbers_N[middle_B] < numbers_B[open_B]
            first_B[open_B[below_B]] = middle_B[below_B] + 1
            last_B[open_B[~below_B]] = middle_B[~below_B]
        held_B: npt.NDArray[np.bool_] = first_B < stop_B
        held_B[held_B] = self._numbers_N[first_B[held_B]] == numbers_B[held_B]
        return held_B


def length_buckets(
    lengths_B: npt.NDArray[np.int64],
    *,
    events_per_batch: int,
    random: np.random.Generator,
    groups_B: npt.NDArray[np.int64] | None = None,
) -> Iterator[npt.NDArray[np.int64]]:
    """Split rows into batches of similar length, each of at most `events_per_batch` padded events.

    Rows are shuffled, ordered by length (ties stay shuffled), cut greedily, and the batches come
    in random order, so padding stays low and every epoch pairs other rows. A row longer than
    `events_per_batch` gets a batch of its own.

    Args:
        groups_B: rows are ordered by these numbers first, so that batches are of rows whose groups are equal, or
            follow one another; with more padding, since lengths then differ.

    Returns:
        Row numbers of each batch; every row occurs exactly once.
    """
    shuffled = random.permutation(len(lengths_B))
    keys = (lengths_B[shuffled],) if groups_B is None else (lengths_B[shuffled], groups_B[shuffled])
    order = shuffled[np.lexsort(keys)]
    cuts, longest = [0], 0
    for position, row in enumerate(order):
        longest = max(longest, int(lengths_B[row]))
        if position > cuts[-1] and (position - cuts[-1] + 1) * longest > events_per_batch:
            cuts.append(position)
            longest = int(lengths_B[row])
    batches = np.split(order, cuts[1:]) if len(order) else []
    for number in random.permutation(len(batches)):
        yield batches[number]
