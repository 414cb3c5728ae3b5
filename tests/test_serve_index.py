"""Indexes against an exact oracle, and what a damaged index file does."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ArtifactError, RecipeError
from serve.index import on_torch, rescored
from serve.index.contract import Hits, ordered_hits
from serve.index.on_faiss import default_num_lists
from serve.index.rescored import EXACT_ITEMS
from serve.index.settings import (
    BinarySettings,
    FlatSettings,
    HnswSettings,
    IndexKind,
    IndexSettings,
    IvfPqSettings,
    IvfSettings,
    MatrixSettings,
)
from serve.index.store import ON_FAISS, build_index, measured_recall, open_index, write_index_directory

Vectors = npt.NDArray[np.float32]


def oracle(item_VD: Vectors, query_QD: Vectors, k: int) -> Hits:
    """Exact top-k by torch: a stable sort keeps the smaller row first among equal scores."""
    score_QV = torch.from_numpy(query_QD) @ torch.from_numpy(item_VD).T
    ordered = torch.sort(score_QV, dim=1, descending=True, stable=True)
    return Hits(ordered.indices[:, :k].numpy() + 1, ordered.values[:, :k].numpy())


def whole_vectors(seed: int, count: int, width: int) -> Vectors:
    """Vectors of small whole numbers: sums are exact in float32, and ties are many."""
    return np.random.default_rng(seed).integers(-2, 3, (count, width)).astype(np.float32)


def assert_same(found: Hits, expected: Hits) -> None:
    np.testing.assert_array_equal(found.rows_QK, expected.rows_QK)
    np.testing.assert_array_equal(found.scores_QK, expected.scores_QK)


# The whole numbers of these tests are exact in half precision, too.
EXACT: list[IndexKind] = [
    FlatSettings(),
    FlatSettings(float16=True),
    MatrixSettings(),
    MatrixSettings(float16=True),
]

shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "num_items": st.integers(1, 300),
        "num_queries": st.integers(1, 30),
        "width": st.integers(1, 5),
        "k": st.integers(1, 320),
    }
)


@settings(max_examples=60, deadline=None)
@given(shape=shapes)
def test_flat_and_matrix_equal_the_exact_oracle_also_among_ties(shape: dict[str, int]) -> None:
    item_VD = whole_vectors(shape["seed"], shape["num_items"], shape["width"])
    query_QD = whole_vectors(shape["seed"] + 1, shape["num_queries"], shape["width"])
    for kind in EXACT:
        found = build_index(item_VD, kind).search(query_QD, shape["k"])
        assert_same(found, oracle(item_VD, query_QD, shape["k"]))


def test_a_matrix_in_chunks_equals_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    item_VD, query_QD = whole_vectors(0, 1_000, 4), whole_vectors(1, 20, 4)
    allowed_V = np.random.default_rng(0).random(1_000) < 0.3
    index = build_index(item_VD, MatrixSettings())
    whole = index.search(query_QD, 50), index.search(query_QD, 50, allowed_V)
    monkeypatch.setattr(on_torch, "CHUNK_ROWS", 7)
    assert_same(index.search(query_QD, 50), whole[0])
    assert_same(index.search(query_QD, 50, allowed_V), whole[1])


@settings(max_examples=40, deadline=None)
@given(shape=shapes, share=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]), num_lists=st.integers(0, 8))
def test_a_filter_works_inside_the_search(shape: dict[str, int], share: float, num_lists: int) -> None:
    """Every query gets k items whenever k are allowed, and exactly those that an exact search of these gives."""
    item_VD = whole_vectors(shape["seed"], shape["num_items"], shape["width"])
    query_QD = whole_vectors(shape["seed"] + 1, shape["num_queries"], shape["width"])
    allowed_V = np.random.default_rng(shape["seed"]).random(shape["num_items"]) < share
    lists = min(num_lists, shape["num_items"])
    rows_A = np.flatnonzero(allowed_V) + 1
    among = oracle(item_VD[allowed_V], query_QD, shape["k"])
    expected = Hits(rows_A[among.rows_QK - 1] if len(rows_A) else among.rows_QK, among.scores_QK)
    half = bool(shape["seed"] % 2)
    by_lists = IvfSettings(num_lists=lists, num_probes=lists, float16=half) if lists else FlatSettings(float16=half)
    for kind in (by_lists, MatrixSettings(float16=half)):
        assert_same(build_index(item_VD, kind).search(query_QD, shape["k"], allowed_V), expected)


# Small efforts, so that what is found first is too little, and rare, and must be gone on for.
RESCORED: dict[str, IndexKind] = {
    "ivfpq": IvfPqSettings(num_lists=16, num_probes=1, candidates_per_hit=1),
    "hnsw": HnswSettings(links=4, ef_construction=16, ef_search=8),
    "binary": BinarySettings(candidates_per_hit=2),
}


def clustered(seed: int, count: int, width: int = 16) -> Vectors:
    """Vectors of length 1 around 40 directions, as trained ones lie."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, width))
    vectors = centres[random.integers(0, 40, count)] + 0.6 * random.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("name", RESCORED)
