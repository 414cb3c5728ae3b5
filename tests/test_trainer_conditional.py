"""Evaluation under conditions against a plain program, and what inspect shows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import trainer.conditional
import trainer.inspect
from data.cases import split_cases
from data.conditions import Conditions
from data.dataset import PreparedDataset
from data.errors import ArtifactMismatch, DatasetError
from modeling.artifact import Artifact
from modeling.settings import ConditionSettings, PoolSettings
from tests.small_world import NUM_ITEMS, write_artifact, write_dataset
from trainer.conditional import ConditionedCases, conditioned_cases

POOL = PoolSettings(name="new", max_age_days=2)
World = tuple[PreparedDataset, Artifact]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("conditional")
    dataset = write_dataset(directory / "dataset", num_users=40, test_events=2)
    return dataset, write_artifact(directory / "artifact", dataset, condition=ConditionSettings(pools=(POOL,)))


def cases_of(world: World, choice: Any) -> list[ConditionedCases]:
    dataset, artifact = world
    cases = split_cases(dataset, "test", users_per_batch=7, min_events=1)
    return [batch for batch in conditioned_cases(cases, artifact.conditions(), choice=choice) if len(batch)]


def satisfies(row: int, name: str, at: int, first_seen: list[int]) -> bool:
    if name == "new":
        return at - 2 * 86_400 < first_seen[row - 1] <= at
    return {"even": row % 2 == 0, "odd": row % 2 == 1, "tenth": row % 10 == 0}[name]


@pytest.mark.parametrize("choice", ["oracle", "favourite", "rare"])
def test_users_are_asked_under_a_condition_that_their_targets_satisfy(world: World, choice: str) -> None:
    dataset, artifact = world
    names = artifact.conditions().names
    first_seen = dataset.catalogue().column("first_seen").to_pylist()
    found = 0
    for batch in cases_of(world, choice):
        for place in range(len(batch)):
            found += 1
            name, at = names[batch.codes[place] - 1], batch.query_times[place]
            assert all(satisfies(int(row), name, at, first_seen) for row in batch.targets[place])
            assert set(batch.following[place].tolist()) == set(batch.targets[place].tolist())
            seen = batch.items[place].tolist()
            counts = {one: sum(satisfies(row, one, 0, first_seen) for row in seen) for one in names[:3]}
            if choice == "favourite":
                assert counts[name] == max(counts.values())
            if choice == "rare":
                assert counts[name] == min(counts.values())
    if choice == "oracle":
        assert found == dataset.manifest["counts"]["users_with_test"]  # each target is even or odd


def test_every_way_to_answer_is_measured(world: World, tmp_path: Path) -> None:
    dataset, artifact = world
    recipe = {"evaluate": {"ks": [5, 20]}}
    places = (str(artifact.directory), str(dataset.directory))
    report = trainer.conditional.run(*places, condition="oracle", recipe=recipe, users_out=str(tmp_path / "users"))
    rows = {row["model"]: row for row in report["rows"]}
    assert next(iter(rows)) == "popularity, filtered"
    assert list(rows)[-1] == "conditioned, filtered"
    for name, row in rows.items():
        if name.endswith("filtered"):
            assert row["cc@5"] == 1
        table = pq.read_table(tmp_path / "users" / f"{name}.parquet")
        assert np.mean(table.column("hr@5").to_numpy()) == pytest.approx(row["hr@5"])
    assert 0.3 < rows["plain"]["cc@20"] < 0.8  # about half of the items are even
    assert rows["plain"]["fill@20"] == 1
    assert rows["plain, post-filtered"]["fill@20"] < 1
    assert rows["plain, filtered"]["hr@20"] >= rows["plain"]["hr@20"]
    assert rows["plain, post-filtered"]["hr@20"] == rows["plain"]["hr@20"]
    json.dumps(report)


def test_conditioned_scores_are_those_of_the_query_vector_that_was_told(world: World) -> None:
    dataset, artifact = world
    retriever = artifact.load_retriever()
    recipe = {"evaluate": {"ks": [5], "seen": "kept"}}
    report = trainer.conditional.run(str(artifact.directory), str(dataset.directory), condition="oracle", recipe=recipe)
    hits, total = 0, 0
    items_VD = retriever.item_vectors(torch.arange(NUM_ITEMS + 1))
    for batch in cases_of(world, "oracle"):
        asked_B1 = torch.tensor(batch.codes)[:, None]
        query_B1D = retriever.conditioned_query_vectors(batch.batch(artifact.max_events), asked_B1)
        scores_BV = query_B1D[:, 0] @ items_VD.T
        scores_BV[:, 0] = -torch.inf
        for row, targets in zip(scores_BV, batch.targets, strict=True):
            hits += bool(set(row.topk(5).indices.tolist()) & set(targets.tolist()))
            total += 1
    [row] = [row for row in report["rows"] if row["model"] == "conditioned"]
    assert row["hr@5"] == pytest.approx(hits / total)


def test_an_artifact_without_conditions_is_measured_by_filters_alone(world: World, tmp_path: Path) -> None:
    dataset, _ = world
    plain = write_artifact(tmp_path / "plain", dataset)
    report = trainer.conditional.run(str(plain.directory), str(dataset.directory), condition="favourite")
    assert not any(row["model"].startswith("conditioned") for row in report["rows"])
    assert Conditions.of(plain.catalogue()).names == ["even", "odd", "tenth"]
    [row] = trainer.conditional.run(
        str(plain.directory), str(dataset.directory), condition="favourite", only=["plain", "conditioned"]
    )["rows"]
    assert row == next(every for every in report["rows"] if every["model"] == "plain")


def test_inspect_shows_history_mask_and_answers(world: World, tmp_path: Path) -> None:
    dataset, artifact = world
    picture = tmp_path / "mask.png"
    places = (str(artifact.directory), str(dataset.directory))
    [user] = [row["user_id"] for table in dataset.history_tables() for row in table.to_pylist()][:1]
    shown = trainer.inspect.run(*places, user, conditions=["odd", "new"], k=4, out=str(picture))
    assert list(shown["answers"]) == ["head 1", "odd", "new"]
    assert all(len(items) == 4 for items in shown["answers"].values())
    assert shown["answers"]["odd"] != shown["answers"]["head 1"]
    [row] = [row for table in dataset.history_tables() for row in table.to_pylist() if row["user_id"] == user]
    assert [event["time"] for event in shown["history"]] == row["times"]
    known = [event for event in shown["history"] if event["visible_from"] is not None]
    assert [event["visible_from"] for event in known] == list(range(1, len(known) + 1))  # next item, all visible
    assert {event["part"] for event in known} == {"train"}
    assert picture.stat().st_size > 5000
    with pytest.raises(DatasetError, match="no user 'nobody'"):
        trainer.inspect.run(*places, "nobody")
    with pytest.raises(ArtifactMismatch, match="no condition 'western'; there are even, odd, tenth, new"):
        trainer.inspect.run(*places, user, conditions=["western"])
