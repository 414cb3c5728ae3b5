"""The endpoint under load beside a hand-written server with the same release, and beside Serve answering nothing.

    python -m benchmarks.serve_load --json FILE
    python -m benchmarks.serve_load --quick --items 100000

`peer` is `benchmarks.peers.hand_written_server`: one process, FastAPI, the model, FAISS. `ours` is `farsight serve`,
`ours_haproxy` the same with `serve.haproxy=true`; `noop` is an application on Serve that answers nothing. One side
runs at a time, all in each round. Requests a second per core are answers by CPU second of all processes of a side (Ray
itself is among them), so the clients' share of a small machine is not in it. `ratio_rps_per_core` and `ratio_p99` are
ours behind HAProxy over the peer, by clients. Then, of ours: three times as many requests as it can answer; and swaps
of releases and kills of processes under 64 clients.
"""

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import httpx

from benchmarks.load import ask_for, percentile_of
from benchmarks.report import parser, publish, run, spread
from benchmarks.serve_faults import WORDS, Server, kills_under_load, swaps_under_load
from benchmarks.serve_release import made_release, request_bodies
from benchmarks.watch import cpu_seconds, descendants, proportional_bytes
from data.errors import MachineError

CLIENTS = (1, 8, 64, 256)
BODIES = 256
K = 100
SIDES = ("peer", "ours", "ours_haproxy", "noop")
START_SECONDS = 240


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--items", type=int, default=1_000_000)
    arguments.add_argument("--index", choices=["flat", "ivf"], default="ivf")
    arguments.add_argument("--folder", type=Path, default=Path("runs/serve_load"), help="releases, kept for later runs")
    arguments.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    arguments.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS))
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=8.0, help="of each number of clients")
    arguments.add_argument("--port", type=int, default=8700)
    arguments.add_argument("--faults", choices=["all", "none", "only"], default="all")
    chosen = arguments.parse_args()
    rounds, seconds = (1, 3.0) if chosen.quick else (chosen.rounds, chosen.seconds)
    first, second = (made_release(chosen.folder, chosen.items, chosen.index, seed) for seed in (0, 1))
    bodies = request_bodies(chosen.items, BODIES, K)
    figures: dict[str, Any] = {"items": chosen.items, "index": chosen.index, "k": K, "seconds": seconds}
    if chosen.faults != "only":
        measured: dict[str, dict[int, list[dict[str, float]]]] = {side: {} for side in chosen.sides}
        for _, side in itertools.product(range(rounds), chosen.sides):
            with server(side, first, chosen.port) as running:
                ask_for(running.url, bodies, clients=8, seconds=2)  # warms up
                for clients in chosen.clients:
                    measured[side].setdefault(clients, []).append(figures_of(running, bodies, clients, seconds))
        figures |= {"sides": {side: summed(by_clients) for side, by_clients in measured.items()}, **ratios(measured)}
    if chosen.faults != "none":
        with server("ours_haproxy", first, chosen.port) as running:
            figures["overload"] = overloaded(running, bodies, 5.0 if chosen.quick else 20.0)
            figures |= swaps_under_load(running, bodies, (first, second), 2 if chosen.quick else 5)
            figures |= kills_under_load(running, bodies, 5.0 if chosen.quick else 15.0)
    publish("serve_load", figures, chosen)


def server(side: str, release: Path, port: int) -> AbstractContextManager[Server]:
    """One side, running."""
    if side == "peer":
        return started(["-m", "benchmarks.peers.hand_written_server", str(release), "--port", str(port)], port)
    if side == "noop":
        return started(["-m", "benchmarks.peers.noop_application", "--port", str(port)], port)
    return endpoint(release, port, words_of(side))


def endpoint(release: Path, port: int, words: Sequence[str]) -> AbstractContextManager[Server]:
    """`farsight serve`, running, with these words of its recipe."""
    return started(["-m", "cluster.cli", "serve", "--json", str(release), f"serve.port={port}", *words], port)