@pytest.mark.parametrize("narrow", [True, False])
def test_rescored_kinds_fill_every_answer_from_the_allowed(
    name: str, narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the filter leaves one item in a thousand, and whichever path a filter takes."""
    monkeypatch.setattr(rescored, "EXACT_ITEMS", EXACT_ITEMS if narrow else 3)
    item_VD, query_QD = clustered(0, 3_000), clustered(1, 20)
    index = build_index(item_VD, RESCORED[name])
    kept_VD = item_VD.astype(np.float32 if name == "hnsw" else np.float16).astype(np.float32)
    for share in (1.0, 0.5, 0.1, 0.01, 0.001, 0.0):
        allowed_V = np.zeros(3_000, bool)
        allowed_V[np.random.default_rng(2).permutation(3_000)[: round(3_000 * share)]] = True
        hits = index.search(query_QD, 10, None if share == 1 else allowed_V)
        assert hits.rows_QK.shape == (20, min(10, allowed_V.sum()))
        assert (hits.rows_QK > 0).all()
        assert allowed_V[hits.rows_QK - 1].all()
        assert all(len(set(row)) == len(row) for row in hits.rows_QK.tolist())
        by_hand = np.einsum("qkd,qd->qk", kept_VD[hits.rows_QK - 1], query_QD)
        np.testing.assert_allclose(hits.scores_QK, by_hand, atol=1e-5)
        assert (np.diff(hits.scores_QK, axis=1) <= 0).all()
        if narrow and share < 1:
            rows_A = np.flatnonzero(allowed_V) + 1
            exact = oracle(kept_VD[allowed_V], query_QD, 10)
            np.testing.assert_array_equal(hits.rows_QK, rows_A[exact.rows_QK - 1] if len(rows_A) else exact.rows_QK)


@pytest.mark.parametrize("name", RESCORED)
def test_rescored_kinds_find_more_the_harder_they_look(name: str) -> None:
    item_VD, query_QD = clustered(0, 3_000), clustered(1, 50)
    much: dict[str, IndexKind] = {
        "ivfpq": IvfPqSettings(num_lists=16, num_probes=16, candidates_per_hit=10),
        "hnsw": HnswSettings(),
        "binary": BinarySettings(candidates_per_hit=100),
    }
    little, more = (
        measured_recall(build_index(item_VD, kinds[name]), item_VD, query_QD, 10) for kinds in (RESCORED, much)
    )
    assert little < more
    assert more > 0.98


@pytest.mark.parametrize("name", RESCORED)
def test_rescored_kinds_give_all_items_when_all_are_asked_for(name: str) -> None:
    item_VD, query_QD = clustered(0, 300), clustered(1, 5)
    hits = build_index(item_VD, RESCORED[name]).search(query_QD, 1_000)
    assert [sorted(row) for row in hits.rows_QK.tolist()] == [list(range(1, 301))] * 5


def test_ivf_with_one_probe_fills_every_answer_that_a_filter_leaves() -> None:
    item_VD = whole_vectors(0, 2000, 4)
    index = build_index(item_VD, IvfSettings(num_lists=20, num_probes=1))
    for share in (0.5, 0.1, 0.01, 0.001):
        allowed_V = np.zeros(2000, bool)
        allowed_V[: round(2000 * share)] = True
        hits = index.search(whole_vectors(1, 6, 4), 10, allowed_V)
        assert hits.rows_QK.shape == (6, min(10, allowed_V.sum()))
        assert (hits.rows_QK > 0).all()
        assert allowed_V[hits.rows_QK - 1].all()


@settings(max_examples=20, deadline=None)
@given(shape=shapes, num_lists=st.integers(1, 20))
def test_ivf_that_probes_every_list_equals_flat(shape: dict[str, int], num_lists: int) -> None:
    num_lists = min(num_lists, shape["num_items"])
    item_VD = whole_vectors(shape["seed"], shape["num_items"], shape["width"])
    query_QD = whole_vectors(shape["seed"] + 1, shape["num_queries"], shape["width"])
    ivf = build_index(item_VD, IvfSettings(num_lists=num_lists, num_probes=num_lists))
    assert_same(ivf.search(query_QD, shape["k"]), oracle(item_VD, query_QD, shape["k"]))


@settings(max_examples=20, deadline=None)
@given(shape=shapes)
def test_ivf_with_one_probe_still_gives_every_query_all_its_items(shape: dict[str, int]) -> None:
    item_VD = whole_vectors(shape["seed"], shape["num_items"], shape["width"])
    query_QD = whole_vectors(shape["seed"] + 1, shape["num_queries"], shape["width"])
    index = build_index(item_VD, IvfSettings(num_lists=min(8, shape["num_items"]), num_probes=1))
    hits = index.search(query_QD, shape["k"])
    assert hits.rows_QK.shape[1] == min(shape["k"], shape["num_items"])
    assert (hits.rows_QK > 0).all()
    assert all(len(set(row)) == len(row) for row in hits.rows_QK.tolist())


def test_a_query_of_nan_finds_nothing_and_does_not_disturb_the_others() -> None:
    item_VD, query_QD = clustered(0, 300), clustered(1, 3)
    query_QD[1, 0] = np.nan
    for kind in (FlatSettings(), IvfSettings(num_lists=8, num_probes=2), MatrixSettings(), *RESCORED.values()):
        hits = build_index(item_VD, kind).search(query_QD, 5)
        assert (hits.rows_QK[1] == 0).all()
        assert (hits.scores_QK[1] == -np.inf).all()
        assert (hits.rows_QK[[0, 2]] > 0).all()


def test_missing_candidates_come_last_whatever_their_score() -> None:
    hits = ordered_hits(np.array([[0, 5, 3, 0]]), np.array([[9.0, 1.0, 1.0, np.nan]], np.float32), 3)
    assert hits.rows_QK.tolist() == [[3, 5, 0]]
    assert hits.scores_QK.tolist() == [[1.0, 1.0, -np.inf]]


def test_a_saved_index_searches_as_before(tmp_path: Path) -> None:
    item_VD = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    query_QD = np.random.default_rng(1).normal(size=(20, 8)).astype(np.float32)
    by_lists = {half: IvfSettings(num_lists=10, num_probes=3, float16=half) for half in (False, True)}
    for number, kind in enumerate([*EXACT, *by_lists.values(), *RESCORED.values()]):
        name = f"{kind.kind}-{number}"
        (tmp_path / name).mkdir()
        write_index_directory(
            tmp_path / name,
            item_VD,
            query_QD,
            query_source="histories",
            artifact_hash="a",
            settings=IndexSettings(search=kind, min_recall=0),
        )
        loaded, manifest = open_index(tmp_path / name)
        assert_same(loaded.search(query_QD, 10), build_index(item_VD, kind).search(query_QD, 10))
        assert manifest["artifact_hash"] == "a"
        assert manifest["counts"]["items"] == loaded.num_items == 500
        assert manifest["counts"]["width"] == loaded.width == 8
        assert manifest["recall"]["query_source"] == "histories"


def test_a_flipped_byte_is_refused_before_faiss_reads_it(tmp_path: Path) -> None:
    write_index_directory(
        tmp_path,
        whole_vectors(0, 50, 4),
        whole_vectors(1, 5, 4),
        query_source="items",
        artifact_hash="a",
        settings=IndexSettings(),
    )
    path = tmp_path / ON_FAISS
    content = bytearray(path.read_bytes())
    content[0] ^= 1  # FAISS would not even know the format
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"found SHA-256 .* build the index again"):
        open_index(tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        open_index(tmp_path)


def test_recall_is_the_share_of_the_exact_answer() -> None:
    item_VD = np.random.default_rng(0).normal(size=(2_000, 16)).astype(np.float32)
    query_QD = np.random.default_rng(1).normal(size=(50, 16)).astype(np.float32)
    assert measured_recall(build_index(item_VD, FlatSettings()), item_VD, query_QD, 10) == 1.0
    poor = build_index(item_VD, IvfSettings(num_lists=40, num_probes=1))
    by_hand = np.mean(
        [
            len(set(found) & set(exact)) / 10
            for found, exact in zip(
                poor.search(query_QD, 10).rows_QK.tolist(), oracle(item_VD, query_QD, 10).rows_QK.tolist(), strict=True
            )
        ]
    )
    assert measured_recall(poor, item_VD, query_QD, 10) == pytest.approx(by_hand)
    assert by_hand < 0.9


def test_a_recall_below_the_floor_is_refused(tmp_path: Path) -> None:
    item_VD = np.random.default_rng(0).normal(size=(2_000, 16)).astype(np.float32)
    query_QD = np.random.default_rng(1).normal(size=(50, 16)).astype(np.float32)
    poor = IndexSettings(search=IvfSettings(num_lists=40, num_probes=1), min_recall=0.95)
    with pytest.raises(ArtifactError, match=r"recall@100 .* at least index.min_recall=0.95; raise index.search.num_pr"):
        write_index_directory(tmp_path, item_VD, query_QD, query_source="items", artifact_hash="a", settings=poor)
    with pytest.raises(ArtifactError, match="no queries to measure recall with"):
        measured_recall(build_index(item_VD, FlatSettings()), item_VD, query_QD[:0], 10)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    item_VD = whole_vectors(0, 50, 4)
    item_VD[7, 2] = np.inf
    with pytest.raises(ArtifactError, match="1 of 50 item vectors hold NaN or infinity"):
        write_index_directory(
            tmp_path, item_VD, item_VD[:5], query_source="items", artifact_hash="a", settings=IndexSettings()
        )


def test_more_lists_than_items_are_refused() -> None:
    with pytest.raises(RecipeError, match="found 9 with 8 items"):
        build_index(whole_vectors(0, 8, 4), IvfSettings(num_lists=9))


def test_codes_that_do_not_fit_the_vectors_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"code_bytes: found 5 with vectors of width 16; expected a divisor"):
        build_index(clustered(0, 300), IvfPqSettings(code_bytes=5))
    with pytest.raises(RecipeError, match=r"found 200 items, expected at least 256 .* use kind=flat"):
        build_index(clustered(0, 200), IvfPqSettings())
    with pytest.raises(RecipeError, match=r"kind=binary: found vectors of width 4, expected a multiple of 8"):
        build_index(whole_vectors(0, 50, 4), BinarySettings())


def test_lists_by_default_have_enough_items_to_be_trained() -> None:
    assert [default_num_lists(n) for n in (1, 38, 390, 100_000, 1_000_000)] == [1, 1, 10, 1265, 4000]
