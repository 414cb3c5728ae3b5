"""The benchmark of negatives: what it calls false is what a look at every history calls so; its figures are whole."""

import numpy as np
import pytest
import torch

from benchmarks.negatives import Judge, endless_windows, measured, whole_histories
from cluster.suite import load_suite
from data.dataset import PreparedDataset
from modeling.build import build_retriever
from modeling.settings import ModelSettings
from tests.small_world import write_dataset
from trainer.settings import TrainSettings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_dataset(tmp_path_factory.mktemp("negatives") / "dataset", num_users=40, num_items=200)


def test_false_negatives_are_the_later_events_of_the_user(dataset: PreparedDataset) -> None:
    judge = Judge(dataset)
    train = TrainSettings(dataset="-", run_dir="-", events_per_batch=60)
    windows = next(endless_windows(dataset, ModelSettings(max_events=5), train))
    targets_E, users_E, places_E = judge.targets(windows)
    histories = whole_histories(dataset).column("items").to_pylist()
    firsts = np.cumsum([0, *map(len, histories)])
    rows_EM = np.random.default_rng(0).integers(0, 201, (len(targets_E), 50))
    false = counted = 0
    for target, user, place, rows in zip(targets_E.tolist(), users_E, places_E, rows_EM, strict=True):
        history = histories[user]
        at = int(place - firsts[user])
        assert history[at] == target
        false += sum(row in history[at + 1 :] and row != target for row in rows)
        counted += sum(row not in (0, target) for row in rows)
    assert judge.false_ones(users_E, places_E, targets_E, torch.from_numpy(rows_EM)) == (false, counted)
    assert false > 20


def test_every_row_is_measured_at_the_number_of_candidates_that_the_suite_states(dataset: PreparedDataset) -> None:
    for name in ("in_batch", "esans"):
        figures = measured(dataset, "simulated", name, 3)
        assert figures["scored_per_target"] == 512
        assert figures["milliseconds_per_step"]["median"] > 0
        assert 0 < figures["false_negatives"]["all"] < 0.5
    assert set(figures["false_negatives"]) == {"all", "shared", "own"}
    assert figures["clustering_seconds"]["runs"] == 2


def test_rows_of_the_suite_are_scored_against_equal_numbers() -> None:
    found = {}
    for name, row in load_suite("esans").models.items():
        if row.baseline is None:
            settings = ModelSettings.model_validate({"negatives": row.model["negatives"]})
            built = build_retriever(settings, num_rows=3000, num_actions=0, train_counts=np.ones(3000, np.int64))
            assert built.sampler is not None
            found[name] = built.sampler.scored_per_target
    assert {name: count for name, count in found.items() if name.endswith("_48")} == dict.fromkeys(
        ("uniform_48", "mixed_48", "esans_48"), 48
    )
    assert {count for name, count in found.items() if not name.endswith("_48")} == {512}
