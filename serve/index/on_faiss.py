"""`flat` and `ivf` indexes in FAISS."""

import math
from functools import partial
from typing import Any, cast

import faiss
import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float32

from data.errors import RecipeError
from serve.index.contract import Hits
from serve.index.deepening import search_deeper
from serve.index.settings import FlatSettings, IvfSettings, ListSettings

# FAISS wants at least this many training vectors per centroid and warns below it.
MIN_ITEMS_PER_LIST = 39
HALF = faiss.ScalarQuantizer.QT_fp16


class FaissIndex:
    """A FAISS index whose vector at position p is item row p + 1; it must not change any more."""

    def __init__(self, index: faiss.Index) -> None:
        self.faiss_index = cast(Any, index)  # the stubs know no parameters of lists
        # Asked of FAISS once: the answers cost a search of one query more than its ordering does.
        self.num_items, self.width = int(index.ntotal), int(index.d)
        self._has_lists = isinstance(index, faiss.IndexIVF)
        self._probes, self._num_lists = int(self.faiss_index.nprobe) if self._has_lists else 1, num_lists_of(index)

    def search(
        self,
        query_QD: Float32[npt.NDArray[np.float32], "Q D"],
        k: int,
        allowed_V: Bool[npt.NDArray[np.bool_], "V"] | None = None,
    ) -> Hits:
        """The min(k, V) best of the allowed items of each query: the filter works inside the search.

        An ivf query whose probed lists hold fewer than k items is searched in twice as many lists.
        """
        return search_deeper(
            partial(self._candidates, allowed_V=allowed_V),
            np.ascontiguousarray(query_QD, np.float32),
            k,
            self.num_items if allowed_V is None else int(allowed_V.sum()),
            probes=self._probes,
            max_probes=self._num_lists,
        )

    def _candidates(
        self, query_QD: npt.NDArray[np.float32], depth: int, probes: int, *, allowed_V: npt.NDArray[np.bool_] | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        parameters: Any = None  # as the index is set
        if self._has_lists and (allowed_V is not None or probes != self._probes):
            parameters = faiss.IVFSearchParameters()
            parameters.nprobe = probes
        if allowed_V is not None:
            parameters = only(parameters or faiss.SearchParameters(), allowed_V)
        scores_QC, rows_QC = self.faiss_index.search(query_QD, depth, params=parameters)
        rows_QC += 1  # positions become rows, and -1 (nothing found) row 0
        return rows_QC, scores_QC


def build_faiss(item_VD: Float32[npt.NDArray[np.float32], "V D"], settings: FlatSettings | IvfSettings) -> FaissIndex:
    """Arrange the vectors of rows 1 to V.

    Raises:
        RecipeError: more lists than items.
    """
    match settings:
        case FlatSettings():
            index: faiss.Index = (
                faiss.IndexScalarQuantizer(item_VD.shape[1], HALF, faiss.METRIC_INNER_PRODUCT)
                if settings.float16
                else faiss.IndexFlatIP(item_VD.shape[1])
            )
        case IvfSettings():
            index = _trained_ivf(item_VD, settings)
    index.add(item_VD)
    return FaissIndex(index)


def _trained_ivf(item_VD: npt.NDArray[np.float32], settings: IvfSettings) -> faiss.IndexIVF:
    num_items, width = item_VD.shape
    num_lists = checked_num_lists(settings, num_items)
    coarse, metric = faiss.IndexFlatIP(width), faiss.METRIC_INNER_PRODUCT
    index: faiss.IndexIVF = (
        faiss.IndexIVFScalarQuantizer(coarse, width, num_lists, HALF, metric, False)
        if settings.float16
        else faiss.IndexIVFFlat(coarse, width, num_lists, metric)
    )
    index.cp.min_points_per_centroid = 1  # FAISS prints a warning below its 39; the manifest's recall says more
    index.train(item_VD)
    index.nprobe = min(settings.num_probes, num_lists)
    return index


def checked_num_lists(settings: ListSettings, num_items: int) -> int:
    """How many lists to make of so many items.

    Raises:
        RecipeError: more lists than items.
    """
    num_lists = settings.num_lists or default_num_lists(num_items)
    if num_lists > num_items:
        raise RecipeError(
            f"index.search.num_lists: found {num_lists} with {num_items} items; expected at most one list "
            "per item; lower it, or leave it out"
        )
    return num_lists


def num_lists_of(index: faiss.Index | faiss.IndexBinary) -> int:
    """Lists of an index that has any, else 1."""
    return int(index.nlist) if isinstance(index, faiss.IndexIVF) else 1


def only(parameters: Any, allowed_V: Bool[npt.NDArray[np.bool_], "V"]) -> Any:
    """The same parameters of a search, which finds allowed items alone."""
    bits = np.packbits(allowed_V, bitorder="little")
    chosen = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    chosen.bits_that_it_points_at = bits  # type: ignore[attr-defined]
    parameters.sel = chosen
    parameters.allowed_V = allowed_V  # for what cannot read a selector
    return parameters


def usual_parameters(index: Any) -> Any:
    """Parameters that search an index as it is set."""
    if isinstance(index, faiss.IndexIVF):
        in_lists = faiss.IVFSearchParameters()
        in_lists.nprobe = index.nprobe
        return in_lists
    if isinstance(index, faiss.IndexHNSW):
        in_graph = faiss.SearchParametersHNSW()  # type: ignore[attr-defined]  # missing in the stubs
        in_graph.efSearch = index.hnsw.efSearch
        return in_graph
    return faiss.SearchParameters()


def default_num_lists(num_items: int) -> int:
    """About 4 sqrt(items), as FAISS advises below a million vectors, with enough items to train each list."""
    return max(1, min(round(4 * math.sqrt(num_items)), num_items // MIN_ITEMS_PER_LIST))


def set_search_threads(threads: int) -> None:
    """Set how many threads the calling thread's searches use (OpenMP keeps the number per thread)."""
    faiss.omp_set_num_threads(threads)
