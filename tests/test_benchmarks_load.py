"""The clients of load tests: what they count, and what they ask again."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from benchmarks.load import ask_for


@contextmanager
def answering(statuses: list[int]) -> Iterator[str]:
    """The address of a server that answers with these statuses in turn, 0 being none, and then always with 200."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # http.server's name
            self.rfile.read(int(self.headers["Content-Length"]))
            status = statuses.pop(0) if statuses else 200
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/retrieve"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [0, 404, 503])
def test_what_nobody_answered_is_asked_again_and_counts_once(status: int) -> None:
    with answering([status]) as url:
        load = ask_for(url, [b"{}"], clients=1, seconds=0.3, retries=2)
    assert (load.failed, load.statuses[200], load.broken) == (0, 1, int(status == 0))
    assert load.latencies[0] > 0.5  # from the first time that it was asked


def test_a_refusal_that_is_not_asked_again_and_an_error_count_as_failed() -> None:
    with answering([503]) as url:
        load = ask_for(url, [b"{}"], clients=1, seconds=0.05)
    assert (load.failed, load.statuses[503], len(load.refusals)) == (1, 1, 1)
    with answering([500]) as url:
        load = ask_for(url, [b"{}"], clients=1, seconds=0.05, retries=2)
    assert (load.failed, load.statuses[500]) == (1, 1)
    assert load.statuses[200] == len(load.latencies) > 0
