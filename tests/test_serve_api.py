"""The HTTP API in process: what is refused, with which status, and that no answer ever breaks."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.answer import Answer, Query, Refusal
from serve.api import Ask, create_api
from serve.retriever import Overloaded
from serve.settings import Limits, ServeSettings
from tests.echo import echo

SETTINGS = ServeSettings(
    deadline_ms=150,
    limits=Limits(max_body_bytes=2_000, max_history_events=20, max_k=50, max_excluded_items=5, max_deadline_ms=1_000),
)
GOOD = {"history": [{"item_id": "a", "timestamp": 5}], "k": 2}


def raising(error: Exception) -> Ask:
    async def ask(query: Query) -> Answer:
        raise error

    return ask


def request(ask: Ask, method: str, path: str, **keywords: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        # The server logs a defect and answers; the exception must not reach the client.
        transport = httpx.ASGITransport(create_api(ask, SETTINGS), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **keywords)

    return asyncio.run(send())


def post(body: Any, ask: Ask = echo) -> httpx.Response:
    return request(ask, "POST", "/v1/retrieve", json=body)


def fields(response: httpx.Response) -> list[str]:
    return [problem["field"] for problem in response.json()["problems"]]


def test_a_good_request_is_answered_with_every_promised_field() -> None:
    response = post({"history": [{"item_id": 12, "timestamp": 5}, {"item_id": "b", "timestamp": 6}], "k": 1})
    assert response.status_code == 200
    assert response.json() == {
        "release": "r",
        "items": [{"item_id": "12", "score": 1.0, "title": None, "condition": None}],
        "fallback": None,
        "unknown_items": 0,
        "unknown_actions": 0,
        "history_events_used": 2,
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "history"),
        ({"history": [], "conditions": ["war"]}, "conditions.0"),
        ({"history": [], "conditions": [{}]}, "conditions.0"),
        ({"history": [], "conditions": [{"any_of": ["a"], "own_top": 1}]}, "conditions.0"),
        ({"history": [], "conditions": [{"any_of": [1]}]}, "conditions.0.any_of.0"),
        ({"history": [], "conditions": [{"any_of": ["a"], "weight": 0}]}, "conditions.0.weight"),
        ({"history": [], "conditions": [{"any_of": ["a"], "hard": "yes"}]}, "conditions.0.hard"),
        ({"history": [], "conditions": [{"own_top": 17}]}, "conditions"),
        ({"history": [], "conditions": [{"any_of": ["a"] * 9}, {"any_of": ["b"] * 8}]}, "conditions"),
        ({"history": "a"}, "history"),
        ({"history": [{"item_id": 1.0}]}, "history.0.item_id"),
        ({"history": [{"item_id": True}]}, "history.0.item_id"),
        ({"history": [{"item_id": None}]}, "history.0.item_id"),
        ({"history": [{"item_id": ""}]}, "history.0.item_id"),
        ({"history": [{"item_id": 2**64}]}, "history.0.item_id"),
        ({"history": [{"timestamp": 1}]}, "history.0.item_id"),
        ({"history": [{"item_id": 1, "timestamp": 1.5}]}, "history.0.timestamp"),
        ({"history": [{"item_id": 1, "timestamp": 1_700_000_000_000}]}, "history.0.timestamp"),
        ({"history": [{"item_id": 1, "timestamp": -1}]}, "history.0.timestamp"),
        ({"history": [{"item_id": 1, "action": 3}]}, "history.0.action"),
        ({"history": [{"item_id": 1, "price": 3}]}, "history.0.price"),
        ({"history": [], "k": 0}, "k"),
        ({"history": [], "k": "10"}, "k"),
        ({"history": [], "k": 51}, "k"),
        ({"history": [], "exclude_seen": 1}, "exclude_seen"),
        ({"history": [], "exclude_item_ids": [1.5]}, "exclude_item_ids.0"),
        ({"history": [], "exclude_item_ids": ["a"] * 6}, "exclude_item_ids"),
        ({"history": [], "deadline_ms": 1_001}, "deadline_ms"),
        ({"history": [], "condition": "x"}, "condition"),
        ({"history": [{"item_id": 1}] * 21}, "history"),
        ([], ""),
    ],
)
def test_a_bad_field_is_422_and_named(body: Any, field: str) -> None:
    response = post(body)
    assert response.status_code == 422
    assert set(fields(response)) == {field}


def test_what_the_release_cannot_answer_is_422_too() -> None:
    async def refuse(query: Query) -> Refusal:
        return Refusal("history.0.timestamp", "missing")

    response = post(GOOD, refuse)
    assert response.status_code == 422
    assert fields(response) == ["history.0.timestamp"]


def test_a_body_that_is_not_json_is_400() -> None:
    for content in (b"{", b"\xff\xfe", b"[" * 1_500):
        response = request(echo, "POST", "/v1/retrieve", content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400, content
        assert "problems" in response.json()


def test_nan_and_half_surrogates_are_refused_in_valid_json() -> None:
    for content in (
        b'{"history": [{"item_id": NaN}]}',
        b'{"history": [], "k": Infinity}',
        b'{"history": [{"item_id": "\\ud800"}]}',
        b'{"history": [], "\\ud800": 1}',
    ):
        response = request(echo, "POST", "/v1/retrieve", content=content, headers={"content-type": "application/json"})
        assert response.status_code == (400 if b"ud800" in content else 422), content
        json.loads(response.content.decode(), parse_constant=lambda name: pytest.fail(f"{name} in an answer"))


def test_a_large_body_is_413_with_and_without_a_stated_length() -> None:
    async def chunks() -> Any:
        for _ in range(30):
            yield b"x" * 100

    for content in (b"x" * 3_000, chunks()):
        response = request(echo, "POST", "/v1/retrieve", content=content)
        assert response.status_code == 413
        assert "larger than 2000 bytes" in response.json()["problems"][0]["message"]


def test_a_passed_deadline_is_504_and_stops_the_work() -> None:
    stopped = []

    async def slow(query: Query) -> Answer:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped.append(True)
            raise
        return await echo(query)

    by_default, by_request = post(GOOD, slow), post({**GOOD, "deadline_ms": 20}, slow)
    assert (by_default.status_code, by_request.status_code) == (504, 504)
    assert "within 150 ms" in by_default.json()["problems"][0]["message"]
    assert "within 20 ms" in by_request.json()["problems"][0]["message"]
    assert stopped == [True, True]


def test_overload_is_503_with_retry_after() -> None:
    response = post(GOOD, raising(Overloaded()))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


def test_a_defect_is_500_without_a_stack_trace() -> None:
    response = post(GOOD, raising(RuntimeError("secret")))
    assert response.status_code == 500
    assert response.json()["problems"][0]["message"] == "internal error; the server's log has the details"
    assert "secret" not in response.text


def test_health_docs_and_unknown_routes() -> None:
    assert request(echo, "GET", "/healthz").json() == {"status": "ok"}
    assert "swagger" in request(echo, "GET", "/docs").text.lower()
    description = request(echo, "GET", "/openapi.json").json()
    assert set(description["paths"]["/v1/retrieve"]["post"]["responses"]) >= {"200", "413", "422", "503", "504"}
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/retrieve", 405)):
        response = request(echo, method, path)
        assert response.status_code == status
        assert "problems" in response.json()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
event_like = st.dictionaries(st.sampled_from(["item_id", "timestamp", "action", "x"]), anything, max_size=4)
request_like = st.dictionaries(
    st.sampled_from(["history", "k", "request_time", "exclude_seen", "exclude_item_ids", "deadline_ms", "y"]),
    anything | st.lists(event_like, max_size=4),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(body=anything | request_like)
def test_no_json_whatever_breaks_the_server(body: Any) -> None:
    content = json.dumps(body).encode()
    response = request(echo, "POST", "/v1/retrieve", content=content, headers={"content-type": "application/json"})
    assert response.status_code in (200, 413, 422)
    response.json()
