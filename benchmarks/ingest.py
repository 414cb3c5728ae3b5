"""Events per second of ingest beside DuckDB and Polars, on the same log, cores and memory.

    python -m benchmarks.ingest --quick --json FILE

Ours is `farsight ingest` through Ray with one task per core at a time; the peers make histories of the same files in
processes of their own: item ids to rows, group by user, sort by time, one row of lists per user to Parquet. In turns,
nothing else of this benchmark beside the one that works. `ratio_best_peer` is our median of events per second over that
of the faster peer; `peak_rss_gib` the most that all Ray worker processes held together, as PSS, over all runs. Ours
besides: checks each row, drops duplicates, orders ties by the log, numbers requests, cuts splits, counts item facts,
hashes its files.

`--nodes` measures one node of one core and two of them instead, simulated by Ray on this machine, each with the log and
with one of a quarter of its events and users. A rate is the difference of events over the difference of seconds, so
that what every run costs (workers that start and import, executions that begin) cancels; `fixed_seconds` is that cost.
"""

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
import ray.cluster_utils

from benchmarks.peers.process import ROOT, peer_python
from benchmarks.report import parser, publish, run, spread
from benchmarks.simulated_log import LogSize, write_log
from benchmarks.watch import Watch, descendants, directory_bytes, title
from data.errors import MachineError
from data.ingest import run as ingest

PEERS = ("duckdb", "polars")
GIB = 2**30
_QUIET: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
FULL, QUICK = (100_000_000, 1_000_000, 1_000_000), (5_000_000, 100_000, 200_000)  # events, users, items


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--events", type=int, help="100,000,000; with --quick 5,000,000")
    arguments.add_argument("--users", type=int, help="1,000,000; with --quick 100,000")
    arguments.add_argument("--items", type=int, help="1,000,000; with --quick 200,000")
    arguments.add_argument("--seed", type=int, default=0, help="of the log")
    arguments.add_argument("--rounds", type=int, help="turns of each side; 1, with --quick 3")
    arguments.add_argument("--threads", type=int, default=2, help="cores: tasks of ours at a time, threads of a peer")
    arguments.add_argument("--memory-gib", type=float, default=4, help="limit that the peers are given")
    arguments.add_argument("--sides", nargs="+", choices=("ours", *PEERS), default=["ours", *PEERS])
    arguments.add_argument("--nodes", action="store_true", help="one simulated node of one core against two")
    arguments.add_argument("--peer-python", type=Path, help="an environment with peers/grouping.txt; else it is built")
    arguments.add_argument("--out", type=Path, default=Path("runs/ingest"), help="logs, kept for the next time; spills")
    chosen = arguments.parse_args()
    usual = QUICK if chosen.quick else FULL
    given = (chosen.events, chosen.users, chosen.items)
    size = LogSize(*(number or preset for number, preset in zip(given, usual, strict=True)), seed=chosen.seed)
    rounds = chosen.rounds or (3 if chosen.quick else 1)
    # Ray's own is 15: whatever else runs on the machine would go before ours, and not before a peer.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)
    log = write_log(size, chosen.out.resolve())
    measured = {"log": {**asdict(size), "gib": directory_bytes(log) / GIB}, "rounds": rounds}
    if chosen.nodes:
        quarter = replace(size, events=size.events // 4, users=size.users // 4)
        figures = _nodes(chosen, [write_log(quarter, chosen.out.resolve()), log], rounds)
    else:
        figures = _beside_peers(chosen, log, rounds)
    publish("ingest", {**figures, **measured}, chosen)


def _beside_peers(chosen: Namespace, log: Path, rounds: int) -> dict[str, Any]:
    python = chosen.peer_python or (
        set(chosen.sides) & set(PEERS) and peer_python("grouping", Path("runs/peers/grouping"))
    )
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in chosen.sides}
    for _ in range(rounds):
        for side in chosen.sides:
            with tempfile.TemporaryDirectory(dir=chosen.out.resolve()) as folder:
                ours = partial(_ours, log, Path(folder), start=partial(_start, chosen.threads))
                found = ours() if side == "ours" else _peer(side, python, chosen, log, Path(folder))
            print(f"{side}: {found}", file=sys.stderr)
            runs[side].append(found)
    if len({(found["users"], found["events"]) for side in runs.values() for found in side}) != 1:
        raise MachineError(f"the sides wrote different numbers of users or events: {runs}")
    speeds = {
        side: spread([found["events"] / found["seconds"] for found in found_runs]) for side, found_runs in runs.items()
    }
    best = max((speeds[peer]["median"] for peer in PEERS if peer in speeds), default=None)
    mine = speeds.get("ours")
    return {
        "events_per_second": mine and mine["median"],
        "ratio_best_peer": mine["median"] / best if mine and best else None,
        "peak_rss_gib": max((found["peak_gib"]["workers"] for found in runs.get("ours", [])), default=None),
        "spill_gib": max((found["spill_gib"] for found in runs.get("ours", [])), default=None),
        "speeds": speeds,
        "limits": {"threads": chosen.threads, "peer_memory_gib": chosen.memory_gib},
        "runs": runs,
    }


