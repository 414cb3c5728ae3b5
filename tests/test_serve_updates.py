"""Items added and removed between releases: stores against a plain program, overlays, the API, two replicas."""

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import ray.serve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import MachineError
from data.item_features import ItemFacts
from modeling.settings import ConditionSettings, HashedItems, PoolSettings
from modeling.token_settings import FeatureItems
from serve.answer import Answer, Query
from serve.api import create_api
from serve.app import run
from serve.build import run as build_release
from serve.catalogue import Catalogue
from serve.description import describe
from serve.engine import Engine
from serve.instructions import Wish
from serve.settings import Limits, ServeSettings
from serve.updates.contract import (
    AddedItem,
    Change,
    Changed,
    TooManyUpdates,
    Updates,
    UpdateStore,
    UpdatesUnavailable,
)
from serve.updates.following import Follower
from serve.updates.in_redis import RedisUpdates
from serve.updates.in_sqlite import SqliteUpdates
from serve.updates.overlay import IN_RELEASE, KNOWS_NONE, REMOVED, Overlay, lay_over
from serve.updates.settings import SqliteUpdatesSettings
from tests.echo import echo
from tests.ports import free_port
from tests.small_world import NUM_ITEMS, START, item_id, write_artifact, write_dataset

MAX_ADDED, MAX_REMOVED = 3, 4
Opened = Callable[[], UpdateStore]


@pytest.fixture(params=["sqlite", "redis"])
def opened(request: pytest.FixtureRequest) -> Opened:
    """Makes stores that are empty."""
    if request.param == "sqlite":
        return lambda: SqliteUpdates(Path(":memory:"), MAX_ADDED, MAX_REMOVED)
    url: str = request.getfixturevalue("redis_url")
    return lambda: RedisUpdates(url, f"{uuid.uuid4()}:", MAX_ADDED, MAX_REMOVED)


class PlainUpdates:
    """What a store has to do, in a set and a dictionary."""

    def __init__(self) -> None:
        self.removed: set[str] = set()
        self.added: dict[str, AddedItem] = {}

    def apply(self, change: Change) -> None:
        removed, added = set(self.removed), dict(self.added)
        for name in change.remove:
            removed.add(name)
            added.pop(name, None)
        removed -= set(change.restore)
        for item in change.add:
            first = added[item.item_id].added_at if item.item_id in added else item.added_at
            added[item.item_id] = replace(item, added_at=first)
        for field, before, after, limit in (
            ("add", len(self.added), len(added), MAX_ADDED),
            ("remove", len(self.removed), len(removed), MAX_REMOVED),
        ):
            if after > max(before, limit):
                raise TooManyUpdates(field, after, limit)
        self.removed, self.added = removed, added

    def updates(self, version: int) -> Updates:
        return Updates(version, frozenset(self.removed), tuple(self.added[name] for name in sorted(self.added)))


IDS = st.sampled_from(["a", "b", "日", '"', "e}:"])
ITEMS = st.builds(
    AddedItem,
    item_id=IDS,
    added_at=st.integers(0, 3),
    like=st.sampled_from([(), ("a", "b")]),
    vector=st.sampled_from([None, np.array([1, 0.1], "<f4").tobytes()]),
    artifact=st.sampled_from([None, "x"]),
    title=st.sampled_from([None, "Ü"]),
    categories=st.sampled_from([(), ("war",)]),
    numbers=st.sampled_from([{}, {"Jahr": 1999.0, "": -0.1}]),
    contents=st.sampled_from([{}, {"image": np.array([1, 0.1], "<f4").tobytes()}]),
)
CHANGES = st.builds(
    Change,
    remove=st.lists(IDS, max_size=2).map(tuple),
    restore=st.lists(IDS, max_size=2).map(tuple),
    add=st.lists(ITEMS, max_size=2).map(tuple),
).map(lambda change: replace(change, add=tuple(one for one in change.add if one.item_id not in change.remove)))
ON_REAL_STORES = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ON_REAL_STORES
@given(changes=st.lists(CHANGES, max_size=8))
def test_a_store_does_what_a_set_and_a_dictionary_do_and_nothing_when_it_is_told_again(
    opened: Opened, changes: list[Change]
) -> None:
    store, plain = opened(), PlainUpdates()
    assert store.updates() == Updates()
    for change in changes:
        before, version = plain.updates(0), store.version()
        try:
            plain.apply(change)
        except TooManyUpdates as error:
            with pytest.raises(TooManyUpdates, match=str(error)):
                store.apply(change)
        else:
            changed = store.apply(change)
            assert (changed != Changed()) == (plain.updates(0) != before)
            assert changed.removed - changed.restored == len(plain.removed) - len(before.removed)
            assert (store.version() > version) == (changed != Changed())
            version = store.version()
            again = store.apply(change)
            assert (again, store.version()) == (Changed(), version)
        assert store.updates() == plain.updates(store.version())


