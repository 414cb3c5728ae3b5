"""What can die under a run besides a worker: its checkpoints, its disk, its driver, a whole node."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import trainer.train
from data.errors import TrainingError
from data.storage import write_json
from modeling.artifact import ITEM_WEIGHT, Artifact
from modeling.table_files import BLOCK
from tests.small_world import NUM_ITEMS, write_artifact, write_dataset
from tests.training_runs import EPOCHS, check_complete, checkpoints, processes, recipe
from trainer.checkpoints import LOOP, SIZES, what_is_missing, whole_checkpoints
from trainer.telemetry import read_figures

TIMEOUT_SECONDS = 400


def _checkpoint(run: Path, step: int, world: int = 2) -> Path:
    """A checkpoint as its workers leave it, as far as its wholeness goes."""
    directory = run / "ray" / f"epoch-{step:05d}"
    (directory / "engine").mkdir(parents=True)
    state = {"events_per_batch": 64, "epoch": 1, "step": step}
    write_json(directory / LOOP, {"world": world, "state": state, "metrics": {}})
    for rank in range(world):
        shard = directory / "engine" / f"shard-{rank}"
        shard.write_bytes(bytes(100))
        write_json(directory / f"{SIZES}-{rank:05d}.json", {f"engine/shard-{rank}": 100})
    return directory


def test_a_checkpoint_that_lost_something_is_passed_over_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = [_checkpoint(tmp_path, step) for step in (10, 20, 30)]
    assert [found.state.step for found in whole_checkpoints(tmp_path)] == [30, 20, 10]
    os.truncate(places[2] / "engine" / "shard-1", 40)
    assert what_is_missing(places[2]) == "engine/shard-1 has 40 bytes of 100"
    assert [found.state.step for found in whole_checkpoints(tmp_path)] == [20, 10]
    assert f"{places[2]}: engine/shard-1 has 40 bytes of 100" in caplog.text
    (places[1] / f"{SIZES}-00001.json").unlink()  # a rank that never wrote
    assert what_is_missing(places[1]) == f"{SIZES}-00001.json is not there"
    assert [found.state.step for found in whole_checkpoints(tmp_path)] == [10]
    (places[0] / LOOP).write_text("{")
    assert "is damaged" in str(what_is_missing(places[0]))
    assert whole_checkpoints(tmp_path) == []


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert whole_checkpoints(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, or a skip where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.long
@pytest.mark.ray
def test_a_full_disk_ends_the_run_with_advice_and_it_goes_on_once_there_is_room(
    ray_session: None, tmp_path: Path, small_disk: Path
) -> None:
    settings = recipe(tmp_path, run_dir=str(small_disk / "run"), workers={"num_workers": 2, "max_failures": 0})
    with pytest.raises(TrainingError, match=r"(?s)No space left on device.*run the same command again"):
        trainer.train.run(settings)
    assert not (small_disk / "run" / "artifact").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    (tmp_path / "run").symlink_to(small_disk / "run")
    summary = trainer.train.run(settings)
    starts = [row for row in read_figures(tmp_path / "run") if row["kind"] == "start"]
    check_complete(tmp_path, summary, starts=len(starts))


def _farsight(settings: Path, ray_folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cluster.cli", "train", str(settings), "--json"]
    environment = {**os.environ, "RAY_TMPDIR": str(ray_folder)}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _wait_for(condition: Any, what: str) -> Any:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)
    return value


@pytest.mark.long
@pytest.mark.ray
def test_the_same_command_finishes_the_run_of_a_killed_controller_and_of_a_killed_driver(tmp_path: Path) -> None:
    file, ray_folder, run = tmp_path / "recipe.yaml", Path(os.environ["RAY_TMPDIR"], "d"), tmp_path / "run"
    ray_folder.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(recipe(tmp_path)))

    controlled = _farsight(file, ray_folder)
    _wait_for(lambda: checkpoints(run), "a checkpoint")
    for controller in processes(b"TrainController", str(ray_folder)):
        os.kill(controller, signal.SIGKILL)
    _, said = controlled.communicate(timeout=TIMEOUT_SECONDS)
    assert controlled.returncode, said
    assert "run the same command again" in said

    known = set(checkpoints(run))
    driver = _farsight(file, ray_folder)
    _wait_for(lambda: set(checkpoints(run)) - known, "a new checkpoint")
    driver.kill()
    driver.communicate()
    # Its workers notice, and end, so that the next run is alone in the directory; until then they may get on.
    _wait_for(lambda: not processes(b"ray::", str(ray_folder)), "the end of the killed driver's Ray")
    assert not (run / "artifact").exists()

    last = _farsight(file, ray_folder)
    answer, said = last.communicate(timeout=TIMEOUT_SECONDS)
    assert last.returncode == 0, said
    check_complete(tmp_path, json.loads(answer), starts=3)


@pytest.mark.long
@pytest.mark.ray
def test_the_death_of_a_node_leaves_fewer_workers_that_train_the_rest_of_the_epoch_and_hold_all_rows(
    tmp_path: Path,
) -> None:
    workers = {"num_workers": 2, "min_workers": 1, "cpus_per_worker": 2, "threads_per_worker": 1, "max_failures": 2}
    begun = write_artifact(tmp_path / "begun", write_dataset(tmp_path / "old"))
    write_dataset(tmp_path / "dataset", num_users=60, num_items=NUM_ITEMS + BLOCK)  # the catalogue has grown
    start = {"start_from": str(begun.directory), "frozen": "backbone"}
    settings = recipe(tmp_path, engine={"zero_stage": 1}, item_table={"kind": "sharded"}, workers=workers, **start)
    settings["model"] = begun.settings.model_dump(mode="json")
    write_json(tmp_path / "recipe.json", settings)
    (folder := Path(os.environ["RAY_TMPDIR"], "n")).mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.node_death", str(tmp_path / "recipe.json"), str(tmp_path / "summary.json")],
        # Ray waits that long for a node that it does not know to be dead yet.
        env={**os.environ, "RAY_TMPDIR": str(folder), "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["nodes"] == 2
    check_complete(tmp_path, summary)
    starts = [row for row in read_figures(tmp_path / "run") if row["kind"] == "start"]
    assert [row["workers"] for row in starts] == [2, 1]
    # One worker takes as many events per step as two did.
    steps = Counter(row["epoch"] for row in read_figures(tmp_path / "run") if row["kind"] == "step")
    assert steps[EPOCHS - 1] == pytest.approx(steps[0], rel=0.35), steps
    before, after = begun.weights(), Artifact.open(summary["artifact"]).weights()
    assert after[ITEM_WEIGHT].shape == (NUM_ITEMS + BLOCK + 1, 16)
    assert torch.equal(after[ITEM_WEIGHT][: NUM_ITEMS + 1], before[ITEM_WEIGHT])
    assert torch.equal(after["encoder.positions.weight"], before["encoder.positions.weight"])
    branch = {name for name in before if name.startswith("branches.0.")}
    assert any(not torch.equal(after[name], before[name]) for name in branch)