def _nodes(chosen: Namespace, logs: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Ray's own simulation: a raylet per node, all on this machine; so also one disk and one memory."""
    runs: dict[int, list[list[dict[str, Any]]]] = {1: [], 2: []}  # by nodes: of each round, the runs of all logs
    os.environ["POLARS_MAX_THREADS"] = "1"  # a task of a simulated node must not use the other's core
    for _ in range(rounds):
        for nodes, found in runs.items():
            found.append([_in_a_process(nodes, log, chosen.out.resolve()) for log in logs])
            print(f"{nodes} nodes: {found[-1]}", file=sys.stderr)
    rates = {nodes: [marginal(small, large) for small, large in found] for nodes, found in runs.items()}
    speeds = {nodes: spread([rate["events_per_second"] for rate in of]) for nodes, of in rates.items()}
    return {
        "events_per_second": speeds[2]["median"],
        "speed_up_2_nodes": speeds[2]["median"] / speeds[1]["median"],
        "speeds": speeds,
        "fixed_seconds": {nodes: spread([rate["fixed_seconds"] for rate in of]) for nodes, of in rates.items()},
        "cpu_microseconds_per_event": {
            nodes: spread([rate["cpu_microseconds_per_event"] for rate in of]) for nodes, of in rates.items()
        },
        "runs": runs,
    }


def _in_a_process(nodes: int, log: Path, scratch: Path) -> dict[str, Any]:
    """A process for each cluster: nothing of the one before is known to it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_on_nodes, nodes, log, scratch).result()


def _on_nodes(nodes: int, log: Path, scratch: Path) -> dict[str, Any]:
    cluster = ray.cluster_utils.Cluster()
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, include_dashboard=False)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return _ours(log, Path(folder), start=partial(ray.init, cluster.address, **_QUIET))
    finally:
        cluster.shutdown()


def marginal(small: Mapping[str, Any], large: Mapping[str, Any]) -> dict[str, float]:
    """What each further event takes, and the seconds that are there without any.

    Raises:
        MachineError: the larger log took no longer, so the fixed costs or other programs were all that was measured.
    """
    events, seconds = large["events"] - small["events"], large["seconds"] - small["seconds"]
    if seconds <= 0:
        raise MachineError(
            f"{large['events']} events took {large['seconds']:.1f} s, {small['events']} took {small['seconds']:.1f}; "
            "expected the larger log to take longer: state more --events, on a machine with nothing else to do"
        )
    cpu = large["cpu_seconds"]["workers"] - small["cpu_seconds"]["workers"]
    return {
        "events_per_second": events / seconds,
        "fixed_seconds": large["seconds"] - large["events"] * seconds / events,
        "cpu_microseconds_per_event": 1e6 * cpu / events,
    }


def _start(num_cpus: int) -> None:
    ray.init("local", num_cpus=num_cpus, include_dashboard=False, **_QUIET)


def _ours(log: Path, folder: Path, start: Callable[[], object]) -> dict[str, Any]:
    """One run of the `ingest` section, in a Ray session of its own that stands before the clock starts."""
    start()
    out = folder / "dataset"
    try:
        with Watch(_ray_processes, lambda: folder.glob(".*/spill")) as watch:
            began = time.perf_counter()
            summary = ingest({"ingest": {"log": str(log)}}, str(out))
            seconds = time.perf_counter() - began
    finally:
        ray.shutdown()
    counts = {name: summary["counts"][name] for name in ("users", "events")}
    return {"seconds": seconds, **counts, **_peaks(watch), "out_gib": directory_bytes(out) / GIB}


def _peer(engine: str, python: Path, chosen: Namespace, log: Path, folder: Path) -> dict[str, Any]:
    """One run of a peer in a process of its own.

    Raises:
        MachineError: it ended with an error; its own words are on standard error.
    """
    out, spill = folder / "histories", folder / "spill"
    command = [str(python.absolute()), "-m", "benchmarks.peers.grouping", "--engine", engine, "--log", str(log)]
    command += ["--out", str(out), "--spill", str(spill)]
    command += ["--threads", str(chosen.threads), "--memory-gib", str(chosen.memory_gib)]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
        Watch(lambda: {"peer": [process.pid]}, lambda: [spill]) as watch,
    ):
        answer, _ = process.communicate()
    if process.returncode:
        raise MachineError(f"{engine} ended with code {process.returncode}: {' '.join(command)}")
    parts = [pq.read_metadata(file) for file in out.iterdir()]
    groups = [part.row_group(group) for part in parts for group in range(part.num_row_groups)]
    counts = {
        "users": sum(part.num_rows for part in parts),
        "events": sum(group.column(1).num_values for group in groups),
    }
    return {**json.loads(answer), **counts, **_peaks(watch), "out_gib": directory_bytes(out) / GIB}


def _peaks(watch: Watch) -> dict[str, Any]:
    peaks = {group: size / GIB for group, size in watch.peak_bytes.items()}
    return {"peak_gib": peaks, "cpu_seconds": watch.cpu_seconds, "spill_gib": watch.peak_directory_bytes / GIB}


def _ray_processes() -> dict[str, list[int]]:
    """Workers, also idle ones, and this process; what serves a Ray session besides is left out."""
    workers = [process for process in descendants(os.getpid()) if title(process).startswith("ray::")]
    return {"workers": workers, "driver": [os.getpid()]}


if __name__ == "__main__":
    run(main)
