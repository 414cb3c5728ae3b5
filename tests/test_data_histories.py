"""Histories equal those of a plain program, whatever the order in which events arrive."""

from collections import defaultdict
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from data.histories import HistoryRules, build_histories, history_counts, shard_item_facts, stored_events
from data.log_rows import CHECKED_SCHEMA
from data.spill import bucket_of

ACTIONS = ["buy", "like"]
SECOND = 10**9

event = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["u1", "u2", "u3"]),
        "item_id": st.sampled_from(["a", "b", "c"]),
        "timestamp": st.sampled_from([0, SECOND // 2, SECOND, 2 * SECOND]),
        "action": st.sampled_from([None, "buy", "like"]),
        "request_id": st.sampled_from([None, "r", "s"]),
        "weight": st.sampled_from([1.0, 2.0]),
        "order": st.sampled_from([None, 0, 1]),
    }
)
events = st.lists(event, max_size=25)
rules = st.builds(
    HistoryRules,
    sort=st.sampled_from(["time", "order"]),
    duplicates=st.sampled_from(["drop", "keep"]),
    min_user_events=st.integers(1, 4),
    cuts=st.sampled_from([None, (1, 2), (0, 1), (5, 6)]),
    test_events=st.integers(1, 3),
)


def plain_histories(log: list[dict[str, Any]], rules: HistoryRules) -> dict[str, list[dict[str, Any]]]:
    """The events of each user in order, by a program too plain to be wrong."""
    users = defaultdict(list)
    seen = set()
    for position, row in enumerate(log):
        key = tuple(row[name] for name in sorted(row))
        if key not in seen or rules.duplicates == "keep":
            users[row["user_id"]].append({**row, "position": position})
        seen.add(key)
    first = (lambda row: row["timestamp"]) if rules.sort == "time" else (lambda row: 0)
    result = {}
    for user, rows in sorted(users.items()):
        if len(rows) >= rules.min_user_events:
            result[user] = sorted(rows, key=lambda row: (first(row), -1 if row["order"] is None else row["order"]))
    return result


@given(events, rules, st.randoms())
def test_histories_are_those_of_a_plain_program(log: list[dict[str, Any]], rules: HistoryRules, random: Any) -> None:
    if rules.sort == "order":
        rules = HistoryRules("order", rules.duplicates, rules.min_user_events, None, rules.test_events)
    arrived = [{**row, "position": position} for position, row in enumerate(log)]
    random.shuffle(arrived)
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "item_row": pl.Series([1, 2, 3], dtype=pl.Int32)})
    built = build_histories(pl.DataFrame(arrived, schema=CHECKED_SCHEMA), items, ACTIONS, shard=3, rules=rules)
    expected = plain_histories(log, rules)
    found = built.table.to_pylist()
    assert [row["user_id"] for row in found] == list(expected)
    train: dict[int, int] = defaultdict(int)
    for number, (row, rows) in enumerate(zip(found, expected.values(), strict=True)):
        assert row["user_key"] == 3 * 2**32 + number
        assert row["items"] == ["abc".index(event["item_id"]) + 1 for event in rows]
        assert row["times"] == [event["timestamp"] // SECOND for event in rows]
        assert row["actions"] == [
            0 if event["action"] is None else ACTIONS.index(event["action"]) + 1 for event in rows
        ]
        assert row["weights"] == [event["weight"] for event in rows]
        requests = list(dict.fromkeys(event["request_id"] for event in rows if event["request_id"]))
        assert row["requests"] == [requests.index(event["request_id"]) if event["request_id"] else -1 for event in rows]
        assert row["num_train"] + row["num_validation"] + row["num_test"] == len(rows)
        if rules.cuts is None:
            assert row["num_test"] == (rules.test_events if len(rows) >= rules.test_events + 2 else 0)
        for item in row["items"][: row["num_train"]]:
            train[item] += 1
    happened = defaultdict(list)
    for row in found:
        for item, second in zip(row["items"], row["times"], strict=True):
            happened[item].append(second)
    facts = {row["item_row"]: row for row in shard_item_facts(built.table).to_pylist()}
    assert {item: row["train_events"] for item, row in facts.items()} == {item: train[item] for item in happened}
    assert {item: row["first_seen"] for item, row in facts.items()} == {item: min(happened[item]) for item in happened}
    counts = history_counts(built.table)
    assert counts["users"] == len(expected)
    assert counts["events"] + built.duplicates + built.dropped_by_filter == len(log)
    assert counts["train_events"] + counts["validation_events"] + counts["test_events"] == counts["events"]


@given(events)
def test_a_time_split_lets_no_training_event_stand_after_any_target(log: list[dict[str, Any]]) -> None:
    arrived = [{**row, "position": position} for position, row in enumerate(log)]
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "item_row": pl.Series([1, 2, 3], dtype=pl.Int32)})
    rules = HistoryRules("time", "keep", 1, cuts=(1, 2))
    table = build_histories(pl.DataFrame(arrived, schema=CHECKED_SCHEMA), items, ACTIONS, shard=0, rules=rules).table
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for row in table.to_pylist():
        train, held = row["num_train"], row["num_train"] + row["num_validation"]
        parts["train"] += row["times"][:train]
        parts["validation"] += row["times"][train:held]
        parts["test"] += row["times"][held:]
    assert max(parts["train"], default=0) < min(parts["validation"] + parts["test"], default=1)
    assert max(parts["train"] + parts["validation"], default=0) < min(parts["test"], default=2)


