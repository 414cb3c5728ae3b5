"""Trackers: what they are told is read back from their own files, and none can stop a run or make it wait."""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.errors import ArtifactError, MachineError, RecipeError
from data.storage import MANIFEST, directory_hashes, write_json
from data.tracking.build import start_tracking, tracked, tracking_settings
from data.tracking.contract import AXES, EPOCH, EVENTS_SEEN, GLOBAL_STEP, RunFacts
from data.tracking.facts import HIDDEN, run_facts, without_secrets
from data.tracking.figures import FIGURES, plain_name, tracked_figures
from data.tracking.following import Tracking
from data.tracking.jsonl import FILE_NAME
from data.tracking.on_tensorboard import FOLDER
from data.tracking.published import Published
from data.tracking.settings import TrackingSettings
from tests.wandb_files import offline_runs

ALL = {"to": ["wandb", "mlflow", "tensorboard", "jsonl"], "group": "shop"}
LOSSES = {10: 3.0, 20: 2.0, 30: 4.0}


def _piece(directory: Path, kind: str, content: str) -> Published:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "weights.bin").write_text(content)
    write_json(directory / MANIFEST, {"kind": kind, "files": directory_hashes(directory)})
    return Published.of(directory)


def _told(settings: TrackingSettings, run: RunFacts, dataset: Published, artifact: Published) -> dict[str, str]:
    """Two attempts of a run: the first is lost at step 30, the second goes on from 20 and ends."""
    for attempt in (run, replace(run, resumed_at=20)):
        tracking = start_tracking(settings, attempt)
        tracking.used(dataset)
        for step, loss in LOSSES.items():
            if step > (attempt.resumed_at or 0):
                axes = {GLOBAL_STEP: step, EPOCH: step // 20, EVENTS_SEEN: step * 7}
                tracking.log({"train/loss": loss / (2 if attempt.resumed_at else 1)}, axes)
        if attempt.resumed_at:
            axes = {GLOBAL_STEP: 30, EPOCH: 1, EVENTS_SEEN: 210}
            tracking.log({"eval/ndcg_at_10": 0.25, "eval/ndcg_at_10_low": 0.2}, axes)
            tracking.table("examples", ["user", "hit"], [["u1", True], ["u2", False]], axes)
            tracking.made(artifact)
        else:
            tracking.alert("The loss is not finite", "look at user 7")
        tracking.finish(failed=not attempt.resumed_at)
    return tracking.problems


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrackingSettings]:
    """The run directory after `_told`, followed by all trackers at once."""
    folder = tmp_path_factory.mktemp("tracking")
    settings = tracking_settings({"tracking": {**ALL, "mlflow": {"uri": f"sqlite:///{folder / 'ml' / 'mlflow.db'}"}}})
    run = RunFacts("abc123", "shop/train", "train", folder / "run", {"model": {"width": 8}, "commit": "c0ffee"})
    problems = _told(settings, run, _piece(folder / "d", "dataset", "1"), _piece(folder / "a", "artifact", "2"))
    assert problems == {}
    return folder, settings


def test_a_resumed_wandb_run_keeps_its_id_and_its_own_axes(told: tuple[Path, TrackingSettings]) -> None:
    first, second = offline_runs(told[0] / "run", "abc123")
    for attempt in (first, second):
        assert (attempt.run_id, attempt.job_type, attempt.group) == ("abc123", "train", "shop")
        assert attempt.resumes  # wandb sync appends it to what came before
        assert attempt.config["model"] == {"width": 8}
        assert attempt.config["commit"] == "c0ffee"
        assert {attempt.axes[name] for name in ("train/*", "data/*", "system/*", "train/loss")} == {GLOBAL_STEP}
        assert {attempt.axes[name] for name in ("eval/*", "eval/ndcg_at_10")} == {EPOCH}
    assert [row["train/loss"] for row in first.history] == [3.0, 2.0, 4.0]
    replayed, validation, table = second.history
    assert (replayed[GLOBAL_STEP], replayed["train/loss"]) == (30, 2.0)
    assert {name: validation[name] for name in AXES} == {GLOBAL_STEP: 30, EPOCH: 1, EVENTS_SEEN: 210}
    # W&B's own step only grows, also where ours steps back.
    assert [row["_step"] for row in (*first.history, *second.history)] == [1, 2, 3, 4, 5, 6]
    assert table["examples/nrows"] == 2
    assert second.summary["eval/ndcg_at_10"] == {"max": 0.25, "last": 0.25}
    assert first.alerts == [("The loss is not finite", "look at user 7")]
    assert (first.exit_code, second.exit_code) == (1, 0)


