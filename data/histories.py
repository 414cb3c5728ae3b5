"""Events of some users -> one history per user: order, duplicates, splits; and histories back into events."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

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
    duplicates: int
    dropped_by_filter: int  # events of users who have too few


def build_histories(
    events: pl.DataFrame, item_rows: pl.DataFrame, actions: list[str], *, shard: int, rules: HistoryRules
) -> BuiltHistories:
    """Histories of all users in `events`, ordered by user id.

    Args:
        events: rows of `data.log_rows.CHECKED_SCHEMA`, in any order; those of `stored_events` may be among them.
        item_rows: `item_id` and `item_row` of every item in the log.
        actions: the action of code 1, 2, ...
        shard: number of the shard, for `user_key`.
    """
    kept = _distinct(events) if rules.duplicates == "drop" else events
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
        duplicates=events.height - num_distinct,
        dropped_by_filter=num_distinct - kept.height,
    )


def history_counts(histories: pa.Table) -> dict[str, int]:
    """How many users and events some histories hold, in all and in each part of the split."""
    parts = {name: histories.column(f"num_{name}").to_numpy() for name in ("train", "validation", "test")}
    return {
        "users": len(histories),
        "events": sum(int(part.sum()) for part in parts.values()),
        "users_with_validation": int((parts["validation"] > 0).sum()),
        "users_with_test": int((parts["test"] > 0).sum()),
        **{f"{name}_events": int(part.sum()) for name, part in parts.items()},
    }


def time_range(histories: pa.Table) -> tuple[int, int] | None:
    """First and last time of some histories, seconds UTC; None where there are no histories."""
    times_E = pc.list_flatten(histories.column("times")).to_numpy()
    return (int(times_E.min()), int(times_E.max())) if len(times_E) else None


def joined_histories(histories: pa.Table, others: pa.Table, *, shard: int) -> pa.Table:
    """Histories of different users as one shard, ordered by user id and with keys of their own."""
    joined = pa.concat_tables([histories, others]).sort_by("user_id")
    place = HISTORY_SCHEMA.get_field_index("user_key")
    return joined.set_column(place, HISTORY_SCHEMA.field(place), _user_keys(shard, len(joined)))


def stored_events(histories: pa.Table, item_ids: Sequence[str], actions: Sequence[str]) -> pl.DataFrame:
    """The events of finished histories as rows of a log, to be built again together with new ones.

    Their positions are below zero, which sets them apart: of equal times they stand first, in their order. What a
    history does not hold is not there: times are whole seconds, `order` is null, a request is its ordinal.

    Args:
        histories: of `data.schema.HISTORY_SCHEMA`, from a log with times, and built with `sort: time`.
        item_ids: external id of row 1, 2, ...
        actions: the action of code 1, 2, ...

    Returns:
        Rows of `data.log_rows.CHECKED_SCHEMA`.
    """
    lists = ("items", "times", "actions", "requests", "weights")
    events = pl.DataFrame(histories.select(["user_id", *lists])).explode(*lists)
    ordinal = pl.col("requests")
    return events.select(
        "user_id",
        pl.Series(item_ids, dtype=pl.String).gather(events["items"] - 1).alias("item_id"),
        (pl.col("times") * NANOSECONDS).alias("timestamp"),
        pl.Series([None, *actions], dtype=pl.String).gather(events["actions"]).alias("action"),
        pl.when(ordinal >= 0).then(ordinal.cast(pl.String)).alias("request_id"),
        pl.col("weights").alias("weight"),
        pl.lit(None, pl.Int64).alias("order"),
        pl.int_range(-events.height, 0, dtype=pl.Int64).alias("position"),
    )


def shard_item_facts(histories: pa.Table) -> pa.Table:
    """`item_row` of every item in some histories, how often it is in their training part, and when it is first seen."""
    columns = ("items", "times")
    of_users = pl.DataFrame(histories.select([*columns, "num_train"]))
    events = of_users.with_columns(place=pl.int_ranges(pl.col("items").list.len())).explode(*columns, "place")
    facts = events.group_by(pl.col("items").alias("item_row")).agg(
        (pl.col("place") < pl.col("num_train")).sum().cast(pl.Int64).alias(TRAIN_EVENTS),
        pl.col("times").min().alias(FIRST_SEEN),
    )
    return facts.sort("item_row").to_arrow()


_STORED = pl.col("position") < 0


def _distinct(events: pl.DataFrame) -> pl.DataFrame:
    """New events that differ in a log column, and from stored ones in what is stored of them; all stored ones."""
    compared = [name for name in events.columns if name != _NOT_COMPARED]
    stored, new = events.filter(_STORED), events.filter(~_STORED).sort("position")
    new = new.unique(subset=compared, keep="first", maintain_order=True)
    kept = pl.col("user_id", "item_id", "action", "weight"), pl.col("timestamp") // NANOSECONDS
    return pl.concat([stored, new.join(stored, on=kept, how="anti", nulls_equal=True)])


def _codes(actions: pl.Series, names: list[str]) -> pl.Series:
    codes = pl.DataFrame(
        {"action": pl.Series(names, dtype=pl.String), "code": pl.Series(range(1, len(names) + 1), dtype=pl.Int16)}
    )
    found = actions.to_frame("action").join(codes, on="action", how="left", maintain_order="left")
    return found["code"].fill_null(0)


def _request_ordinals() -> pl.Expr:
    """Requests of each user numbered from 0 by first appearance; -1 where there is none."""
    first = pl.col("row").min().over("user_id", _STORED, "request_id")
    given = pl.when(pl.col("request_id").is_not_null()).then(first)
    return given.rank("dense").over("user_id").cast(pl.Int64).sub(1).fill_null(-1).cast(pl.Int32)


def _history_table(
    events: pl.DataFrame, offsets_B1: IntArray, parts: tuple[IntArray, IntArray, IntArray], shard: int
) -> pa.Table:
    num_users = len(offsets_B1) - 1
    columns: dict[str, pa.Array] = {
        "user_id": events["user_id"].gather(offsets_B1[:-1]).to_arrow().cast(pa.string()),
        "user_key": _user_keys(shard, num_users),
        "num_train": pa.array(parts[0].astype(np.int32)),
        "num_validation": pa.array(parts[1].astype(np.int32)),
        "num_test": pa.array(parts[2].astype(np.int32)),
    }
    lists = {"items": "item_row", "times": "time", "actions": "action_code", "requests": "request", "weights": "weight"}
    for name, source in lists.items():
        values = events[source].to_arrow().cast(HISTORY_SCHEMA.field(name).type.value_type)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets_B1.astype(np.int32)), values)
    return pa.table({field.name: columns[field.name] for field in HISTORY_SCHEMA}, schema=HISTORY_SCHEMA)


def _user_keys(shard: int, num_users: int) -> pa.Array:
    return pa.array(shard * 2**32 + np.arange(num_users, dtype=np.int64))
