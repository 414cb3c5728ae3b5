"""Windows, encoding and batches, against slow oracles."""

import time
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.batch import Batch, collate
from data.encode import encode_histories, encode_windows
from data.schema import HISTORY_SCHEMA
from data.windows import WINDOW_KEY, WindowRule, WindowSet, cut_windows, length_buckets

Users = list[tuple[int, int]]  # training events and later events of each user

LEAST, MOST = -(2**63), 2**63 - 1
# Neighbours that become equal as floats, the ends of int64, and few others, so that names meet.
numbers = st.sampled_from([LEAST, LEAST + 1, -1, 0, 1, 2**53, 2**53 + 1, MOST - 1, MOST]) | st.integers(LEAST, MOST)
names = st.lists(st.tuples(numbers, numbers), max_size=40)
users = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=6)
max_events = st.integers(1, 6)


def history_table(sizes: Users) -> pa.Table:
    """Histories in which every event of every user has its own item, time and action."""
    rows, item = [], 0
    for key, (num_train, num_later) in enumerate(sizes):
        items = list(range(item + 1, item + 1 + num_train + num_later))
        item += len(items)
        rows.append(
            {
                "user_id": f"u{key}", "user_key": key, "items": items, "times": [1000 + i for i in items],
                "actions": [i % 3 for i in items], "requests": [-1] * len(items), "weights": [1.0] * len(items),
                "num_train": num_train, "num_validation": num_later, "num_test": 0,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=HISTORY_SCHEMA)


def rows_of(batch: Batch) -> list[dict[str, list[int]]]:
    names = ("items_BL", "times_BL", "query_times_BL", "actions_BL", "targets_BL")
    return [
        {name: batch[name][row, : batch["lengths_B"][row]].tolist() for name in names}  # type: ignore[literal-required]
        for row in range(len(batch["lengths_B"]))
    ]


@given(users, max_events)
def test_every_training_event_but_a_users_first_is_a_target_exactly_once(sizes: Users, length: int) -> None:
    table = history_table(sizes)
    batch = collate(encode_windows(cut_windows(table, max_events=length, rule="all")))
    expected = [item for row in table.to_pylist() for item in row["items"][1 : row["num_train"]]]
    assert sorted(target for row in rows_of(batch) for target in row["targets_BL"]) == sorted(expected)
    assert batch["items_BL"].shape[1] <= length or not expected


@given(users, max_events, st.sampled_from(["last", "all"]))
def test_windows_are_what_cutting_backwards_by_hand_gives(sizes: Users, length: int, rule: str) -> None:
    table = history_table(sizes)
    expected = []
    for row in table.to_pylist():
        stop = row["num_train"]
        while stop > 1:
            start = max(stop - length - 1, 0)
            expected.append((row["user_key"], row["items"][start:stop]))
            stop -= length
            if rule == "last":
                break
    windows = cut_windows(table, max_events=length, rule="last" if rule == "last" else "all").to_pylist()
    assert [(window["user_key"], window["items"]) for window in windows] == expected
    assert all(window["times"] == [1000 + item for item in window["items"]] for window in windows)


@given(users, max_events, st.sampled_from(["last", "all"]), st.integers(1000, 1040))
def test_windows_since_a_moment_are_those_that_end_no_earlier(
    sizes: Users, length: int, rule: WindowRule, since: int
) -> None:
    table = history_table(sizes)
    every = cut_windows(table, max_events=length, rule=rule).to_pylist()
    found = cut_windows(table, max_events=length, rule=rule, since=since).to_pylist()
    assert found == [window for window in every if window["times"][-1] >= since]


@given(users, st.integers(1, 3))
def test_windows_of_a_slice_and_of_chunks_are_those_of_the_same_rows(sizes: Users, length: int) -> None:
    table = history_table(sizes)
    sliced = table.slice(1)
    copied = pa.Table.from_pylist(sliced.to_pylist(), schema=HISTORY_SCHEMA)
    chunked = pa.concat_tables([table.slice(0, 1), sliced])
    for left, right in ((sliced, copied), (chunked, table)):
        cut = [cut_windows(part, max_events=length, rule="all").to_pylist() for part in (left, right)]
        assert cut[0] == cut[1]


@given(st.integers(2, 12), max_events)
def test_a_prefix_is_encoded_for_serving_as_it_was_for_training(num_train: int, length: int) -> None:
    """What the model saw when it learnt the last target is what it sees when asked for it."""
    table = history_table([(num_train, 0)])
    [trained] = rows_of(collate(encode_windows(cut_windows(table, max_events=length, rule="last"))))
    row = table.to_pylist()[0]
    prefix = {name: [row[name][:-1]] for name in ("items", "times", "actions")}
    served = collate(
        encode_histories(prefix["items"], prefix["times"], prefix["actions"], [row["times"][-1]], max_events=length)
    )
    [asked] = rows_of(served)
    assert asked["targets_BL"][-1] == 0  # not known when asked
    asked["targets_BL"][-1] = row["items"][-1]
    assert asked == trained


@given(users, max_events)
def test_each_event_stands_beside_the_time_of_the_next(sizes: Users, length: int) -> None:
    for row in rows_of(collate(encode_windows(cut_windows(history_table(sizes), max_events=length, rule="all")))):
        assert row["times_BL"] == [1000 + item for item in row["items_BL"]]
        assert row["query_times_BL"] == [1000 + item for item in row["targets_BL"]]
        assert row["query_times_BL"][:-1] == row["times_BL"][1:]


@given(users, max_events, st.randoms())
def test_a_batch_of_chosen_rows_is_those_rows_and_padding_is_zero(sizes: Users, length: int, random: object) -> None:
    encoded = encode_windows(cut_windows(history_table(sizes), max_events=length, rule="all"))
    chosen = list(range(len(encoded)))
    random.shuffle(chosen)  # type: ignore[attr-defined]
    whole, part = rows_of(collate(encoded)), collate(encoded, np.array(chosen[:3], np.int64))
    assert rows_of(part) == [whole[row] for row in chosen[:3]]
    assert part["users_B"].tolist() == encoded.users_B[chosen[:3]].tolist()
    for name in ("items_BL", "times_BL", "query_times_BL", "actions_BL", "targets_BL"):
        padding = part[name].clone()  # type: ignore[literal-required]
        for row, used in enumerate(part["lengths_B"].tolist()):
            padding[row, :used] = 0
        assert not padding.any()


def test_no_histories_and_an_empty_history_make_batches_too() -> None:
    assert len(collate(encode_histories([], [], [], [], max_events=3))["lengths_B"]) == 0
    batch = collate(encode_histories([[]], [[]], [[]], [5], max_events=3))
    assert batch["lengths_B"].tolist() == [0]
    assert batch["items_BL"].tolist() == [[0]]


def named(keys: list[tuple[int, int]], chunks: int = 1) -> pa.Table:
    """A table of windows of these names, in as many chunks."""
    rows = np.array_split(np.array(keys, np.int64).reshape(-1, 2), chunks)
    return pa.concat_tables([pa.table({name: part[:, at] for at, name in enumerate(WINDOW_KEY)}) for part in rows])


@given(names, names, st.integers(1, 3))
def test_a_set_of_windows_holds_what_a_set_of_pairs_holds(
    done: list[tuple[int, int]], others: list[tuple[int, int]], chunks: int
) -> None:
    asked = [*others, *done[::2], *((number, user) for user, number in done)]
    held = WindowSet(named(done, chunks)).holds(named(asked, chunks))
    assert held.tolist() == [key in set(done) for key in asked]


def test_asking_a_large_set_of_windows_for_a_few_does_not_go_through_all_of_it() -> None:
    keys = np.random.default_rng(0).permutation(2_000_000)
    done = pa.table(dict(zip(WINDOW_KEY, (keys // 5, keys % 5), strict=True)))
    began = time.process_time()
    held = WindowSet(done)
    sorted_at = time.process_time()
    assert held.holds(done.slice(0, 100)).all()
    assert time.process_time() - sorted_at < 0.05 * (sorted_at - began)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 100), st.integers(0, 3))
def test_every_row_occurs_once_and_no_batch_is_too_large(lengths: list[int], limit: int, seed: int) -> None:
    lengths_B = np.array(lengths, np.int64)
    batches = list(length_buckets(lengths_B, events_per_batch=limit, random=np.random.default_rng(seed)))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths_B[batch].max() <= limit


@pytest.mark.parametrize("seed", [0, 1])
def test_padding_of_skewed_lengths_is_low_and_epochs_differ(seed: int) -> None:
    """The more batches an epoch has, the closer the lengths inside each; 10,000 windows are a small epoch."""
    random = np.random.default_rng(seed)
    lengths_B = np.minimum(random.geometric(1 / 60, size=10_000), 200).astype(np.int64)
    batches = list(length_buckets(lengths_B, events_per_batch=4096, random=random))
    computed = sum(len(batch) * int(lengths_B[batch].max()) for batch in batches)
    assert 1 - lengths_B.sum() / computed < 0.05
    again = list(length_buckets(lengths_B, events_per_batch=4096, random=random))
    assert {frozenset(batch.tolist()) for batch in batches} != {frozenset(batch.tolist()) for batch in again}


@given(seed=st.integers(0, 50), limit=st.integers(1, 400), num_groups=st.integers(1, 12))
def test_batches_by_group_hold_every_row_once_and_rows_of_equal_or_following_groups(
    seed: int, limit: int, num_groups: int
) -> None:
    random = np.random.default_rng(seed)
    lengths_B, groups_B = random.integers(1, 50, 120), random.integers(0, num_groups, 120)
    batches = list(length_buckets(lengths_B, events_per_batch=limit, random=random, groups_B=groups_B))
    assert sorted(np.concatenate(batches)) == list(range(120))
    assert all(len(rows) == 1 or len(rows) * lengths_B[rows].max() <= limit for rows in batches)
    # In the order of their groups, no batch reaches back into what the one before it has passed.
    spans = sorted((int(groups_B[rows].min()), int(groups_B[rows].max())) for rows in batches)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
