"""`ivfpq`, `hnsw`, `cagra` and `binary` indexes: a coarse search finds candidates, their vectors score them."""

from typing import Any, cast

import faiss
import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float32

from data.errors import RecipeError
from data.vocabulary import PAD_ROW
from serve.index.contract import Hits, hits_as_found, none_found, ordered_hits
from serve.index.on_faiss import checked_num_lists, num_lists_of, only
from serve.index.settings import BinarySettings, CagraSettings, HnswSettings, IvfPqSettings

# A filter that leaves at most this many items is answered from their vectors, exactly: a coarse search would
# pass by nearly everything it meets.
EXACT_ITEMS = 20_000
# How often a query that found fewer than k items is searched with twice the effort, before it is searched exactly.
MAX_DOUBLINGS = 3
# A product quantiser of eight bits has as many centroids, and needs an item for each.
PQ_CENTROIDS = 256

Rescored = IvfPqSettings | HnswSettings | CagraSettings | BinarySettings
Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]


class RescoredIndex:
    """Candidates from a FAISS index, scored by inner product. Position p is item row p + 1.

    Scores are exact for the vectors as they are kept (fp16 beside codes, fp32 in a graph); which
    items are found is approximate. Every query gets its min(k, V) items.

    Args:
        index: finds candidates.
        vectors_VD: may be a file mapped into memory.
    """

    def __init__(self, index: faiss.Index | faiss.IndexBinary, vectors_VD: Vectors, settings: Rescored) -> None:
        self.faiss_index = cast(Any, index)  # the two classes share a search, and no base
        self.vectors_VD = vectors_VD
        self._settings = settings
        self._num_lists = num_lists_of(index)
        self._scores_are_exact = isinstance(
            settings, HnswSettings | CagraSettings
        )  # a graph compares the vectors themselves
        self._set_effort()

    @property
    def num_items(self) -> int:
        """Items in the index."""
        return len(self.vectors_VD)

    @property
    def width(self) -> int:
        """D of the vectors."""
        return int(self.vectors_VD.shape[1])

    def search(
        self,
        query_QD: Float32[npt.NDArray[np.float32], "Q D"],
        k: int,
        allowed_V: Bool[npt.NDArray[np.bool_], "V"] | None = None,
    ) -> Hits:
        """The min(k, V) best candidates of each query among the allowed items."""
        query_QD = np.ascontiguousarray(query_QD, np.float32)
        num_allowed = self.num_items if allowed_V is None else int(allowed_V.sum())
        k = min(k, num_allowed)
        few = allowed_V is not None and num_allowed <= EXACT_ITEMS
        if few or not k:
            best = none_found(len(query_QD), k)
        else:
            found = self._candidates(query_QD, k, 1, allowed_V)
            if self._scores_are_exact and (usual := hits_as_found(*found, k)):
                return usual
            best = ordered_hits(*found, k)
        # NaN queries find nothing anywhere; they must not keep the search going.
        open_Q = np.flatnonzero((best.rows_QK[:, -1:] == PAD_ROW).any(axis=1) & np.isfinite(query_QD).all(axis=1))
        for attempt in range(1, 1 if few else MAX_DOUBLINGS + 1):
            if not len(open_Q):
                break
            hits = ordered_hits(*self._candidates(query_QD[open_Q], k, 2**attempt, allowed_V), k)
            best.rows_QK[open_Q], best.scores_QK[open_Q] = hits.rows_QK, hits.scores_QK
            open_Q = open_Q[hits.rows_QK[:, -1] == PAD_ROW]
        if len(open_Q):
            rows_A = np.arange(1, self.num_items + 1) if allowed_V is None else np.flatnonzero(allowed_V) + 1
            hits = self._exact(query_QD[open_Q], k, rows_A)
            best.rows_QK[open_Q], best.scores_QK[open_Q] = hits.rows_QK, hits.scores_QK
        return best

    def _candidates(
        self, query_QD: npt.NDArray[np.float32], k: int, effort: int, allowed_V: npt.NDArray[np.bool_] | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Rows and scores, [Q, C]; row 0 where nothing was found."""
        # One beyond k, so that equal scores around the cut are seen.
        depth = min(max(k * getattr(self._settings, "candidates_per_hit", 1), k + 1), self.num_items)
        parameters: Any = None  # as the index is set
        if effort > 1 or allowed_V is not None:
            parameters = self._parameters(depth, effort)
            if allowed_V is not None:
                parameters = only(parameters, allowed_V)
        queries = signs(query_QD) if isinstance(self._settings, BinarySettings) else query_QD
        scores_QC, rows_QC = self.faiss_index.search(queries, depth, params=parameters)
        rows_QC += 1  # positions become rows, and -1 (nothing found) row 0
        if self._scores_are_exact:
            return rows_QC, scores_QC
        return rows_QC, self._scores(query_QD, rows_QC)

    def _set_effort(self) -> None:
        """The usual effort, kept by the index: beside a search of one query, parameters take their time to make."""
        match self._settings:
            case IvfPqSettings():
                self.faiss_index.nprobe = self._settings.num_probes
            case HnswSettings() | CagraSettings():
                self.faiss_index.hnsw.efSearch = self._settings.ef_search

    def _parameters(self, depth: int, effort: int) -> faiss.SearchParameters:
        match self._settings:
            case IvfPqSettings():
                in_lists = faiss.IVFSearchParameters()
                in_lists.nprobe = min(self._settings.num_probes * effort, self._num_lists)
                return in_lists
            case HnswSettings() | CagraSettings():
                in_graph = faiss.SearchParametersHNSW()  # type: ignore[attr-defined]  # missing in the stubs
                in_graph.efSearch = max(self._settings.ef_search, depth) * effort
                return in_graph  # type: ignore[no-any-return]
            case BinarySettings():
                return faiss.SearchParameters()

    def _scores(self, query_QD: npt.NDArray[np.float32], rows_QC: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        vectors_QCD = self.vectors_VD[np.maximum(rows_QC - 1, 0)].astype(np.float32)
        scores_QC: npt.NDArray[np.float32] = np.matmul(vectors_QCD, query_QD[:, :, None])[:, :, 0]
        return scores_QC

    def _exact(self, query_QD: npt.NDArray[np.float32], k: int, rows_A: npt.NDArray[np.int64]) -> Hits:
        """The k best of the rows, as many vectors at a time as are answered exactly anyway."""
        rows_QC, scores_QC = np.zeros((len(query_QD), 0), np.int64), np.zeros((len(query_QD), 0), np.float32)
        for start in range(0, len(rows_A), EXACT_ITEMS):
            chunk_R = rows_A[start : start + EXACT_ITEMS]
            product_QR = query_QD @ self.vectors_VD[chunk_R - 1].astype(np.float32).T
            best_QC = np.argpartition(-product_QR, min(k, len(chunk_R)) - 1, axis=1)[:, :k]
            rows_QC = np.concatenate([rows_QC, chunk_R[best_QC]], axis=1)
            scores_QC = np.concatenate([scores_QC, np.take_along_axis(product_QR, best_QC, axis=1)], axis=1)
            hits = ordered_hits(rows_QC, scores_QC, k)
            rows_QC, scores_QC = hits.rows_QK, hits.scores_QK
        return Hits(rows_QC, scores_QC)


def build_rescored(
    item_VD: Float32[npt.NDArray[np.float32], "V D"], settings: IvfPqSettings | HnswSettings | BinarySettings
) -> RescoredIndex:
    """Arrange the vectors of rows 1 to V.

    Raises:
        RecipeError: settings that do not fit the width or the number of items.
    """
    match settings:
        case IvfPqSettings():
            return RescoredIndex(_trained_ivfpq(item_VD, settings), item_VD.astype(np.float16), settings)
        case BinarySettings():
            if item_VD.shape[1] % 8:
                raise RecipeError(
                    f"index.search.kind=binary: found vectors of width {item_VD.shape[1]}, expected a multiple of 8; "
                    "change model.width, or take another kind"
                )
            binary = faiss.IndexBinaryFlat(item_VD.shape[1])
            binary.add(signs(item_VD))
            return RescoredIndex(binary, item_VD.astype(np.float16), settings)
        case HnswSettings():
            graph = faiss.IndexHNSWFlat(item_VD.shape[1], settings.links, faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction = settings.ef_construction
            graph.add(item_VD)
            return RescoredIndex(graph, graph_vectors(graph), settings)


def signs(vectors_ND: Float32[npt.NDArray[np.float32], "N D"]) -> npt.NDArray[np.uint8]:
    """One bit per dimension, [N, D / 8]."""
    return np.packbits(vectors_ND > 0, axis=1, bitorder="little")


def graph_vectors(graph: Any) -> npt.NDArray[np.float32]:
    """The vectors that a graph keeps, without a copy; they live as long as it does."""
    storage: Any = faiss.downcast_index(graph.storage)
    vectors_VD: npt.NDArray[np.float32] = faiss.rev_swig_ptr(storage.get_xb(), storage.ntotal * storage.d)
    return vectors_VD.reshape(storage.ntotal, storage.d)


def _trained_ivfpq(item_VD: npt.NDArray[np.float32], settings: IvfPqSettings) -> faiss.IndexIVFPQ:
    num_items, width = item_VD.shape
    code_bytes = settings.code_bytes or _default_code_bytes(width)
    if width % code_bytes:
        raise RecipeError(
            f"index.search.code_bytes: found {code_bytes} with vectors of width {width}; expected a divisor of it"
        )
    if num_items < PQ_CENTROIDS:
        raise RecipeError(
            f"index.search.kind=ivfpq: found {num_items} items, expected at least {PQ_CENTROIDS} to learn codes from; "
            "use kind=flat, which is exact and fast at this size"
        )
    index = faiss.IndexIVFPQ(
        faiss.IndexFlatIP(width),
        width,
        checked_num_lists(settings, num_items),
        code_bytes,
        8,
        faiss.METRIC_INNER_PRODUCT,
    )
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # the manifest's recall says more
    index.train(item_VD)
    index.add(item_VD)
    return index


def _default_code_bytes(width: int) -> int:
    """The largest divisor of the width up to a quarter of it."""
    return max(parts for parts in range(1, max(width // 4, 1) + 1) if width % parts == 0)
