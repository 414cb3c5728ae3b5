"""Stores of histories, on real SQLite files and a real Redis server, against a plain program; their part of the API."""

import asyncio
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.errors import DatasetError, EndpointError, RecipeError
from data.storage import MANIFEST, write_json
from serve.api import create_api
from serve.histories.contract import Appended, HistoriesUnavailable, HistoryStore, StoredEvent
from serve.histories.in_redis import RedisHistories
from serve.histories.in_sqlite import SqliteHistories
from serve.histories.store import open_histories, seed
from serve.settings import Limits, ServeSettings, SqliteSettings
from serve.updates.contract import UpdatesUnavailable
from serve.updates.in_sqlite import SqliteUpdates
from tests.echo import echo
from tests.ports import free_port
from tests.small_world import write_dataset

MAX_EVENTS = 3
Opened = Callable[[], HistoryStore]


@pytest.fixture(params=["sqlite", "redis"])
def opened(request: pytest.FixtureRequest) -> Opened:
    """Makes stores that are empty."""
    if request.param == "sqlite":
        return lambda: SqliteHistories(Path(":memory:"), MAX_EVENTS)
    url: str = request.getfixturevalue("redis_url")
    return lambda: RedisHistories(url, f"{uuid.uuid4()}:", MAX_EVENTS)


class PlainHistories:
    """What a store has to do, in lists."""

    def __init__(self) -> None:
        self.events: dict[str, list[tuple[int, int, StoredEvent]]] = {}
        self.number = 0

    def append(self, events: dict[str, list[StoredEvent]]) -> Appended:
        counts = [0, 0, 0]
        for user, added in events.items():
            for event in added:
                counts[self._add(self.events.setdefault(user, []), event)] += 1
        return Appended(*counts)

    def _add(self, held: list[tuple[int, int, StoredEvent]], event: StoredEvent) -> int:
        for _, _, other in held:
            same = (other.item_id, other.timestamp, other.action) == (event.item_id, event.timestamp, event.action)
            if same or (event.event_id is not None and other.event_id == event.event_id):
                return 1
        if len(held) == MAX_EVENTS and event.timestamp <= held[0][0]:
            return 2
        self.number += 1
        held.append((event.timestamp, self.number, event))
        held.sort(key=lambda entry: entry[:2])
        del held[:-MAX_EVENTS]
        return 0

    def history(self, user: str) -> list[StoredEvent]:
        return [event for _, _, event in self.events.get(user, [])]


USERS = ["u", "u}:", "ü 1"]
EVENTS = st.builds(
    StoredEvent,
    item_id=st.sampled_from(["a", "b", "日", '"']),
    timestamp=st.integers(0, 5) | st.just(32_503_680_000),
    action=st.none() | st.sampled_from(["click", ""]),
    event_id=st.none() | st.sampled_from(["x", "y", "z"]),
)
CALLS = st.lists(st.dictionaries(st.sampled_from(USERS), st.lists(EVENTS, max_size=4)), max_size=6)
ON_REAL_STORES = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ON_REAL_STORES
@given(calls=CALLS)
def test_a_store_does_what_lists_do(opened: Opened, calls: list[dict[str, list[StoredEvent]]]) -> None:
    store, plain = opened(), PlainHistories()
    for events in calls:
        assert store.append(events) == plain.append(events)
    for user in USERS:
        assert store.history(user) == plain.history(user)
        assert store.forget(user) == bool(plain.history(user))
        assert store.history(user) == []


def named(event: StoredEvent) -> StoredEvent:
    """The same event with an id that no other event has."""
    return StoredEvent(event.item_id, event.timestamp, event.action, event.event_id and repr(event))


@ON_REAL_STORES
@given(calls=CALLS, data=st.data())
def test_sending_events_again_in_any_parts_changes_nothing(
    opened: Opened, calls: list[dict[str, list[StoredEvent]]], data: st.DataObject
) -> None:
    store = opened()
    sent = [{user: [named(event) for event in events] for user, events in call.items()} for call in calls]
    for events in sent:
        store.append(events)
    before = {user: store.history(user) for user in USERS}
    for events in data.draw(st.permutations(sent)):
        assert store.append(events).accepted == 0
    assert {user: store.history(user) for user in USERS} == before


@ON_REAL_STORES
@given(times=st.lists(st.integers(0, 99), unique=True, min_size=1).flatmap(st.permutations))
def test_late_events_take_their_place_and_the_newest_are_kept(opened: Opened, times: Sequence[int]) -> None:
    store = opened()
    for time_ in times:
        store.append({"u": [StoredEvent("a", time_)]})
    assert [event.timestamp for event in store.history("u")] == sorted(times)[-MAX_EVENTS:]


