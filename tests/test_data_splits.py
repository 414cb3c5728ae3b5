"""Split rules: nothing is lost, and what trains stands before what is a target."""

import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import RecipeError
from data.ingest_settings import IngestSettings
from data.settings import read_section
from data.splits import bin_of_rank, by_time, cut_rank, last_out

histories = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12).map(sorted), max_size=8)


@given(st.lists(st.integers(1, 20), max_size=10), st.integers(1, 12))
def test_last_out_may_hold_out_more_events_of_users_who_keep_one_for_training(lengths: list[int], held: int) -> None:
    parts = zip(lengths, *last_out(np.array(lengths, np.int64), held), strict=True)
    for length, train, validation, test in parts:
        assert (train, validation, test) == ((length - held - 1, 1, held) if length >= held + 2 else (length, 0, 0))


@given(st.lists(st.integers(1, 20), max_size=10))
def test_last_out_holds_out_two_events_of_users_who_have_three(lengths: list[int]) -> None:
    train, validation, test = last_out(np.array(lengths, np.int64))
    assert (train + validation + test).tolist() == lengths
    assert validation.tolist() == test.tolist() == [int(length >= 3) for length in lengths]
    assert all(count >= 1 for count in train)


@given(histories, st.integers(0, 31), st.integers(0, 31))
def test_time_cuts_part_every_history_at_the_same_two_moments(users: list[list[int]], one: int, other: int) -> None:
    validation_start, test_start = min(one, other), max(one, other)
    times = np.array([time for user in users for time in user], np.int64)
    offsets = np.cumsum([0, *map(len, users)])
    parts = by_time(times, offsets, validation_start=validation_start, test_start=test_start)
    for user, train, validation, test in zip(users, *parts, strict=True):
        assert train == sum(time < validation_start for time in user)
        assert validation == sum(validation_start <= time < test_start for time in user)
        assert test == sum(time >= test_start for time in user)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_the_binned_cut_is_the_event_of_that_rank_in_time_order(times: list[int], share: float) -> None:
    rank = cut_rank(len(times), share)
    width = 7
    starts, counts = np.unique(np.array(times) // width, return_counts=True)
    chosen, inside = bin_of_rank(starts, counts, rank)
    assert sorted(time for time in times if time // width == chosen)[inside] == sorted(times)[rank]
    # Ties go to the later part, so it holds its share at least.
    assert sum(time >= sorted(times)[rank] for time in times) >= share * len(times) - 1e-6


def test_a_rank_is_not_moved_by_the_rounding_of_shares() -> None:
    assert cut_rank(10, 0.1 + 0.1) == 8
    assert cut_rank(1000, 0.1 + 0.2) == 700


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"kind": "last_out", "test_share": 0.1}, "kind last_out takes no starts, shares or days"),
        (
            {"kind": "time", "test_events": 2, "test_share": 0.1, "validation_share": 0.1},
            "kind time takes no test_events",
        ),
        ({"kind": "last_out", "test_events": 0}, "ingest.split.test_events: .*greater than or equal to 1"),
        ({"kind": "time"}, "kind time needs validation_start and test_start, or validation_share and test_share"),
        ({"kind": "time", "validation_start": 5, "test_share": 0.1}, "not a mixture"),
        ({"kind": "time", "validation_days": 7}, "validation_days and test_days"),
        ({"kind": "time", "validation_days": 7, "test_days": 7, "test_share": 0.1, "validation_share": 0.1}, "mixture"),
        ({"kind": "last_out", "test_days": 7}, "takes no starts, shares or days"),
        ({"kind": "time", "validation_start": 5, "test_start": 5}, "validation_start must be before test_start"),
        ({"kind": "time", "validation_share": 0.5, "test_share": 0.5}, "together must be less than 1"),
        ({"kind": "time", "validation_start": "May", "test_start": 5}, "ingest.split.validation_start"),
    ],
)
def test_a_split_that_cannot_be_is_refused(split: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_section({"ingest": {"log": "x", "split": split}}, "ingest", IngestSettings)


def test_a_time_split_of_histories_in_another_order_is_refused() -> None:
    section = {"log": "x", "sort": "order", "split": {"kind": "time", "validation_share": 0.1, "test_share": 0.1}}
    with pytest.raises(RecipeError, match="needs sort: time"):
        read_section({"ingest": section}, "ingest", IngestSettings)


def test_moments_may_be_dates_as_yaml_reads_them() -> None:
    split = {"kind": "time", "validation_start": datetime.date(1970, 1, 2), "test_start": "1970-01-03T00:00:01+01:00"}
    settings = read_section({"ingest": {"log": "x", "split": split}}, "ingest", IngestSettings)
    assert settings.split.validation_start == 86_400
    assert settings.split.test_start == 2 * 86_400 - 3600 + 1
