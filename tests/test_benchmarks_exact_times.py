"""The split of users by what is known of their times."""

from pathlib import Path

import polars as pl
import pytest

from benchmarks.exact_times import groups


def test_users_are_parted_by_whether_all_their_seconds_are_exact(tmp_path: Path) -> None:
    users = pl.DataFrame({"user_id": ["a", "b", "c"], "hr@10": [1.0, 0.0, 1.0], "ndcg@10": [0.5, 0.0, 1.0]})
    users.write_parquet(tmp_path / "model.parquet")
    exact = pl.DataFrame({"user_id": ["c", "b", "a"], "exact": [False, False, True]})
    found = groups(tmp_path / "model.parquet", exact)
    assert found["exact"] == {"users": 1, "hr@10": 1.0, "ndcg@10": 0.5}
    assert found["estimated"] == {"users": 2, "hr@10": 0.5, "ndcg@10": 0.5}
    assert found["all"]["hr@10"] == pytest.approx(2 / 3)