def test_a_dataset_replaces_what_is_stored_up_to_its_end_and_nothing_else(opened: Opened) -> None:
    store = opened()
    store.append({"u": [StoredEvent("a", 1), StoredEvent("b", 2, event_id="x"), StoredEvent("c", 9)]})
    store.append({"other": [StoredEvent("a", 1)]})
    for _ in range(2):
        store.replace({"u": [StoredEvent("d", 1), StoredEvent("e", 2), StoredEvent("f", 2)], "new": []}, until=8)
        assert store.history("u") == [StoredEvent("e", 2), StoredEvent("f", 2), StoredEvent("c", 9)]
        assert store.history("other") == [StoredEvent("a", 1)]
    assert store.append({"u": [StoredEvent("g", 3, event_id="x")]}) == Appended(1, 0, 0)  # that event is gone


def test_two_writers_of_one_file_accept_each_event_once(tmp_path: Path) -> None:
    events = {f"u{user}": [StoredEvent(f"i{number}", number) for number in range(20)] for user in range(10)}
    calls = [{user: [event]} for user, of_user in events.items() for event in of_user]

    def write(_: int) -> int:
        store = SqliteHistories(tmp_path / "new" / "h.sqlite", max_events=20, busy_seconds=60)
        return sum(store.append(call).accepted for call in calls)

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(write, range(2))) == 200
    reader = SqliteHistories(tmp_path / "new" / "h.sqlite", max_events=20)
    assert {user: reader.history(user) for user in events} == events


@pytest.mark.parametrize(
    "make", [partial(SqliteHistories, max_events=20), partial(SqliteUpdates, max_added=5, max_removed=5)]
)
def test_a_new_file_that_another_process_is_just_making_is_waited_for(
    tmp_path: Path, make: Callable[..., SqliteHistories | SqliteUpdates]
) -> None:
    # A writer of a file that is not in WAL mode yet is where SQLite itself does not wait.
    other = sqlite3.connect(tmp_path / "new.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises((HistoriesUnavailable, UpdatesUnavailable), match="database is locked"):
        make(tmp_path / "new.sqlite", busy_seconds=0.05)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(make, tmp_path / "new.sqlite", busy_seconds=60)
        time.sleep(0.1)
        other.execute("COMMIT")
        opening.result().close()


def test_a_store_that_cannot_be_reached_says_so_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(HistoriesUnavailable, match="see that the file can be written"):
        SqliteHistories(tmp_path, MAX_EVENTS)
    gone = RedisHistories(f"redis://me:secret@127.0.0.1:{free_port()}/0", "", MAX_EVENTS)
    with pytest.raises(HistoriesUnavailable, match=r"see that the server of serve\.histories\.url runs") as caught:
        gone.history("u")
    assert "secret" not in str(caught.value)


def test_a_prepared_dataset_gives_an_endpoint_its_histories(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    recipe = {"serve": {"histories": {"kind": "sqlite", "path": str(tmp_path / "h.sqlite"), "max_events": 5}}}
    rows = [row for table in dataset.history_tables() for row in table.to_pylist()]
    found = seed(str(dataset.directory), recipe)
    assert found["users"] == len(rows)
    assert found["events"] == sum(len(row["items"]) for row in rows)
    assert found["until"] == max(max(row["times"]) for row in rows)
    kept = ServeSettings.model_validate(recipe["serve"]).histories
    assert kept is not None
    store, item_ids, actions = open_histories(kept), dataset.vocabulary().item_ids, [None, *dataset.manifest["actions"]]
    for row in rows:
        expected = [
            StoredEvent(item_ids[item - 1], time_, actions[code])
            for item, time_, code in zip(row["items"], row["times"], row["actions"], strict=True)
        ]
        assert store.history(row["user_id"]) == expected[-5:]


def test_a_dataset_without_times_or_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    with pytest.raises(RecipeError, match=r"serve.histories is null"):
        seed(str(dataset.directory), {"serve": {"histories": None}})
    with pytest.raises(EndpointError, match="see that the file can be written"):
        seed(str(dataset.directory), {"serve": {"histories": {"kind": "sqlite", "path": str(tmp_path)}}})
    write_json(dataset.directory / MANIFEST, {**dataset.manifest, "has_times": False})
    with pytest.raises(DatasetError, match="its events have no times"):
        seed(str(dataset.directory), {})


def ask(store: HistoryStore | None, *requests: tuple[str, str, Any]) -> list[httpx.Response]:
    """What the API answers, one request after the other."""
    api = create_api(echo, ServeSettings(limits=Limits(max_events=3)), store)

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.request(method, path, json=body) for method, path, body in requests]

    return asyncio.run(send())


def test_events_are_remembered_asked_by_user_shown_and_forgotten() -> None:
    events = [
        {"user_id": 7, "item_id": "late", "timestamp": 20, "action": "click", "event_id": "x"},
        {"user_id": "7", "item_id": 5, "timestamp": 10},
    ]
    by_user, at_15 = {"user_id": 7}, {"user_id": "7", "request_time": 15}
    added, again, answer, earlier, shown, gone, nothing = ask(
        SqliteHistories(Path(":memory:"), MAX_EVENTS),
        ("POST", "/v1/events", {"events": events}),
        ("POST", "/v1/events", {"events": events[::-1]}),
        ("POST", "/v1/retrieve", by_user),
        ("POST", "/v1/retrieve", at_15),
        ("GET", "/v1/users/7", None),
        ("DELETE", "/v1/users/7", None),
        ("POST", "/v1/retrieve", by_user),
    )
    assert added.json() == {"accepted": 2, "known": 0, "too_old": 0}
    assert again.json() == {"accepted": 0, "known": 2, "too_old": 0}
    assert [item["item_id"] for item in answer.json()["items"]] == ["5", "late"]
    assert [item["item_id"] for item in earlier.json()["items"]] == ["5"]  # what came later had not happened
    assert [event["item_id"] for event in shown.json()["events"]] == ["5", "late"]
    assert shown.json()["events"][1] == events[0] | {"user_id": "7"}
    assert gone.status_code == 204
    assert nothing.json()["items"] == []


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/retrieve", {"user_id": "u", "history": []}, "history"),
        ("/v1/retrieve", {"user_id": ""}, "user_id"),
        ("/v1/retrieve", {"user_id": 1.5}, "user_id"),
        ("/v1/events", {}, "events"),
        ("/v1/events", {"events": [{"item_id": "a"}]}, "events.0.user_id"),
        ("/v1/events", {"events": [{"item_id": "a", "user_id": "u", "timestamp": 1_700_000_000_000}]}, "timestamp"),
        ("/v1/events", {"events": [{"item_id": "a", "user_id": "u", "event_id": 3}]}, "event_id"),
        ("/v1/events", {"events": [{"item_id": "a", "user_id": "u"}] * 4}, "events"),
    ],
)
def test_a_bad_call_is_422_and_named(path: str, body: Any, field: str) -> None:
    [answer] = ask(SqliteHistories(Path(":memory:"), MAX_EVENTS), ("POST", path, body))
    assert answer.status_code == 422
    assert all(field in problem["field"] for problem in answer.json()["problems"])


