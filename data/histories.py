"""Events of some users -> one history per user: order, duplicates, splits."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
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
        "requests": pl.Series(_request_ordinals(found["request_id"].gather(order_E), offsets_B1)),
        "weights": found["weight"].gather(order_E),
    }
    times_E = lists["times"].to_numpy()
    if rules.cuts is None:
        parts = last_out(np.diff(offsets_B1), rules.test_events)
    else:
        parts = by_time(times_E, offsets_B1, validation_start=rules.cuts[0], test_start=rules.cuts[1])
    return BuiltHistories(
        table=_history_table(users.filter(pl.Series(kept_U)), lists, offsets_B1, parts, shard),
        items=_item_facts(lists["items"], lists["times"], offsets_B1, parts[0]),
        counts={
            "users": len(offsets_B1) - 1,
            "events": len(order_E),
            "duplicates": found.height - num_distinct,
            "dropped_by_filter": num_distinct - len(order_E),
            "users_with_validation": int((parts[1] > 0).sum()),
            "users_with_test": int((parts[2] > 0).sum()),
            "train_events": int(parts[0].sum()),
            "validation_events": int(parts[1].sum()),
            "test_events": int(parts[2].sum()),
        },
        time_range=(int(times_E.min()), int(times_E.max())) if len(times_E) else None,
    )


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
    firsts = found[order_E[compared]].select(pl.struct(columns).is_first_distinct()).to_series()
    order_E = np.delete(order_E, compared[~firsts.to_numpy()])
    return order_E, len(order_E)


def _codes(actions: pl.Series, names: list[str]) -> pl.Series:
    return (actions.cast(pl.Enum(names)).to_physical().cast(pl.Int16) + 1).fill_null(0)


def _request_ordinals(requests: pl.Series, offsets_B1: IntArray) -> npt.NDArray[np.int32]:
    """Requests of each history numbered from 0 by first appearance; -1 where there is none."""
    lengths_B = np.diff(offsets_B1)
    changes_E = requests.ne_missing(requests.shift()).to_numpy().copy()
    changes_E[offsets_B1[:-1]] = True
    # A run of events of one request is looked at once: there are fewer of them.
    starts_R = np.flatnonzero(changes_E)
    history_R = np.repeat(np.arange(len(lengths_B)), lengths_B)[starts_R]
    runs = pl.DataFrame({"history": history_R, "request": requests.gather(starts_R), "run": np.arange(len(starts_R))})
    first_R = runs.select(pl.col("run").min().over("history", "request")).to_series().to_numpy()
    given_R = runs["request"].is_not_null().to_numpy()
    opened_R = np.append(0, (given_R & (first_R == np.arange(len(first_R)))).cumsum())  # before each run
    before_R = opened_R[np.searchsorted(starts_R, offsets_B1[:-1])][history_R]
    ordinal_R = np.where(given_R, opened_R[first_R] - before_R, -1).astype(np.int32)
    return np.repeat(ordinal_R, np.diff(np.append(starts_R, len(requests))))


def _item_facts(items: pl.Series, times: pl.Series, offsets_B1: IntArray, num_train_B: IntArray) -> pa.Table:
    lengths_B = np.diff(offsets_B1)
    place_E = np.arange(len(items)) - np.repeat(offsets_B1[:-1], lengths_B)
    events = pl.DataFrame(
        {"item_row": items.cast(pl.Int64), "train": place_E < np.repeat(num_train_B, lengths_B), "time": times}
    )
    counted = [pl.col("train").sum().cast(pl.Int64).alias(TRAIN_EVENTS), pl.col("time").min().alias(FIRST_SEEN)]
    return events.group_by("item_row").agg(counted).sort("item_row").to_arrow()


def _history_table(
    users: pl.Series,
    lists: dict[str, pl.Series],
    offsets_B1: IntArray,
    parts: tuple[IntArray, IntArray, IntArray],
    shard: int,
) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "user_id": users.to_arrow().cast(pa.string()),
        "user_key": pa.array(shard * 2**32 + np.arange(len(users), dtype=np.int64)),
        "num_train": pa.array(parts[0].astype(np.int32)),
        "num_validation": pa.array(parts[1].astype(np.int32)),
        "num_test": pa.array(parts[2].astype(np.int32)),
    }
    for name, values in lists.items():
        of_type = values.to_arrow().cast(HISTORY_SCHEMA.field(name).type.value_type)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets_B1.astype(np.int32)), of_type)
    return pa.table({field.name: columns[field.name] for field in HISTORY_SCHEMA}, schema=HISTORY_SCHEMA)
