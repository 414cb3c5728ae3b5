"""Training speed beside RecTools: the same log, model size, machine and threads, in turns.

    FARSIGHT_DATA=DIR python -m benchmarks.train_speed --json FILE

Turns: a whole run of ours (`farsight train`, a fresh process), then an epoch of the peer, which
waits between its epochs, and so on for the rounds; then the peer goes on alone until it reaches the
NDCG@10 or has used its minutes; then ours once more. Never do both compute, and no Ray stands idle
beside the peer. `ratio_epoch` and `ratio_to_ndcg` are the peer's seconds over ours.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.peers.histories import Histories
from benchmarks.peers.process import ROOT, Peer, peer_python
from benchmarks.quality import SOURCES
from benchmarks.report import parser, publish, run, spread
from benchmarks.time_to_quality import (
    Point,
    epoch_ratio,
    epoch_seconds,
    ndcg_ratio,
    our_curve,
    peer_curve,
    seconds_to,
    wall_ratio,
)
from cluster.suite import published_folder
from data.dataset import PreparedDataset
from data.errors import TrainingError
from data.ragged import list_column
from trainer.telemetry import read_figures

RECIPE = "movielens_1m_cpu"
MAX_EVENTS = 200
# What differs from RECIPE: the peer's blocks, width, length, dropout, negatives and training positions.
OURS: dict[str, str] = {
    "model.width": "64",
    "model.max_events": str(MAX_EVENTS),
    "model.dropout": "0.1",
    "model.encoder": "{kind: sasrec, blocks: 2, heads: 1}",
    "model.negatives": "{kind: uniform, num_uniform: 256}",
    "train.windows": "last",
    "model.temperature": "0.1",
    "train.events_per_batch": "2048",
    "train.epochs": "20",
    "train.optimizer": "{learning_rate: 1.0e-3, decay: cosine, final_share: 0.05}",
}
# What the measurement needs; no restarts, so that a run's seconds are those of one attempt.
MEASURED: dict[str, str] = {
    "train.evaluate_every_epochs": "1",
    "train.max_minutes": "null",
    "tracking.to": "[]",
    "train.workers.num_workers": "1",
    "train.workers.max_failures": "0",
}
PROTOCOL = {
    "split": "leave-last-out: the last event is test, the one before it validation",
    "ndcg": "NDCG@10 of the validation event, all items of the log ranked, the history's items removed, ties by item "
    "row; the same on both sides",
    "seconds": "training alone, evaluation left out; ours hold its checkpoints and Ray Data's start, the peer writes "
    "no checkpoints",
    "wall_seconds": "since the process began: start-up (also of Ray) and evaluations included, waiting turns not",
    "to_ndcg": "linear between the epoch that reaches it and the one before",
    "turns": "run of ours, epoch of the peer, for each round; the rest of the peer; run of ours",
    "negatives": "256, uniform: the peer draws them for each position, ours for each batch",
}


@dataclass(frozen=True)
class OurRun:
    """A run of `farsight train`."""

    curve: list[Point]
    start_up_seconds: float  # until the worker stands: imports, Ray, Ray Train, DeepSpeed
    wall_seconds: float  # of the whole command, artifact included
    test: dict[str, float]  # of the checkpoint with the best validation

    def figures(self) -> dict[str, Any]:
        """For the report."""
        seconds = epoch_seconds(self.curve)
        return {**asdict(self), "first_epoch_seconds": seconds[0], "epoch_seconds": spread(seconds)}


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--rounds", type=int, help="turns of each side; 3, with --quick 1")
    arguments.add_argument("--peer-minutes", type=float, help="of the peer's training at most; 240, with --quick 0")
    arguments.add_argument("--peer-python", type=Path, help="an environment with peers/rectools.txt; else it is built")
    arguments.add_argument("--peer-workers", type=int, default=0, help="the peer's data loader processes")
    arguments.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads of each side")
    arguments.add_argument("--ndcg", type=float, default=0.14, help="validation NDCG@10 to reach")
    arguments.add_argument("--users", type=int, help="only the first of the log, to try the benchmark out")
    arguments.add_argument("--out", type=Path, default=Path("runs/train_speed"), help="directory of the runs")
    arguments.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings of our side")
    chosen = arguments.parse_args()
    chosen.rounds = chosen.rounds or (1 if chosen.quick else 3)
    if chosen.peer_minutes is None:
        chosen.peer_minutes = 0 if chosen.quick else 240
    python = chosen.peer_python or peer_python("rectools", Path("runs/peers/rectools"))
    chosen.out = chosen.out.resolve() / time.strftime("%Y%m%d-%H%M%S")
    chosen.out.mkdir(parents=True)
    histories = _prepare(chosen)
    ours, rows, ready = _race(chosen, python, histories)
    publish("train_speed", _figures(chosen, histories, ours, rows, ready), chosen)


def _figures(
    chosen: Namespace, histories: Histories, ours: list[OurRun], rows: list[dict[str, Any]], ready: dict[str, Any]
) -> dict[str, Any]:
    peer = peer_curve(rows, ready["set_up_seconds"])
    curves = [run.curve for run in ours]
    our_epochs = [statistics.median(epoch_seconds(curve)) for curve in curves]
    return {
        **epoch_ratio(epoch_seconds(peer)[: chosen.rounds], our_epochs[: chosen.rounds]),
        **ndcg_ratio(peer, curves, chosen.ndcg),
        "ratio_wall_to_ndcg": wall_ratio(peer, curves, chosen.ndcg),
        "our_epoch_seconds": spread(our_epochs),
        "our_start_up_seconds": spread([run.start_up_seconds for run in ours]),
        "peer_epoch_seconds": spread(epoch_seconds(peer)),
        "rounds": chosen.rounds,
        "threads": {"ours": chosen.threads, "peer": ready["threads"]},
        "targets_per_epoch": {"ours": histories.num_targets(MAX_EVENTS), "peer": ready["num_targets"]},
        "users": len(histories.num_train_B),
        "items": {"ours": int(histories.num_rows) - 1, "peer": ready["num_items"]},
        "protocol": PROTOCOL,
        "ours": {"recipe": RECIPE, "overrides": _settings(chosen), "runs": [run.figures() for run in ours]},
        "peer": {
            "settings": ready["settings"],
            "versions": ready["versions"],
            "set_up_seconds": ready["set_up_seconds"],
            "curve": [asdict(point) for point in peer],
            "best": max(rows, key=lambda row: row["validation"]["ndcg@10"]),
        },
    }


def _race(chosen: Namespace, python: Path, histories: Histories) -> tuple[list[OurRun], list[Any], dict[str, Any]]:
    """Our runs, the peer's rows and what it said when it stood."""
    file = chosen.out / "histories.npz"
    histories.save(file)
    ours: list[OurRun] = []
    rows: list[dict[str, Any]] = []
    module, arguments = "benchmarks.peers.rectools_sasrec", ["--histories", str(file)]
    arguments += ["--workers", str(chosen.peer_workers)]
    with Peer(python, module, arguments, threads=chosen.threads, log=chosen.out / "peer.log") as peer:
        for _ in range(chosen.rounds):
            ours.append(_run_ours(chosen, len(ours)))
            rows.append(peer.turn("epoch"))
            _tell(ours, rows)
        while seconds_to(peer_curve(rows, 0.0), chosen.ndcg) is None and _has_time(rows, chosen.peer_minutes):
            rows.append(peer.turn("epoch"))
            _tell(ours, rows)
        ready = {**peer.ready, "set_up_seconds": peer.set_up_seconds}
    ours.append(_run_ours(chosen, len(ours)))
    return ours, rows, ready


