"""A simulated log as it would have arrived: the days together are the log, and each knows only what was then."""

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from data.errors import FarsightError, RecipeError
from data.simulate import run as simulate
from data.simulate_days import run
from data.storage import read_manifest

RECIPE = {
    "simulate": {
        "num_users": 80, "num_items": 240, "num_days": 40, "events_per_user": 20, "max_events_per_user": 60,
        "num_shards": 4, "born_later_share": 0.8, "end_date": "2026-01-01",
    }
}  # fmt: skip
DAYS = ["2025-12-17", "2025-12-18", "2025-12-19"]  # the busy days end after 28 of 40
MIDNIGHT = 1_765_929_600  # of the first


def events(log: Path) -> pl.DataFrame:
    return pl.read_parquet(log / "events" / "part-*.parquet")


def test_the_days_are_the_log_up_to_the_last_of_them(tmp_path: Path) -> None:
    simulate(RECIPE, tmp_path / "whole")
    result = run(RECIPE, tmp_path / "days", 3)
    assert sorted(path.name for path in (tmp_path / "days").iterdir()) == DAYS == list(result["days"])
    logs = [tmp_path / "days" / day for day in DAYS]
    stop = MIDNIGHT + 3 * 86_400
    whole = events(tmp_path / "whole").filter(pl.col("timestamp") < stop)
    assert pl.concat([events(log) for log in logs]).equals(whole)
    for number, log in enumerate(logs):
        times = events(log)["timestamp"].to_list()
        assert max(times) < MIDNIGHT + (number + 1) * 86_400
        assert min(times) >= MIDNIGHT + number * 86_400 or number == 0
        assert read_manifest(log, "log", 1, FarsightError)["counts"]["events"] == len(times) == result["days"][log.name]
    assert min(events(logs[0])["timestamp"].to_list()) < MIDNIGHT  # and all that was before


def test_a_day_knows_the_items_that_were_born_by_its_end(tmp_path: Path) -> None:
    run(RECIPE, tmp_path / "days", 3)
    known: set[str] = set()
    sizes = []
    for number, day in enumerate(DAYS):
        catalogue = pq.read_table(tmp_path / "days" / day / "catalogue.parquet")
        items = set(catalogue["item_id"].to_pylist())
        assert max(catalogue["born"].to_pylist()) < MIDNIGHT + (number + 1) * 86_400
        assert known < items
        assert set(events(tmp_path / "days" / day)["item_id"].to_list()) <= items
        known = items
        sizes.append(len(items))
    assert sizes[0] < sizes[-1] < 240


@pytest.mark.parametrize("days", [0, 29])
def test_more_days_than_are_busy_are_refused(tmp_path: Path, days: int) -> None:
    with pytest.raises(RecipeError, match=rf"--days {days}: expected 1 to 28, the days before users begin to leave"):
        run(RECIPE, tmp_path / "days", days)
    assert not list(tmp_path.iterdir())
