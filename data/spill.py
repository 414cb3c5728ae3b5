"""The two kinds of task of ingest: log fragment -> spilled buckets, bucket -> history shard.

A spilled file is an Arrow IPC file with exactly one record batch per bucket, so a bucket is read
by its number from every file without touching the others.
"""

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.dataset import HISTORIES, QUARANTINE
from data.errors import DatasetError, UnreadableFile
from data.histories import (
    HistoryRules,
    build_histories,
    history_counts,
    joined_histories,
    shard_item_facts,
    stored_events,
    time_range,
)
from data.log_files import Fragment, LogFile, TextFormat, log_file_hash
from data.log_rows import CHECKED_SCHEMA, RowRules, check_rows, read_fragment
from data.log_time import NANOSECONDS
from data.row_tally import RowTally
from data.schema import HISTORY_SCHEMA, TRAIN_EVENTS
from data.splits import BIN_SECONDS
from data.storage import file_hash, link_or_copy
from data.vocabulary import FILE_NAME as VOCABULARY
from data.weight_actions import with_actions

_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")
# The order of the files and of the rows in them stands for the position.
_SPILLED = {name: dtype for name, dtype in CHECKED_SCHEMA.items() if name != "position"}
_CACHED_ROWS = 65_536  # of which the hashes and places stay in a core's cache
# What a CRC-32 becomes that ends in this byte, its other bytes zero.
_CRC_OF_BYTE = np.array([zlib.crc32(bytes([byte ^ 255])) ^ 0xFF000000 for byte in range(256)], np.uint32)
# Polars itself has offsets of 64 bits, which hardly compress.
_SPILL_SCHEMA = pa.schema(
    [
        (field.name, pa.string() if pa.types.is_large_string(field.type) else field.type)
        for field in pl.DataFrame(schema=_SPILLED).to_arrow().schema
    ]
)
# Columns of a history of which a row group has few values; with a dictionary the others take more bytes and time.
_REPEATING = [f"{name}.list.element" for name in ("actions", "requests", "weights")]


@dataclass(frozen=True)
class Plan:
    """What every task knows; plain values, since it travels to other machines."""

    directory: Path  # the unfinished dataset
    text: TextFormat
    rules: RowRules
    num_buckets: int
    first_part: int = 0  # number of the first quarantine file; lower ones are an earlier dataset's

    @property
    def spill(self) -> Path:
        """Folder of the intermediate files; removed before the dataset is published."""
        return self.directory / "spill"

    def make_folders(self) -> None:
        """Make the folders that tasks write into."""
        for folder in (self.directory / HISTORIES, self.directory / QUARANTINE, self.spill):
            folder.mkdir()

    def forget(self, number: int) -> None:
        """Remove what a fragment has left: it belongs to a file that is left out."""
        refused = (self.directory / QUARANTINE).glob(f"part-{self.first_part + number:06d}-*")
        for path in [*self.spill.glob(f"*-{number:09d}[-.]*"), *refused]:
            path.unlink()


@dataclass(frozen=True)
class StoredShard:
    """The histories of one bucket in a dataset that is being extended."""

    path: Path
    report: dict[str, Any]  # as `write_bucket` would give it for a log without duplicates

    def read(self) -> pa.Table:
        """All histories of the shard.

        Raises:
            DatasetError: it is not as its dataset's manifest says.
        """
        found, expected = file_hash(self.path), self.report["sha256"]
        if found != expected:
            raise DatasetError(
                f"{self.path}: its hash is {found[:12]}, the manifest says {expected[:12]}; the dataset is damaged and "
                "cannot be extended, ingest its whole log again"
            )
        return pq.read_table(self.path)


def bucket_of(user_id: str, num_buckets: int) -> int:
    """The shard of a user: the same on every machine and in every run."""
    return zlib.crc32(user_id.encode()) % num_buckets


def buckets_of(user_ids: pl.Series, num_buckets: int) -> npt.NDArray[np.uint32]:
    """`bucket_of` of each user, byte by byte over many of them at once; a call for each takes ten times longer."""
    parts = [_crc32(user_ids[start : start + _CACHED_ROWS]) for start in range(0, len(user_ids), _CACHED_ROWS)]
    return np.concatenate([np.empty(0, np.uint32), *parts]) % np.uint32(num_buckets)


