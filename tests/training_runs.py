"""Whole training runs on Ray Train for tests: a small recipe, processes to kill, and what a complete run leaves."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from data.dataset import PreparedDataset
from data.stream import epoch_size
from modeling.artifact import Artifact
from tests.small_world import write_dataset
from trainer.checkpoints import LOOP
from trainer.telemetry import read_figures

EPOCHS = 5
MAX_EVENTS = 8


def recipe(directory: Path, **train: Any) -> dict[str, Any]:
    """A run of two workers in `directory`, over a dataset that is written there first."""
    if not (directory / "dataset").exists():
        write_dataset(directory / "dataset", num_users=60)
    encoder = {"kind": "hstu", "blocks": 1, "query_width": 8, "value_width": 8}
    return {
        "model": {"width": 8, "max_events": MAX_EVENTS, "encoder": encoder, "negatives": {"kind": "mixed"}},
        "train": {
            "dataset": str(directory / "dataset"),
            "run_dir": str(directory / "run"),
            "epochs": EPOCHS,
            "events_per_batch": 64,
            "checkpoint_every_batches": 3,
            "workers": {"num_workers": 2, "threads_per_worker": 1, "max_failures": 1},
            **train,
        },
        "tracking": {"to": [], "every_steps": 1},
    }


def processes(title: bytes, ray_folder: str) -> dict[int, int]:
    """Processes of one Ray whose command holds `title`, each with its raylet.

    Args:
        ray_folder: the `RAY_TMPDIR` of that Ray.
    """
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            parent = (process / "stat").read_text().rsplit(")", 1)[1].split()[1]
            raylet = Path("/proc", parent, "cmdline").read_bytes()
        except OSError:
            continue
        if title in command and ray_folder.encode() in raylet:
            found[int(process.name)] = int(parent)
    return dict(sorted(found.items()))


def training_workers(ray_folder: str | None = None) -> dict[int, int]:
    """Processes of Ray Train workers, each with its raylet; by default of the Ray of this test run."""
    return processes(b"RayTrainWorker", ray_folder or os.environ["RAY_TMPDIR"])


def checkpoints(run_dir: Path) -> list[Path]:
    """Directories of checkpoints that stand, oldest first; none before Ray knows of one."""
    if not (run_dir / "ray" / "checkpoint_manager_snapshot.json").exists():
        return []
    return sorted((path.parent for path in (run_dir / "ray").glob(f"*/{LOOP}")), key=lambda path: path.stat().st_mtime)


def check_complete(directory: Path, summary: dict[str, Any], *, starts: int = 2) -> None:
    """The run trained all its epochs once, over that many starts, and left what it promises."""
    rows = read_figures(directory / "run")
    began = [row for row in rows if row["kind"] == "start"]
    assert len(began) == starts, began
    assert all(row["epoch"] >= 1 or row["windows"] for row in began[1:])
    # Every target of every epoch once, on whichever attempt.
    size = epoch_size(PreparedDataset.open(directory / "dataset"), max_events=MAX_EVENTS, rule="all")
    assert size.windows % 2, "an odd number of windows, which Ray's own split for two would cut"
    epochs = {row["epoch"]: row["events"] for row in rows if row["kind"] == "epoch"}
    assert epochs == dict.fromkeys(range(EPOCHS), size.targets)
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
