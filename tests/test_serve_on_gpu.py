"""Indexes on a GPU: what is asked of the copy there, and what of its original; with a GPU, that both answer alike."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from data.errors import RecipeError
from serve.index.contract import Index
from serve.index.on_faiss import FaissIndex, build_faiss
from serve.index.on_gpu import OnGpu, installed_build, moved_to_gpu
from serve.index.rescored import RescoredIndex, graph_vectors
from serve.index.settings import CagraSettings, FlatSettings, HnswSettings, IndexKind, IvfPqSettings, IvfSettings
from serve.index.store import build_index, read_files, write_files
from tests.test_serve_index import Vectors, clustered

SHARES = (1.0, 0.9, 0.5, 0.1, 0.01, 0.001)


class CopyWithoutFilters:
    """What a GPU build of FAISS without cuVS does, done on the CPU: filters are ignored, and depth has a limit."""

    def __init__(self, index: Any, max_depth: int) -> None:
        self.index, self.max_depth, self.searches = index, max_depth, 0

    def search(
        self, query_QD: Vectors, k: int, params: Any = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        assert k <= self.max_depth
        self.searches += 1
        unfiltered = None
        if hasattr(params, "nprobe"):
            assert params.nprobe <= self.max_depth
            unfiltered = faiss.IVFSearchParameters()
            unfiltered.nprobe = params.nprobe
        found: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] = self.index.search(query_QD, k, params=unfiltered)
        return found


def allowed_of(share: float, count: int) -> npt.NDArray[np.bool_] | None:
    if share == 1:
        return None
    allowed_V = np.zeros(count, bool)
    allowed_V[np.random.default_rng(2).permutation(count)[: round(count * share)]] = True
    return allowed_V


@pytest.mark.parametrize("kind", [FlatSettings(), FlatSettings(float16=True), IvfSettings(num_lists=16, num_probes=16)])
def test_a_copy_that_ignores_filters_never_decides_what_a_filter_leaves(kind: FlatSettings | IvfSettings) -> None:
    item_VD, query_QD = clustered(0, 3_000), clustered(1, 20)
    on_cpu, moved = build_faiss(item_VD, kind), build_faiss(item_VD, kind)
    copy = CopyWithoutFilters(moved.faiss_index, max_depth=300)
    moved.faiss_index = OnGpu(moved.faiss_index, copy, 300)
    assert not moved.faiss_index.honours_filters
    for share in SHARES:
        for k in (1, 10, 299, 3_000):
            allowed_V = allowed_of(share, 3_000)
            expected, found = on_cpu.search(query_QD, k, allowed_V), moved.search(query_QD, k, allowed_V)
            np.testing.assert_array_equal(found.rows_QK, expected.rows_QK)
            np.testing.assert_array_equal(found.scores_QK, expected.scores_QK)
    assert copy.searches > 10  # it did answer what it can


def test_a_weak_filter_is_answered_from_more_of_what_the_copy_finds() -> None:
    item_VD, query_QD = clustered(0, 3_000), clustered(1, 20)
    index = build_faiss(item_VD, FlatSettings())
    copy = CopyWithoutFilters(index.faiss_index, max_depth=300)
    index.faiss_index = OnGpu(index.faiss_index, copy, 300)
    gpu: Any = index.faiss_index
    gpu.host = faiss.IndexFlatIP(3)  # whatever is asked of it now fails
    hits = index.search(query_QD, 10, allowed_of(0.9, 3_000))
    assert (hits.rows_QK > 0).all()


def test_a_copy_is_asked_whether_it_honours_filters() -> None:
    for kind in (FlatSettings(), IvfSettings(num_lists=16, num_probes=2), HnswSettings()):
        index: Any = build_index(clustered(0, 1_000), kind)
        if not isinstance(kind, HnswSettings):  # its copy takes parameters of a class that this build does not have
            assert OnGpu(index.faiss_index, index.faiss_index, 300).honours_filters
    one: Any = build_index(clustered(0, 1), FlatSettings())
    assert not OnGpu(one.faiss_index, one.faiss_index, 300).honours_filters  # nothing to tell it by


def test_a_graph_of_a_gpu_is_searched_on_a_cpu(tmp_path: Path) -> None:
    """The file is what a GPU's graph leaves behind; here FAISS links it on the CPU."""
    item_VD, query_QD = clustered(0, 3_000), clustered(1, 20)
    graph: Any = faiss.IndexHNSWCagra(16, 32, faiss.METRIC_INNER_PRODUCT)
    graph.add(item_VD)
    graph.base_level_only, graph.num_base_level_search_entrypoints = True, 32
    settings = CagraSettings()
    write_files(RescoredIndex(graph, graph_vectors(graph), settings), tmp_path)
    read = read_files(tmp_path, settings)
    exact = build_faiss(item_VD, FlatSettings())
    for share in SHARES:
        allowed_V = allowed_of(share, 3_000)
        found, expected = read.search(query_QD, 10, allowed_V), exact.search(query_QD, 10, allowed_V)
        assert found.rows_QK.shape == expected.rows_QK.shape
        shared = [np.isin(*rows).mean() for rows in zip(expected.rows_QK, found.rows_QK, strict=True)]
        assert np.mean(shared) > 0.98


