"""Actions made of weights, through a whole ingest."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data.cases import check_targets, split_cases
from data.dataset import PreparedDataset
from data.errors import DatasetError, LogError, RecipeError
from data.ingest import run
from data.weight_actions import with_actions

BY_WEIGHT = {"click": 4.0, "exposure": 0.0, "conversion": 5.0}


def test_the_highest_threshold_that_is_reached_names_the_action_and_logged_actions_stay() -> None:
    rows = pl.DataFrame(
        {"action": [None, None, None, "view", None, None], "weight": [5.0, 4.5, 3.0, 5.0, -1.0, 4.0]},
        schema={"action": pl.String, "weight": pl.Float32},
    )
    found = with_actions(rows, BY_WEIGHT)["action"].to_list()
    assert found == ["conversion", "click", "exposure", "view", None, "click"]
    assert with_actions(rows, {}).equals(rows)


def ingested(directory: Path, columns: str = "user_id,item_id,timestamp,weight", **settings: Any) -> PreparedDataset:
    names = columns.split(",")
    lines = [
        {
            "user_id": user,
            "item_id": 10 * user + event,
            "timestamp": 1_000_000 + event,
            "weight": 1 + (user + event) % 5,
        }
        for user in range(6)
        for event in range(8)
    ]
    text = "\n".join([columns, *(",".join(str(line[name]) for name in names) for line in lines)])
    directory.mkdir(parents=True)
    (directory / "log.csv").write_text(text + "\n")
    section = {"log": str(directory / "log.csv"), "out": str(directory / "dataset"), "num_buckets": 1, **settings}
    run({"ingest": section})
    return PreparedDataset.open(directory / "dataset")


def test_ratings_become_actions_and_targets_can_be_those_of_some(tmp_path: Path) -> None:
    split = {"kind": "last_out", "test_events": 3}
    dataset = ingested(tmp_path / "one", actions_by_weight=BY_WEIGHT, split=split)
    names = [None, *dataset.manifest["actions"]]
    assert names == [None, "click", "conversion", "exposure"]
    [histories] = dataset.history_tables(["weights", "actions", "items", "user_id"])
    wanted: dict[str, list[int]] = {}
    for row in histories.to_pylist():
        expected = [
            "conversion" if weight == 5 else "click" if weight == 4 else "exposure" for weight in row["weights"]
        ]
        assert [names[code] for code in row["actions"]] == expected
        own = [item for item, action in zip(row["items"][-3:], expected[-3:], strict=True) if action != "exposure"]
        if own:
            wanted[row["user_id"]] = own
    found = {}
    for batch in split_cases(dataset, "test", users_per_batch=2, target_actions=["click", "conversion"]):
        for user, rows, targets in zip(batch.user_ids, batch.following, batch.targets, strict=True):
            found[user] = rows.tolist()
            assert targets.tolist() == sorted(rows.tolist())
    assert 0 < len(found) < 6
    assert found == wanted
    every = sum(map(len, split_cases(dataset, "test", users_per_batch=2, target_actions=names[1:])))  # type: ignore[arg-type]
    assert every == 6


def test_actions_that_no_target_has_are_refused(tmp_path: Path) -> None:
    dataset = ingested(tmp_path / "one", actions_by_weight={"rare": 5.0, "exposure": 0.0}, max_time=2_000_000_000)
    with pytest.raises(DatasetError, match="no event has the action buy; there are exposure, rare"):
        next(split_cases(dataset, "test", users_per_batch=4, target_actions=["buy"]))
    check_targets(dataset, "test", None)
    check_targets(dataset, "test", ["rare"])
    none = ingested(tmp_path / "two", actions_by_weight={"never": 1.5, "exposure": 0.0}, split={"test_events": 7})
    assert none.num_users == 6
    with pytest.raises(DatasetError, match="no user has a validation target with the actions"):
        check_targets(none, "validation", ["never"])


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LogError, match="no weight column, but actions_by_weight makes actions of weights; found user_id"
    ):
        ingested(tmp_path / "one", "user_id,item_id,timestamp", actions_by_weight=BY_WEIGHT)
    with pytest.raises(RecipeError, match="each from a weight of its own"):
        ingested(tmp_path / "two", actions_by_weight={"a": 1.0, "b": 1.0})
