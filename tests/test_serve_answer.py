"""From requests to rows and back, without a model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.answer import EncodedQuery, Query, encode_query, pick, popularity_order, search_depth
from serve.schemas import BadRequest, Event, RetrieveRequest, to_query
from serve.settings import Limits, ServeSettings
from tests.catalogues import with_added

CATALOGUE = with_added(["a", "b", "c", "d"], ["e", "f"])
CODES = {"click": 1, "like": 2}


def encoded(barred: set[int], k: int) -> EncodedQuery:
    nothing = np.zeros(0, np.int64)
    return EncodedQuery(nothing, nothing, nothing, 0, k, frozenset(barred), 0, 0, CATALOGUE)


def test_events_are_sorted_stably_by_time_and_unknown_items_are_counted() -> None:
    query = Query(
        item_ids=["c", "x", "a", "b", "c"],
        k=3,
        request_time=100,
        timestamps=[30, 10, 20, 20, 5],
        actions=["like", "click", None, "share", "click"],
        exclude_item_ids=["d", "y"],
    )
    found = encode_query(query, CATALOGUE, CODES)
    assert found.items_L.tolist() == [3, 1, 2, 3]
    assert found.times_L.tolist() == [5, 20, 20, 30]
    assert found.actions_L.tolist() == [1, 0, 0, 2]
    assert (found.unknown_items, found.unknown_actions) == (1, 1)
    assert found.barred == {1, 2, 3, 4}
    assert search_depth(found) == 7


def test_seen_items_are_kept_when_asked_and_excluded_ones_never() -> None:
    query = Query(item_ids=["a", "b"], k=3, request_time=0, exclude_seen=False, exclude_item_ids=["b"])
    assert encode_query(query, CATALOGUE, CODES).barred == {2}


def test_an_added_item_is_seen_and_barred_though_the_model_does_not_know_it() -> None:
    query = Query(["a", "f", "x"], 3, request_time=0, exclude_item_ids=["e"], only_item_ids=["b", "e", "z", "b"])
    found = encode_query(query, CATALOGUE, CODES)
    assert found.items_L.tolist() == [1]
    assert found.unknown_items == 2
    assert found.barred == {1, 5, 6}
    assert found.only == {2, 5}


def test_the_query_time_is_never_before_the_newest_event() -> None:
    query = Query(item_ids=["a", "x"], k=1, request_time=50, timestamps=[40, 60])
    assert encode_query(query, CATALOGUE, CODES).query_time == 60


@settings(deadline=None)
@given(
    order=st.permutations(range(1, 13)),
    barred=st.sets(st.integers(1, 12)),
    k=st.integers(1, 15),
    num_missing=st.integers(0, 3),
)
def test_pick_gives_the_best_k_that_are_not_barred(
    order: list[int], barred: set[int], k: int, num_missing: int
) -> None:
    query = encoded(barred, k)
    depth = min(search_depth(query), len(order))
    rows = np.array(order[:depth] + [0] * num_missing)
    scores = np.concatenate([np.arange(depth, 0, -1), np.full(num_missing, -np.inf)]).astype(np.float32)
    found, found_scores = pick(rows, scores, query)
    expected = [row for row in order if row not in barred][:k]
    assert found.tolist() == expected
    assert np.isfinite(found_scores).all()
    assert (np.diff(found_scores) < 0).all()


def test_popularity_goes_by_training_events_then_by_row() -> None:
    assert popularity_order(np.array([3, 0, 5, 3])).tolist() == [3, 1, 4, 2]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"history": [{"item_id": 1}] * 4}, "history"),
        ({"k": 6}, "k"),
        ({"exclude_item_ids": ["a"] * 3}, "exclude_item_ids"),
        ({"only_item_ids": ["a"] * 3}, "only_item_ids"),
        ({"only_item_ids": []}, "only_item_ids"),
        ({"deadline_ms": 101}, "deadline_ms"),
        ({"history": [{"item_id": 1, "timestamp": 5}, {"item_id": 2}]}, "history.1.timestamp"),
        ({"history": [{"item_id": 1, "timestamp": 5}], "request_time": 4}, "request_time"),
    ],
)
def test_what_is_past_a_limit_or_does_not_fit_is_named(fields: dict[str, object], named: str) -> None:
    request = RetrieveRequest.model_validate({"history": [], "k": 5, **fields})
    limits = Limits(max_history_events=3, max_k=5, max_excluded_items=2, max_only_items=2, max_deadline_ms=100)
    with pytest.raises(BadRequest) as caught:
        to_query(request, limits, now=10)
    assert [problem.field for problem in caught.value.problems] == [named]


def test_integer_and_string_ids_are_the_same_item() -> None:
    request = RetrieveRequest(history=[Event(item_id=12), Event(item_id="12")])
    assert to_query(request, Limits(), now=7).item_ids == ["12", "12"]
    assert to_query(request, Limits(), now=7).request_time == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queueing": {"max_in_flight": 63}}, "expected at least 64: two"),
        ({"deadline_ms": 20_000}, "is above limits.max_deadline_ms"),
        ({"replicas": {"min_replicas": 3, "max_replicas": 2}}, "is below min_replicas"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServeSettings.model_validate(fields)