whole_seconds = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["u1", "u2"]),
        "item_id": st.sampled_from(["a", "b"]),
        "timestamp": st.sampled_from([0, SECOND, 2 * SECOND]),
        "action": st.sampled_from([None, "buy", "like"]),
        "request_id": st.sampled_from([None, "0", "s"]),
        "weight": st.sampled_from([1.0, 2.0]),
        "order": st.none(),
    }
)


@given(st.lists(st.lists(whole_seconds, max_size=12), min_size=2, max_size=3), rules)
def test_histories_built_day_by_day_are_those_built_at_once(days: list[list[dict[str, Any]]], rules: Any) -> None:
    rules = HistoryRules("time", rules.duplicates, 1, rules.cuts, rules.test_events)
    items = pl.DataFrame({"item_id": ["a", "b"], "item_row": pl.Series([1, 2], dtype=pl.Int32)})
    for number, log in enumerate(days):
        for position, row in enumerate(log):
            # A request belongs to one day; of equal events of two days only those without one are seen to be equal.
            given_request = row["request_id"] is not None and rules.duplicates == "keep"
            row |= {"position": number * 100 + position, "request_id": f"{number}" if given_request else None}
    everything = [row for log in days for row in log]
    whole = build_histories(pl.DataFrame(everything, schema=CHECKED_SCHEMA), items, ACTIONS, shard=0, rules=rules)
    stored = pl.DataFrame(schema=CHECKED_SCHEMA)
    num_duplicates = 0
    for log in days:
        events = pl.concat([pl.DataFrame(log, schema=CHECKED_SCHEMA), stored])
        built = build_histories(events, items, ACTIONS, shard=0, rules=rules)
        stored = stored_events(built.table, ["a", "b"], ACTIONS)
        num_duplicates += built.duplicates
    assert built.table.equals(whole.table)
    assert num_duplicates == whole.duplicates


def test_a_stored_event_stands_before_new_ones_of_its_second_and_is_known_by_what_is_stored() -> None:
    items = pl.DataFrame({"item_id": ["a", "b"], "item_row": pl.Series([1, 2], dtype=pl.Int32)})
    event = {"user_id": "u", "item_id": "a", "timestamp": SECOND + 5, "action": "buy", "weight": 1.0, "order": 1}
    first = [{**event, "request_id": request, "position": place} for place, request in enumerate("rs")]
    second = [
        {**event, "timestamp": SECOND + 1, "request_id": "r", "position": 0},  # a stored one, less what is not stored
        {**event, "timestamp": SECOND, "item_id": "b", "order": -1, "request_id": "r", "position": 1},
    ]
    rules = HistoryRules("time", "drop", 1, None)
    stored = build_histories(pl.DataFrame(first, schema=CHECKED_SCHEMA), items, ACTIONS, shard=0, rules=rules)
    events = stored_events(stored.table, ["a", "b"], ACTIONS)
    built = build_histories(
        pl.concat([events, pl.DataFrame(second, schema=CHECKED_SCHEMA)]), items, ACTIONS, shard=0, rules=rules
    )
    [history] = built.table.to_pylist()
    assert (history["items"], history["requests"]) == ([1, 1, 2], [0, 1, 2])
    assert built.duplicates == 1


def test_the_shard_of_a_user_never_changes() -> None:
    assert [bucket_of(user, 8) for user in ("1", "2", "u000001", "ü")] == [7, 5, 1, 5]
