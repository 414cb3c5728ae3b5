"""Weights of objectives in a request: one encoding, one search, and the weighted sum of the stages' scores."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from modeling.objectives_settings import ObjectivesSettings
from serve.answer import Answer, EncodedQuery, Query, Refusal
from serve.api import create_api
from serve.build import run as build_release
from serve.client import run as ask_endpoint
from serve.description import describe
from serve.engine import Engine
from serve.golden import check_golden
from serve.grpc import farsight_pb2 as messages
from serve.grpc.calls import plain
from serve.index.contract import Hits, Index
from serve.instructions import Unanswerable
from serve.query_cache import QueryCache
from serve.release import Release
from serve.settings import Encoding, ServeSettings
from serve.updates.contract import AddedItem, Updates
from serve.updates.overlay import lay_over
from tests.small_world import MAX_EVENTS, NUM_ITEMS, START, item_id, write_artifact, write_dataset
from tests.test_serve_client import endpoint

NAMES, WIDTHS = ("exposure", "click", "conversion"), (8, 5, 3)
NOW = START + 10**7
STATED = ObjectivesSettings(
    names=NAMES, actions={"click": ("click",), "conversion": ("like",)}, widths=WIDTHS, weights={"click": 2.0}
)


class CountedIndex:
    """An index that counts how often it is searched."""

    def __init__(self, index: Index) -> None:
        self._index, self.searches = index, 0
        self.num_items, self.width = index.num_items, index.width

    def search(self, query_QD: Any, k: int, allowed_V: Any = None) -> Hits:
        self.searches += 1
        return self._index.search(query_QD, k, allowed_V)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("objectives")
    dataset = write_dataset(place / "dataset")
    artifact = write_artifact(place / "artifact", dataset, objectives=STATED)
    build_release(str(artifact.directory), str(place / "release"), {}, dataset=str(dataset.directory))
    return place / "release"


def query(weights: dict[str, float] | None = None, count: int = 5, **keywords: Any) -> Query:
    ids = [item_id(1 + 3 * place) for place in range(count)]
    times = [START + 1_000 * place for place in range(count)]
    return Query(ids, keywords.pop("k", 10), NOW, timestamps=times, objective_weights=weights, **keywords)


def stage_scores(engine: Engine, asked: EncodedQuery) -> np.ndarray[Any, Any]:
    """Scores of each stage for every item, by hand: [S, V]."""
    query_D, item_VD = engine.query_vectors([asked])[0], engine.item_vectors(np.arange(1, NUM_ITEMS + 1))
    ends = np.cumsum(WIDTHS)
    return np.stack([item_VD[:, :end] @ query_D[:end] for end in ends])


def test_an_answer_is_the_best_of_the_weighted_sum_of_the_stages(release: Path) -> None:
    engine = Engine.open(release)
    for weights in ({"exposure": 1.0}, {"click": 1.0, "conversion": 0.5}, {"conversion": 3.0, "exposure": 0.1}):
        asked = engine.encode(query(weights, exclude_seen=False))
        total_V = np.array([weights.get(name, 0.0) for name in NAMES]) @ stage_scores(engine, asked)
        best = np.argsort(-total_V)[:10]
        [answer] = engine.answer([query(weights, exclude_seen=False)])
        assert answer.item_ids == [item_id(row + 1) for row in best]
        np.testing.assert_allclose(answer.scores, total_V[best], atol=1e-5)


def test_without_weights_the_releases_own_hold_and_golden_requests_go_by_them(release: Path) -> None:
    engine = Engine.open(release)
    own, stated, other = engine.answer([query(), query({"click": 2.0}), query({"conversion": 1.0})])
    assert (own.item_ids, own.scores) == (stated.item_ids, stated.scores)
    assert own.item_ids != other.item_ids
    check_golden(engine, engine.golden)


def test_weights_cost_no_further_search_and_no_further_encoding(release: Path) -> None:
    opened = Release.open(release)
    index = CountedIndex(opened.index)
    engine = Engine(Release.open(release, index=index))
    weights = [None, {"exposure": 1.0}, {"click": 1.0}, {"conversion": 1.0}, {"click": 0.3, "conversion": 0.7}]
    answers = engine.answer([query(one) for one in weights])
    assert index.searches == 1
    assert len({tuple(answer.item_ids) for answer in answers}) > 2
    asked = [engine.encode(query(one)) for one in weights]
    cache = QueryCache(10, MAX_EVENTS, reads_times=True)
    assert len({cache.key(one) for one in asked}) == 1  # one vector is kept for all weights
    vectors = engine.query_vectors(asked)
    np.testing.assert_allclose(vectors, np.tile(vectors[0], (len(weights), 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"buy": 1.0}, "found buy, expected some of exposure, click, conversion"),
        ({"click": 0.0}, "found no weight above 0, expected at least one"),
        ({f"x{number}": 1.0 for number in range(64)}, "found x0, x1, x10, x11, x12 and 59 more, expected"),
    ],
)
def test_wrong_weights_are_refused_with_what_was_found(release: Path, weights: dict[str, float], problem: str) -> None:
    with pytest.raises(Unanswerable, match=problem) as caught:
        Engine.open(release).encode(query(weights))
    assert caught.value.field == "objective_weights"


def test_a_release_of_one_objective_takes_no_weights(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact", write_dataset(tmp_path / "dataset"))
    build_release(str(artifact.directory), str(tmp_path / "release"), {})
    engine = Engine.open(tmp_path / "release")
    assert describe(engine).objectives == []
    with pytest.raises(Unanswerable, match="this release has one objective; leave the field out"):
        engine.encode(query({"click": 1.0}))


def test_a_stage_answers_with_the_objectives_that_it_has_learnt(tmp_path: Path) -> None:
    stage = STATED.model_copy(update={"stage": "exposure", "weights": {}})
    artifact = write_artifact(tmp_path / "artifact", write_dataset(tmp_path / "dataset"), objectives=stage)
    build_release(str(artifact.directory), str(tmp_path / "release"), {})
    engine = Engine.open(tmp_path / "release")
    assert describe(engine).objectives == ["exposure"]
    item_VD = engine.item_vectors(np.arange(1, 5))
    assert not item_VD[:, 8:].any()
    np.testing.assert_allclose(np.linalg.norm(item_VD, axis=1), (8 / 16) ** 0.5, rtol=1e-5)
    with pytest.raises(Unanswerable, match="found click, expected some of exposure, which the model has learnt"):
        engine.encode(query({"click": 1.0}))


def test_bf16_keeps_each_blocks_share(release: Path) -> None:
    whole, half = Engine.open(release), Engine.open(release, encoding=Encoding(precision="bf16"))
    asked = [whole.encode(query())]
    expected_D, found_D = whole.query_vectors(asked)[0], half.query_vectors(asked)[0]
    for block, width in zip(np.split(found_D, np.cumsum(WIDTHS)[:-1]), WIDTHS, strict=True):
        assert np.linalg.norm(block) == pytest.approx((width / 16) ** 0.5, abs=1e-5)
    assert expected_D @ found_D > 0.999


def test_an_added_item_has_blocks_of_the_same_lengths(release: Path) -> None:
    engine = Engine.open(release)
    added = AddedItem("new", added_at=NOW, categories=(), title=None, like=(item_id(1), item_id(2)))
    catalogue = lay_over(engine, Updates(version=1, added=(added,), removed=frozenset())).catalogue
    asked = engine.encode(query(k=NUM_ITEMS + 1, exclude_seen=False), catalogue)
    [answer] = engine.answers([asked], engine.search([asked], engine.query_vectors([asked])))
    like_2D = torch.from_numpy(engine.item_vectors(np.array([1, 2])))
    blocks = [block.mean(0) for block in like_2D.split(WIDTHS, 1)]
    new_D = torch.cat([block / block.norm() * (len(block) / 16) ** 0.5 for block in blocks]).numpy()
    assert asked.scales_D is not None
    score = dict(zip(answer.item_ids, answer.scores, strict=True))["new"]
    assert score == pytest.approx(float((engine.query_vectors([asked])[0] * asked.scales_D) @ new_D), abs=1e-5)


def post(release: Path, body: dict[str, Any]) -> httpx.Response:
    engine = Engine.open(release)

    async def ask(asked: Query) -> Answer | Refusal:
        try:
            return engine.answer([asked])[0]
        except Unanswerable as error:
            return Refusal(error.field, error.message)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(create_api(ask, ServeSettings()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/retrieve", json=body)

    return asyncio.run(send())


@pytest.mark.parametrize(
    ("weights", "field"),
    [
        ({"click": 1, "conversion": 0.5}, None),
        ({"buy": 1}, "objective_weights"),
        ({"click": 0}, "objective_weights"),
        ({}, "objective_weights"),
        ({"click": -1}, "objective_weights.click"),
        ({"click": "much"}, "objective_weights.click"),
        ({"click": None}, "objective_weights.click"),
        ([1, 2], "objective_weights"),
        ({f"x{number}": -1 for number in range(70)}, "objective_weights"),
    ],
)
def test_the_api_takes_weights_and_names_what_is_wrong(release: Path, weights: Any, field: str | None) -> None:
    history = [{"item_id": item_id(1), "timestamp": START}]
    response = post(release, {"history": history, "k": 3, "objective_weights": weights})
    assert response.status_code == (200 if field is None else 422)
    if field is not None:
        assert {problem["field"] for problem in response.json()["problems"]} == {field}


def test_the_schema_of_the_api_has_the_weights() -> None:
    async def ask(asked: Query) -> Answer | Refusal:
        return Refusal("k", "nothing")

    schema = create_api(ask, ServeSettings()).openapi()["components"]["schemas"]["RetrieveRequest"]
    assert "objective_weights" in schema["properties"]


def test_client_and_message_say_weights_as_the_body_does() -> None:
    weights = {"click": 1.0, "conversion": 0.5}
    with endpoint(200, b'{"items": []}') as (url, asked):
        ask_endpoint(url, ["a"], objective_weights=weights)
    assert asked[0][1]["objective_weights"] == weights
    assert plain(messages.RetrieveRequest(objective_weights=weights)) == {"objective_weights": weights}
