"""Whole training runs on Ray Train with two workers: killed, interrupted, resumed; and plans that are refused."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.evaluate
import trainer.train
from data.dataset import PreparedDataset
from data.errors import DatasetError, MachineError, NonFiniteLoss, RecipeError, TrainingError
from data.storage import MANIFEST, write_json
from data.stream import count_targets
from modeling.artifact import Artifact
from tests.small_world import write_dataset
from trainer.settings import WorkerSettings
from trainer.telemetry import read_figures
from trainer.train import check_resources

EPOCHS = 6


def recipe(directory: Path, **train: Any) -> dict[str, Any]:
    if not (directory / "dataset").exists():
        write_dataset(directory / "dataset", num_users=60)
    encoder = {"kind": "hstu", "blocks": 1, "query_width": 8, "value_width": 8}
    return {
        "model": {"width": 8, "max_events": 8, "encoder": encoder, "negatives": {"kind": "mixed"}},
        "train": {
            "dataset": str(directory / "dataset"),
            "run_dir": str(directory / "run"),
            "epochs": EPOCHS,
            "events_per_batch": 64,
            "checkpoint_every_batches": 3,
            "tracking": {"wandb": "disabled", "every_steps": 1},
            "workers": {"num_workers": 2, "threads_per_worker": 1, "max_failures": 1},
            **train,
        },
    }


class Killer(threading.Thread):
    """Kills one training worker of this test run with SIGKILL once a checkpoint is committed."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(daemon=True)
        self.run_dir = run_dir
        self.killed: int | None = None
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if (self.run_dir / "ray" / "checkpoint_manager_snapshot.json").exists():
                workers = _training_workers()
                if workers:
                    os.kill(workers[-1], signal.SIGKILL)
                    self.killed = workers[-1]
                    return
            time.sleep(0.05)


