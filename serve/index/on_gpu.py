"""FAISS on a GPU: an index is copied there, and its original stays behind for what the GPU would answer wrongly.

What a GPU can do depends on how FAISS was built. With cuVS (the wheel `faiss-gpu-cuvs`) most kinds honour a filter and
give up to 16,384 items; without it (`faiss-gpu`) every kind takes a filter and ignores it, and gives up to 2,048. So a
copy is asked once whether it honours filters, and is trusted with no more than that.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any, cast

import faiss
import numpy as np
import numpy.typing as npt

from data.errors import RecipeError
from serve.index.contract import Index
from serve.index.on_faiss import FaissIndex, only, usual_parameters
from serve.index.rescored import RescoredIndex
from serve.index.settings import CagraSettings

logger = logging.getLogger(__name__)

# Most candidates, and most lists looked into, of one search.
MAX_DEPTH = 2_048
MAX_DEPTH_CUVS = 16_384
# Where a filter is ignored: items fetched per item wanted, beyond what the filter's share asks for.
MARGIN = 1.5
DECODED_ROWS = 262_144

_faiss = cast(Any, faiss)  # the stubs are those of the CPU build


@dataclass(frozen=True)
class FaissBuild:
    """What the installed FAISS can do here."""

    gpus: int  # that it sees
    cuvs: bool


def installed_build() -> FaissBuild:
    """Ask the installed FAISS. `farsight doctor` shows the same."""
    on_gpu = hasattr(faiss, "StandardGpuResources")
    return FaissBuild(_faiss.get_num_gpus() if on_gpu else 0, hasattr(faiss, "GpuIndexCagra"))


class OnGpu:
    """A FAISS index on a GPU, searched like the index that it was copied from.

    One caller at a time: FAISS's indexes on GPUs are not safe for concurrent searches.

    Args:
        host: the original; it answers what the copy may not.
        copy: on the GPU; positions and scores are the original's.
        max_depth: most items, and most lists looked into, of a search of the copy.
    """

    def __init__(self, host: Any, copy: Any, max_depth: int) -> None:
        self.host = host
        self._copy = copy
        self._num_items = int(host.ntotal)
        self._max_depth = max_depth
        self.honours_filters = _honours_filters(self)

    def search(
        self, query_QD: npt.NDArray[np.float32], k: int, params: Any = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Scores and positions, [Q, k], best first; position -1 where there are fewer."""
        if max(k, getattr(params, "nprobe", 1)) > self._max_depth:
            return self._on_host(query_QD, k, params)
        if getattr(params, "sel", None) is None or self.honours_filters:
            return self.on_copy(query_QD, k, params)
        return self._masked(query_QD, k, params)

    def _on_host(
        self, query_QD: npt.NDArray[np.float32], k: int, params: Any
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        found: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] = self.host.search(query_QD, k, params=params)
        return found

    def on_copy(
        self, query_QD: npt.NDArray[np.float32], k: int, params: Any
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Search the copy, whatever it makes of a filter."""
        scores_QK, positions_QK = self._copy.search(query_QD, k, params=_for_gpu(params, self.host))
        # cuVS names the largest number it has where it found nothing, FAISS -1.
        return scores_QK, np.where((positions_QK >= 0) & (positions_QK < self._num_items), positions_QK, -1)

    def _masked(
        self, query_QD: npt.NDArray[np.float32], k: int, params: Any
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Fetch more and leave out what the filter does; a query that is left short is asked of the original."""
        allowed_V = params.allowed_V
        depth = math.ceil(MARGIN * k / max(allowed_V.mean(), 1 / len(allowed_V))) + 1
        if depth > min(self._max_depth, len(allowed_V)):
            return self._on_host(query_QD, k, params)
        scores_QC, positions_QC = self.on_copy(query_QD, depth, params)
        kept_QC = (positions_QC >= 0) & allowed_V[positions_QC]
        order_QK = np.argsort(~kept_QC, axis=1, kind="stable")[:, :k]  # the kept first, in their order
        short_Q = kept_QC.sum(axis=1) < k
        scores_QK = np.take_along_axis(scores_QC, order_QK, axis=1)
        positions_QK = np.take_along_axis(positions_QC, order_QK, axis=1)
        if short_Q.any():
            scores_QK[short_Q], positions_QK[short_Q] = self._on_host(query_QD[short_Q], k, params)
        return scores_QK, positions_QK


def moved_to_gpu(index: Index) -> Index:
    """The same index, searched on the first GPU if its kind and the installed FAISS can: flat, ivf, ivfpq and cagra."""
    build = installed_build()
    if isinstance(index, FaissIndex | RescoredIndex):
        copy = _copied(index.faiss_index, build) if build.gpus else None
        if copy is None:
            logger.warning(
                "index: a %s is searched on the CPU beside a model on the GPU (FAISS sees %d GPUs); "
                "index.search.kind=matrix is searched where the model is",
                type(index.faiss_index).__name__,
                build.gpus,
            )
        else:
            index.faiss_index = OnGpu(index.faiss_index, copy, MAX_DEPTH_CUVS if build.cuvs else MAX_DEPTH)
    return index


def built_cagra(item_VD: npt.NDArray[np.float32], settings: CagraSettings) -> Any:
    """A graph built on the GPU, as the CPU keeps it.

    Raises:
        RecipeError: no GPU, or FAISS without cuVS.
    """
    build = installed_build()
    if not (build.gpus and build.cuvs):
        raise RecipeError(
            f"index.search.kind=cagra: found a FAISS {'with' if build.cuvs else 'without'} cuVS that sees {build.gpus} "
            "GPUs; expected a GPU and the wheel faiss-gpu-cuvs where the index is built; "
            "index.search.kind=hnsw is a graph that is built on a CPU"
        )
    config = _faiss.GpuIndexCagraConfig()
    config.graph_degree, config.intermediate_graph_degree = settings.links, settings.build_links
    config.use_cuvs = True
    graph = _faiss.GpuIndexCagra(_resources(), item_VD.shape[1], faiss.METRIC_INNER_PRODUCT, config)
    graph.train(item_VD)
    kept = _faiss.IndexHNSWCagra()
    kept.base_level_only = True
    graph.copyTo(kept)
    return kept


def _copied(index: Any, build: FaissBuild) -> Any:
    """A copy on the first GPU that this process sees; None of a kind that FAISS has for the CPU alone."""
    match index:
        case faiss.IndexFlat() | faiss.IndexScalarQuantizer():
            config = _faiss.GpuIndexFlatConfig()
            config.use_cuvs = build.cuvs
            config.useFloat16 = isinstance(index, faiss.IndexScalarQuantizer)
            copy = _faiss.GpuIndexFlatIP(_resources(), index.d, config)
            for start in range(0, index.ntotal, DECODED_ROWS):
                copy.add(index.reconstruct_n(start, min(DECODED_ROWS, index.ntotal - start)))
            return copy
        case faiss.IndexIVF():
            options = _faiss.GpuClonerOptions()
            options.use_cuvs = build.cuvs
            copy = _faiss.index_cpu_to_gpu(_resources(), 0, index, options)
            copy.nprobe = min(index.nprobe, MAX_DEPTH_CUVS if build.cuvs else MAX_DEPTH)
            return copy
        case _faiss.IndexHNSWCagra() if build.cuvs:
            config = _faiss.GpuIndexCagraConfig()
            config.use_cuvs = True
            copy = _faiss.GpuIndexCagra(_resources(), index.d, faiss.METRIC_INNER_PRODUCT, config)
            copy.copyFrom(index)
            return copy
        case _:
            return None


def _resources() -> Any:
    """Of one index: FAISS's memory on a GPU must not be shared by indexes that are searched at the same time."""
    return _faiss.StandardGpuResources()


def _for_gpu(params: Any, host: Any) -> Any:
    """Parameters of a search of the original as a copy of it takes them; those of a graph have another class there."""
    if not isinstance(host, faiss.IndexHNSW):
        return params
    in_graph = _faiss.SearchParametersCagra()
    in_graph.itopk_size = host.hnsw.efSearch if params is None else params.efSearch
    if params is not None and params.sel is not None:
        in_graph.sel = params.sel
    return in_graph


def _honours_filters(index: OnGpu) -> bool:
    """Forbid a copy the best item of a search; a copy that ignores filters finds it all the same."""
    query_1D = np.random.default_rng(0).standard_normal((1, index.host.d)).astype(np.float32)
    best = int(index.on_copy(query_1D, 1, None)[1][0, 0])
    allowed_V = np.arange(index.host.ntotal) != best
    found = int(index.on_copy(query_1D, 1, only(usual_parameters(index.host), allowed_V))[1][0, 0])
    return found not in (best, -1)