def test_wandb_lineage_names_content_and_sends_no_files(told: tuple[Path, TrackingSettings]) -> None:
    first, second = offline_runs(told[0] / "run", "abc123")
    (dataset,), (made,) = first.used, [one for one in second.made if one.type != "run_table"]
    assert (dataset.name, dataset.type, made.name, made.type) == (
        "shop-dataset",
        "dataset",
        "shop-artifact",
        "artifact",
    )
    assert second.used[0].digest == dataset.digest  # the same content is the same version
    assert second.used[0].digest != made.digest
    piece = Published.of(told[0] / "a")
    assert json.loads(made.metadata)["content_hash"] == piece.content_hash
    assert piece.content_hash[:12] in made.aliases
    assert {entry.path for entry in made.manifest.contents} == {"weights.bin", MANIFEST}
    for entry in made.manifest.contents:
        assert entry.ref == (piece.directory / entry.path).as_uri()
        assert not entry.local_path  # nothing to upload
    assert second.config["made_artifact"]["content_hash"] == piece.content_hash


def test_equal_content_in_another_place_is_the_same_version_of_an_artifact(tmp_path: Path) -> None:
    settings = TrackingSettings(to=("wandb",))
    for place in ("here", "there"):
        run = RunFacts(place, place, "index", tmp_path / place)
        with tracked(settings, run) as tracking:
            tracking.used(_piece(tmp_path / place / "artifact", "artifact", "same"))
    digests = {run.used[0].digest for place in ("here", "there") for run in offline_runs(tmp_path / place)}
    assert len(digests) == 1


def test_mlflow_finds_the_run_again_and_keeps_figures_tables_and_lineage(told: tuple[Path, TrackingSettings]) -> None:
    from mlflow import MlflowClient

    folder, settings = told
    client = MlflowClient(tracking_uri=settings.mlflow.uri)
    experiment = client.get_experiment_by_name("farsight")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.width"] == "8"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(10, 3.0), (20, 2.0), (30, 4.0), (30, 2.0)]
    assert run.data.metrics["eval/ndcg_at_10_low"] == 0.2
    assert run.data.metrics[EVENTS_SEEN] == 210
    assert run.data.tags["alert"] == "The loss is not finite: look at user 7"
    assert run.data.tags["used.dataset"] == Published.of(folder / "d").content_hash
    assert run.data.tags["made.artifact"] == Published.of(folder / "a").content_hash
    table = folder / "ml" / "files" / run.info.run_id / "artifacts" / "tables" / "examples" / "step-00000030.json"
    assert json.loads(table.read_text()) == {"columns": ["user", "hit"], "data": [["u1", True], ["u2", False]]}


def test_tensorboard_hides_the_steps_that_were_lost(told: tuple[Path, TrackingSettings]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(told[0] / "run" / FOLDER)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(10, 3.0), (20, 2.0), (30, 2.0)]
    assert [event.value for event in events.Scalars(f"axes/{EVENTS_SEEN}")] == [70, 140, 210, 210]
    (table,) = events.Tensors("examples/text_summary")
    assert table.tensor_proto.string_val[0].decode().splitlines()[-1] == "| u2 | False |"
    assert "alerts/text_summary" in events.Tags()["tensors"]


def test_json_lines_are_the_whole_record(told: tuple[Path, TrackingSettings]) -> None:
    rows = [json.loads(line) for line in (told[0] / "run" / FILE_NAME).read_text().splitlines()]
    events = ["start", "used", "figures", "figures", "figures", "alert", "finish"]
    assert [row["event"] for row in rows] == [*events, "start", "used", "figures", "figures", "table", "made", "finish"]
    assert [row["resumed_at"] for row in rows if row["event"] == "start"] == [None, 20]
    assert rows[2]["figures"] == {"train/loss": 3.0}


class Slow:
    """A tracker of somebody else's, which blocks until it is let go, and fails at what it is told to."""

    def __init__(self, fails_at: Sequence[str] = (), blocks: bool = False) -> None:
        self.fails_at, self.calls, self.go = fails_at, list[str](), threading.Event()
        if not blocks:
            self.go.set()

    def _called(self, name: str) -> None:
        self.go.wait(20)
        self.calls.append(name)
        if name in self.fails_at:
            raise ConnectionError(f"{name} was refused by https://me:password@host/api")

    def start(self, run: RunFacts) -> None:
        self._called("start")

    def log(self, figures: Mapping[str, float], axes: Mapping[str, int]) -> None:
        self._called("log")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], axes: Mapping[str, int]) -> None:
        self._called("table")

    def alert(self, title: str, text: str) -> None:
        self._called("alert")

    def used(self, piece: Published) -> None:
        self._called("used")

    def made(self, piece: Published) -> None:
        self._called("made")

    def finish(self, *, failed: bool) -> None:
        self._called("finish")


def test_a_tracker_that_fails_is_told_of_once_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failing, sound = Slow(fails_at=["log"]), Slow()
    tracking = Tracking({"failing": failing, "sound": sound}, RunFacts("id", "run", "train", tmp_path))
    for _ in range(3):
        tracking.log({"train/loss": 1.0}, {})
    tracking.finish()
    assert failing.calls == sound.calls == ["start", "log", "log", "log", "finish"]
    assert tracking.problems == {
        "failing": f"figures: not taken (ConnectionError: log was refused by https://{HIDDEN}@host/api)"
    }
    assert caplog.text.count("tracking: failing: figures: not taken") == 1