@contextmanager
def started(command: Sequence[str], port: int) -> Iterator[Server]:
    """A server that Python runs.

    Raises:
        MachineError: it does not answer in time.
    """
    folder = Path(mkdtemp(prefix="sl", dir="/tmp" if Path("/tmp").is_dir() else None))
    # Ray's sockets have long names: a folder of its own directly under the shortest one.
    surroundings = {**os.environ, "RAY_TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, *command], env=surroundings, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/v1/retrieve"
    try:
        _wait_until_answered(url, process, folder / "log")
        yield Server(url, process.pid, folder / "log")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def words_of(side: str) -> list[str]:
    """Of the recipe that a side of ours is served with."""
    return [*WORDS, f"serve.haproxy={str(side == 'ours_haproxy').lower()}"]


def _wait_until_answered(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    body = json.dumps({"history": [], "k": 1, "request_time": 1})
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if (
                httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=5).status_code
                != 404
            ):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise MachineError(f"{url}: does not answer; the server's own words: {log}\n{log.read_text()[-2000:]}")


def summed_over(figure: Callable[[int], float], running: Server) -> float:
    """A figure of a process, over a server's and all that it has started and that still run."""
    return sum(figure(process) for process in (running.pid, *descendants(running.pid)))


def figures_of(running: Server, bodies: Sequence[bytes], clients: int, seconds: float) -> dict[str, float]:
    """One number of clients for some seconds."""
    before = summed_over(cpu_seconds, running)
    load = ask_for(running.url, bodies, clients=clients, seconds=seconds)
    used = summed_over(cpu_seconds, running) - before
    return {
        "rps": load.answered_per_second,
        "rps_per_core": len(load.latencies) / used,
        "p50_ms": load.milliseconds(50),
        "p99_ms": load.milliseconds(99),
        "errors": float(load.failed),
    }


def summed(by_clients: dict[int, list[dict[str, float]]]) -> dict[int, dict[str, Any]]:
    """Spread of the rounds, by clients."""
    return {
        clients: {name: spread([row[name] for row in rows]) for name in rows[0]} for clients, rows in by_clients.items()
    }


def ratios(measured: dict[str, dict[int, list[dict[str, float]]]]) -> dict[str, dict[int, float]]:
    """Ours over the peer's, medians of the ratios inside a round."""
    if not {"peer", "ours_haproxy"} <= set(measured):
        return {}
    found: dict[str, dict[int, float]] = {"ratio_rps_per_core": {}, "ratio_p99": {}}
    for clients, theirs in measured["peer"].items():
        for name, figure in (("ratio_rps_per_core", "rps_per_core"), ("ratio_p99", "p99_ms")):
            pairs = zip(measured["ours_haproxy"][clients], theirs, strict=True)
            found[name][clients] = statistics.median(mine[figure] / other[figure] for mine, other in pairs)
    return found


def overloaded(running: Server, bodies: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Three times the requests that it answers at its best, evenly in time, then one client again."""
    peak = ask_for(running.url, bodies, clients=64, seconds=seconds).answered_per_second
    clients = 512
    memory = summed_over(proportional_bytes, running)
    load = ask_for(running.url, bodies, clients=clients, seconds=seconds, period=clients / (3 * peak))
    ended = time.perf_counter()
    while ask_for(running.url, bodies, clients=1, seconds=0.5).failed:
        pass
    return {
        "peak_rps": peak,
        "sent_rps": load.statuses.total() / load.seconds,
        "goodput_over_peak": load.answered_per_second / peak,
        "statuses": dict(load.statuses),
        "refused_ms_p50": 1e3 * percentile_of(load.refusals, 50),
        "refused_ms_p99": 1e3 * percentile_of(load.refusals, 99),
        "memory_growth": summed_over(proportional_bytes, running) / memory,
        "recovered_after_seconds": time.perf_counter() - ended,
    }


if __name__ == "__main__":
    run(main)
