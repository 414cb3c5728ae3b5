"""What every index does, whatever holds its vectors. Q queries, D width, K hits."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float32, Int64

from data.vocabulary import PAD_ROW


@dataclass(frozen=True)
class Hits:
    """The K best items of each query: higher scores first, equal scores by smaller row.

    A query with fewer than K hits ends in row 0 (no item) with score -inf.
    """

    rows_QK: Int64[npt.NDArray[np.int64], "Q K"]
    scores_QK: Float32[npt.NDArray[np.float32], "Q K"]


@runtime_checkable
class Index(Protocol):
    """Items 1 to `num_items`, searched by inner product."""

    @property
    def num_items(self) -> int:
        """Items in the index."""
        ...

    @property
    def width(self) -> int:
        """D of the vectors."""
        ...

    def search(
        self,
        query_QD: Float32[npt.NDArray[np.float32], "Q D"],
        k: int,
        allowed_V: Bool[npt.NDArray[np.bool_], "V"] | None = None,
    ) -> Hits:
        """The min(k, V) best items of each query. Call it from one thread at a time.

        Args:
            allowed_V: of items 1, 2, ..., those that may be found; V is then how many that are. None: all.
        """
        ...


def none_found(num_queries: int, k: int) -> Hits:
    """No item for any query."""
    return Hits(np.full((num_queries, k), PAD_ROW, np.int64), np.full((num_queries, k), -np.inf, np.float32))


def hits_as_found(
    rows_QC: Int64[npt.NDArray[np.int64], "Q C"], scores_QC: Float32[npt.NDArray[np.float32], "Q C"], k: int
) -> Hits | None:
    """The first k candidates, given best first, where nothing is left to order: the usual case, told apart quickly.

    Scores that fall from each of the k to the next candidate are neither tied nor those of missing items, which are
    all alike. None otherwise.
    """
    if scores_QC.shape[1] > k and (scores_QC[:, :k] > scores_QC[:, 1 : k + 1]).all():
        return Hits(rows_QC[:, :k], scores_QC[:, :k])
    return None


def ordered_hits(
    rows_QC: Int64[npt.NDArray[np.int64], "Q C"], scores_QC: Float32[npt.NDArray[np.float32], "Q C"], k: int
) -> Hits:
    """The k best of C candidates per query, in the order that `Hits` promises.

    Candidates without an item have row 0; their score does not matter. A score of NaN is that of no item.
    """
    rows_QC = np.where(np.isnan(scores_QC), PAD_ROW, rows_QC)
    scores_QC = np.where(rows_QC == PAD_ROW, -np.inf, scores_QC).astype(np.float32)
    # Row 0 is smaller than any item's; it must lose its ties.
    tie_QC = np.where(rows_QC == PAD_ROW, np.iinfo(np.int64).max, rows_QC)
    order_QK = np.lexsort((tie_QC, -scores_QC), axis=-1)[:, :k]
    return Hits(np.take_along_axis(rows_QC, order_QK, axis=1), np.take_along_axis(scores_QC, order_QK, axis=1))
