"""The arithmetic of `benchmarks.scaling`: from coefficients to what a stated scale takes, and to what breaks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 2**30
DAY_SECONDS = 86_400
# Of the code, not of this page: `data.ingest`, `data.log_rows`, `data.stream`, `evaluate.users_per_batch`.
BUCKETS, FRAGMENT_ROWS, WINDOWS_PER_BUFFER, VALIDATION_USERS = 4096, 500_000, 16_384, 256
# `data.windows.WindowSet` beside the names themselves; on disk half of it.
WINDOW_NAME_BYTES = 16 + 16
# `trainer.sharded_evaluation`: scores twice (by query and by target), and comparisons.
BYTES_PER_SCORE = 4 + 4 + 3

Coefficients = Mapping[str, float]
Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """What is asked for, and the machines that it is asked of; the latter are assumptions, not measurements."""

    users: float = 1e9
    items: float = 1e8
    events: float = 1e12
    requests: float = 1e5  # a second
    width: int = 64
    length: int = 200  # events of a history that the model sees
    batch: int = 65_536  # events of a batch and GPU
    host_gib: float = 512
    host_cores: int = 64
    host_gpus: int = 8
    serving_cores: int = 1024
    gpu_gib: float = 80

    @property
    def core_bytes(self) -> float:
        """Memory of a host that one core's task may take."""
        return self.host_gib * GIB / self.host_cores


def storage(scale: Scale, known: Coefficients) -> list[Row]:
    """Bytes that lie somewhere, and the cores and hours that ingest takes."""
    fragments = scale.events / FRAGMENT_ROWS
    first = scale.events * known["spill_seconds_per_event"]
    second = scale.events * known["bucket_seconds_per_event"] + fragments * BUCKETS * known["cell_read_seconds"]
    needed = scale.events * known["bucket_peak_bytes_per_event"] / scale.core_bytes
    return [
        _row("log", scale.events * known["log_bytes_per_event"] / 1e12, "TB", "log_bytes_per_event"),
        _row("spill of ingest, on shared storage", _spill_bytes(scale, known, BUCKETS) / 1e12, "TB", "cell_bytes"),
        _row("histories", scale.events * known["history_bytes_per_event"] / 1e12, "TB", "history_bytes_per_event"),
        _row("ingest, first pass", first / 3600, "core-hours", "spill_seconds_per_event"),
        _row("ingest, second pass", second / 3600, "core-hours", "bucket_seconds_per_event, cell_read_seconds"),
        _row("a history shard", scale.events / BUCKETS * known["history_bytes_per_event"] / 1e9, "GB"),
        _row("a task's bucket", scale.events / BUCKETS * known["bucket_peak_bytes_per_event"] / GIB, "GiB"),
        _row("buckets that a core's memory would need", needed, "buckets", "bucket_peak_bytes_per_event"),
        _row("spill with so many", _spill_bytes(scale, known, needed) / 1e12, "TB", "cell_bytes"),
        _row("a task's vocabulary", scale.items * known["vocabulary_task_bytes_per_item"] / GIB, "GiB"),
        _row("driver: vocabulary of all fragments", _vocabulary_seconds(scale, known) / 3600, "hours, one core"),
        _row("driver: size of an epoch", scale.users * known["epoch_size_seconds_per_user"] / 60, "minutes, one core"),
    ]


