"""Tokens and their rate: who is let in, in process, through the API that the endpoint serves."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from data.errors import RecipeError
from data.settings import read_section
from serve.access import Tokens
from serve.api import create_api
from serve.settings import ServeSettings
from tests.echo import echo

ANN, BOB = "a" * 32, "b" * 16
BODY = {"history": [{"item_id": "a"}]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    place = tmp_path / "tokens"
    place.write_text(f"# who may ask\nann {ANN}\n\nbob {BOB}\n")
    return place


def api_of(**access: Any) -> Any:
    return create_api(echo, read_section({"serve": {"access": access, "histories": None}}, "serve", ServeSettings))


def send(api: Any, header: str | None = None, method: str = "POST", path: str = "/v1/retrieve") -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as client:
            headers = {} if header is None else {"Authorization": header}
            return await client.request(method, path, json=BODY if method == "POST" else None, headers=headers)

    return asyncio.run(ask())


def test_only_a_token_of_the_file_is_let_in(file: Path) -> None:
    api = api_of(tokens_file=str(file))
    for header in (f"Bearer {ANN}", f"bearer {BOB}"):
        assert send(api, header).status_code == 200
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {ANN}",
        ANN,
        f"Bearer {ANN[:-1]}",
        f"Bearer {ANN}{BOB}",
        "Bearer ann",
    ):
        response = send(api, wrong)
        assert response.status_code == 401, wrong
        assert response.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer" in response.json()["problems"][0]["message"]


def test_what_holds_nothing_of_anybody_needs_no_token_and_all_else_does(file: Path) -> None:
    api = api_of(tokens_file=str(file))
    for path in ("/healthz", "/docs", "/openapi.json"):
        assert send(api, None, "GET", path).status_code == 200
    for path in (
        "/v1/users/ann",
        "/v1/release",
        "/V1/retrieve",
        "//v1/retrieve",
        "/v1",
        "/nowhere",
        "/healthz/",
        "/page",
    ):
        assert send(api, None, "GET", path).status_code == 401, path


def test_a_body_is_not_read_without_a_token(file: Path) -> None:
    api = api_of(tokens_file=str(file))
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def collect(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/retrieve", "headers": [], "query_string": b""}
    asyncio.run(api(scope, receive, collect))
    assert sent[0]["status"] == 401


def test_tokens_change_with_the_file_and_outlive_a_broken_one(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = Tokens(file)
    assert [tokens.name_of(token.encode()) for token in (ANN, BOB, "c" * 16)] == ["ann", "bob", None]
    file.write_text(f"ann {ANN}\ncarol {'c' * 16}\n")
    assert [tokens.name_of(token.encode()) for token in (ANN, BOB, "c" * 16)] == ["ann", None, "carol"]
    file.write_text("ann short\n")
    assert tokens.name_of(ANN.encode()) == "ann"
    assert "the tokens stay as they were" in caplog.text
    assert "short" not in caplog.text
    os.remove(file)
    assert tokens.name_of(ANN.encode()) == "ann"
    file.write_text(f"dan {'d' * 16}\n")
    assert [tokens.name_of(token.encode()) for token in (ANN, "d" * 16)] == [None, "dan"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found no token"),
        ("# nothing\n", "found no token"),
        ("ann\n", "line 1"),
        (f"\nann {ANN} {BOB}\n", "line 2"),
        (f"ann {ANN}\nann {BOB}\n", "line 2"),
        (f"ann {ANN[:15]}\n", "line 1: .* at least 16 characters"),
    ],
)
def test_a_file_that_is_no_list_of_tokens_is_refused_without_showing_one(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        api_of(tokens_file=str(file))
    assert ANN[:15] not in str(caught.value)


def test_a_token_past_its_rate_is_429_and_others_go_on(file: Path) -> None:
    api = api_of(tokens_file=str(file), rate="2/minute")
    assert [send(api, f"Bearer {ANN}").status_code for _ in range(4)] == [200, 200, 429, 429]
    refused = send(api, f"Bearer {ANN}")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert send(api, f"Bearer {BOB}").status_code == 200
    assert send(api, "Bearer x").status_code == 401
    assert send(api, None, "GET", "/healthz").status_code == 200


def test_a_rate_passes_and_needs_no_tokens() -> None:
    api = api_of(rate="1/second")
    assert [send(api).status_code for _ in range(2)] == [200, 429]
    time.sleep(2.1)  # a sliding window: the second before still counts in part
    assert send(api).status_code == 200
    with pytest.raises(RecipeError, match="expected a rate such as 100/second"):
        api_of(rate="often")
