"""The two kinds of task of ingest: log fragment -> spilled buckets, bucket -> history shard.

A spilled file is an Arrow IPC file with exactly one record batch per bucket, so a bucket is read
by its number from every file without touching the others.
"""

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data.dataset import HISTORIES, QUARANTINE
from data.histories import HistoryRules, build_histories
from data.log_files import Fragment, LogFile, TextFormat
from data.log_rows import CHECKED_SCHEMA, RowRules, check_rows, read_fragment
from data.log_time import NANOSECONDS
from data.row_tally import RowTally
from data.splits import BIN_SECONDS
from data.storage import file_hash
from data.vocabulary import Vocabulary

_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True)
class Plan:
    """What every task knows; plain values, since it travels to other machines."""

    directory: Path  # the unfinished dataset
    text: TextFormat
    rules: RowRules
    num_buckets: int

    @property
    def spill(self) -> Path:
        """Folder of the intermediate files; removed before the dataset is published."""
        return self.directory / "spill"

    def make_folders(self) -> None:
        """Make the folders that tasks write into."""
        for folder in (self.directory / HISTORIES, self.directory / QUARANTINE, self.spill):
            folder.mkdir()


def bucket_of(user_id: str, num_buckets: int) -> int:
    """The shard of a user: the same on every machine and in every run."""
    return zlib.crc32(user_id.encode()) % num_buckets


def spill_fragment(number: int, parts: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Check the rows of a fragment and spill them by bucket; refused rows go to the quarantine.

    Args:
        number: of the fragment, names its files.
        parts: the fields of the `Fragment`, as they travel in a row of Ray Data.

    Returns:
        A `RowTally` and the actions; the distinct items and the events per hour are left in files, because
        they may be many.
    """
    fragment = Fragment(LogFile(**parts.pop("file")), **parts)
    tally = RowTally()
    actions: set[str] = set()
    items = [pl.Series(dtype=pl.String)]
    hours = [pl.Series(dtype=pl.Int64)]
    for chunk, raw in enumerate(read_fragment(fragment, plan.text)):
        good, refused = check_rows(raw, fragment, plan.rules)
        tally.add(good, refused)
        if refused.height:
            refused.write_parquet(plan.directory / QUARANTINE / f"part-{number:06d}-{chunk:04d}.parquet")
        actions.update(good["action"].drop_nulls().unique())
        items.append(good["item_id"].unique())
        hours.append(good["timestamp"] // (NANOSECONDS * BIN_SECONDS))
        if good.height:
            _write_buckets(good, plan.spill / f"rows-{number:06d}-{chunk:04d}.arrow", plan.num_buckets)
    pl.concat(items).unique().to_frame("item_id").write_parquet(plan.spill / f"items-{number:06d}.parquet")
    counted = pl.concat(hours).alias("hour").value_counts(name="events")
    counted.write_parquet(plan.spill / f"hours-{number:06d}.parquet")
    return {"tally": asdict(tally), "actions": sorted(actions)}


def _write_buckets(rows: pl.DataFrame, path: Path, num_buckets: int) -> None:
    users = rows["user_id"].unique()
    buckets = [bucket_of(user, num_buckets) for user in users.to_list()]
    of_user = pl.DataFrame({"user_id": users, "bucket": pl.Series(buckets, dtype=pl.Int32)})
    placed = rows.join(of_user, on="user_id", how="left", maintain_order="left").sort("bucket", maintain_order=True)
    stops = np.searchsorted(placed["bucket"].to_numpy(), np.arange(num_buckets), side="right")
    table = placed.select(list(CHECKED_SCHEMA)).to_arrow().combine_chunks()
    batch = table.to_batches()[0]
    with pa.ipc.new_file(path, batch.schema, options=_COMPRESSED) as writer:
        start = 0
        for stop in stops.tolist():
            writer.write_batch(batch.slice(start, stop - start))
            start = stop


def _read_bucket(bucket: int, plan: Plan) -> Iterator[pl.DataFrame]:
    for path in sorted(plan.spill.glob("rows-*.arrow")):
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(bucket)
            if batch.num_rows:
                yield pl.DataFrame(pa.Table.from_batches([batch]))


def times_in_bin(_: int, bucket: int, *, hour: int, plan: Plan) -> list[int]:
    """Seconds UTC of the events of one bucket in one hour since 1970."""
    parts = [frame["timestamp"] // NANOSECONDS for frame in _read_bucket(bucket, plan)]
    return [int(second) for part in parts for second in part.filter(part // BIN_SECONDS == hour)]


def write_bucket(
    _: int, bucket: int, *, plan: Plan, rules: HistoryRules, actions: list[str], users_per_row_group: int
) -> dict[str, Any]:
    """Write the histories of one bucket; no file where it holds no user."""
    frames = list(_read_bucket(bucket, plan))
    events = pl.concat(frames) if frames else pl.DataFrame(schema=CHECKED_SCHEMA)
    items = Vocabulary.load(plan.directory).item_ids
    item_rows = pl.DataFrame(
        {"item_id": pl.Series(items, dtype=pl.String), "item_row": np.arange(1, len(items) + 1, dtype=np.int32)}
    )
    built = build_histories(events, item_rows, actions, shard=bucket, rules=rules)
    file = f"{HISTORIES}/part-{bucket:05d}.parquet"
    report: dict[str, Any] = {**built.counts, "file": file, "time_range": built.time_range, "sha256": None}
    if built.counts["users"]:
        pq.write_table(built.table, plan.directory / file, row_group_size=users_per_row_group)
        report["sha256"] = file_hash(plan.directory / file)
        pq.write_table(built.items, plan.spill / f"facts-{bucket:05d}.parquet")
    return report