def _has_time(rows: Sequence[dict[str, Any]], minutes: float) -> bool:
    """Whether another epoch as long as the last one fits into the peer's minutes."""
    return bool(rows[-1]["seconds"] + rows[-1]["epoch_seconds"] <= minutes * 60)


def _tell(ours: Sequence[OurRun], rows: Sequence[dict[str, Any]]) -> None:
    best = max(point.ndcg for point in ours[-1].curve)
    peer = rows[-1]
    print(
        f"ours: {statistics.median(epoch_seconds(ours[-1].curve)):.1f} s an epoch, best NDCG@10 {best:.4f}; peer: "
        f"epoch {peer['epoch']} in {peer['epoch_seconds']:.1f} s, NDCG@10 {peer['validation']['ndcg@10']:.4f}",
        file=sys.stderr,
        flush=True,
    )


def _prepare(chosen: Namespace) -> Histories:
    """Import and ingest the log, and lay its histories out for the peer."""
    given = SOURCES["movielens-1m"]
    source = published_folder("MovieLens-1M") / given["source"]
    if chosen.users:
        events = pl.read_parquet(source)
        source = chosen.out / "source.parquet"
        events.filter(pl.col("user_id").rank("dense") <= chosen.users).write_parquet(source)
    columns = [f"--column={ours}={theirs}" for ours, theirs in given["columns"].items()]
    log, dataset = chosen.out / "log", chosen.out / "dataset"
    # Without movies.dat: neither side is asked to rank movies that the log does not have.
    _farsight(chosen, "import", "table", "--source", str(source), "--out", str(log), *columns)
    _farsight(chosen, "ingest", RECIPE, f"ingest.log={log}", f"ingest.out={dataset}")
    prepared = PreparedDataset.open(dataset)
    items, lengths, train = [], [], []
    for table in prepared.history_tables(["items", "num_train"]):
        lists = list_column(table.combine_chunks(), "items")
        items.append(lists.flatten().to_numpy().astype(np.int64))
        lengths.append(lists.value_lengths().to_numpy().astype(np.int64))
        train.append(table.column("num_train").to_numpy().astype(np.int64))
    offsets_B1 = np.concatenate([[0], *lengths]).cumsum()
    return Histories(np.concatenate(items), offsets_B1, np.concatenate(train), np.array(prepared.num_rows))


