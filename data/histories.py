"""Events of some users -> one history per user: order, duplicates, splits; and histories back into events."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
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
    found = events.sort("position")
    if rules.duplicates == "drop":
        found = _without_stored(found)
    users = found["user_id"].unique().sort()
    user_E = found["user_id"].cast(pl.Enum(users)).to_physical().to_numpy()
    order_E, num_distinct = _history_order(found, user_E, rules)
    num_events_U = np.bincount(user_E[order_E], minlength=len(users))
    order_E = order_E[num_events_U[user_E[order_E]] >= rules.min_user_events]
    kept_U = num_events_U >= max(rules.min_user_events, 1)
    offsets_B1 = np.append(0, num_events_U[kept_U].cumsum()).astype(np.int64)
    rows = found.select("item_id").join(item_rows, on="item_id", how="left", maintain_order="left")["item_row"]
    lists = {
        "items": rows.gather(order_E),
        "times": found["timestamp"].gather(order_E) // NANOSECONDS,
        "actions": _codes(found["action"], actions).gather(order_E),
        "requests": pl.Series(_request_ordinals(found.select("request_id", stored=_STORED)[order_E], offsets_B1)),
        "weights": found["weight"].gather(order_E),
    }
    times_E = lists["times"].to_numpy()
    if rules.cuts is None:
        parts = last_out(np.diff(offsets_B1), rules.test_events)
    else:
        parts = by_time(times_E, offsets_B1, validation_start=rules.cuts[0], test_start=rules.cuts[1])
    return BuiltHistories(
        table=_history_table(users.filter(pl.Series(kept_U)), lists, offsets_B1, parts, shard),
        duplicates=events.height - num_distinct,
        dropped_by_filter=num_distinct - len(order_E),
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


def stored_events(histories: pa.Table, item_ids: Sequence[str] | pl.Series, actions: Sequence[str]) -> pl.DataFrame:
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
    items, times = (pl.Series(pc.list_flatten(histories.column(name))) for name in ("items", "times"))
    lengths_B = pc.list_value_length(histories.column("items")).to_numpy()
    place_E = np.arange(len(items)) - np.repeat(np.cumsum(lengths_B) - lengths_B, lengths_B)
    in_training = place_E < np.repeat(histories.column("num_train").to_numpy(), lengths_B)
    events = pl.DataFrame({"item_row": items.cast(pl.Int64), "train": in_training, "time": times})
    counted = [pl.col("train").sum().cast(pl.Int64).alias(TRAIN_EVENTS), pl.col("time").min().alias(FIRST_SEEN)]
    return events.group_by("item_row").agg(counted).sort("item_row").to_arrow()


_STORED = pl.col("position") < 0


def _without_stored(events: pl.DataFrame) -> pl.DataFrame:
    """The events without new ones that equal a stored one in what is stored of it."""
    stored = events.filter(_STORED)
    if not stored.height:
        return events
    kept = pl.col("user_id", "item_id", "action", "weight"), pl.col("timestamp") // NANOSECONDS
    new = events.filter(~_STORED).join(stored, on=kept, how="anti", nulls_equal=True, maintain_order="left")
    return pl.concat([stored, new])


def _history_order(found: pl.DataFrame, user_E: npt.NDArray[Any], rules: HistoryRules) -> tuple[IntArray, int]:
    """Places of the events, history after history, duplicates left out, and how many there are.

    Args:
        found: events in log order; user_E: number of the user of each.
    """
    keys = [user_E]
    if rules.sort == "time":
        keys.append(found["timestamp"].to_numpy())
    if found["order"].null_count() < found.height:  # nulls come first
        keys += [found["order"].is_not_null().to_numpy(), found["order"].fill_null(0).to_numpy()]
    order_E = np.lexsort(keys[::-1])  # stable, so that the log order breaks ties
    if rules.duplicates == "keep":
        return order_E, len(order_E)
    # Equal events are equal in the keys, so only among those that are must all columns be compared.
    tied_E = np.zeros(len(order_E) + 1, bool)
    tied_E[1:-1] = np.logical_and.reduce([key[order_E[1:]] == key[order_E[:-1]] for key in keys])
    compared = np.flatnonzero(tied_E[:-1] | tied_E[1:])
    columns = [name for name in found.columns if name != _NOT_COMPARED]
    itself = pl.when(_STORED).then(_NOT_COMPARED).alias("itself")  # no stored event equals another
    firsts = found[order_E[compared]].select(pl.struct(*columns, itself).is_first_distinct()).to_series()
    order_E = np.delete(order_E, compared[~firsts.to_numpy()])
    return order_E, len(order_E)


def _codes(actions: pl.Series, names: list[str]) -> pl.Series:
    return (actions.cast(pl.Enum(names)).to_physical().cast(pl.Int16) + 1).fill_null(0)


def _request_ordinals(requests: pl.DataFrame, offsets_B1: IntArray) -> npt.NDArray[np.int32]:
    """Requests of each history numbered from 0 by first appearance; -1 where there is none.

    Args:
        requests: `request_id` of each event, and whether it is `stored`: a stored ordinal is no new event's id.
    """
    lengths_B = np.diff(offsets_B1)
    changed = pl.any_horizontal(pl.all().ne_missing(pl.all().shift()))
    changes_E = requests.select(changed).to_series().to_numpy().copy()
    changes_E[offsets_B1[:-1]] = True
    # A run of events of one request is looked at once: there are fewer of them.
    starts_R = np.flatnonzero(changes_E)
    history_R = np.repeat(np.arange(len(lengths_B)), lengths_B)[starts_R]
    runs = requests[starts_R].with_columns(history=history_R, run=np.arange(len(starts_R)))
    first_R = runs.select(pl.col("run").min().over("history", "stored", "request_id")).to_series().to_numpy()
    given_R = runs["request_id"].is_not_null().to_numpy()
    opened_R = np.append(0, (given_R & (first_R == np.arange(len(first_R)))).cumsum())  # before each run
    before_R = opened_R[np.searchsorted(starts_R, offsets_B1[:-1])][history_R]
    ordinal_R = np.where(given_R, opened_R[first_R] - before_R, -1).astype(np.int32)
    return np.repeat(ordinal_R, np.diff(np.append(starts_R, len(requests))))


def _history_table(
    users: pl.Series,
    lists: dict[str, pl.Series],
    offsets_B1: IntArray,
    parts: tuple[IntArray, IntArray, IntArray],
    shard: int,
) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "user_id": users.to_arrow().cast(pa.string()),
        "user_key": _user_keys(shard, len(users)),
        "num_train": pa.array(parts[0].astype(np.int32)),
        "num_validation": pa.array(parts[1].astype(np.int32)),
        "num_test": pa.array(parts[2].astype(np.int32)),
    }
    for name, values in lists.items():
        of_type = values.to_arrow().cast(HISTORY_SCHEMA.field(name).type.value_type)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets_B1.astype(np.int32)), of_type)
    return pa.table({field.name: columns[field.name] for field in HISTORY_SCHEMA}, schema=HISTORY_SCHEMA)


def _user_keys(shard: int, num_users: int) -> pa.Array:
    return pa.array(shard * 2**32 + np.arange(num_users, dtype=np.int64))
