"""Searching deeper until every query has its k items in the right order."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from data.vocabulary import PAD_ROW
from serve.index.contract import Hits, hits_as_found, none_found, ordered_hits

# Candidates fetched beyond k: enough to see whether scores are equal around the cut, which is rare.
TIE_MARGIN = 1

Candidates = Callable[[npt.NDArray[np.float32], int, int], tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]


def search_deeper(
    candidates: Candidates,
    query_QD: Float32[npt.NDArray[np.float32], "Q D"],
    k: int,
    num_allowed: int,
    *,
    probes: int = 1,
    max_probes: int = 1,
) -> Hits:
    """The min(k, `num_allowed`) best items of each query.

    A search orders equal scores as it likes and may drop any of those that straddle the cut. So a
    query whose scores are equal from its k-th candidate to its last is searched deeper. A query that
    found fewer than k items is searched with twice the probes, up to all of them.

    Args:
        candidates: given queries, a depth and probes, the `depth` best rows of each with their exact
            scores, best first; row 0 where there are fewer, and one score for all of these, below any item's.
        num_allowed: items that may be found.
        probes: parts of the index that a query looks into at first.
        max_probes: all parts of the index.
    """
    k = min(k, num_allowed)
    if not k or not len(query_QD):
        return none_found(len(query_QD), k)
    depth = min(k + TIE_MARGIN, num_allowed)
    rows_QC, scores_QC = candidates(query_QD, depth, probes)
    if usual := hits_as_found(rows_QC, scores_QC, k):
        return usual
    best = hits = ordered_hits(rows_QC, scores_QC, k)
    open_Q = np.arange(len(query_QD))
    while True:
        # NaN queries find nothing anywhere; they must not keep the search going.
        short_Q = (hits.rows_QK[:, -1] == PAD_ROW) & np.isfinite(query_QD[open_Q]).all(axis=1)
        tied_Q = hits.scores_QK[:, -1] == scores_QC[:, -1]
        again_Q = (short_Q & (probes < max_probes)) | (tied_Q & (depth < num_allowed))
        open_Q = open_Q[again_Q]
        if not len(open_Q):
            return best
        if (again_Q & short_Q).any():
            probes = min(2 * probes, max_probes)
        if (again_Q & tied_Q).any():
            depth = min(4 * depth, num_allowed)
        rows_QC, scores_QC = candidates(query_QD[open_Q], depth, probes)
        hits = ordered_hits(rows_QC, scores_QC, k)
        best.rows_QK[open_Q], best.scores_QK[open_Q] = hits.rows_QK, hits.scores_QK
