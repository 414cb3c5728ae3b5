"""What a training run tells Prometheus, by what reaches Ray."""

import time
from pathlib import Path
from typing import Any

import pytest
import ray.util.metrics

from data.tracking.contract import EPOCH, GLOBAL_STEP, NOT_FINITE, RunFacts, Step
from data.tracking.figures import FIGURES as TRACKED
from data.tracking.on_prometheus import FIGURES, Prometheus

Told = list[tuple[str, float, dict[str, str]]]
RUN = {"run": "demo/train", "run_id": "1"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Name, value and labels of everything that reaches Ray's classes, in order."""
    calls: Told = []

    class Noted:
        def __init__(self, name: str, *declared: Any) -> None:
            self.name = name.removeprefix("farsight_")

        def set(self, value: float, tags: dict[str, str]) -> None:
            calls.append((self.name, value, tags))

        inc = set

    for kind in ("Counter", "Gauge"):
        monkeypatch.setattr(ray.util.metrics, kind, Noted)
    return calls


def _tracker(directory: Path, step: Step) -> Prometheus:
    tracker = Prometheus()
    tracker.start(RunFacts("1", "demo/train", step, directory))
    return tracker


def test_figures_become_gauges_in_base_units_under_the_runs_name(told: Told, tmp_path: Path) -> None:
    tracker, began = _tracker(tmp_path, "train"), time.time()
    figures = {"train/loss": 2.5, "system/memory_gib": 1.5, "data/waiting_share": 0.25, "train/loss_head_1": 1.0}
    tracker.log({**figures, "eval/ndcg_at_10": 0.2, "eval/ndcg_at_10_low": 0.1}, {GLOBAL_STEP: 20, EPOCH: 3})
    found = {(name, tags.get("metric")): value for name, value, tags in told}
    assert all(RUN.items() <= tags.items() for _, _, tags in told)
    assert found.pop(("train_progress_timestamp_seconds", None)) >= began
    assert found.pop(("train_checkpoint_timestamp_seconds", None)) >= began
    assert found == {
        ("train_attempts", None): 1,
        ("train_step", None): 20,
        ("train_epoch", None): 3,
        ("train_loss", None): 2.5,
        ("train_memory_bytes", None): 1.5 * 2**30,
        ("train_data_wait_ratio", None): 0.25,
        ("train_evaluation_ratio", "ndcg_at_10"): 0.2,
    }
    tracker.finish(failed=False)


def test_an_attempt_is_counted_once_and_its_failure_too(told: Told, tmp_path: Path) -> None:
    tracker = _tracker(tmp_path, "train")
    for loss in (2.0, 1.0):
        tracker.log({"train/loss": loss}, {})
    tracker.alert(NOT_FINITE, "nan")
    tracker.finish(failed=True)
    counted = [(name, value, tags) for name, value, tags in told if not name.endswith(("_seconds", "_loss"))]
    assert counted == [("train_attempts", 1, RUN), ("train_not_finite", 1, RUN), ("train_failures", 1, RUN)]


def test_the_process_that_started_a_run_adds_its_alert_and_no_attempt(told: Told, tmp_path: Path) -> None:
    tracker = _tracker(tmp_path, "train")
    tracker.alert("Training failed", "why")
    tracker.finish(failed=True)
    assert told == [("alerts", 1, {**RUN, "step": "train", "title": "Training failed"})]


def test_a_pipeline_has_its_alerts_only(told: Told, tmp_path: Path) -> None:
    tracker = _tracker(tmp_path, "pipeline")
    tracker.log({"eval/ndcg_at_10": 0.2}, {})
    tracker.alert("The gate held a release back", "why")
    tracker.finish(failed=True)
    assert told == [("alerts", 1, {**RUN, "step": "pipeline", "title": "The gate held a release back"})]


def test_figures_without_a_metric_are_few_and_known() -> None:
    assert set(FIGURES) <= set(TRACKED)
    assert {name for name in set(TRACKED) - set(FIGURES) if name.startswith(("train/", "data/", "system/"))} == {
        "data/epoch_targets",  # of an epoch that has ended; the axes say how far the run is
        "system/train_seconds",
        # Of runs alone whose negatives are drawn from clusters of the items.
        "system/clusters",
        "system/largest_cluster",
        "system/clustering_seconds",
        "system/clustering_waited_seconds",
    }