@pytest.mark.skipif(installed_build().gpus > 0, reason="FAISS sees a GPU")
def test_without_a_gpu_a_graph_of_a_gpu_is_refused_and_an_index_stays_where_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(
        RecipeError, match=r"kind=cagra: found a FAISS without cuVS that sees 0 GPUs; expected a GPU .*kind=hnsw"
    ):
        build_index(clustered(0, 300), CagraSettings())
    index = build_faiss(clustered(0, 300), FlatSettings())
    before = index.faiss_index
    moved = moved_to_gpu(index)
    assert isinstance(moved, FaissIndex)
    assert moved.faiss_index is before
    assert "a IndexFlatIP is searched on the CPU" in caplog.text


GPU_KINDS: dict[str, IndexKind] = {
    "flat": FlatSettings(),
    "flat16": FlatSettings(float16=True),
    "ivf": IvfSettings(num_lists=16, num_probes=4),
    "ivf16": IvfSettings(num_lists=16, num_probes=4, float16=True),
    "ivfpq": IvfPqSettings(num_lists=16, num_probes=4, code_bytes=8),
    "cagra": CagraSettings(links=16, build_links=32),
}


@pytest.mark.gpu
@pytest.mark.skipif(not installed_build().gpus, reason="FAISS sees no GPU on this machine")
@pytest.mark.parametrize("name", GPU_KINDS)
def test_an_index_on_a_gpu_answers_as_its_original(name: str, tmp_path: Path) -> None:
    if name == "cagra" and not installed_build().cuvs:
        pytest.skip("FAISS was built without cuVS")
    item_VD, query_QD = clustered(0, 30_000), clustered(1, 50)
    write_files(build_index(item_VD, GPU_KINDS[name]), tmp_path)
    on_cpu, on_gpu = (read_files(tmp_path, GPU_KINDS[name], device) for device in ("cpu", "cuda"))
    assert isinstance(on_gpu, FaissIndex | RescoredIndex)
    assert isinstance(on_gpu.faiss_index, OnGpu)
    for share in SHARES:
        for k in (1, 100, 3_000):
            _assert_close(on_gpu, on_cpu, query_QD, k, allowed_of(share, 30_000))


def _assert_close(
    found: Index, expected: Index, query_QD: Vectors, k: int, allowed_V: npt.NDArray[np.bool_] | None
) -> None:
    hits, wanted = found.search(query_QD, k, allowed_V), expected.search(query_QD, k, allowed_V)
    assert (hits.rows_QK > 0).all()
    assert allowed_V is None or allowed_V[hits.rows_QK - 1].all()
    np.testing.assert_allclose(hits.scores_QK, wanted.scores_QK, atol=5e-3)
    shared = [np.isin(*rows).mean() for rows in zip(wanted.rows_QK, hits.rows_QK, strict=True)]
    assert np.mean(shared) > 0.9
