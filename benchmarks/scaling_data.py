"""Coefficients of `benchmarks.scaling` that belong to logs, ingest and the way of histories to a worker.

Seconds are CPU seconds of this process, so that a busy machine does not change them much.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

import data.simulate
from benchmarks.scaling_plan import BUCKETS, FRAGMENT_ROWS, WINDOWS_PER_BUFFER
from data.batch import collate
from data.dataset import HISTORIES, PreparedDataset
from data.encode import encode_windows
from data.histories import HistoryRules
from data.ingest_checks import row_rules, write_vocabulary
from data.ingest_settings import IngestSettings
from data.log_files import TextFormat, list_files, plan_fragments
from data.simulator import ACTIONS
from data.spill import Plan, _read_bucket, item_rows, spill_fragment, write_bucket
from data.stream import epoch_size
from data.vocabulary import Vocabulary
from data.windows import WINDOW_KEY, WindowSet, cut_windows, length_buckets

Figures = dict[str, float]


def cpu_seconds(task: Callable[[], Any], repeats: int = 1) -> float:
    """CPU seconds of one call, all threads of this process together; the least of several calls."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        task()
        seconds.append(time.process_time() - began)
    return min(seconds)


def popular_rows(count: int, num_items: float, random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Item rows by Zipf's law: the logarithm of the rank is uniform."""
    return (num_items ** random.random(count)).astype(np.int64)


def peak_bytes(task: Callable[[Any], object], small: object, large: object) -> float:
    """What a task adds to the memory of a process of its own, at most, once it has run on something small."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return float(pool.submit(_peak, task, small, large).result())


def _peak(task: Callable[[Any], object], small: object, large: object) -> int:
    task(small)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    kept = task(large)
    peak = _memory("VmHWM")
    del kept
    return peak - before


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def data_coefficients(folder: Path, *, users: float, items: float, quick: bool) -> Figures:
    """All of them, from a small simulated log whose ids are then drawn at the stated scale."""
    num_users = 250 if quick else 1000
    settings = {"num_users": num_users, "events_per_user": 400, "max_events_per_user": 1000, "oracle_users": 0}
    data.simulate.run({"simulate": settings}, folder / "log")
    log = pq.read_table(folder / "log" / "events").combine_chunks()
    random = np.random.default_rng(0)
    return {
        "log_bytes_per_event_small_ids": _size(log, folder / "as-simulated.parquet") / len(log),
        "log_bytes_per_event": _size(_scattered(log, users, items, random), folder / "scattered.parquet") / len(log),
        "distinct_items_per_fragment": float(len(np.unique(popular_rows(FRAGMENT_ROWS, items, random)))),
        **_spill(folder, folder / "scattered.parquet", len(log)),
        **_buckets(folder, folder / "as-simulated.parquet", items, random),
        **_vocabulary(folder, 100_000 if quick else 500_000),
        **_epoch_size(folder),
        **_resume(100_000 if quick else 1_000_000),
    }


def _size(table: pa.Table, path: Path) -> int:
    pq.write_table(table, path)
    return path.stat().st_size


def _scattered(log: pa.Table, users: float, items: float, random: np.random.Generator) -> pa.Table:
    """The log as a moment of a large one: neighbouring events are of different users."""
    user = [f"u{number:010d}" for number in random.integers(0, int(users), len(log))]
    item = [f"i{number:09d}" for number in popular_rows(len(log), items, random)]
    request = [f"{user}-{number % 100}" for number, user in enumerate(user)]
    for name, values in (("user_id", user), ("item_id", item), ("request_id", request)):
        log = log.set_column(log.column_names.index(name), log.schema.field(name), pa.array(values, pa.string()))
    return log


def _plan(folder: Path, name: str, num_buckets: int) -> Plan:
    directory = folder / name
    directory.mkdir()
    plan = Plan(directory, TextFormat(), row_rules(IngestSettings(log="-"), True), num_buckets)
    plan.make_folders()
    return plan


def _spill_all(plan: Plan, file: Path) -> None:
    for number, fragment in enumerate(plan_fragments(list_files([str(file)]), {}, TextFormat())):
        spill_fragment(number, asdict(fragment), plan)


def _spill(folder: Path, file: Path, events: int) -> Figures:
    """The first pass; a cell is what one spilled file has for one bucket."""
    few, many = _plan(folder, "few", 8), _plan(folder, "many", BUCKETS)
    more = _plan(folder, "more", 4 * BUCKETS)
    seconds = cpu_seconds(lambda: _spill_all(few, file))
    for plan in (many, more):
        _spill_all(plan, file)
    sizes = [sum(path.stat().st_size for path in plan.spill.glob("rows-*")) for plan in (few, many)]
    files = len(list(many.spill.glob("rows-*")))
    return {
        "spill_seconds_per_event": seconds / events,
        "spill_bytes_per_event": sizes[0] / events,
        "cell_bytes": (sizes[1] - sizes[0]) / files / (BUCKETS - 8),
        "cell_read_seconds": _cell_read_seconds(many) / files,
        "cell_read_seconds_16384_buckets": _cell_read_seconds(more) / files,
    }


def _cell_read_seconds(plan: Plan) -> float:
    buckets = np.random.default_rng(0).integers(0, plan.num_buckets, 100).tolist()
    return cpu_seconds(lambda: [_read_bucket(bucket, plan) for bucket in buckets], 5) / len(buckets)


def _write_bucket(plan: Plan) -> None:
    rules = HistoryRules("time", "drop", 1, None)
    write_bucket(
        0, 0, plan=plan, rules=rules, actions=list(ACTIONS), users_per_row_group=2000, stored={}, rebuild=False
    )


def _buckets(folder: Path, file: Path, items: float, random: np.random.Generator) -> Figures:
    """The second pass, and what reads its histories: windows, batches."""
    plan, small = _plan(folder, "dataset", 1), _plan(folder, "small", 1)
    pq.write_table(pq.read_table(file).slice(0, 1000), folder / "small.parquet")
    for one, source in ((plan, file), (small, folder / "small.parquet")):
        _spill_all(one, source)
        write_vocabulary(None, one, None)
    seconds = cpu_seconds(lambda: _write_bucket(plan))
    peak = peak_bytes(_write_bucket, small, plan)
    written = pq.read_table(plan.directory / HISTORIES / "part-00000.parquet").combine_chunks()
    offsets = written.column("items").chunk(0).offsets
    events = offsets[-1].as_py()
    place = written.schema.get_field_index("items")
    rows = pa.ListArray.from_arrays(offsets, pa.array(popular_rows(events, items, random), pa.int32()))
    histories = written.set_column(place, written.schema.field(place), rows)
    path = folder / "histories.parquet"
    pq.write_table(histories, path, row_group_size=2000)
    windows = cut_windows(histories, max_events=200, rule="all")

    def batches() -> None:
        encoded = encode_windows(windows)
        for chosen in length_buckets(encoded.lengths_B, events_per_batch=16_384, random=random):
            collate(encoded, chosen)

    return {
        "bucket_seconds_per_event": seconds / events,
        "bucket_peak_bytes_per_event": peak / events,
        "history_bytes_per_event": path.stat().st_size / events,
        "history_memory_bytes_per_event": histories.nbytes / events,
        "read_seconds_per_event": cpu_seconds(lambda: pq.read_table(path), 3) / events,
        "cut_seconds_per_event": cpu_seconds(lambda: cut_windows(histories, max_events=200, rule="all"), 3) / events,
        "collate_seconds_per_event": cpu_seconds(batches, 3) / events,
    }


def _load_vocabulary(directory: Path) -> Vocabulary:
    return Vocabulary.load(directory)


def _merge_items(path: Path) -> set[str]:
    """As `data.ingest_checks.write_vocabulary` does with the items of one fragment."""
    items: set[str] = set()
    items.update(pl.read_parquet(path)["item_id"].to_list())
    return items


def _vocabulary(folder: Path, count: int) -> Figures:
    directory, small = folder / "vocabulary", folder / "small-vocabulary"
    for place, items in ((directory, count), (small, 1000)):
        place.mkdir()
        Vocabulary([f"i{number:09d}" for number in range(items)]).save(place)
    path = directory / "items.parquet"
    pl.DataFrame({"item_id": Vocabulary.load(directory).item_ids}).sample(fraction=1, shuffle=True).write_parquet(path)
    return {
        "vocabulary_bytes_per_item": peak_bytes(_load_vocabulary, small, directory) / count,
        "vocabulary_task_bytes_per_item": peak_bytes(item_rows, small, directory) / count,
        "vocabulary_driver_seconds_per_item": cpu_seconds(lambda: _merge_items(path)) / count,
    }


def _epoch_size(folder: Path) -> Figures:
    """The driver reads one number of every user before a run begins."""
    users = 200_000
    table = pa.table({"num_train": pa.array(np.arange(users) % 1000, pa.int32())})
    pq.write_table(table, folder / "users.parquet", row_group_size=2000)
    dataset = PreparedDataset(folder, {"shards": [{"file": "users.parquet"}]})
    seconds = cpu_seconds(lambda: epoch_size(dataset, max_events=200, rule="all"))
    return {"epoch_size_seconds_per_user": seconds / users}


def _resume(count: int) -> Figures:
    """Windows that were done before, sorted once, and buffers that are looked up among them: half of each was done."""
    windows = np.random.default_rng(0).permutation(2 * count)
    table = pa.table(dict(zip(WINDOW_KEY, (windows // 5, windows % 5), strict=True)))  # five windows a user
    done, buffer = table.slice(0, count), table.slice(count - WINDOWS_PER_BUFFER // 2, WINDOWS_PER_BUFFER)
    held = WindowSet(done)
    return {
        "resume_sort_seconds_per_window": cpu_seconds(lambda: WindowSet(done), 3) / count,
        "resume_lookup_seconds_per_window": cpu_seconds(lambda: held.holds(buffer), 3) / WINDOWS_PER_BUFFER,
    }
