"""The client: what it sends, and what it says when an endpoint does not answer."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from data.errors import EndpointError
from serve.client import run


@contextmanager
def endpoint(status: int, content: bytes) -> Iterator[tuple[str, list[Any]]]:
    """An HTTP server that always gives one answer and keeps what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_ids_and_files_become_the_same_kind_of_request(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    path.write_text(json.dumps([{"item_id": "a", "timestamp": 5}, "b"]))
    with endpoint(200, b'{"items": []}') as (url, asked):
        assert run(url, ["a", "b"], k=3) == {"items": []}
        run(url + "/", path, request_time=9, exclude_seen=False, exclude_item_ids=["c"], deadline_ms=50)
    assert asked == [
        ("/v1/retrieve", {"history": [{"item_id": "a"}, {"item_id": "b"}], "k": 3, "exclude_seen": True}),
        (
            "/v1/retrieve",
            {
                "history": [{"item_id": "a", "timestamp": 5}, {"item_id": "b"}],
                "k": 10,
                "exclude_seen": False,
                "exclude_item_ids": ["c"],
                "request_time": 9,
                "deadline_ms": 50,
            },
        ),
    ]


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (
            422,
            b'{"problems": [{"field": "k", "message": "too large"}]}',
            r"found status 422, expected 200; k: too large$",
        ),
        (404, b"{}", r"found status 404.*check the address"),
        (413, b"", r"found status 413.*send a shorter history"),
        (503, b'{"problems": []}', r"found status 503.*ask again in a moment"),
        (504, b"null", r"found status 504.*later deadline"),
        (500, b"<html>", r"found status 500, expected 200$"),
        (200, b"<html>", r"the answer is not JSON; is this a Farsight endpoint"),
    ],
)
def test_a_refusal_says_what_to_do(status: int, content: bytes, message: str) -> None:
    with endpoint(status, content) as (url, _), pytest.raises(EndpointError, match=message):
        run(url, ["a"])


def test_no_endpoint_says_how_to_start_one() -> None:
    with pytest.raises(EndpointError, match=r"cannot connect .* start the endpoint with farsight serve"):
        run("http://127.0.0.1:1", ["a"])
    with pytest.raises(EndpointError, match="cannot connect"):
        run("nonsense", ["a"])


def test_a_silent_endpoint_runs_into_the_timeout() -> None:
    silent = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # accepts, and never answers
    with silent, pytest.raises(EndpointError, match=r"no answer within 0\.1 s"):
        run(f"http://127.0.0.1:{silent.server_port}", ["a"], timeout_seconds=0.1)


def test_a_history_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match=r"missing\.json: cannot read the history: No such file"):
        run("http://127.0.0.1:1", tmp_path / "missing.json")
    path = tmp_path / "history.json"
    for content, message in (("{", "not valid JSON"), ('{"a": 1}', "found a dict, expected a list")):
        path.write_text(content)
        with pytest.raises(EndpointError, match=message):
            run("http://127.0.0.1:1", path)