def training(scale: Scale, known: Coefficients, gpus: int) -> list[Row]:
    """What a GPU holds, must do and must exchange, for one pass a day."""
    tokens = scale.events / DAY_SECONDS / gpus
    distinct = known["distinct_rows_per_batch"]
    leaving = distinct * (gpus - 1) / gpus
    rows = []
    for kind in ("lazy_adam_fp32", "lazy_adam_bf16", "rowwise_adagrad_fp32", "rowwise_adagrad_bf16"):
        per_row = known[f"{kind}_bytes_per_row"]
        rows.append(_row(f"table and optimiser, {kind}", scale.items * per_row / gpus / GIB, "GiB a GPU"))
    for name, size in (("fp32", 4), ("bf16", 2)):
        sent = leaving * (8 + (size + 4) * scale.width)
        rows.append(_row(f"all-to-all, {name} rows", sent / 1e6, "MB sent a GPU and step", "distinct_rows_per_batch"))
        step_share = 0.1 * scale.batch / tokens
        rows.append(_row(f"needed for it in 10% of a step, {name}", sent / step_share / 1e9, "GB/s a GPU"))
    loading = known["collate_seconds_per_event"] * tokens
    reading = (known["read_seconds_per_event"] + known["cut_seconds_per_event"]) * scale.events / DAY_SECONDS
    blocks = scale.events * known["history_memory_bytes_per_event"] / (128 * 2**20)
    checkpoint = scale.items * known["lazy_adam_fp32_file_bytes_per_row"]
    windows = scale.events / scale.length
    products = 2 * scale.width * scale.users * scale.items / gpus
    scores = VALIDATION_USERS * scale.items / gpus * BYTES_PER_SCORE
    return [
        _row("needed for a pass a day", tokens, "tokens/s a GPU", "arithmetic"),
        *rows,
        _row("worker's own thread, batches", 100 * loading, "% of a core", "collate_seconds_per_event"),
        _row("reading and cutting windows, without Ray's own share", reading, "cores in all"),
        _row("Ray Data's blocks, 128 MiB each", blocks / 86_400, "a second, one controller"),
        _row("first vectors of the table", scale.items / gpus * known["table_seconds_per_row"], "s, one core a GPU"),
        _row("checkpoint, lazy_adam_fp32", checkpoint / 1e9, "GB"),
        _row("position at the end of an epoch", windows * WINDOW_NAME_BYTES / 1e9, "GB in every worker that resumes"),
        _row("validation, scores of a batch of users", scores / GIB, "GiB a GPU", "counted in the code"),
        _row("needed to validate all users in an hour", products / 3600 / 1e12, "TFLOP/s a GPU, fp32", "arithmetic"),
    ]


def serving(scale: Scale, known: Coefficients) -> list[Row]:
    """What an index takes, and the cores that answer the requests."""
    rows = [
        _row("artifact's item table", scale.items * 4 * scale.width / 1e9, "GB", "merge_seconds_per_row"),
        _row("artifact, merged on one machine", scale.items * known["merge_seconds_per_row"], "s, one core"),
        _row("farsight index, peak", 16 * scale.width * scale.items / GIB, "GiB", "counted in the code"),
    ]
    for kind in ("flat", "ivf"):
        rows += [
            _row(f"{kind} index", scale.items * known[f"{kind}_bytes_per_vector"] / GIB, "GiB"),
            _row(
                f"{kind}: build", _scaled(f"{kind}_build_seconds", scale, known, 1.5) / 3600, "core-hours, one thread"
            ),
            _row(f"{kind}: a query", 1e3 * query_seconds(kind, scale.items, known), "ms of a core"),
            _row(f"{kind}: search for all requests", scale.requests * query_seconds(kind, scale.items, known), "cores"),
        ]
    replica = scale.items * replica_bytes(scale, known) / GIB
    searching = scale.requests * query_seconds("ivf", scale.items, known)
    # Model and search have a thread each, and a batch in each.
    replicas = max(searching, scale.requests * known["model_seconds_per_request"])
    return [
        *rows,
        _row("model for all requests", scale.requests * known["model_seconds_per_request"], "cores"),
        _row("a replica: vocabulary, table, ivf index", replica, "GiB"),
        _row("replicas of one thread for each", replicas, "replicas"),
        _row("memory of all replicas", replicas * replica / 1024, "TiB"),
    ]


def breaks(scale: Scale, known: Coefficients, gpus: int) -> list[Row]:
    """What gives way, the earliest first: at which size, and how many times the stated scale that is."""
    by_events = {
        **_ingest_events(scale, known),
        "resume: leaving out what was done takes a day": _resume_events(scale, known, gpus),
        "resume: position is more than a worker's share of its host": (
            scale.host_gib * GIB / scale.host_gpus / WINDOW_NAME_BYTES * scale.length
        ),
        "training: batches are 10% of a worker's thread": (
            0.1 / known["collate_seconds_per_event"] * gpus * DAY_SECONDS
        ),
    }
    by_items = {**_table_items(scale, known, gpus), **_host_items(scale, known), **_search_items(scale, known)}
    rows = [
        {"what": what, "grows_with": size, "at": at, "times_stated_scale": at / getattr(scale, size)}
        for size, found in (("events", by_events), ("items", by_items))
        for what, at in found.items()
    ]
    return sorted(rows, key=lambda row: row["times_stated_scale"])


