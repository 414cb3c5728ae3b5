"""Events of some users -> one history per user: order, duplicates, splits."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from data.ingest_settings import SortRule
from data.log_time import NANOSECONDS
from data.schema import FIRST_SEEN, HISTORY_SCHEMA, TRAIN_EVENTS
from data.splits import IntArray, by_time, last_out

_NOT_COMPARED = "position"


@dataclass(frozen=True)
class HistoryRules:
    """How events become histories."""

    sort: SortRule
    duplicates: Literal["drop", "keep"]
    min_user_events: int
    cuts: tuple[int, int] | None  # first seconds of validation and of test; None = last out
    test_events: int = 1  # of each history, where it is cut by last out


@dataclass(frozen=True)
class BuiltHistories:
    """Histories of one shard, and what became of its events."""

    table: pa.Table  # HISTORY_SCHEMA
    items: pa.Table  # `item_row` of every item in the shard, its `train_events` and `first_seen`
    counts: dict[str, int]
    time_range: tuple[int, int] | None  # seconds UTC


def build_histories(
    events: pl.DataFrame, item_rows: pl.DataFrame, actions: list[str], *, shard: int, rules: HistoryRules
) -> BuiltHistories:
    """Histories of all users in `events`, ordered by user id.

    Args:
        events: rows of `data.log_rows.CHECKED_SCHEMA`, in any order.
        item_rows: `item_id` and `item_row` of every item in the log.
        actions: the action of code 1, 2, ...
        shard: number of the shard, for `user_key`.
    """
    found = events.sort("position")
    kept = found
    if rules.duplicates == "drop":
        compared = [name for name in events.columns if name != _NOT_COMPARED]
        kept = found.unique(subset=compared, keep="first", maintain_order=True)
    num_distinct = kept.height
    kept = kept.filter(pl.len().over("user_id") >= rules.min_user_events)
    keys = ["timestamp", "order", "position"] if rules.sort == "time" else ["order", "position"]
    kept = kept.sort("user_id", *keys).join(item_rows, on="item_id", how="left", maintain_order="left")
    kept = kept.with_row_index("row").with_columns(
        time=pl.col("timestamp") // NANOSECONDS,
        action_code=_codes(kept["action"], actions),
        request=_request_ordinals(),
    )
    starts = np.flatnonzero(kept["user_id"].ne_missing(kept["user_id"].shift()).to_numpy()).astype(np.int64)
    offsets_B1 = np.append(starts, kept.height).astype(np.int64)
    times_E = kept["time"].to_numpy()
    if rules.cuts is None:
        parts = last_out(np.diff(offsets_B1), rules.test_events)
    else:
        parts = by_time(times_E, offsets_B1, validation_start=rules.cuts[0], test_start=rules.cuts[1])
    return BuiltHistories(
        table=_history_table(kept, offsets_B1, parts, shard),
        items=_item_facts(kept["item_row"].to_numpy().astype(np.int64), times_E, offsets_B1, parts[0]),
        counts={
            "users": len(starts),
            "events": kept.height,
            "duplicates": found.height - num_distinct,
            "dropped_by_filter": num_distinct - kept.height,
            "users_with_validation": int((parts[1] > 0).sum()),
            "users_with_test": int((parts[2] > 0).sum()),
            "train_events": int(parts[0].sum()),
            "validation_events": int(parts[1].sum()),
            "test_events": int(parts[2].sum()),
        },
        time_range=(int(times_E.min()), int(times_E.max())) if kept.height else None,
    )


def _codes(actions: pl.Series, names: list[str]) -> pl.Series:
    codes = pl.DataFrame(
        {"action": pl.Series(names, dtype=pl.String), "code": pl.Series(range(1, len(names) + 1), dtype=pl.Int16)}
    )
    found = actions.to_frame("action").join(codes, on="action", how="left", maintain_order="left")
    return found["code"].fill_null(0)


def _request_ordinals() -> pl.Expr:
    """Requests of each user numbered from 0 by first appearance; -1 where there is none."""
    first = pl.col("row").min().over("user_id", "request_id")
    given = pl.when(pl.col("request_id").is_not_null()).then(first)
    return given.rank("dense").over("user_id").cast(pl.Int64).sub(1).fill_null(-1).cast(pl.Int32)


def _item_facts(items_E: IntArray, times_E: IntArray, offsets_B1: IntArray, num_train_B: IntArray) -> pa.Table:
    lengths_B = np.diff(offsets_B1)
    place_E = np.arange(len(items_E)) - np.repeat(offsets_B1[:-1], lengths_B)
    rows_V, inverse_E = np.unique(items_E, return_inverse=True)
    in_training = inverse_E[place_E < np.repeat(num_train_B, lengths_B)]
    first_V = np.full(len(rows_V), np.iinfo(np.int64).max)
    np.minimum.at(first_V, inverse_E, times_E)
    counts_V = np.bincount(in_training, minlength=len(rows_V)).astype(np.int64)
    return pa.table({"item_row": rows_V, TRAIN_EVENTS: counts_V, FIRST_SEEN: first_V})


def _history_table(
    events: pl.DataFrame, offsets_B1: IntArray, parts: tuple[IntArray, IntArray, IntArray], shard: int
) -> pa.Table:
    num_users = len(offsets_B1) - 1
    columns: dict[str, pa.Array] = {
        "user_id": events["user_id"].gather(offsets_B1[:-1]).to_arrow().cast(pa.string()),
        "user_key": pa.array(shard * 2**32 + np.arange(num_users, dtype=np.int64)),
        "num_train": pa.array(parts[0].astype(np.int32)),
        "num_validation": pa.array(parts[1].astype(np.int32)),
        "num_test": pa.array(parts[2].astype(np.int32)),
    }
    lists = {"items": "item_row", "times": "time", "actions": "action_code", "requests": "request", "weights": "weight"}
    for name, source in lists.items():
        values = events[source].to_arrow().cast(HISTORY_SCHEMA.field(name).type.value_type)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets_B1.astype(np.int32)), values)
    return pa.table({field.name: columns[field.name] for field in HISTORY_SCHEMA}, schema=HISTORY_SCHEMA)