def test_what_was_changed_is_counted_and_a_first_time_stays(opened: Opened) -> None:
    store, item = opened(), AddedItem("a", 10, like=("b",))
    assert store.apply(Change(add=(item,))) == Changed(added=1)
    assert store.apply(Change(add=(replace(item, added_at=20),))) == Changed()
    assert store.apply(Change(add=(replace(item, added_at=20, title="A"),))) == Changed(added=1)
    assert store.updates().added == (replace(item, title="A"),)
    assert store.apply(Change(remove=("a", "r"))) == Changed(removed=2, forgotten=1)
    assert store.apply(Change(add=(replace(item, added_at=30),))) == Changed(added=1)  # and stays barred
    assert store.apply(Change(restore=("a", "b"))) == Changed(restored=1)
    assert store.updates().added == (replace(item, added_at=30),)
    assert store.apply(Change(remove=("a",), restore=("a",))) == Changed(forgotten=1)
    assert store.updates() == Updates(store.version(), frozenset({"r"}))


def test_more_than_a_store_keeps_is_refused_whole_and_less_is_taken_even_past_a_lower_limit(tmp_path: Path) -> None:
    many, few = (SqliteUpdates(tmp_path / "u.sqlite", limit, limit) for limit in (5, 2))
    many.apply(Change(remove=tuple("vwxy"), add=tuple(AddedItem(name, 0) for name in "abcd")))
    before = few.updates()
    with pytest.raises(TooManyUpdates, match="add: 5 of at most 2") as caught:
        few.apply(Change(remove=("z",), restore=("y",), add=(AddedItem("e", 0),)))
    assert caught.value.field == "add"
    assert few.updates() == before
    assert few.apply(Change(remove=("a",), restore=("v",))) == Changed(removed=1, restored=1, forgotten=1)


def test_two_writers_of_one_store_lose_nothing(tmp_path: Path, redis_url: str) -> None:
    prefix = f"{uuid.uuid4()}:"

    def write(store: UpdateStore, name: str) -> None:
        for number in range(20):
            store.apply(Change(remove=(f"{name} {number}",)))

    def open_file() -> UpdateStore:
        return SqliteUpdates(tmp_path / "new" / "u.sqlite", 0, 40, busy_seconds=60)

    for open_store in (open_file, lambda: RedisUpdates(redis_url, prefix, 0, 40, timeout_seconds=30)):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(write, [open_store(), open_store()], ["a", "b"]))
        assert len(open_store().updates().removed) == 40


def test_a_store_that_cannot_be_reached_says_so_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(UpdatesUnavailable, match="see that the file can be written"):
        SqliteUpdates(tmp_path, MAX_ADDED, MAX_REMOVED)
    gone = RedisUpdates(f"redis://me:secret@127.0.0.1:{free_port()}/0", "", MAX_ADDED, MAX_REMOVED)
    for call in (gone.version, gone.updates, lambda: gone.apply(Change(remove=("a",)))):
        with pytest.raises(UpdatesUnavailable, match=r"see that the server of serve\.updates\.url runs") as caught:
            call()
        assert "secret" not in str(caught.value)


def test_the_default_store_is_a_file_beside_the_runs() -> None:
    assert ServeSettings().updates == SqliteUpdatesSettings(path="runs/updates.sqlite")


POOL = PoolSettings(name="new", max_age_days=1)
DAY = 86_400
NOW = START + 100 * DAY


SIDE = {
    "price": pa.array([float(row * row % 50) for row in range(1, NUM_ITEMS + 1)]),
    "image": pa.array([[row % 3, row % 4, 1] for row in range(1, NUM_ITEMS + 1)], pa.list_(pa.float32())),
}


