"""How long a burst lasts: the gap in seconds that parts events of one request from those of the next.

The seconds between neighbouring events of a history have two humps on a logarithmic scale where
requests show several items: seconds inside a request, minutes to days between requests. Where the
log names its requests the two are counted apart; otherwise the valley between the humps is looked
for.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data.dataset import PreparedDataset
from data.errors import DatasetError
from data.ragged import IntArray, list_column

BINS_PER_OCTAVE = 4
NUM_BINS = 27 * BINS_PER_OCTAVE  # from half a second, which stands for none, to two years
_WHOLE_SECONDS = 64  # shorter gaps are counted by the second, and each second spread over the bins it covers
FloatArray = npt.NDArray[np.float64]
MAX_EVENTS = 5_000_000  # users were dealt to shards by hash, so the first shards are a sample
_MIN_SHARE_IN_REQUESTS = 0.01  # of the neighbours; below, most requests of the log show one item
_VALLEY_DEPTH = 0.8  # a valley is lower than this share of the lower hump beside it
_MIN_HUMP = 0.02  # of the neighbours in one bin, smoothed; a lower hump is noise


@dataclass(frozen=True)
class Gaps:
    """Seconds between neighbouring training events, in bins that grow by 2 ** (1 / 4)."""

    counts_H: FloatArray  # neighbours per bin; bin h holds gaps of at least `lower_edges()[h]` seconds
    inside_H: FloatArray  # of these, neighbours of one request
    seconds: int  # the estimate: a longer gap begins a new burst
    source: Literal["requests", "valley"]

    def facts(self) -> dict[str, Any]:
        """What an estimate says of a log, for reports."""
        total = int(self.counts_H.sum())
        below = lower_edges() <= self.seconds
        return {
            "gap_seconds": self.seconds,
            "source": self.source,
            "neighbours": total,
            "share_within_gap": float(self.counts_H[below].sum() / total),
            "share_in_one_request": float(self.inside_H.sum() / total),
        }


def lower_edges() -> FloatArray:
    """Shortest gap of each bin, seconds; no gap at all stands in the octave under one second."""
    return np.asarray(2.0 ** (np.arange(NUM_BINS) / BINS_PER_OCTAVE - 1))


def measure_gaps(dataset: PreparedDataset) -> Gaps:
    """Count the gaps of the training events (of the first 5 million), and estimate the length of a burst.

    Raises:
        DatasetError: the log had no times, or its gaps have no valley.
    """
    if not dataset.has_times:
        raise DatasetError(
            f"{dataset.directory}: the log had no times, so gaps cannot be measured; ingest a log with times, or set "
            "model.prediction.gap=request where it names requests"
        )
    counts_H, inside_H = np.zeros(NUM_BINS), np.zeros(NUM_BINS)
    num_events = 0
    for table in dataset.history_tables(["times", "requests", "num_train"]):
        rows = table.combine_chunks()
        times, requests = list_column(rows, "times"), list_column(rows, "requests")
        offsets = times.offsets.to_numpy().astype(np.int64)
        stops_B = offsets[:-1] + rows.column("num_train").to_numpy()
        # Neighbours i, i + 1 that are both of one history's training part.
        place_E = np.arange(offsets[-1] - offsets[0]) + offsets[0]
        row_E = np.repeat(np.arange(len(stops_B)), np.diff(offsets))
        first_E = place_E[place_E + 1 < stops_B[row_E]]
        times_E, requests_E = times.values.to_numpy(), requests.values.to_numpy()
        seconds_E = np.maximum(times_E[first_E + 1] - times_E[first_E], 0)
        same_E = (requests_E[first_E] == requests_E[first_E + 1]) & (requests_E[first_E] >= 0)
        counts_H += histogram(seconds_E)
        inside_H += histogram(seconds_E[same_E])
        num_events += len(place_E)
        if num_events >= MAX_EVENTS:
            break
    if inside_H.sum() > _MIN_SHARE_IN_REQUESTS * counts_H.sum():
        return Gaps(counts_H, inside_H, _parting(inside_H, counts_H - inside_H), "requests")
    valley = find_valley(counts_H)
    if valley is None:
        raise DatasetError(
            f"{dataset.directory}: the gaps between events have no valley that would part bursts, and the log names no "
            "requests; set model.prediction.gap to a number of seconds"
        )
    return Gaps(counts_H, inside_H, valley, "valley")


def histogram(seconds_E: IntArray) -> FloatArray:
    """Gaps per bin. Whole seconds are coarser than the bins of short gaps: second s is spread over [s, s + 1)."""
    long_E = seconds_E[seconds_E >= _WHOLE_SECONDS]
    places_E = np.searchsorted(lower_edges(), long_E, side="right") - 1
    counts_H = np.bincount(places_E, minlength=NUM_BINS).astype(np.float64)
    whole_S = np.bincount(seconds_E[seconds_E < _WHOLE_SECONDS], minlength=_WHOLE_SECONDS)
    # On the scale of the bins: where each second begins, and how many lie before it.
    begins_S1 = (np.log2(np.maximum(np.arange(_WHOLE_SECONDS + 1), 0.5)) + 1) * BINS_PER_OCTAVE
    before_H1 = np.interp(np.arange(NUM_BINS + 1), begins_S1, np.concatenate([[0], np.cumsum(whole_S)]))
    return np.asarray(counts_H + np.diff(before_H1))


def find_valley(counts_H: FloatArray) -> int | None:
    """Seconds at the lowest point between the two humps that stand out most; None if there are no two.

    The histogram is smoothed over an octave. Of all pairs of humps that one is taken whose lower
    hump stands highest above the lowest point between the two. Of equally low points the middle.
    """
    kernel = np.hanning(2 * BINS_PER_OCTAVE + 1)
    share_H = np.convolve(counts_H / max(counts_H.sum(), 1), kernel / kernel.sum(), mode="same")
    left, right = np.concatenate([[0], share_H[:-1]]), np.concatenate([share_H[1:], [0]])
    humps = np.flatnonzero((share_H >= left) & (share_H > right) & (share_H > _MIN_HUMP))
    best, valley = 0.0, None
    for place, low in enumerate(humps):
        for high in humps[place + 1 :]:
            between = share_H[low : high + 1]
            lower = min(share_H[low], share_H[high])
            if between.min() < _VALLEY_DEPTH * lower and lower - between.min() > best:
                best = lower - between.min()
                lowest = np.flatnonzero(between <= between.min() + 1e-12)
                valley = round(float(lower_edges()[low + lowest[len(lowest) // 2]]))
    return valley


def _parting(inside_H: FloatArray, between_H: FloatArray) -> int:
    """Seconds that best part gaps inside requests from those between them: the sum of both error shares is least."""
    above = 1 - np.cumsum(inside_H) / max(inside_H.sum(), 1)
    below = np.cumsum(between_H) / max(between_H.sum(), 1)
    best = int(np.argmin(above + below))
    return round(float(lower_edges()[min(best + 1, NUM_BINS - 1)]))