def _training_workers() -> list[int]:
    """Processes of Ray Train workers whose Ray is this test run's."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            parent = (process / "stat").read_text().rsplit(")", 1)[1].split()[1]
            raylet = Path("/proc", parent, "cmdline").read_bytes()
        except OSError:
            continue
        if b"RayTrainWorker" in command and os.environ["RAY_TMPDIR"].encode() in raylet:
            found.append(int(process.name))
    return sorted(found)


def _check_complete(directory: Path, summary: dict[str, Any]) -> None:
    """The run trained all its epochs once, and left what it promises."""
    rows = read_figures(directory / "run")
    starts = [row for row in rows if row["kind"] == "start"]
    assert len(starts) == 2, starts
    assert starts[1]["epoch"] >= 1 or starts[1]["windows"]
    # Every target of every epoch once, on whichever attempt; but for the one window that equal parts for two leave out.
    dataset = PreparedDataset.open(directory / "dataset")
    targets = count_targets(dataset, max_events=8, rule="all")
    epochs = {row["epoch"]: row["events"] for row in rows if row["kind"] == "epoch"}
    assert list(epochs) == list(range(EPOCHS))
    assert all(0 <= targets - events <= 8 for events in epochs.values()), (targets, epochs)
    steps = [row["step"] for row in rows if row["kind"] == "step"]
    assert steps == sorted(set(steps))
    assert [row["epoch"] for row in rows if row["kind"] == "validation"] == list(range(1, EPOCHS + 1))
    assert all(row["gradient_norm"] is not None and row["loss"] > 0 for row in rows if row["kind"] == "step")
    best = max(row["ndcg@10"] for row in rows if row["kind"] == "validation")
    assert summary["validation"]["ndcg@10"] == pytest.approx(best)
    assert (directory / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    weights = Artifact.open(summary["artifact"]).load_retriever().state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert not list((directory / "run").glob(".*.partial"))


@pytest.mark.ray
def test_a_worker_killed_with_half_the_items_is_replaced_and_validation_follows_the_protocol(
    ray_session: None, tmp_path: Path
) -> None:
    sharded = {"kind": "sharded", "optimizer": "rowwise_adagrad"}
    settings = recipe(tmp_path, engine={"zero_stage": 1, "gradient_accumulation": 2}, item_table=sharded)
    settings["evaluate"] = {"gap_seconds": 200_000, "request_time": "last_event", "ks": [10], "baselines": []}
    killer = Killer(tmp_path / "run")
    summary = trainer.train.run(settings)
    assert killer.killed is not None
    _check_complete(tmp_path, summary)
    dataset = settings["train"]["dataset"]
    by_protocol = trainer.evaluate.run(summary["artifact"], dataset, split="validation", recipe=settings)
    without_gap = trainer.evaluate.run(summary["artifact"], dataset, split="validation", recipe={})
    assert summary["validation"]["ndcg@10"] == pytest.approx(by_protocol["rows"][-1]["ndcg@10"], abs=1e-6)
    assert summary["validation"]["ndcg@10"] != pytest.approx(without_gap["rows"][-1]["ndcg@10"], abs=1e-6)


@pytest.mark.ray
def test_an_interrupted_run_goes_on_where_it_stopped_and_a_complete_one_is_not_repeated(
    ray_session: None, tmp_path: Path
) -> None:
    settings = recipe(
        tmp_path,
        engine={"zero_stage": 3, "precision": "bf16"},
        workers={"num_workers": 2, "threads_per_worker": 1, "max_failures": 0},
    )
    killer = Killer(tmp_path / "run")
    with pytest.raises(TrainingError, match="restarts are used up"):
        trainer.train.run(settings)
    assert killer.killed is not None
    assert not (tmp_path / "run" / "artifact").exists()
    summary = trainer.train.run(settings)
    _check_complete(tmp_path, summary)
    began = time.monotonic()
    assert trainer.train.run(settings) == summary
    assert time.monotonic() - began < 5, "a complete run was trained again"
    # Of the section `evaluate` cut-offs do not bear on validation, so others make no other run.
    assert trainer.train.run({**settings, "evaluate": {"ks": [5]}}) == summary
    with pytest.raises(RecipeError, match=r"other settings \(evaluate.seen: 'removed' -> 'kept'\)"):
        trainer.train.run({**settings, "evaluate": {"seen": "kept"}})
    with pytest.raises(RecipeError, match=r"other settings \(train.seed: 0 -> 7\)"):
        trainer.train.run(recipe(tmp_path, seed=7, engine=settings["train"]["engine"]))


@pytest.mark.ray
def test_a_loss_that_is_not_finite_ends_the_run_with_the_batch_named(ray_session: None, tmp_path: Path) -> None:
    settings = recipe(
        tmp_path,
        optimizer={"learning_rate": 1e30, "warmup_steps": 0},
        workers={"num_workers": 1, "max_failures": 0},
    )
    with pytest.raises(NonFiniteLoss, match=r"epoch \d, batch \d+, rank 0: loss (nan|inf).*user_key"):
        trainer.train.run(settings)


@pytest.mark.ray
def test_a_plan_that_ray_could_never_start_is_refused(ray_session: None) -> None:
    with pytest.raises(MachineError, match=r"900 workers of 1 CPUs and Ray Data need 901 logical CPUs"):
        check_resources(WorkerSettings(num_workers=900))
    if not torch.cuda.is_available():
        with pytest.raises(MachineError, match="workers need a GPU each"):
            check_resources(WorkerSettings(use_gpu=True))


def test_a_model_that_reads_times_refuses_a_dataset_without_them(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    dataset = PreparedDataset.open(tmp_path / "dataset")
    write_json(dataset.directory / MANIFEST, {**dataset.manifest, "has_times": False})
    with pytest.raises(DatasetError, match=r"set model.encoder.time_bias=false"):
        trainer.train.run(settings)


def test_a_dataset_without_validation_targets_is_refused(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    dataset = PreparedDataset.open(tmp_path / "dataset")
    dataset.manifest["counts"]["users_with_validation"] = 0
    write_json(dataset.directory / MANIFEST, dataset.manifest)
    with pytest.raises(DatasetError, match="no user has validation targets, by which the best checkpoint is chosen"):
        trainer.train.run(settings)


def test_a_misspelt_setting_is_named(tmp_path: Path) -> None:
    settings = recipe(tmp_path, learning_rte=1)
    with pytest.raises(RecipeError, match=r"train.learning_rte: Extra inputs are not permitted"):
        trainer.train.run(settings)


def test_every_item_as_a_negative_and_a_sharded_table_exclude_each_other(tmp_path: Path) -> None:
    settings = recipe(tmp_path, item_table={"kind": "sharded"})
    settings["model"]["negatives"] = {"kind": "all"}
    with pytest.raises(RecipeError, match="needs every item on every worker"):
        trainer.train.run(settings)
    assert not (tmp_path / "run").exists()