def _crc32(user_ids: pl.Series) -> npt.NDArray[np.uint32]:
    texts = pa.array(user_ids.to_arrow(), pa.large_binary())
    starts_E1 = np.frombuffer(texts.buffers()[1], np.int64, len(texts) + 1, 8 * texts.offset)
    content = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    starts_E, lengths_E = starts_E1[:-1], np.diff(starts_E1)
    crc_E = np.full(len(texts), 2**32 - 1, np.uint32)
    for place in range(lengths_E.min(initial=256)):
        crc_E = _with_byte(crc_E, content[starts_E + place])
    for place in range(lengths_E.min(initial=256), lengths_E.max(initial=0)):
        longer = np.flatnonzero(lengths_E > place)
        crc_E[longer] = _with_byte(crc_E[longer], content[starts_E[longer] + place])
    return ~crc_E


def _with_byte(crc_E: npt.NDArray[np.uint32], byte_E: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    result: npt.NDArray[np.uint32] = _CRC_OF_BYTE[(crc_E ^ byte_E) & 255] ^ (crc_E >> 8)
    return result


def spill_fragment(number: int, parts: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Check the rows of a fragment and spill them by bucket; refused rows go to the quarantine.

    Args:
        number: of the fragment, names its files.
        parts: the fields of the `Fragment`, as they travel in a row of Ray Data.

    Returns:
        A `RowTally`, the actions, and what the manifest says of the log file, from the first fragment of each; the
        distinct items and the events per hour are left in files, because they may be many. Only why it cannot be read
        (`unreadable`), where it cannot.
    """
    fragment = Fragment(LogFile(**parts.pop("file")), **parts)
    try:
        return _spilled(number, fragment, plan)
    except UnreadableFile as error:
        return {"unreadable": str(error)}


def _spilled(number: int, fragment: Fragment, plan: Plan) -> dict[str, Any]:
    tally = RowTally()
    actions: set[str] = set()
    items = [pl.Series(dtype=pl.String)]
    hours = [pl.Series(dtype=pl.Int64)]
    for chunk, raw in enumerate(read_fragment(fragment, plan.text)):
        good, refused = check_rows(raw, fragment, plan.rules)
        good = with_actions(good, plan.rules.actions_by_weight)
        tally.add(good, refused)
        if refused.height:
            refused.write_parquet(
                plan.directory / QUARANTINE / f"part-{plan.first_part + number:06d}-{chunk:04d}.parquet"
            )
        actions.update(good["action"].drop_nulls().unique())
        items.append(good["item_id"].unique())
        hours.append(good["timestamp"] // (NANOSECONDS * BIN_SECONDS))
        if good.height:
            _write_buckets(good, plan.spill / f"rows-{number:09d}-{chunk:06d}.arrow", plan.num_buckets)
    pl.concat(items).unique().to_frame("item_id").write_parquet(plan.spill / f"items-{number:09d}.parquet")
    counted = pl.concat(hours).alias("hour").value_counts(name="events")
    counted.write_parquet(plan.spill / f"hours-{number:09d}.parquet")
    file, log_file = fragment.file, None
    if fragment.first_row == 0:
        log_file = {"name": file.location, "size": file.size, "sha256": log_file_hash(file.location)}
    return {"tally": asdict(tally), "actions": sorted(actions), "log_file": log_file}


def _write_buckets(rows: pl.DataFrame, path: Path, num_buckets: int) -> None:
    bucket_E = buckets_of(rows["user_id"], num_buckets)
    stops = np.bincount(bucket_E, minlength=num_buckets).cumsum()
    # Radix sort, which is stable, takes 16 bits at most.
    order_E = np.argsort(bucket_E.astype(np.uint16) if num_buckets <= 2**16 else bucket_E, kind="stable")
    table = rows.select(list(_SPILLED))[order_E].to_arrow().cast(_SPILL_SCHEMA)
    batch = table.combine_chunks().to_batches()[0]
    with pa.ipc.new_file(path, batch.schema, options=_COMPRESSED) as writer:
        start = 0
        for stop in stops.tolist():
            writer.write_batch(batch.slice(start, stop - start))
            start = stop


def _read_bucket(bucket: int, plan: Plan) -> pl.DataFrame:
    """Rows of `CHECKED_SCHEMA` in log order; `position` counts from 0."""
    batches = []
    for path in sorted(plan.spill.glob("rows-*.arrow")):
        with pa.memory_map(str(path)) as source:
            batches.append(pa.ipc.open_file(source).get_batch(bucket))
    filled = [batch for batch in batches if batch.num_rows]
    rows = pl.DataFrame(pa.Table.from_batches(filled)) if filled else pl.DataFrame(schema=_SPILLED)
    return rows.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("position"))


def times_in_bin(_: int, bucket: int, *, hour: int, plan: Plan) -> list[int]:
    """Seconds UTC of the events of one bucket in one hour since 1970."""
    seconds = _read_bucket(bucket, plan)["timestamp"] // NANOSECONDS
    return seconds.filter(seconds // BIN_SECONDS == hour).to_list()


def hash_file(_: int, location: str) -> str:
    """SHA-256 of a log file."""
    return log_file_hash(location)


def item_rows(directory: Path) -> pl.DataFrame:
    """`item_id` and `item_row` of every item in a vocabulary, in its order, without a Python string for each."""
    items = pl.Series("item_id", pq.read_table(directory / VOCABULARY).column("item_id"), dtype=pl.String)
    return pl.DataFrame([items, pl.int_range(1, len(items) + 1, dtype=pl.Int32, eager=True).alias("item_row")])


def write_bucket(
    _: int,
    bucket: int,
    *,
    plan: Plan,
    rules: HistoryRules,
    actions: list[str],
    users_per_row_group: int,
    stored: Mapping[str, StoredShard],
    rebuild: bool,
) -> dict[str, Any]:
    """Write the histories of one bucket; no file where it holds no user.

    Args:
        stored: shards of the dataset that is extended, by file. Histories of users without new events are taken over,
            and a shard of none but such users is linked, not read.
        rebuild: whether all histories are built anew all the same.

    Raises:
        DatasetError: a stored shard is damaged.
    """
    file = f"{HISTORIES}/part-{bucket:05d}.parquet"
    before = stored.get(file)
    events = _read_bucket(bucket, plan)
    if before is not None and not events.height and not rebuild:
        link_or_copy(before.path, plan.directory / file)
        return before.report
    histories = HISTORY_SCHEMA.empty_table() if before is None else before.read()
    new_of = pc.is_in(histories.column("user_id"), events["user_id"].unique().to_arrow().cast(pa.string()))
    replaced = pc.or_(new_of, rebuild)
    stale, kept = histories.filter(replaced), histories.filter(pc.invert(replaced))
    items = item_rows(plan.directory)
    events = pl.concat([stored_events(stale, items["item_id"], actions), events])
    built = build_histories(events, items, actions, shard=bucket, rules=rules)
    _write_facts(bucket, plan, built.table, stale)
    table = joined_histories(kept, built.table, shard=bucket) if len(kept) else built.table
    if len(table):
        pq.write_table(table, plan.directory / file, row_group_size=users_per_row_group, use_dictionary=_REPEATING)
    return {
        "file": file,
        "sha256": file_hash(plan.directory / file) if len(table) else None,
        "time_range": time_range(table),
        "duplicates": built.duplicates,
        "dropped_by_filter": built.dropped_by_filter,
        **history_counts(table),
    }


def _write_facts(bucket: int, plan: Plan, histories: pa.Table, stale: pa.Table) -> None:
    """Leave behind what some histories say of items, and, with training events below zero, what they replace."""
    pq.write_table(shard_item_facts(histories), plan.spill / f"facts-{bucket:05d}.parquet")
    if len(stale):
        facts = shard_item_facts(stale)
        withdrawn = pc.negate(facts.column(TRAIN_EVENTS))
        facts = facts.set_column(facts.column_names.index(TRAIN_EVENTS), TRAIN_EVENTS, withdrawn)
        pq.write_table(facts, plan.spill / f"facts-{bucket:05d}-stale.parquet")