def _settings(chosen: Namespace) -> list[str]:
    """The overrides of every run of ours, the caller's last."""
    named = {**OURS, **MEASURED, "train.workers.threads_per_worker": str(chosen.threads)}
    return [*(f"{name}={value}" for name, value in named.items()), *chosen.overrides]


def _run_ours(chosen: Namespace, number: int) -> OurRun:
    """Train once with seed `number`, and measure the artifact on the test split."""
    run_dir, dataset = chosen.out / f"ours-{number}", str(chosen.out / "dataset")
    places = [f"train.dataset={dataset}", f"train.run_dir={run_dir}", f"train.seed={number}"]
    began_unix, began = time.time(), time.perf_counter()
    trained = _farsight(chosen, "train", RECIPE, *_settings(chosen), *places)
    wall_seconds = time.perf_counter() - began
    rows = read_figures(run_dir)
    start = next(row for row in rows if row["kind"] == "start")
    report = _farsight(chosen, "evaluate", "--artifact", trained["artifact"], "--dataset", dataset)
    test = next(row for row in report["rows"] if row["model"] == "model")
    return OurRun(
        curve=our_curve(rows, began_unix),
        start_up_seconds=start["unix_time"] - began_unix,
        wall_seconds=wall_seconds,
        test={name: test[name] for name in ("ndcg@10", "hr@10")},
    )


def _farsight(chosen: Namespace, *words: str) -> dict[str, Any]:
    """What a `farsight` command printed as JSON; each is a process of its own, and Ray ends with it."""
    command = [sys.executable, "-m", "cluster.cli", *words, "--json"]
    with (chosen.out / "ours.log").open("a", encoding="utf-8") as errors:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    if done.returncode:
        raise TrainingError(f"farsight {words[0]} ended with code {done.returncode}; see {chosen.out / 'ours.log'}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    run(main)
