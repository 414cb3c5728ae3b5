"""Releases that follow each other, and processes that are killed, while 64 clients ask (of `benchmarks.serve_load`)."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import Load, ask_for
from benchmarks.watch import descendants, title
from data.errors import MachineError

CLIENTS = 64
# Seconds between two swaps: five in a minute.
SWAP_EVERY = 12.0
# Of the recipe that ours is served with. No cache of query vectors: bodies repeat, and it would answer for the model.
WORDS = ("serve.histories=null", "serve.updates=null", "serve.query_cache=0", "serve.access.anyone=true")
# Of a request that nobody answered, as any client or balancer may: .5, 1 and 1.5 s later.
RETRIES = 3
KILLED = {"replica": "ServeReplica:farsight:endpoint", "proxy": "haproxy -"}


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str  # of its route
    pid: int
    log: Path  # what it printed

    @property
    def ray_address(self) -> str:
        """Of `farsight serve`, as it printed it."""
        found = re.search(r'"ray_address": "(.+?)"', self.log.read_text())
        assert found is not None
        return found[1]


def swaps_under_load(
    running: Server, bodies: Sequence[bytes], releases: tuple[Path, Path], swaps: int
) -> dict[str, Any]:
    """Deploy the other release again and again; the answers to one body must be as many as there are releases."""
    answers: dict[tuple[int, str], set[str]] = {}

    def remember(body: int, content: bytes) -> None:
        answer = json.loads(content)
        ids = " ".join(item["item_id"] for item in answer["items"][:10])
        answers.setdefault((body, answer["release"]), set()).add(ids)

    taken: list[float] = []

    def deploy_in_turn() -> None:
        for number in range(swaps):
            began = time.perf_counter()
            _deploy(releases[(number + 1) % 2], running)
            taken.append(time.perf_counter() - began)
            time.sleep(max(0.0, SWAP_EVERY - taken[-1]))

    load = _load_while(deploy_in_turn, running.url, bodies[:8], on_answer=remember)
    mixed = 0
    for body in {number for number, _ in answers}:
        by_release = [ids for (number, _), ids in answers.items() if number == body]
        # One list of items per release, and no list of two: an encoder of one release on the other's index has a third.
        mixed += sum(len(ids) > 1 for ids in by_release) + (len(by_release) > 2)
    return {
        "failed_in_swaps": load.failed,
        "mixed_in_swaps": mixed,
        "swaps": {
            "statuses": dict(load.statuses),
            "releases_seen": len({release for _, release in answers}),
            "deploy_seconds": taken,
            "p99_ms": load.milliseconds(99),
        },
    }


def kills_under_load(running: Server, bodies: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Kill a process of each kind with SIGKILL, one after the other; clients ask up to three times more."""
    figures: dict[str, Any] = {}
    failed = answered = 0
    for name, name_in_title in KILLED.items():

        def kill(name_in_title: str = name_in_title) -> None:
            time.sleep(seconds / 3)
            victim = next(one for one in descendants(running.pid) if name_in_title in title(one).replace("\0", " "))
            os.kill(victim, signal.SIGKILL)
            time.sleep(2 * seconds / 3)

        load = _load_while(kill, running.url, bodies, retries=RETRIES)
        failed, answered = failed + load.failed, answered + load.statuses[200]
        longest = 1e3 * max(load.latencies)
        figures[name] = {"statuses": dict(load.statuses), "broken": load.broken, "longest_ms": longest}
        _wait_until_whole(running.url, bodies)
    return {"failed_in_kills": failed / (failed + answered), "kills": figures}


def _load_while(
    task: Callable[[], None],
    url: str,
    bodies: Sequence[bytes],
    *,
    retries: int = 0,
    on_answer: Callable[[int, bytes], None] | None = None,
) -> Load:
    """What 64 clients see until a task has ended."""
    problems: list[BaseException] = []
    ended = threading.Event()

    def watched() -> None:
        try:
            task()
        except BaseException as error:
            problems.append(error)
        ended.set()

    thread = threading.Thread(target=watched)
    thread.start()
    whole = Load()
    while not ended.is_set():
        part = ask_for(url, bodies, clients=CLIENTS, seconds=2, retries=retries, on_answer=on_answer)
        whole.seconds += part.seconds
        whole.latencies += part.latencies
        whole.refusals += part.refusals
        whole.statuses += part.statuses
        whole.broken += part.broken
    thread.join()
    if problems:
        raise problems[0]
    return whole


def _deploy(release: Path, running: Server) -> None:
    words = ["deploy", str(release), "--address", running.ray_address, *WORDS]
    done = subprocess.run([sys.executable, "-m", "cluster.cli", *words], capture_output=True)
    if done.returncode:
        raise MachineError(f"farsight deploy ended with code {done.returncode}: {done.stderr.decode()[-2000:]}")


def _wait_until_whole(url: str, bodies: Sequence[bytes]) -> None:
    while ask_for(url, bodies, clients=8, seconds=2).failed:
        pass
