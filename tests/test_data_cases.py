"""The cut of evaluation cases: what is visible, what follows, and when the answer is asked for."""

from pathlib import Path
from typing import Any

import pytest

from data.cases import Cases, split_cases
from data.dataset import PreparedDataset
from data.errors import DatasetError
from tests.small_world import write_dataset

DAY = 86_400


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_dataset(tmp_path_factory.mktemp("cases") / "dataset", num_users=40, test_events=3, same_times=True)


def histories(dataset: PreparedDataset) -> dict[str, dict[str, Any]]:
    return {row["user_id"]: row for table in dataset.history_tables() for row in table.to_pylist()}


def users(cases: list[Cases]) -> dict[str, tuple[Cases, int]]:
    return {user: (batch, place) for batch in cases for place, user in enumerate(batch.user_ids)}


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("gap_seconds", [0, 1, DAY, 4 * DAY])
@pytest.mark.parametrize("request_time", ["target", "last_event"])
def test_a_case_is_what_a_plain_program_cuts(
    dataset: PreparedDataset, split: Any, gap_seconds: int, request_time: Any
) -> None:
    whole = histories(dataset)
    found = users(
        list(
            split_cases(dataset, split, users_per_batch=7, gap_seconds=gap_seconds, request_time=request_time),
        )
    )
    held = {user for user, row in whole.items() if row[f"num_{split}"]}
    assert set(found) == held
    assert len(held) < len(whole)  # short histories hold out nothing
    for user in held:
        row, (batch, place) = whole[user], found[user]
        start = row["num_train"] + (row["num_validation"] if split == "test" else 0)
        stop = start + row[f"num_{split}"]
        first = row["times"][start]
        kept = [event for event in range(start) if not gap_seconds or row["times"][event] <= first - gap_seconds]
        assert batch.items[place].tolist() == [row["items"][event] for event in kept]
        assert batch.times[place].tolist() == [row["times"][event] for event in kept]
        assert batch.actions[place].tolist() == [row["actions"][event] for event in kept]
        assert batch.following[place].tolist() == row["items"][start:stop]
        assert batch.targets[place].tolist() == sorted(set(row["items"][start:stop]))
        newest = max((row["times"][event] for event in kept), default=0)
        assert batch.query_times[place] == (first if request_time == "target" else newest)
        assert batch.user_keys[place] == row["user_key"]


def test_no_gap_drops_nothing_and_the_shortest_gap_drops_ties(dataset: PreparedDataset) -> None:
    without, shortest = (
        sum(
            len(items)
            for batch in split_cases(dataset, "test", users_per_batch=9, gap_seconds=gap)
            for items in batch.items
        )
        for gap in (0, 1)
    )
    assert shortest < without  # some last visible events happened in the second of the target


def test_min_events_counts_what_is_visible_and_a_limit_what_is_left(dataset: PreparedDataset) -> None:
    gap = {"users_per_batch": 5, "gap_seconds": 4 * DAY}
    every = list(split_cases(dataset, "test", **gap))  # type: ignore[arg-type]
    assert min(len(items) for batch in every for items in batch.items) == 0
    known = list(split_cases(dataset, "test", min_events=2, **gap))  # type: ignore[arg-type]
    expected = [user for user, (batch, place) in users(every).items() if len(batch.items[place]) >= 2]
    assert sorted(users(known)) == sorted(expected)
    limited = list(split_cases(dataset, "test", min_events=2, max_users=3, **gap))  # type: ignore[arg-type]
    assert sorted(users(limited)) == sorted(expected, key=lambda user: int(user[1:]))[:3]


def test_batches_hold_histories_of_similar_visible_length(dataset: PreparedDataset) -> None:
    lengths = [
        len(items)
        for batch in split_cases(dataset, "test", users_per_batch=4, gap_seconds=DAY)
        for items in batch.items
    ]
    assert lengths == sorted(lengths)


def test_an_empty_history_is_still_a_batch_for_the_model(dataset: PreparedDataset) -> None:
    [batch] = split_cases(dataset, "test", users_per_batch=100, gap_seconds=100 * DAY)
    assert not any(len(items) for items in batch.items)
    assert batch.batch(8)["lengths_B"].tolist() == [0] * len(batch)


def test_a_gap_in_a_log_without_times_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    timeless = PreparedDataset(dataset.directory, {**dataset.manifest, "has_times": False})
    with pytest.raises(DatasetError, match=r"no times, so a gap of 60 s cannot be left; set evaluate\.gap_seconds=0"):
        next(split_cases(timeless, "test", users_per_batch=4, gap_seconds=60))
