"""Split rules: how many events of each history are for training, validation and test.

A split is a cut of the sorted history, so what trains always stands before what is a target.
"""

import math

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Parts = tuple[IntArray, IntArray, IntArray]  # events of each history for training, validation, test

# Times are counted by the hour first: one count per second would be too many for a large log.
BIN_SECONDS = 3600


def last_out(lengths_B: IntArray, test_events: int = 1) -> Parts:
    """The last events are test and the one before them validation, in histories that keep one for training.

    Args:
        test_events: events of a history for test, at least 1; a history of fewer than this and two more
            is all for training.
    """
    held_B = (lengths_B >= test_events + 2).astype(np.int64)
    return lengths_B - (test_events + 1) * held_B, held_B, test_events * held_B


def by_time(times_E: IntArray, offsets_B1: IntArray, *, validation_start: int, test_start: int) -> Parts:
    """Cut every history at the same two moments; an event at a cut goes to the later part.

    Args:
        times_E: seconds UTC, ascending inside each history `offsets_B1[b]:offsets_B1[b + 1]`.
    """
    lengths_B = np.diff(offsets_B1)
    test_B = _count_from(times_E, offsets_B1, test_start)
    held_B = _count_from(times_E, offsets_B1, validation_start)
    return lengths_B - held_B, held_B - test_B, test_B


def _count_from(times_E: IntArray, offsets_B1: IntArray, start: int) -> IntArray:
    before_E1 = np.concatenate([[0], np.cumsum(times_E >= start)]).astype(np.int64)
    return before_E1[offsets_B1[1:]] - before_E1[offsets_B1[:-1]]


def cut_rank(num_events: int, share_after: float) -> int:
    """Rank (from 0, in time order) of the event whose time is the cut that leaves `share_after` behind it."""
    # The small term undoes rounding such as 1 - 0.1 - 0.1 = 0.7999...
    rank = math.floor(num_events * (1 - share_after) + 1e-6)
    return min(max(rank, 0), max(num_events - 1, 0))


def bin_of_rank(starts: IntArray, counts: IntArray, rank: int) -> tuple[int, int]:
    """The bin that holds the event of a rank, and the event's rank inside that bin.

    Args:
        starts: first second of each bin, ascending; counts: events in it.
    """
    ends = np.cumsum(counts)
    place = int(np.searchsorted(ends, rank, side="right"))
    return int(starts[place]), rank - int(ends[place] - counts[place])