def test_a_tracker_that_cannot_start_is_left_alone(tmp_path: Path) -> None:
    absent = Slow(fails_at=["start"])
    tracking = Tracking({"absent": absent}, RunFacts("id", "run", "train", tmp_path))
    tracking.alert("a", "b")
    tracking.finish(failed=True)
    assert absent.calls == ["start"]
    assert "start was refused" in tracking.problems["absent"]


def test_a_run_waits_for_no_tracker_but_at_its_end_and_there_not_for_ever(tmp_path: Path) -> None:
    stuck = Slow(blocks=True)
    began = time.monotonic()
    tracking = Tracking({"stuck": stuck}, RunFacts("id", "run", "train", tmp_path), finish_seconds=0.2)
    for _ in range(20_000):
        tracking.log({"train/loss": 1.0}, {})
    assert "10000 calls wait already" in tracking.problems["stuck"]
    tracking.finish()
    assert time.monotonic() - began < 10
    stuck.go.set()


@pytest.mark.parametrize("key", ["", "a" * 40], ids=["no key", "no server"])
def test_wandb_that_cannot_go_online_is_kept_offline_to_be_sent_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("data.tracking.on_wandb.INIT_SECONDS", 1)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    settings = tracking_settings({"tracking": {"wandb": {"mode": "online"}}})
    with tracked(settings, RunFacts("lost", "run", "train", tmp_path)) as tracking:
        tracking.log({"train/loss": 1.0}, {GLOBAL_STEP: 1})
    assert "going online failed" in tracking.problems["wandb"]
    assert "wandb sync" in tracking.problems["wandb"]
    (run,) = offline_runs(tmp_path, "lost")
    assert run.history[0]["train/loss"] == 1.0


def test_no_secret_leaves_with_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FARSIGHT_COMMIT", "c0ffee")
    shown = without_secrets(
        {
            "api_key": "k1",
            "nested": {"redis_password": "k2", "urls": ["redis://me:k3@host/0", "https://host/x?token=k4&day=1"]},
            "tokens_per_batch": 5,
        }
    )
    assert not any(secret in json.dumps(shown) for secret in ("k1", "k2", "k3", "k4"))
    assert shown["api_key"] == HIDDEN
    assert shown["tokens_per_batch"] == 5
    assert shown["nested"]["urls"][1].endswith("&day=1")
    facts = run_facts("train", tmp_path, {"train": {"dataset": "s3://key:k5@bucket/x"}}, cluster={"nodes": 2})
    assert "k5" not in json.dumps(facts.config)
    assert facts.config["commit"] == "c0ffee"
    assert facts.config["cluster"] == {"nodes": 2}
    assert "torch" in facts.config["versions"]
    assert facts.run_id == run_facts("train", tmp_path, {}).run_id  # the same place is the same run


def test_what_wandb_records_holds_no_command_line(told: tuple[Path, TrackingSettings]) -> None:
    import sys

    (file, _) = sorted((told[0] / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    long_ones = [word.encode() for word in sys.argv if len(word) > 10]  # short ones stand anywhere by chance
    assert not any(word in file.read_bytes() for word in long_ones)


def test_names_of_figures_are_plain_in_every_tracker() -> None:
    row = {
        "loss": 2.0,
        "loss_head_1": 1.0,
        "events_per_second": 9.0,
        "memory_gib": 1.5,
        "gradient_norm": None,
        "epoch": 3,
    }
    figures = tracked_figures("step", row)
    assert figures == {
        "train/loss": 2.0,
        "train/loss_head_1": 1.0,
        "data/events_per_second": 9.0,
        "system/memory_gib": 1.5,
    }
    metrics = tracked_figures("validation", {"ndcg@10": 0.2, "ndcg@10_low": 0.1, "train_seconds": 7, "users": 3})
    assert set(metrics) == {"eval/ndcg_at_10", "eval/ndcg_at_10_low", "system/train_seconds", "eval/users"}
    assert tracked_figures("start", {"workers": 2, "seconds": 5.0, "windows": 3}) == {"system/workers": 2.0}
    assert plain_name("hit@10[t+1]") == "hit_at_10_t_1"
    assert all(plain_name(name.partition("/")[2]) == name.partition("/")[2] for name in FIGURES)


def test_a_tracker_whose_package_is_missing_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MachineError, match=r"names mlflow, .* mlflow is not installed; pip install 'farsight\[tracking\]"
    ):
        tracking_settings({"tracking": {"to": ["mlflow"]}})
    assert tracking_settings({"tracking": {"to": []}}).to == ()
    with pytest.raises(RecipeError, match=r"tracking\.to\.0: .*(found 'comet')"):
        tracking_settings({"tracking": {"to": ["comet"]}})


def test_a_directory_that_is_no_piece_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no manifest\.json of a dataset, artifact, index or release"):
        Published.of(tmp_path)


def test_a_step_that_trackers_are_not_told_of_starts_none(tmp_path: Path) -> None:
    settings = TrackingSettings(to=("jsonl",), steps=("train",))
    for step in ("train", "release", "pipeline"):
        start_tracking(settings, RunFacts("id", "run", step, tmp_path / step)).finish()
    assert [place.parent.name for place in sorted(tmp_path.glob(f"*/{FILE_NAME}"))] == ["pipeline", "train"]
