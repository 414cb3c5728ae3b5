"""`farsight serve`: what is refused before anything starts, and how it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from data.errors import EndpointError, MachineError, RecipeError
from serve.app import _wait_for_signal, run
from serve.build import run as build_release
from tests.ports import free_port
from tests.small_world import write_artifact, write_dataset


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("serve")
    artifact = write_artifact(place / "artifact", write_dataset(place / "dataset"))
    build_release(str(artifact.directory), str(place / "release"), {})
    return place / "release"


def test_a_deployment_where_nobody_listens_ends_at_once() -> None:
    command = [sys.executable, "-m", "cluster.cli", "deploy", "nowhere", "--address", f"127.0.0.1:{free_port()}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == EndpointError.exit_code
    assert "no application 'farsight' answers there" in ended.stderr
    assert "refused" in ended.stderr


def test_histories_that_cannot_be_kept_are_refused_before_anything_starts(release: Path, tmp_path: Path) -> None:
    recipe = {"serve": {"histories": {"kind": "sqlite", "path": str(tmp_path)}}}
    with pytest.raises(MachineError, match=r"serve.histories: .* or set serve.histories=null"):
        run(str(release), recipe, blocking=False)


def test_a_taken_port_is_refused_before_anything_starts(release: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=rf"serve.port {port}: .* serve on another port"):
            run(str(release), {"serve": {"port": port}}, blocking=False)
        words = {"port": free_port(), "grpc_port": port, "access": {"anyone": True}, "histories": None}
        with pytest.raises(MachineError, match=rf"serve.grpc_port {port}: .* with serve.grpc_port=N"):
            run(str(release), {"serve": words}, blocking=False)


def test_an_endpoint_beyond_this_machine_needs_tokens_or_a_word(tmp_path: Path) -> None:
    def start(**serve: Any) -> None:
        run(str(tmp_path / "no release"), {"serve": {"histories": None, **serve}}, blocking=False)

    for beyond in ({"host": "0.0.0.0"}, {"host": "::"}, {"host": "example.org"}, {"haproxy": True}):
        with pytest.raises(RecipeError, match=r"serve.access.tokens_file=FILE, or serve.access.anyone=true"):
            start(**beyond)
    with pytest.raises(RecipeError, match=r"serve.grpc_port 9000: listens beyond this machine"):
        start(grpc_port=9000)
    with pytest.raises(RecipeError, match=r"tokens: No such file"):
        start(host="0.0.0.0", access={"tokens_file": str(tmp_path / "no" / "tokens")})


def test_serving_ends_at_sigterm_and_gives_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    _wait_for_signal()
    assert signal.getsignal(signal.SIGTERM) is before


def _refused_of(url: str, requests: int) -> list[httpx.Response]:
    """Those of so many requests at a time that are answered 503; some are, and some are answered."""

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=requests)) as http:
            bodies = [{"history": [], "request_time": number} for number in range(requests)]
            return await asyncio.gather(*(http.post(url, json=body) for body in bodies))

    answers = asyncio.run(ask())
    assert {answer.status_code for answer in answers} == {200, 503}
    return [answer for answer in answers if answer.status_code == 503]


@pytest.mark.long
def test_behind_haproxy_the_command_answers_deploys_and_leaves_nothing_running(release: Path, tmp_path: Path) -> None:
    log, words = tmp_path / "log", [f"serve.port={free_port()}", "serve.haproxy=true", "serve.histories=null"]
    words += ["serve.access.anyone=true", "serve.queueing.max_in_proxy=1", "serve.queueing.retry_after_seconds=3"]
    words += ["serve.updates=null"]
    folder = tempfile.mkdtemp(prefix="hp", dir=os.environ["RAY_TMPDIR"])
    surroundings = {**os.environ, "RAY_TMPDIR": folder}
    command = [sys.executable, "-m", "cluster.cli"]
    with log.open("w") as out:
        process = subprocess.Popen([*command, "serve", str(release), "--json", *words], env=surroundings, stdout=out)
    started: set[psutil.Process] = set()
    try:
        while not log.read_text().rstrip().endswith("}"):
            assert process.poll() is None
            time.sleep(0.2)
        served = json.loads(log.read_text())
        started.update(psutil.Process(process.pid).children(recursive=True))
        assert any("haproxy" in one.name() for one in started)
        body = {"history": [], "k": 3}
        answers = [httpx.post(f"{served['url']}/v1/retrieve", json=body, timeout=60) for _ in range(20)]
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["release"] for answer in answers} == {served["release_id"]}
        refused = _refused_of(f"{served['url']}/v1/retrieve", 256)
        assert {(one.headers["retry-after"], one.json()["problems"][0]["message"]) for one in refused} == {
            ("3", "overloaded; ask again after the seconds in Retry-After")
        }
        done = subprocess.run(
            [*command, "deploy", str(release), "--address", served["ray_address"], *words],
            env=surroundings,
            check=False,
        )
        assert done.returncode == 0
        assert httpx.get(f"{served['url']}/readyz", timeout=60).json()["release"] == served["release_id"]
        started.update(psutil.Process(process.pid).children(recursive=True))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    _, alive = psutil.wait_procs(started, timeout=30)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
