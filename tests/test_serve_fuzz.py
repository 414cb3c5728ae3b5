"""Whatever is sent to whatever route of the HTTP API: never a 5xx, never a stack trace, always a body that says why."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.api import create_api
from serve.histories.store import open_histories
from serve.schemas import Condition, Event, EventsRequest, RetrieveRequest, UserEvent
from serve.settings import ServeSettings, SqliteSettings
from tests.echo import echo

Send = Callable[..., httpx.Response]

ROUTES = ("/v1/retrieve", "/v1/events", "/v1/users/ann", "/v1/release", "/healthz", "/readyz", "/nowhere", "/")
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")
KINDS = (
    "application/json",
    "text/plain",
    "application/json; charset=utf-16",
    "multipart/form-data; boundary=x",
    "\xff",
)
GOOD: dict[str, dict[str, Any]] = {
    "/v1/retrieve": {"history": [{"item_id": "a", "timestamp": 5}], "k": 2, "conditions": [{"own_top": 1}]},
    "/v1/events": {"events": [{"user_id": "ann", "item_id": "a", "timestamp": 5, "event_id": "e"}]},
}
JSON = {"content-type": "application/json"}
MEBIBYTE = "x" * 2**20

names = st.sampled_from(
    sorted(
        {name for body in (RetrieveRequest, Event, Condition, EventsRequest, UserEvent) for name in body.model_fields}
    )
)
# Half surrogate pairs, too: JSON can say them.
any_text = st.text(st.characters(), max_size=6)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | any_text
    | st.sampled_from([2**63, -(2**63) - 1, 10**400, 1e308, "\0", "\ud800", MEBIBYTE]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | any_text, inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def send(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Send]:
    """Asks one API, with a store in a file and an echo for a model."""
    kept = SqliteSettings(path=str(tmp_path_factory.mktemp("histories") / "h.sqlite"))
    store = open_histories(kept)
    # The server logs a defect and answers; the exception must not reach the client.
    transport = httpx.ASGITransport(create_api(echo, ServeSettings(histories=kept), store), raise_app_exceptions=False)
    with asyncio.Runner() as runner:
        http = httpx.AsyncClient(transport=transport, base_url="http://test")

        def ask(method: str, path: str, **keywords: Any) -> httpx.Response:
            return runner.run(http.request(method, path, **keywords))

        yield ask
        runner.run(http.aclose())
    store.close()


def check(response: httpx.Response) -> None:
    """An answer that was meant."""
    assert response.status_code < 500, response.text
    assert "Traceback (most recent call last)" not in response.text
    if response.status_code >= 400 and response.request.method != "HEAD":
        problems = response.json()["problems"]
        assert problems
        assert all(found["message"] for found in problems)
    if response.headers.get("content-type") == "application/json" and response.content:
        json.loads(response.content.decode(), parse_constant=lambda name: pytest.fail(f"{name} in an answer"))


@settings(max_examples=100)
@given(body=values, route=st.sampled_from(ROUTES), method=st.sampled_from(METHODS), kind=st.sampled_from(KINDS))
def test_whatever_json_at_whatever_route(send: Send, body: Any, route: str, method: str, kind: str) -> None:
    check(send(method, route, content=json.dumps(body).encode(), headers={"content-type": kind.encode("latin-1")}))


@settings(max_examples=100)
@given(route=st.sampled_from(sorted(GOOD)), data=st.data())
def test_a_good_body_with_one_thing_wrong(send: Send, route: str, data: st.DataObject) -> None:
    body = json.loads(json.dumps(GOOD[route]))
    place, name = body, data.draw(names | st.sampled_from(sorted(body)))
    if data.draw(st.booleans()):
        place = data.draw(st.sampled_from([one for value in body.values() if isinstance(value, list) for one in value]))
    place[name] = data.draw(values)
    check(send("POST", route, content=json.dumps(body).encode(), headers=JSON))


@settings(max_examples=100)
@given(route=st.sampled_from(sorted(GOOD)), data=st.data())
def test_a_good_body_that_was_cut_and_sewn(send: Send, route: str, data: st.DataObject) -> None:
    content = json.dumps(GOOD[route]).encode()
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    check(
        send("POST", route, content=content[:first] + data.draw(st.binary(max_size=9)) + content[last:], headers=JSON)
    )


@pytest.mark.parametrize("route", sorted(GOOD))
def test_monsters_are_refused_for_what_they_are(send: Send, route: str) -> None:
    member = '{"history": ' if route == "/v1/retrieve" else '{"events": '
    for content, status in (
        (b"", 422),
        (b"\0", 400),
        (b"\xff\xfe\x00", 400),
        (b"[" * 500_000, 400),
        (member.encode() * 50_000, 400),
        (f"{member}{'1' * 5_000}}}".encode(), 400),
        (f"{member}{'1' * 4_000}}}".encode(), 422),
        (f"{member}1e999}}".encode(), 422),
        (f"{member}NaN}}".encode(), 422),
        (f'{member}[{{"item_id": "{MEBIBYTE[:-100]}"}}]}}'.encode(), 422),
        (f'{member}[{{"item_id": "{MEBIBYTE}"}}]}}'.encode(), 413),
        (f'{member}[{{"item_id": "\\ud800", "user_id": "\\udfff"}}]}}'.encode(), 400),
        (f"{member}[{'{},' * 200_000}{{}}]}}".encode(), 422),
        (json.dumps(dict.fromkeys(map(str, range(60_000)))).encode(), 422),
    ):
        response = send("POST", route, content=content, headers=JSON)
        check(response)
        assert response.status_code == status, content[:40]
        assert len(response.content) < 2**16, content[:40]


@settings(max_examples=40)
@given(
    user=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).filter(
        lambda user: user not in (".", "..")
    )
)
def test_whoever_may_be_stored_can_be_shown_and_forgotten(send: Send, user: str) -> None:
    path = f"/v1/users/{quote(user, safe='')}"
    for known in (user, f"{user}\n", f"\n{user}"):
        event = {"user_id": known, "item_id": known, "timestamp": 1, "action": None, "event_id": known}
        assert send("POST", "/v1/events", json={"events": [event]}).status_code == 200
    assert [event["user_id"] for event in send("GET", path).json()["events"]] == [user]
    assert [event["item_id"] for event in send("GET", path).json()["events"]] == [user]
    assert send("DELETE", path).status_code == 204
    assert send("GET", path).json()["events"] == []
    assert len(send("GET", f"{path}%0A").json()["events"]) == 1


def test_a_method_that_a_path_lacks_is_answered_with_those_it_has(send: Send) -> None:
    for path, allowed in (("/v1/users/ann", "DELETE, GET"), ("/v1/retrieve", "POST"), ("/healthz", "GET")):
        response = send("PUT", path)
        assert (response.status_code, response.headers["allow"]) == (405, allowed)
