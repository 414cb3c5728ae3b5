"""Whole training runs on Ray Train with two workers: killed, interrupted, resumed; and plans that are refused."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import serve.build
import trainer.evaluate
import trainer.train
from data.dataset import PreparedDataset
from data.errors import DatasetError, MachineError, NonFiniteLoss, RecipeError, TrainingError
from data.storage import MANIFEST, write_json
from data.stream import epoch_size
from data.tracking.jsonl import FILE_NAME as TRACKING_LINES
from data.tracking.on_tensorboard import FOLDER as TENSORBOARD
from data.tracking.published import Published
from modeling.artifact import Artifact
from modeling.settings import HashedItems
from tests.small_world import NUM_ITEMS, write_artifact, write_dataset
from tests.training_runs import EPOCHS, MAX_EVENTS, check_complete, checkpoints, recipe, training_workers
from tests.wandb_files import offline_runs
from trainer.checkpoints import LOOP, WEIGHTS, what_is_missing
from trainer.settings import WorkerSettings
from trainer.telemetry import read_figures
from trainer.train import RUN_FILE, check_resources


class Killer(threading.Thread):
    """Kills one training worker of this test run with SIGKILL once that many checkpoints stand."""

    def __init__(self, run_dir: Path, after: int = 1) -> None:
        super().__init__(daemon=True)
        self.run_dir, self.after = run_dir, after
        self.killed: int | None = None
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            workers = list(training_workers()) if len(checkpoints(self.run_dir)) >= self.after else []
            if workers:
                os.kill(workers[-1], signal.SIGKILL)
                self.killed = workers[-1]
                return
            time.sleep(0.05)


def _record(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / TRACKING_LINES).read_text().splitlines()]


def _check_record(run_dir: Path, settings: dict[str, Any], summary: dict[str, Any]) -> None:
    """What trackers were told of a run whose first attempt was killed: figures, examples, and what came of what."""
    events = _record(run_dir)
    starts = [event for event in events if event["event"] == "start"]
    assert len({event["run_id"] for event in starts}) == 1
    first, again, driver = starts
    assert first["resumed_at"] is None
    assert again["resumed_at"] < driver["resumed_at"]
    config = first["config"]
    assert config["train"]["epochs"] == EPOCHS
    assert (config["cluster"]["nodes"], config["versions"]["ray"]) == (1, ray.__version__)
    dataset = Published.of(settings["train"]["dataset"])
    assert config["dataset"]["content_hash"] == dataset.content_hash
    used, made = ({event["content_hash"] for event in events if event["event"] == role} for role in ("used", "made"))
    assert (used, made) == ({dataset.content_hash}, {summary["content_hash"]})
    figures = [event for event in events if event["event"] == "figures"]
    assert figures[-1]["epoch"] == EPOCHS
    targets = epoch_size(PreparedDataset.open(dataset.directory), max_events=MAX_EVENTS, rule="all").targets
    assert figures[-1]["events_seen"] == EPOCHS * targets
    assert figures[-1]["figures"]["system/checkpoint_seconds"] > 0  # what is saved last
    low, mean, high = (figures[-2]["figures"][f"eval/ndcg_at_10{end}"] for end in ("_low", "", "_high"))
    assert low <= mean <= high
    table = [event for event in events if event["event"] == "table"][-1]
    assert (table["name"], table["epoch"], len(table["rows"])) == ("examples", EPOCHS, 4)
    assert all(row["answer"].startswith("1. Title ") for row in table["rows"])  # ranked by all shards
    loop = json.loads((checkpoints(run_dir)[-1] / LOOP).read_text())
    assert loop["state"]["run_id"] == first["run_id"]


def _check_trackers(run_dir: Path, resumed_at: int) -> None:
    """One W&B run over all attempts, and a TensorBoard curve in which no step stands twice."""
    run_id = json.loads((run_dir / RUN_FILE).read_text())["run_id"]
    # W&B writes every few seconds, so that of an attempt that was killed there may be nothing.
    attempts = [run for run in offline_runs(run_dir, killed=True) if run.run_id]
    assert {(run.run_id, run.resumes) for run in attempts} == {(run_id, True)}
    assert [run.alerts[0][0] for run in attempts if run.alerts] == ["Training failed"] * 2
    rows = [row for run in attempts for row in run.history]
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    assert attempts[-1].made[0].type == "artifact"
    again = next(run for run in reversed(attempts) if run.history)
    assert again.history[0]["global_step"] == resumed_at
    losses = EventAccumulator(str(run_dir / TENSORBOARD)).Reload().Scalars("train/loss")
    written = [(row["step"], row["loss"]) for row in read_figures(run_dir) if row["kind"] == "step"]
    assert [event.step for event in losses] == [step for step, _ in written]
    assert [event.value for event in losses] == pytest.approx([loss for _, loss in written])


@pytest.mark.long
@pytest.mark.ray
def test_a_worker_killed_with_half_the_items_is_replaced_and_validation_follows_the_protocol(
    ray_session: None, tmp_path: Path
) -> None:
    sharded = {"kind": "sharded", "optimizer": "rowwise_adagrad"}
    settings = recipe(tmp_path, engine={"zero_stage": 1, "gradient_accumulation": 2}, item_table=sharded)
    settings["evaluate"] = {"gap_seconds": 200_000, "request_time": "last_event", "ks": [10], "baselines": []}
    settings["tracking"] |= {"to": ["jsonl"], "examples": 4}
    killer = Killer(tmp_path / "run")
    summary = trainer.train.run(settings)
    assert killer.killed is not None
    check_complete(tmp_path, summary)
    _check_record(tmp_path / "run", settings, summary)
    dataset = settings["train"]["dataset"]
    by_protocol = trainer.evaluate.run(summary["artifact"], dataset, split="validation", recipe=settings)
    without_gap = trainer.evaluate.run(summary["artifact"], dataset, split="validation", recipe={})
    assert summary["validation"]["ndcg@10"] == pytest.approx(by_protocol["rows"][-1]["ndcg@10"], abs=1e-6)
    assert summary["validation"]["ndcg@10"] != pytest.approx(without_gap["rows"][-1]["ndcg@10"], abs=1e-6)


@pytest.mark.long
@pytest.mark.ray
def test_an_interrupted_run_goes_on_where_it_stopped_and_a_complete_one_is_not_repeated(
    ray_session: None, tmp_path: Path
) -> None:
    settings = recipe(
        tmp_path,
        engine={"zero_stage": 3, "precision": "bf16"},
        workers={"num_workers": 2, "threads_per_worker": 1, "max_failures": 0},
    )
    settings["tracking"] |= {"to": ["wandb", "tensorboard"]}
    killer = Killer(tmp_path / "run", after=2)
    with pytest.raises(TrainingError, match="restarts are used up"):
        trainer.train.run(settings)
    assert killer.killed is not None
    assert not (tmp_path / "run" / "artifact").exists()
    # Every checkpoint loses half of a file; then the oldest gets it back.
    whole = [path for path in checkpoints(tmp_path / "run") if what_is_missing(path) is None]
    weights, step = (whole[0] / WEIGHTS).read_bytes(), json.loads((whole[0] / LOOP).read_text())["state"]["step"]
    for path in whole:
        os.truncate(path / WEIGHTS, len(weights) // 2)
    with pytest.raises(TrainingError, match=rf"{WEIGHTS} has \d+ bytes of {len(weights)}, and no other .*restore its"):
        trainer.train.run(settings)
    (whole[0] / WEIGHTS).write_bytes(weights)
    summary = trainer.train.run(settings)
    check_complete(tmp_path, summary)
    last_start = [row for row in read_figures(tmp_path / "run") if row["kind"] == "start"][-1]
    assert last_start["step"] == step
    _check_trackers(tmp_path / "run", resumed_at=step)
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
    settings["tracking"] |= {"to": ["jsonl"]}
    with pytest.raises(NonFiniteLoss, match=r"epoch \d, batch \d+, rank 0: loss (nan|inf).*user_key"):
        trainer.train.run(settings)
    *_, alert, end = _record(tmp_path / "run")
    assert (alert["event"], alert["title"]) == ("alert", "The loss is not finite")
    assert "user_key" in alert["text"]
    assert (end["event"], end["failed"]) == ("finish", True)


@pytest.mark.ray
def test_a_plan_that_ray_could_never_start_is_refused(ray_session: None) -> None:
    with pytest.raises(MachineError, match=r"900 workers of 1 CPUs and Ray Data need 901 logical CPUs"):
        check_resources(WorkerSettings(num_workers=900))
    with pytest.raises(MachineError, match="900 workers"):  # waited for, in vain
        check_resources(WorkerSettings(num_workers=900, wait_minutes=0.01))
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


def test_tracking_inside_the_section_train_is_refused_with_its_place(tmp_path: Path) -> None:
    settings = recipe(tmp_path, tracking={"every_steps": 5})
    with pytest.raises(RecipeError, match=r"tracking is a section of its own: tracking\.every_steps"):
        trainer.train.run(settings)


def test_every_item_as_a_negative_and_a_sharded_table_exclude_each_other(tmp_path: Path) -> None:
    settings = recipe(tmp_path, item_table={"kind": "sharded"})
    settings["model"]["negatives"] = {"kind": "all"}
    with pytest.raises(RecipeError, match="needs every item on every worker"):
        trainer.train.run(settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("item_table", "quotient_rows", "message"),
    [
        ("sharded", 50, "keep the table replicated, or model.items.kind rows"),
        ("replicated", 3, "make 36 different vectors for 60 items, so that more than 1% of the items would share one"),
    ],
)
def test_hashed_items_over_shards_or_with_too_few_rows_are_refused(
    tmp_path: Path, item_table: str, quotient_rows: int, message: str
) -> None:
    settings = recipe(tmp_path, item_table={"kind": item_table})
    settings["model"]["items"] = {"kind": "hashed", "quotient_rows": quotient_rows, "remainder_rows": 2}
    with pytest.raises(RecipeError, match=message):
        trainer.train.run(settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.ray
def test_a_run_with_hashed_items_goes_on_from_an_artifact_and_is_evaluated_and_indexed(
    ray_session: None, tmp_path: Path
) -> None:
    hashed = HashedItems(kind="hashed", quotient_rows=12, remainder_rows=10)
    begun = write_artifact(tmp_path / "begun", write_dataset(tmp_path / "dataset", num_users=60), items=hashed)
    engine = {"zero_stage": 3, "precision": "bf16"}
    optimizer = {"learning_rate": 0.01, "warmup_steps": 0}
    settings = recipe(tmp_path, epochs=1, engine=engine, optimizer=optimizer, start_from=str(begun.directory))
    settings["model"] = begun.settings.model_dump(mode="json")
    summary = trainer.train.run(settings)
    found = trainer.evaluate.run(summary["artifact"], settings["train"]["dataset"], split="validation", recipe={})
    assert found["rows"][-1]["ndcg@10"] == pytest.approx(summary["validation"]["ndcg@10"], abs=1e-6)
    ended, rows = Artifact.open(summary["artifact"]), torch.arange(1, NUM_ITEMS + 1)
    before_VD, after_VD = (artifact.load_retriever().item_vectors(rows) for artifact in (begun, ended))
    alike_V = (before_VD * after_VD).sum(-1)
    assert 0.5 < alike_V.mean() < 0.99  # it went on from them, and learned; bf16 alone leaves .9999
    run_index = serve.build.run(summary["artifact"], str(tmp_path / "release"), {})
    assert run_index["counts"]["items"] == NUM_ITEMS
