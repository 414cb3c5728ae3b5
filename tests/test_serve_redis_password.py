"""Stores in a Redis server that wants a password, which a file holds, as a mounted secret does."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import ValidationError

from serve.histories.contract import HistoriesUnavailable, StoredEvent
from serve.histories.store import open_histories
from serve.settings import RedisSettings
from serve.updates.contract import Change
from serve.updates.settings import RedisUpdatesSettings
from serve.updates.store import open_updates
from tests.manifests import one
from tests.ports import free_port

EVENT = StoredEvent("i1", 1_700_000_000, None)


@pytest.fixture(scope="module")
def password_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secret") / "password"
    file.write_text("first-password\n")
    return file


@pytest.fixture(scope="module")
def url(password_file: Path) -> Iterator[str]:
    """A server that is started with the words of the dev overlay."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    [container] = one("dev", "Deployment")["spec"]["template"]["spec"]["containers"]
    port = free_port()
    words = container["args"][0].replace("/etc/redis/password", str(password_file))
    words = words.replace("valkey-server -", f"redis-server - --port {port} --bind 127.0.0.1")
    command = [*container["command"], words]
    folder = password_file.parent
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder, start_new_session=True) as server:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "the Redis server did not start"
                time.sleep(0.02)
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def test_a_wrong_password_or_no_file_is_said_without_the_password(url: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-password")
    with pytest.raises(HistoriesUnavailable) as caught:
        open_histories(RedisSettings(url=url, password_file=str(wrong))).history("ann")
    assert "not-the-password" not in str(caught.value)
    with pytest.raises(HistoriesUnavailable, match=r"cannot read password_file .*nowhere"):
        open_histories(RedisSettings(url=url, password_file=str(tmp_path / "nowhere"))).history("ann")
    with pytest.raises(HistoriesUnavailable):
        open_histories(RedisSettings(url=url)).history("ann")


def test_stores_take_the_password_of_a_file_and_the_next_one_when_it_changes(url: str, password_file: Path) -> None:
    histories = open_histories(RedisSettings(url=url, password_file=str(password_file)))
    updates = open_updates(RedisUpdatesSettings(url=url, password_file=str(password_file)))
    assert histories.append({"ann": [EVENT]}).accepted == 1
    assert updates.apply(Change(remove=("i9",))).removed == 1
    redis.Redis.from_url(url, password="first-password").config_set("requirepass", "second-password")
    password_file.write_text("second-password\n")
    redis.Redis.from_url(url, password="second-password").client_kill_filter(_type="normal", skipme=True)
    assert histories.history("ann") == [EVENT]
    assert updates.updates().removed == {"i9"}


def test_two_passwords_are_refused(password_file: Path) -> None:
    for kind in (RedisSettings, RedisUpdatesSettings):
        with pytest.raises(ValidationError, match="found a password in url and a password_file"):
            kind(url="redis://me:secret@127.0.0.1/0", password_file=str(password_file))
