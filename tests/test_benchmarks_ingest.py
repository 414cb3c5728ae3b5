"""The generated log, the watch over memory and disk, and the hash that ingest takes over many users at once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.ingest import marginal
from benchmarks.peers.process import PINS, ROOT, read_pins
from benchmarks.simulated_log import LogSize, write_log
from benchmarks.watch import Watch, descendants, directory_bytes, proportional_bytes
from data.errors import MachineError
from data.spill import bucket_of, buckets_of
from tests.scale import scale

SIZE = LogSize(events=5_000, users=300, items=200, events_per_shard=1_500)

# Events, users, items.
WHOLE = scale((50_000, 2_000, 1_000), (100_000_000, 1_000_000, 1_000_000))


def test_the_log_has_its_size_arrives_in_time_order_and_is_the_same_again(tmp_path: Path) -> None:
    log = write_log(SIZE, tmp_path)
    shards = [pl.read_parquet(file) for file in sorted(log.iterdir())]
    assert [shard.height for shard in shards] == [1_500, 1_500, 1_500, 500]
    assert all(shard["timestamp"].is_sorted() for shard in shards)
    assert [shard["timestamp"][0] for shard in shards] == sorted(shard["timestamp"][0] for shard in shards)
    events = pl.concat(shards)
    assert events.null_count().sum_horizontal().item() == 0
    assert events["item_id"].n_unique() <= 200
    assert events.group_by("request_id").agg(pl.col("user_id").n_unique())["user_id"].max() == 1
    again = pl.read_parquet(write_log(SIZE, tmp_path / "again") / "*.parquet")
    assert again.equals(events)


def test_a_log_that_stands_is_not_written_again(tmp_path: Path) -> None:
    log = write_log(SIZE, tmp_path)
    (log / "mark").touch()
    assert write_log(SIZE, tmp_path) == log
    assert (log / "mark").is_file()


def test_the_watch_sees_the_memory_and_the_files_of_its_block(tmp_path: Path) -> None:
    before = proportional_bytes(os.getpid())
    processes = {"this": [os.getpid()], "gone": [2**22 + 1]}
    with Watch(lambda: processes, lambda: [tmp_path, tmp_path / "missing"], seconds_between=0.1) as watch:
        held = bytearray(b"x") * 50_000_000
        (tmp_path / "spilled").write_bytes(held[:1000])
        time.sleep(0.6)  # a few samples
        (tmp_path / "spilled").unlink()
        del held
    assert watch.peak_bytes["this"] > before + 40_000_000
    assert watch.peak_bytes["gone"] == 0
    assert watch.peak_directory_bytes == 1000
    assert directory_bytes(tmp_path) == 0
    assert os.getpid() in set(descendants(os.getppid()))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=30), st.integers(1, 9))
def test_users_hashed_together_have_the_bucket_of_each(users: list[str], num_buckets: int) -> None:
    found = buckets_of(pl.Series(users, dtype=pl.String), num_buckets)
    assert found.tolist() == [bucket_of(user, num_buckets) for user in users]


def test_the_peers_are_pinned() -> None:
    assert set(read_pins(PINS / "grouping.txt")) == {"duckdb", "polars", "polars-runtime-32"}


def test_a_marginal_rate_leaves_out_what_every_run_costs() -> None:
    small, large = ({"events": n, "seconds": 9 + n / 200, "cpu_seconds": {"workers": 5 + n / 250}} for n in (1e3, 4e3))
    rate = marginal(small, large)
    assert rate["events_per_second"] == pytest.approx(200)
    assert rate["fixed_seconds"] == pytest.approx(9)
    assert rate["cpu_microseconds_per_event"] == pytest.approx(4000)
    with pytest.raises(MachineError, match="expected the larger log to take longer: state more --events"):
        marginal(small, large | {"seconds": 14.0})


@pytest.mark.ray
def test_all_workers_of_ingest_together_stay_inside_4_gib(tmp_path: Path) -> None:
    """In a Ray of its own, as the benchmark is run; every event is written, but for what is there twice."""
    events, users, items = WHOLE
    size = ["--events", str(events), "--users", str(users), "--items", str(items)]
    command = [sys.executable, "-m", "benchmarks.ingest", "--sides", "ours", "--rounds", "1", *size]
    subprocess.run([*command, "--out", str(tmp_path), "--json", str(tmp_path / "found.json")], cwd=ROOT, check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    [run] = found["runs"]["ours"]
    assert 0.99 * events < run["events"] <= events
    assert 0.5 * users < run["users"] <= users
    assert 0 < found["peak_rss_gib"] < 4
