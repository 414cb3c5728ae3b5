"""Searching deeper until every query has its k items in the right order."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from serve.index.contract import Hits, ordered_hits

# Candidates fetched beyond k, so that equal scores around the cut can be put in order.
TIE_MARGIN = 16

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
            scores; row 0 and -inf where there are fewer.
        num_allowed: items that may be found.
        probes: parts of the index that a query looks into at first.
        max_probes: all parts of the index.
    """
    k = min(k, num_allowed)
    depth = min(k + TIE_MARGIN, num_allowed)
    rows_QK = np.zeros((len(query_QD), k), np.int64)
    scores_QK = np.full((len(query_QD), k), -np.inf, np.float32)
    open_Q = np.arange(len(query_QD))
    while k and len(open_Q):
        found = candidates(query_QD[open_Q], depth, probes)
        hits = ordered_hits(*found, k)
        rows_QK[open_Q], scores_QK[open_Q] = hits.rows_QK, hits.scores_QK
        # NaN queries find nothing anywhere; they must not keep the search going.
        short_Q = (hits.rows_QK[:, -1] == 0) & np.isfinite(query_QD[open_Q]).all(axis=1)
        last_Q = found[1].min(axis=1)
        tied_Q = (hits.scores_QK[:, -1] == last_Q) & np.isfinite(last_Q)
        again_Q = (short_Q & (probes < max_probes)) | (tied_Q & (depth < num_allowed))
        open_Q = open_Q[again_Q]
        if (again_Q & short_Q).any():
            probes = min(2 * probes, max_probes)
        if (again_Q & tied_Q).any():
            depth = min(4 * depth, num_allowed)
    return Hits(rows_QK, scores_QK)