def test_an_endpoint_without_a_store_says_to_send_the_history() -> None:
    event = {"user_id": "u", "item_id": "a"}
    asked = [("POST", "/v1/events", {"events": [event]}), ("POST", "/v1/retrieve", {"user_id": "u"})]
    for answer in ask(None, *asked, ("GET", "/v1/users/u", None)):
        assert answer.status_code == 422
        assert "this endpoint keeps no histories; send the history" in answer.text


def test_a_store_that_does_not_answer_is_503_with_retry_after_and_requests_with_histories_go_on() -> None:
    gone = RedisHistories(f"redis://127.0.0.1:{free_port()}/0", "", MAX_EVENTS)
    lost, fine = ask(
        gone, ("POST", "/v1/retrieve", {"user_id": "u"}), ("POST", "/v1/retrieve", {"history": [{"item_id": "a"}]})
    )
    assert (lost.status_code, lost.headers["Retry-After"]) == (503, "1")
    assert "the store of histories does not answer" in lost.text
    assert fine.status_code == 200


def test_the_default_store_is_a_file_beside_the_runs() -> None:
    assert ServeSettings().histories == SqliteSettings(path="runs/histories.sqlite")


def test_a_path_alone_is_a_file_of_sqlite() -> None:
    settings = ServeSettings.model_validate({"histories": {"path": "h.sqlite"}, "updates": {"path": "u.sqlite"}})
    assert settings.histories is not None
    assert settings.updates is not None
    assert (settings.histories.kind, settings.updates.kind) == ("sqlite", "sqlite")
    with pytest.raises(ValidationError, match="port"):
        ServeSettings.model_validate({"histories": {"port": 1}})
