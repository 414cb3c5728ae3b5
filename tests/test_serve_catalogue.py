"""Answers from a release and what was added to it, less what was removed, under any filter: against brute force."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.dataset import PreparedDataset
from serve.answer import Query
from serve.build import item_vectors
from serve.build import run as build_release
from serve.catalogue import Catalogue, Filter
from serve.engine import Engine
from serve.index.contract import Index
from serve.index.settings import (
    BinarySettings,
    FlatSettings,
    HnswSettings,
    IndexKind,
    IvfPqSettings,
    IvfSettings,
    MatrixSettings,
)
from serve.index.store import build_index
from serve.instructions import Wish
from serve.release import Release
from serve.updates.contract import AddedItem, Updates
from serve.updates.overlay import lay_over
from tests.catalogues import Vectors, behind, segment_of
from tests.small_world import START, item_id, write_artifact, write_dataset

NUM_ITEMS, WIDTH = 300, 8
KINDS: dict[str, IndexKind] = {
    "flat": FlatSettings(),
    "matrix": MatrixSettings(),
    "ivf": IvfSettings(num_lists=5, num_probes=1),
    "ivfpq": IvfPqSettings(num_lists=4, num_probes=1, code_bytes=2, candidates_per_hit=1),
    "hnsw": HnswSettings(links=4, ef_construction=16, ef_search=8),
    "binary": BinarySettings(candidates_per_hit=2),
}
CATEGORIES = ["even", "third", "rare"]


def whole_vectors(seed: int, count: int) -> Vectors:
    """Vectors of small whole numbers: sums are exact in float32 and float16, and ties are many."""
    return np.random.default_rng(seed).integers(-2, 3, (count, WIDTH)).astype(np.float32)


def categories_of(row: int) -> list[str]:
    rules = {"even": row % 2 == 0, "third": row % 3 == 0, "rare": row % 100 == 7}
    return [name for name in CATEGORIES if rules[name]]


ITEM_VD = whole_vectors(0, NUM_ITEMS)


@pytest.fixture(scope="module")
def indexes() -> Mapping[str, Index]:
    return {name: build_index(ITEM_VD, kind) for name, kind in KINDS.items()}


def catalogue_of(index: Index, removed: set[int], num_added: int) -> tuple[Catalogue, Vectors]:
    """A catalogue, and the vectors of all its rows."""
    lists = [categories_of(row) for row in range(1, NUM_ITEMS + num_added + 1)]
    release = segment_of(
        [item_id(row) for row in range(1, NUM_ITEMS + 1)],
        index,
        lists[:NUM_ITEMS],
        [row % 7 for row in range(1, NUM_ITEMS + 1)],
    )
    item_AD = whole_vectors(1, num_added)
    names = [f"new {number}" for number in range(num_added)]
    added = behind(release, names, item_AD, lists[NUM_ITEMS:]) if num_added else None
    kept_V = ~np.isin(np.arange(1, NUM_ITEMS + 1), list(removed)) if removed else None
    return Catalogue(replace(release, kept_V=kept_V), added), np.concatenate([ITEM_VD, item_AD])


def passing(num_rows: int, removed: set[int], wanted: Filter) -> npt.NDArray[np.int64]:
    rows = [row for row in range(1, num_rows + 1) if row not in removed]
    if wanted.code:
        rows = [row for row in rows if sorted(CATEGORIES)[wanted.code - 1] in categories_of(row)]
    if wanted.only is not None:
        rows = [row for row in rows if row in wanted.only]
    return np.array(rows, np.int64)


rows_of_all = st.integers(1, NUM_ITEMS + 20)
filters = st.builds(
    Filter, code=st.integers(0, 3), only=st.none() | st.frozensets(rows_of_all) | st.just(frozenset(range(2, 310)))
)


@settings(max_examples=80)
@given(
    name=st.sampled_from(list(KINDS)),
    removed=st.sets(rows_of_all.filter(lambda row: row <= NUM_ITEMS)),
    num_added=st.integers(0, 20),
    wanted=filters,
    k=st.integers(1, 330),
)
def test_a_search_equals_brute_force_over_all_items_whatever_the_index(
    indexes: Mapping[str, Index], name: str, removed: set[int], num_added: int, wanted: Filter, k: int
) -> None:
    if name in ("ivf", "ivfpq", "hnsw", "binary"):
        # Exact where something is masked (ivf: where all lists are looked into), so that there is a right answer.
        removed = removed | {1}
        k = max(k, NUM_ITEMS) if name == "ivf" else k
    catalogue, item_VD = catalogue_of(indexes[name], removed, num_added)
    query_QD = whole_vectors(2, 4)
    rows_P = passing(NUM_ITEMS + num_added, removed, wanted)
    score_QP = query_QD @ item_VD[rows_P - 1].T
    order_QK = np.lexsort((np.broadcast_to(rows_P, score_QP.shape), -score_QP), axis=-1)[:, :k]
    hits = catalogue.search(query_QD, k, wanted)
    found = min(k, len(rows_P))
    np.testing.assert_array_equal(hits.scores_QK[:, :found], np.take_along_axis(score_QP, order_QK, axis=1))
    if name in ("flat", "matrix", "ivf"):
        np.testing.assert_array_equal(hits.rows_QK[:, :found], rows_P[order_QK])
    else:  # of equal scores at the cut these bring any
        assert np.isin(hits.rows_QK[:, :found], rows_P).all()
        assert all(len(set(row)) == found for row in hits.rows_QK[:, :found].tolist())
    assert not hits.rows_QK[:, found:].any()
    assert catalogue.has_any(wanted) == bool(len(rows_P))


@given(removed=st.sets(st.integers(1, NUM_ITEMS)), num_added=st.integers(0, 20), wanted=filters, k=st.integers(1, 330))
def test_popularity_goes_by_training_events_and_added_items_come_last(
    indexes: Mapping[str, Index], removed: set[int], num_added: int, wanted: Filter, k: int
) -> None:
    catalogue, _ = catalogue_of(indexes["flat"], removed, num_added)
    rows = passing(NUM_ITEMS + num_added, removed, wanted).tolist()
    events = {row: row % 7 if row <= NUM_ITEMS else 0 for row in rows}
    found, scores = catalogue.popular(k, wanted)
    assert found.tolist() == sorted(rows, key=lambda row: (-events[row], row))[:k]
    assert scores.tolist() == [events[row] for row in found.tolist()]


def test_ids_and_titles_go_to_rows_and_back_across_both_parts(indexes: Mapping[str, Index]) -> None:
    catalogue, _ = catalogue_of(indexes["flat"], {2}, 3)
    rows = catalogue.rows([item_id(2), "new 1", "nothing", item_id(300)])
    assert rows.tolist() == [2, 302, 0, 300]
    assert catalogue.item_ids([302, 2, 300]) == ["new 1", item_id(2), item_id(300)]
    assert catalogue.titles([302, 0, 2]) == [None, None, None]
    assert catalogue.num_items == 303


MANY = 10_000
K = 10


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Release:
    place = tmp_path_factory.mktemp("large")
    dataset: PreparedDataset = write_dataset(place / "dataset", num_items=MANY)
    artifact = write_artifact(place / "artifact", dataset)
    build_release(str(artifact.directory), str(place / "release"), {})
    return Release.open(place / "release")


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_full_whenever_k_items_pass_at_any_selectivity_with_and_without_updates(
    large: Release, kind: str
) -> None:
    item_VD = item_vectors(large.artifact.load_retriever(), MANY, 4_096)
    engine = Engine(replace(large, index=build_index(item_VD, KINDS[kind])))
    random = np.random.default_rng(0)
    ids = [item_id(row) for row in range(1, MANY + 1)]
    removed = frozenset(ids[row] for row in random.permutation(MANY)[: MANY // 2])
    new = tuple(AddedItem(f"new {n:02}", START, like=(ids[n],), categories=("even",)) for n in range(20))
    overlaid = lay_over(engine, Updates(1, removed, new)).catalogue
    history = {"item_ids": ids[:5], "timestamps": [START] * 5, "k": K, "request_time": START + 1}
    everything = [*ids, *(item.item_id for item in new)]
    for catalogue, gone, known in ((engine.catalogue, frozenset[str](), ids), (overlaid, removed, everything)):
        for share in (0.5, 0.1, 0.01, 0.001):
            chosen = [known[place] for place in random.permutation(len(known))[: round(share * MANY)]]
            for excluded in ([], chosen[:2]):
                for wishes in ((), (Wish(["even"], hard=True),)):
                    asked = {"only_item_ids": chosen, "exclude_item_ids": excluded, "wishes": wishes}
                    queries = [Query(**{**history, **asked}), Query([], K, START, **asked)]  # type: ignore[arg-type]
                    encoded = [engine.encode(query, catalogue) for query in queries]
                    answers = engine.answers(encoded, engine.search(encoded, engine.query_vectors(encoded)))
                    assert [answer.fallback for answer in answers] == [None, "popularity"]
                    for query, answer in zip(queries, answers, strict=True):
                        left_out = gone | set(excluded) | set(query.item_ids)
                        pass_all = {name for name in chosen if name not in left_out and (not wishes or is_even(name))}
                        assert len(answer.item_ids) == min(K, len(pass_all)), (share, wishes)
                        assert set(answer.item_ids) <= pass_all
                        assert len(set(answer.item_ids)) == len(answer.item_ids)


def is_even(name: str) -> bool:
    return name.startswith("new") or int(name[1:]) % 2 == 0


def test_an_allow_list_that_names_nothing_known_gives_no_items_and_no_fallback(large: Release) -> None:
    engine = Engine(large)
    history = {"timestamps": [START], "k": 3, "request_time": START}
    nothing, seen = engine.answer(
        [
            Query([item_id(1)], only_item_ids=["x", "y"], **history),  # type: ignore[arg-type]
            Query([item_id(1)], only_item_ids=[item_id(1)], **history),  # type: ignore[arg-type]
        ]
    )
    assert (nothing.item_ids, nothing.fallback) == ([], None)
    assert (seen.item_ids, seen.fallback) == ([], None)