def _ingest_events(scale: Scale, known: Coefficients) -> dict[str, float]:
    task_events = scale.core_bytes / known["bucket_peak_bytes_per_event"]
    cells = FRAGMENT_ROWS * known["spill_bytes_per_event"] / known["cell_bytes"]
    fragment_seconds = known["vocabulary_driver_seconds_per_item"] * known["distinct_items_per_fragment"]
    return {
        "ingest: a bucket is more than a core's memory": task_events * BUCKETS,
        "ingest: with as many buckets as that needs, spill is half cells": task_events * cells,
        "ingest: driver merges the items of fragments for a day": DAY_SECONDS / fragment_seconds * FRAGMENT_ROWS,
        "ingest: 32-bit offsets of a bucket's lists": 2**31 * BUCKETS,
    }


def _table_items(scale: Scale, known: Coefficients, gpus: int) -> dict[str, float]:
    """Half of a GPU; the other half is for activations."""
    half = scale.gpu_gib * GIB / 2
    return {
        "training: replicated table is half a GPU": half / (16 * scale.width),
        "training: sharded table (lazy_adam, fp32) is half a GPU": half * gpus / known["lazy_adam_fp32_bytes_per_row"],
        "validation: scores are half a GPU": half * gpus / VALIDATION_USERS / BYTES_PER_SCORE,
    }


def _host_items(scale: Scale, known: Coefficients) -> dict[str, float]:
    return {
        "ingest: vocabulary is more than a core's memory": scale.core_bytes / known["vocabulary_task_bytes_per_item"],
        "farsight index: vectors are more than a host's memory": scale.host_gib * GIB / (16 * scale.width),
        "serving: a replica for each core is more than a host's memory": scale.core_bytes / replica_bytes(scale, known),
    }


def _search_items(scale: Scale, known: Coefficients) -> dict[str, float]:
    """Items at which a query of each kind takes what the cores have for it."""
    times = {kind: scale.serving_cores / scale.requests / known[f"{kind}_query_seconds"] for kind in ("flat", "ivf")}
    return {
        f"serving: flat search takes {scale.serving_cores:,} cores": times["flat"] * known["index_items"],
        f"serving: ivf search takes {scale.serving_cores:,} cores": times["ivf"] ** 2 * known["index_items"],
    }


def query_seconds(kind: str, items: float, known: Coefficients) -> float:
    """Of one core. A flat scan is linear; an ivf of 4 sqrt(items) lists has centroids and probed items that grow so."""
    return known[f"{kind}_query_seconds"] * (items / known["index_items"]) ** (1 if kind == "flat" else 0.5)


def replica_bytes(scale: Scale, known: Coefficients) -> float:
    """Of one item in a replica; side features, titles and categories not counted."""
    popularity = 8 + 8
    return known["vocabulary_bytes_per_item"] + 4 * scale.width + known["ivf_bytes_per_vector"] + popularity


def _scaled(name: str, scale: Scale, known: Coefficients, ivf_power: float) -> float:
    return known[name] * (scale.items / known["index_items"]) ** (1 if name.startswith("flat") else ivf_power)


def _spill_bytes(scale: Scale, known: Coefficients, buckets: float) -> float:
    cells = scale.events / FRAGMENT_ROWS * buckets
    return scale.events * known["spill_bytes_per_event"] + cells * known["cell_bytes"]


def _vocabulary_seconds(scale: Scale, known: Coefficients) -> float:
    read = scale.events / FRAGMENT_ROWS * known["distinct_items_per_fragment"]
    return read * known["vocabulary_driver_seconds_per_item"]


def _resume_events(scale: Scale, known: Coefficients, gpus: int) -> float:
    """Every worker sorts all windows that were done, half of all, and looks up those of its own part."""
    seconds = known["resume_sort_seconds_per_window"] / 2 + known["resume_lookup_seconds_per_window"] / gpus
    return DAY_SECONDS / seconds * scale.length


def _row(term: str, value: float, unit: str, coefficient: str = "") -> Row:
    return {"term": term, "value": value, "unit": unit, **({"from": coefficient} if coefficient else {})}
