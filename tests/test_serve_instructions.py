"""Conditions of a request, from names to the answer: branch queries, filters, quotas."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.dataset import PreparedDataset
from modeling.settings import ConditionSettings, PoolSettings
from serve.answer import Query
from serve.build import run
from serve.engine import Engine
from serve.instructions import Unanswerable, Wish, merge, quotas
from tests.small_world import NUM_ITEMS, START, item_id, write_artifact, write_dataset

POOL = PoolSettings(name="new", max_age_days=1)
NOW = START + 400_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_dataset(tmp_path_factory.mktemp("conditions") / "dataset")


def engine_of(dataset: PreparedDataset, place: Path, condition: ConditionSettings | None) -> Engine:
    artifact = write_artifact(place / "artifact", dataset, condition=condition)
    run(str(artifact.directory), str(place / "release"), {"index": {}})
    return Engine.open(place / "release")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, dataset: PreparedDataset) -> Engine:
    return engine_of(dataset, tmp_path_factory.mktemp("cgsa"), ConditionSettings(pools=(POOL,)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, dataset: PreparedDataset) -> Engine:
    return engine_of(dataset, tmp_path_factory.mktemp("plain"), None)


def query(*wishes: Wish, items: range = range(1, 7), k: int = 6) -> Query:
    ids = [item_id(row) for row in items]
    return Query(ids, k, NOW, timestamps=[START + 1000 * number for number in range(len(ids))], wishes=wishes)


def rows_of(ids: list[str]) -> list[int]:
    return [int(name[1:]) for name in ids]


@pytest.mark.parametrize("hard", [True, False])
def test_each_condition_gets_a_vector_of_its_own_and_its_quota(engine: Engine, hard: bool) -> None:
    [answer] = engine.answer([query(Wish(["even"], weight=2, hard=hard), Wish(["odd"], hard=hard))])
    assert len(answer.item_ids) == 6
    assert sorted(answer.conditions) == ["even"] * 4 + ["odd"] * 2  # type: ignore[type-var]
    assert answer.scores == sorted(answer.scores, reverse=True)
    if hard:
        for row, name in zip(rows_of(answer.item_ids), answer.conditions, strict=True):
            assert ("even" if row % 2 == 0 else "odd") == name
    [alone] = engine.answer([query(Wish(["even"], hard=hard))])
    assert answer.item_ids != alone.item_ids
    [unasked] = engine.answer([query()])
    assert unasked.conditions == [None] * 6


def test_hard_conditions_hold_for_the_whole_answer_also_where_it_cannot_be_filled(engine: Engine) -> None:
    for k in (3, 6, 40):
        [answer] = engine.answer([query(Wish(["tenth"], hard=True), k=k)])
        assert len(answer.item_ids) == min(k, 6)  # six of sixty items
        assert all(row % 10 == 0 for row in rows_of(answer.item_ids))
        [pool] = engine.answer([query(Wish(["new"], hard=True), k=k)])
        # First seen 10,000 s apart: those of the last day before the request.
        young = {row for row in range(1, NUM_ITEMS + 1) if NOW - 86_400 < START + 10_000 * row <= NOW}
        assert len(pool.item_ids) == min(k, len(young))
        assert set(rows_of(pool.item_ids)) <= young


def test_a_batch_answers_like_each_query_alone(engine: Engine) -> None:
    queries = [
        query(Wish(["odd"], hard=True), Wish(["tenth"], hard=True)),
        query(),
        query(Wish(["even", "new"]), items=range(20, 40)),
        query(Wish(own_top=2, hard=True), items=range(3, 30, 3)),
        query(Wish(["odd"], hard=True), items=range(0)),
    ]
    together = engine.answer(queries)
    for one, answer in zip(queries, together, strict=True):
        [alone] = engine.answer([one])
        assert alone.item_ids == answer.item_ids
        assert alone.conditions == answer.conditions
        np.testing.assert_allclose(alone.scores, answer.scores, atol=1e-5)


def test_own_categories_are_those_the_history_has_most_of(engine: Engine) -> None:
    [answer] = engine.answer([query(Wish(own_top=1, hard=True), items=range(2, 13, 2))])
    assert set(answer.conditions) == {"even"}
    [two] = engine.answer([query(Wish(own_top=2, hard=True), items=range(2, 13, 2))])
    assert set(two.conditions) == {"even", "tenth"}
    [none] = engine.answer([query(Wish(own_top=2), items=range(0))])
    assert none.fallback == "popularity"
    assert none.conditions == [None] * 6


def test_without_a_history_popularity_is_filtered(engine: Engine, plain: Engine) -> None:
    for served in (engine, plain):
        [answer] = served.answer([query(Wish(["odd"], hard=True), items=range(0))])
        assert answer.fallback == "popularity"
        # `train_events` is row % 7: 13, 27, ... have most of the odd ones.
        assert rows_of(answer.item_ids)[:4] == [13, 27, 41, 55]


def test_a_model_without_conditions_filters_and_does_not_pretend_more(plain: Engine) -> None:
    [answer] = plain.answer([query(Wish(["odd"], hard=True))])
    [everything] = plain.answer([query(k=NUM_ITEMS)])
    odd = [row for row in rows_of(everything.item_ids) if row % 2]
    assert rows_of(answer.item_ids) == odd[:6]
    with pytest.raises(Unanswerable, match=r"^conditions.0.hard: .*takes no conditions; set hard to true"):
        plain.answer([query(Wish(["odd"]))])


def test_unknown_names_are_refused_with_what_there_is(engine: Engine) -> None:
    with pytest.raises(Unanswerable, match=r"^conditions.1.any_of.1: no category.*there are 4, such as even, new, odd"):
        engine.answer([query(Wish(["even"]), Wish(["odd", "western"]))])


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(1, 50))
def test_quotas_are_whole_shares(weights: list[float], k: int) -> None:
    places = quotas(weights, k)
    assert sum(places) == k
    for weight, count in zip(weights, places, strict=True):
        assert abs(count - k * weight / sum(weights)) < 1 + 1e-9


ranked = st.lists(st.integers(1, 30), max_size=12, unique=True)


@given(st.lists(ranked, min_size=1, max_size=4), st.integers(1, 20))
def test_a_merge_has_each_item_once_and_k_if_there_are_k(rows: list[list[int]], k: int) -> None:
    lists = [
        (np.array(one, np.int64), np.linspace(1, 0, len(one), dtype=np.float32) - number / 10)
        for number, one in enumerate(rows)
    ]
    found, scores, brought_by = merge(lists, [1.0] * len(lists), k)
    assert len(set(found.tolist())) == len(found) == min(k, len({row for one in rows for row in one}))
    assert (np.diff(scores) <= 0).all()
    for row, score, number in zip(found.tolist(), scores.tolist(), brought_by.tolist(), strict=True):
        place = rows[number].index(row)
        assert score == pytest.approx(float(lists[number][1][place]))


def test_one_list_is_handed_on_as_it_is() -> None:
    scores = np.array([0.9, 0.9, 0.1], np.float32)
    found, found_scores, _ = merge([(np.array([2, 5, 9], np.int64), scores)], [1.0], 2)
    assert found.tolist() == [2, 5]
    assert found_scores.tolist() == scores[:2].tolist()