def release_of(
    place: Path,
    seed: int = 0,
    items: HashedItems | FeatureItems | None = None,
    side: Mapping[str, pa.Array] | None = None,
) -> Path:
    dataset = write_dataset(place / "dataset", side=side)
    condition = ConditionSettings(pools=(POOL,))
    artifact = write_artifact(place / "artifact", dataset, seed=seed, condition=condition, items=items)
    build_release(str(artifact.directory), str(place / "release"), {}, dataset=str(dataset.directory))
    return place / "release"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release_of(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def engine(release: Path) -> Engine:
    return Engine.open(release)


def asked(engine: Engine, catalogue: Catalogue, *queries: Query) -> list[Answer]:
    encoded = [engine.encode(query, catalogue) for query in queries]
    return engine.answers(encoded, engine.search(encoded, engine.query_vectors(encoded)))


def query(*ids: str, k: int = NUM_ITEMS + 10, **changes: Any) -> Query:
    return Query(ids, k, NOW, timestamps=[NOW - DAY] * len(ids), **changes)


def test_an_added_item_is_scored_by_the_mean_of_what_it_is_like_or_by_its_vector(engine: Engine) -> None:
    vectors_VD = engine.item_vectors(np.arange(1, NUM_ITEMS + 1))
    np.testing.assert_allclose(np.linalg.norm(vectors_VD, axis=1), 1, atol=1e-6)
    sent = np.linspace(-1, 3, vectors_VD.shape[1], dtype="<f4")
    added = (
        AddedItem("by likes", NOW, like=(item_id(3), "unknown", item_id(9)), title="Both"),
        AddedItem("by vector", NOW, vector=sent.tobytes(), artifact=engine.artifact_hash),
        AddedItem("twin", NOW, like=(item_id(5),)),
    )
    overlay = lay_over(engine, Updates(1, added=added))
    assert overlay.left_out == {}
    asking = engine.encode(query(item_id(1), item_id(2)), overlay.catalogue)
    [query_D] = engine.query_vectors([asking])
    [answer] = asked(engine, overlay.catalogue, query(item_id(1), item_id(2)))
    scores = dict(zip(answer.item_ids, answer.scores, strict=True))
    assert len(scores) == NUM_ITEMS - 2 + 3
    assert answer.scores == sorted(answer.scores, reverse=True)
    mean_D = vectors_VD[2] + vectors_VD[8]
    assert scores["by likes"] == pytest.approx(query_D @ mean_D / np.linalg.norm(mean_D), abs=1e-6)
    assert scores["by vector"] == pytest.approx(query_D @ sent / np.linalg.norm(sent), abs=1e-6)
    assert scores["twin"] == pytest.approx(scores[item_id(5)], abs=1e-6)
    assert dict(zip(answer.item_ids, answer.titles, strict=True))["by likes"] == "Both"


def test_what_a_release_cannot_answer_with_is_left_out_and_says_why(engine: Engine) -> None:
    vector = np.zeros(16, "<f4")
    overlay = lay_over(
        engine,
        Updates(
            1,
            frozenset({"barred", item_id(4)}),
            (
                AddedItem("alone", NOW),
                AddedItem("barred", NOW, like=(item_id(1),)),
                AddedItem(item_id(7), NOW, like=(item_id(1),)),
                AddedItem("strange", NOW, like=("nothing", "known")),
                AddedItem("of another", NOW, vector=vector.tobytes(), artifact="0" * 64),
                AddedItem("zero", NOW, vector=vector.tobytes(), artifact=engine.artifact_hash),
            ),
        ),
    )
    assert overlay.catalogue.added is None
    assert overlay.left_out.pop("barred") == REMOVED  # type: ignore[attr-defined]
    assert overlay.left_out.pop(item_id(7)) == IN_RELEASE  # type: ignore[attr-defined]
    words = {"alone": "give like", "strange": "none of the items", "of another": "000000000000", "zero": "no direction"}
    assert overlay.left_out.keys() == words.keys()
    assert all(word in overlay.left_out[name] for name, word in words.items())


def test_a_model_that_composes_vectors_of_ids_needs_nothing_else(tmp_path: Path) -> None:
    items = HashedItems(kind="hashed", quotient_rows=16, remainder_rows=16)
    engine = Engine.open(release_of(tmp_path, items=items))
    overlay = lay_over(engine, Updates(1, added=(AddedItem("alone", NOW),)))
    assert overlay.left_out == {}
    # An id of the release gets the vector that the release gives it.
    composed_ND = engine.composed_vectors([item_id(1), item_id(NUM_ITEMS)], [ItemFacts()] * 2)
    assert composed_ND is not None
    np.testing.assert_allclose(composed_ND, engine.item_vectors(np.array([1, NUM_ITEMS])), atol=1e-6)
    assert "alone" in asked(engine, overlay.catalogue, query(item_id(1)))[0].item_ids


@pytest.fixture(scope="module")
def of_features(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine whose model makes vectors of categories, a number and a vector."""
    items = FeatureItems(kind="features", numbers=("price",), number_buckets=4, contents=("image",))
    return Engine.open(release_of(tmp_path_factory.mktemp("features"), items=items, side=SIDE))


def test_a_model_of_features_makes_the_vector_that_the_release_gives_an_unseen_item_with_the_same(
    of_features: Engine,
) -> None:
    unseen = [7, 14]
    twins = [
        AddedItem(
            f"twin of {row}",
            NOW,
            categories=("odd" if row % 2 else "even", "unheard of"),
            numbers={"price": SIDE["price"][row - 1].as_py(), "unread": 1.0},
            contents={"image": np.array(SIDE["image"][row - 1].as_py(), "<f4").tobytes()},
        )
        for row in unseen
    ]
    parts = [
        AddedItem("of a category", NOW, categories=("odd",)),
        AddedItem("of a number", NOW, numbers={"price": 1e9}),
        AddedItem("of a vector", NOW, contents={"image": np.ones(3, "<f4").tobytes()}),
    ]
    others = [
        AddedItem("strange", NOW, categories=("unheard of",), numbers={"unread": 1.0}),
        AddedItem("of another width", NOW, contents={"image": np.ones(4, "<f4").tobytes()}),
    ]
    overlay = lay_over(of_features, Updates(1, added=(*twins, *parts, *others)))
    assert overlay.left_out == {
        "strange": KNOWS_NONE,
        "of another width": "its image has 4 numbers, and this release reads 3; add it again with as many",
    }
    [answer] = asked(of_features, overlay.catalogue, query(item_id(1)))
    scores = dict(zip(answer.item_ids, answer.scores, strict=True))
    for row, twin in zip(unseen, twins, strict=True):
        assert scores[twin.item_id] == pytest.approx(scores[item_id(row)], abs=1e-6)
    assert len({round(scores[item.item_id], 4) for item in parts}) == len(parts)


def test_what_is_said_of_an_added_item_has_to_be_what_the_model_reads(
    of_features: Engine, engine: Engine, tmp_path: Path
) -> None:
    replica = Replica(SqliteUpdates(tmp_path / "u.sqlite", 9, 3), of_features)
    try:
        said = {"numbers": {"price": 3, "year": 1.0}, "contents": {"image": [1, 2], "sound": [1.0]}}
        answer = replica.ask("POST", {"add": [{"item_id": "n", **said}]})
        assert (answer.status_code, {one["field"]: one["message"] for one in answer.json()["problems"]}) == (
            422,
            {
                "add.0.numbers.year": "this release's model reads price (model.items.numbers)",
                "add.0.contents.sound": "this release's model reads image (model.items.contents)",
                "add.0.contents.image": "found 2 numbers, expected 3, the width of this release's model",
            },
        )
        both = replica.ask("POST", {"add": [{"item_id": "n", "like": [item_id(1)], "numbers": {"price": 3}}]})
        assert [one["field"] for one in both.json()["problems"]] == ["add.0"]
        right = {"item_id": "n", "numbers": {"price": 3}, "contents": {"image": [1, 2, 3]}}
        assert replica.ask("POST", {"add": [right]}).json()["left_out"] == {}
        [shown] = replica.ask("GET").json()["added"]
        assert (shown["numbers"], shown["contents"], shown["left_out"]) == ({"price": 3.0}, ["image"], None)
    finally:
        replica.follower.close()
    without = Replica(SqliteUpdates(tmp_path / "w.sqlite", 9, 3), engine)
    try:
        [problem] = without.ask("POST", {"add": [{"item_id": "n", "numbers": {"price": 3}}]}).json()["problems"]
        assert problem["message"] == "this release's model reads none (model.items.numbers)"
    finally:
        without.follower.close()
    described = [describe(one) for one in (of_features, engine)]
    assert [(one.item_numbers, one.item_contents) for one in described] == [(["price"], {"image": 3}), ([], {})]


def test_removed_items_come_in_no_answer_of_any_release_and_seen_added_ones_neither(
    engine: Engine, tmp_path: Path
) -> None:
    removed = frozenset(item_id(row) for row in range(1, NUM_ITEMS, 3))
    updates = Updates(1, removed, (AddedItem("n", NOW, like=(item_id(3),)), AddedItem("seen", NOW, like=(item_id(2),))))
    asking = [
        query(item_id(2), "seen"),
        query("seen"),
        query(),
        query(item_id(1), item_id(2), "seen", exclude_seen=False, exclude_item_ids=["n"]),
        query(item_id(2), wishes=[Wish(["odd"], hard=True), Wish(["new"])]),
    ]
    for one in (engine, Engine.open(release_of(tmp_path, seed=1))):
        answers = asked(one, lay_over(one, updates).catalogue, *asking)
        everything = {item_id(row) for row in range(1, NUM_ITEMS + 1)} - removed
        assert [answer.fallback for answer in answers] == [None, "popularity", "popularity", None, None]
        assert set(answers[0].item_ids) == everything - {item_id(2)} | {"n"}
        assert set(answers[1].item_ids) == everything | {"n"}
        assert set(answers[2].item_ids) == everything | {"n", "seen"}
        assert answers[2].item_ids[-2:] == ["n", "seen"]  # nobody had them in training
        assert set(answers[3].item_ids) == everything | {"seen"}
        assert not removed & set(answers[4].item_ids)
        assert (answers[0].unknown_items, answers[0].history_events_used) == (1, 1)


def test_added_items_satisfy_conditions_by_their_categories_and_are_young_from_when_they_were_added(
    engine: Engine,
) -> None:
    added = (
        AddedItem("even one", NOW - DAY // 2, like=(item_id(2),), categories=("even", "unheard of")),
        AddedItem("old one", NOW - 2 * DAY, like=(item_id(2),), categories=("odd", "tenth")),
        AddedItem("later one", NOW + 1, like=(item_id(2),)),
    )
    catalogue = lay_over(engine, Updates(1, added=added)).catalogue

    def found(*names: str, seen: tuple[str, ...] = (item_id(1),)) -> set[str]:
        [answer] = asked(engine, catalogue, query(*seen, wishes=[Wish(names, hard=True)]))
        return set(answer.item_ids)

    assert "even one" in found("even")
    assert not {"old one", "later one"} & found("even")
    assert found("tenth") == {item_id(row) for row in range(10, NUM_ITEMS + 1, 10)} | {"old one"}
    assert found("new") == {"even one"}
    assert found("new", seen=()) == {"even one"}


def test_an_overlay_of_nothing_is_searched_like_the_release_alone(engine: Engine) -> None:
    catalogue = lay_over(engine, Updates(7, frozenset({"unknown"}))).catalogue
    assert catalogue.added is None
    assert catalogue.release.kept_V is None


def test_a_batch_answers_each_query_from_the_catalogue_that_it_came_with(engine: Engine) -> None:
    with_new = lay_over(engine, Updates(1, added=(AddedItem("n", NOW, like=(item_id(5),)),))).catalogue
    without_five = lay_over(engine, Updates(2, frozenset({item_id(5)}))).catalogue
    catalogues = [engine.catalogue, with_new, without_five]
    encoded = [engine.encode(query(item_id(1)), catalogue) for catalogue in catalogues]
    together = engine.answers(encoded, engine.search(encoded, engine.query_vectors(encoded)))
    for catalogue, answer in zip(catalogues, together, strict=True):
        assert answer.item_ids == asked(engine, catalogue, query(item_id(1)))[0].item_ids


class Replica:
    """An API whose answers do not matter, and what it was shown."""

    def __init__(self, store: UpdateStore, engine: Engine, **limits: int) -> None:
        self.shown: list[Overlay] = []
        self.follower = Follower(store, engine, self.shown.append)
        self.api = create_api(echo, ServeSettings(limits=Limits(**limits)), follower=self.follower)

    def ask(self, method: str, body: Any = None) -> httpx.Response:
        return send(self.api, method, body)


def send(api: Any, method: str, body: Any = None) -> httpx.Response:
    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, "/v1/items", json=body)

    return asyncio.run(sent())


@pytest.fixture
def replicas(engine: Engine, tmp_path: Path) -> Iterator[list[Replica]]:
    found = [Replica(SqliteUpdates(tmp_path / "u.sqlite", 3, 3), engine, max_item_updates=5) for _ in range(2)]
    yield found
    for replica in found:
        replica.follower.close()


def test_a_call_is_shown_before_it_is_answered_and_to_the_other_replica_within_a_second(
    replicas: list[Replica], engine: Engine
) -> None:
    here, there = replicas
    vector = [0.5] * engine.catalogue.release.index.width
    added = [
        {"item_id": 7, "like": [item_id(1)], "title": "Seven", "categories": ["even"]},
        {"item_id": "v", "vector": vector},
        {"item_id": item_id(2), "like": [item_id(1)]},
    ]
    answer = here.ask("POST", {"add": added, "remove": [item_id(3), 8]})
    called = time.monotonic()
    assert answer.status_code == 200
    content = answer.json()
    version = content["version"]
    assert content == {
        "version": here.shown[-1].updates.version,
        "removed": 2,
        "restored": 0,
        "added": 3,
        "forgotten": 0,
        "left_out": {item_id(2): IN_RELEASE},
    }
    while len(there.shown) == 1:
        assert time.monotonic() < called + 1
        time.sleep(0.01)
    # Another order of the shown state would give other rows.
    assert there.shown[-1].updates == here.shown[-1].updates
    again = here.ask("POST", {"remove": [8], "add": added[::-1]}).json()
    assert again == {**content, "removed": 0, "added": 0}
    shown = there.ask("GET").json()
    assert (shown["release"], shown["version"]) == (engine.release_id, version)
    assert shown["removed"] == ["8", item_id(3)]
    assert [(item["item_id"], item["has_vector"], item["left_out"]) for item in shown["added"]] == [
        ("7", False, None),
        (item_id(2), False, IN_RELEASE),
        ("v", True, None),
    ]
    assert shown["added"][0]["title"] == "Seven"
    assert abs(shown["added"][0]["added_at"] - time.time()) < 60


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, ""),
        ({"remove": ["a"] * 6}, ""),
        ({"remove": ["a", "b", "c", "d"]}, "remove"),
        ({"add": [{"item_id": name} for name in "abcd"]}, "add"),
        ({"add": [{"item_id": "a"}], "remove": ["a"]}, "add.0.item_id"),
        ({"add": [{"item_id": "a", "vector": [1.0] * 16, "like": ["b"]}]}, "add.0"),
        ({"add": [{"item_id": "a", "vector": [1.0] * 15}]}, "add.0.vector"),
        ({"add": [{"item_id": "a", "vector": []}]}, "add.0.vector"),
        ({"add": [{"item_id": "a", "vector": [1e39]}]}, "add.0.vector.0"),
        ({"add": [{"item_id": "a", "vector": ["1"]}]}, "add.0.vector.0"),
        ({"add": [{"item_id": "a", "like": ["b"] * 101}]}, "add.0.like"),
        ({"add": [{"like": ["b"]}]}, "add.0.item_id"),
        ({"restore": [""]}, "restore.0"),
        ({"delete": ["a"]}, "delete"),
    ],
)
def test_a_bad_call_is_422_and_named_and_changes_nothing(replicas: list[Replica], body: Any, field: str) -> None:
    answer = replicas[0].ask("POST", body)
    assert answer.status_code == 422
    assert {problem["field"] for problem in answer.json()["problems"]} == {field}
    assert replicas[0].ask("GET").json()["version"] == 0


class Breakable:
    """A store that can be taken away."""

    def __init__(self, store: UpdateStore) -> None:
        self._store = store
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        if self.error is not None:
            raise self.error
        return getattr(self._store, name)


@pytest.mark.parametrize("error", [UpdatesUnavailable("gone"), RuntimeError("a defect")])
def test_while_a_store_does_not_answer_what_stands_stands_and_afterwards_it_goes_on(
    engine: Engine, tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "u.sqlite"
    other, store = SqliteUpdates(path, 3, 3), Breakable(SqliteUpdates(path, 3, 3))
    other.apply(Change(remove=("a",)))
    replica = Replica(store, engine)
    store.error = error
    other.apply(Change(remove=("b",)))
    answer = replica.ask("POST", {"remove": ["c"]})
    assert answer.status_code == (503 if isinstance(error, UpdatesUnavailable) else 500)
    if answer.status_code == 503:
        assert answer.headers["Retry-After"] == "1"
        assert "the store of updates does not answer" in answer.text
    while "stay as they were" not in caplog.text:
        time.sleep(0.01)
    assert replica.ask("GET").json()["removed"] == ["a"]
    store.error = None
    deadline = time.monotonic() + 2
    while replica.ask("GET").json()["removed"] != ["a", "b"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    replica.follower.close()
    store.error = error
    with pytest.raises(type(error)):
        Follower(store, engine, lambda overlay: None)  # it could answer what was removed


def test_an_endpoint_without_a_store_says_so() -> None:
    for method, body in (("POST", {"remove": ["a"]}), ("GET", None)):
        answer = send(create_api(echo, ServeSettings()), method, body)
        assert answer.status_code == 422
        assert "serve.updates is null" in answer.text


def test_updates_that_cannot_be_kept_are_refused_before_anything_starts(release: Path, tmp_path: Path) -> None:
    recipe = {"serve": {"histories": None, "updates": {"kind": "sqlite", "path": str(tmp_path)}, "port": free_port()}}
    with pytest.raises(MachineError, match=r"serve.updates: .* or set serve.updates=null"):
        run(str(release), recipe, blocking=False)


@pytest.fixture
def serve_ends(ray_session: None) -> Iterator[None]:
    """Leaves no endpoint behind, whatever fails."""
    yield
    ray.serve.shutdown()


@pytest.mark.ray
def test_over_http_all_replicas_answer_with_an_update_within_a_second_and_so_does_the_next_endpoint(
    release: Path, engine: Engine, tmp_path: Path, serve_ends: None
) -> None:
    serve = {
        "port": free_port(),
        "histories": None,
        "updates": {"kind": "sqlite", "path": str(tmp_path / "u.sqlite")},
        "replicas": {"num_cpus": 0.1, "min_replicas": 2, "max_replicas": 2},
        "access_log": True,
        "deadline_ms": 60_000,  # for a busy machine
        "limits": {"max_deadline_ms": 60_000},
    }
    golden = engine.golden[0]
    history = [
        {"item_id": item, "timestamp": at, "action": action}
        for item, at, action in zip(
            *(golden["query"][part] for part in ("item_ids", "timestamps", "actions")), strict=True
        )
    ]
    request_time = golden["query"]["request_time"]
    best = golden["item_ids"][0]
    body = {"history": history, "k": 3, "request_time": request_time}

    def first_items(url: str) -> set[str]:
        """The best item of many answers at once, so that both replicas give some."""
        with ThreadPoolExecutor(16) as pool:
            answers = pool.map(lambda _: httpx.post(f"{url}/v1/retrieve", json=body, timeout=60), range(48))
            return {answer.json()["items"][0]["item_id"] for answer in answers}

    began = time.time()
    url = run(str(release), {"serve": serve}, blocking=False)["url"]
    assert first_items(url) == {best}
    called = httpx.post(
        f"{url}/v1/items", json={"remove": [best], "add": [{"item_id": "n", "like": [best]}]}, timeout=60
    )
    assert called.status_code == 200
    time.sleep(1)
    assert first_items(url) == {"n"}  # it has the vector of what is removed
    logs = Path(os.environ["RAY_TMPDIR"], "ray", "session_latest", "logs", "serve")
    written = [file for file in logs.glob("*endpoint*.log") if file.stat().st_mtime > began]
    assert sum("/v1/retrieve" in file.read_text() for file in written) == 2
    assert httpx.get(f"{url}/readyz", timeout=60).json()["status"] == "ready"  # a golden answer holds what is removed
    ray.serve.shutdown()
    assert run(str(release), {"serve": serve}, blocking=False)["url"] == url
    assert first_items(url) == {"n"}
    assert httpx.get(f"{url}/readyz", timeout=60).json()["status"] == "ready"
    httpx.post(f"{url}/v1/items", json={"remove": ["n"], "restore": ["n", best]}, timeout=60)
    time.sleep(1)
    assert first_items(url) == {best}
    assert httpx.get(f"{url}/v1/items", timeout=60).json()["removed"] == []
