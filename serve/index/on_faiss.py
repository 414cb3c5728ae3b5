"""`flat` and `ivf` indexes on CPU FAISS."""

import math

import faiss
import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float32

from data.errors import RecipeError
from serve.index.contract import Hits, ordered_hits
from serve.settings import FlatSettings, IndexKind, IvfSettings

# FAISS wants at least this many training vectors per centroid and warns below it.
MIN_ITEMS_PER_LIST = 39
# Candidates fetched beyond k, so that equal scores around the cut can be put in order.
TIE_MARGIN = 16


class FaissIndex:
    """A FAISS index whose vector at position p is item row p + 1."""

    def __init__(self, index: faiss.Index) -> None:
        self.faiss_index = index

    @property
    def num_items(self) -> int:
        """Items in the index."""
        return int(self.faiss_index.ntotal)

    @property
    def width(self) -> int:
        """D of the vectors."""
        return int(self.faiss_index.d)

    def search(
        self,
        query_QD: Float32[npt.NDArray[np.float32], "Q D"],
        k: int,
        allowed_V: Bool[npt.NDArray[np.bool_], "V"] | None = None,
    ) -> Hits:
        """The min(k, V) best of the allowed items of each query: the filter works inside the search.

        FAISS orders equal scores as it likes and may drop any of those that straddle the cut. So a
        query whose scores are equal from its k-th candidate to its last is searched deeper.
        An ivf query whose probed lists hold fewer than k items is searched in twice as many lists,
        up to all of them: every query gets its min(k, V) items.
        """
        query_QD = np.ascontiguousarray(query_QD, np.float32)
        num_allowed = self.num_items if allowed_V is None else int(allowed_V.sum())
        k = min(k, num_allowed)
        depth = min(k + TIE_MARGIN, num_allowed)
        rows_QK = np.zeros((len(query_QD), k), np.int64)
        scores_QK = np.full((len(query_QD), k), -np.inf, np.float32)
        probes = self._probes()
        open_Q = np.arange(len(query_QD))
        while k and len(open_Q):
            candidates = self._candidates(query_QD[open_Q], depth, probes, allowed_V)
            hits = ordered_hits(*candidates, k)
            rows_QK[open_Q], scores_QK[open_Q] = hits.rows_QK, hits.scores_QK
            # NaN queries find nothing anywhere; they must not keep the search going.
            short_Q = (hits.rows_QK[:, -1] == 0) & np.isfinite(query_QD[open_Q]).all(axis=1)
            last_Q = candidates[1].min(axis=1)
            tied_Q = (hits.scores_QK[:, -1] == last_Q) & np.isfinite(last_Q)
            again_Q = (short_Q & (probes < self._num_lists())) | (tied_Q & (depth < num_allowed))
            open_Q = open_Q[again_Q]
            if (again_Q & short_Q).any():
                probes = min(2 * probes, self._num_lists())
            if (again_Q & tied_Q).any():
                depth = min(4 * depth, num_allowed)
        return Hits(rows_QK, scores_QK)

    def _candidates(
        self, query_QD: npt.NDArray[np.float32], depth: int, probes: int, allowed_V: npt.NDArray[np.bool_] | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        parameters = faiss.SearchParameters()
        if isinstance(self.faiss_index, faiss.IndexIVF):
            parameters = in_lists = faiss.IVFSearchParameters()
            in_lists.nprobe = probes
        if allowed_V is not None:
            bits = np.packbits(allowed_V, bitorder="little")  # the selector points at it
            parameters.sel = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        scores_QC, positions_QC = self.faiss_index.search(query_QD, depth, params=parameters)
        # Position -1 (nothing found) becomes row 0.
        rows_QC = positions_QC.astype(np.int64) + 1
        return rows_QC, np.where(rows_QC == 0, -np.inf, scores_QC).astype(np.float32)

    def _probes(self) -> int:
        return int(self.faiss_index.nprobe) if isinstance(self.faiss_index, faiss.IndexIVF) else 1

    def _num_lists(self) -> int:
        return int(self.faiss_index.nlist) if isinstance(self.faiss_index, faiss.IndexIVF) else 1


def build_index(item_VD: Float32[npt.NDArray[np.float32], "V D"], settings: IndexKind) -> FaissIndex:
    """Arrange the vectors of rows 1 to V.

    Raises:
        RecipeError: more lists than items.
    """
    item_VD = np.ascontiguousarray(item_VD, np.float32)
    match settings:
        case FlatSettings():
            index: faiss.Index = faiss.IndexFlatIP(item_VD.shape[1])
        case IvfSettings():
            index = _trained_ivf(item_VD, settings)
    index.add(item_VD)
    return FaissIndex(index)


def _trained_ivf(item_VD: npt.NDArray[np.float32], settings: IvfSettings) -> faiss.IndexIVFFlat:
    num_items, width = item_VD.shape
    num_lists = settings.num_lists or default_num_lists(num_items)
    if num_lists > num_items:
        raise RecipeError(
            f"index.search.num_lists: found {num_lists} with {num_items} items; expected at most one list "
            "per item; lower it, or leave it out"
        )
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1  # FAISS prints a warning below its 39; the manifest's recall says more
    index.train(item_VD)
    index.nprobe = min(settings.num_probes, num_lists)
    return index


def default_num_lists(num_items: int) -> int:
    """About 4 sqrt(items), as FAISS advises below a million vectors, with enough items to train each list."""
    return max(1, min(round(4 * math.sqrt(num_items)), num_items // MIN_ITEMS_PER_LIST))


def set_search_threads(threads: int) -> None:
    """Set how many threads the calling thread's searches use (OpenMP keeps the number per thread)."""
    faiss.omp_set_num_threads(threads)


def write_index(index: FaissIndex, path: str) -> None:
    """Write FAISS's own format."""
    faiss.write_index(index.faiss_index, path)


def read_index(path: str) -> FaissIndex:
    """Read FAISS's own format. FAISS trusts the file: check its hash first."""
    return FaissIndex(faiss.read_index(path))
