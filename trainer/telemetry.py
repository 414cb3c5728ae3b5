"""The figures of a run: JSON lines in the run directory and, if wanted, W&B. Rank 0 only."""

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer.settings import TrackingSettings

FILE_NAME = "metrics.jsonl"


def read_figures(run_dir: str | Path) -> list[dict[str, Any]]:
    """All rows of a run so far; a line that is still being written is left out."""
    path = Path(run_dir) / FILE_NAME
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Telemetry:
    """Writes rows `{"kind": "step" | "validation", "step": ..., ...}` as they come.

    A run that resumes from step s first drops the rows past s, so that a step never stands twice.
    """

    def __init__(
        self, run_dir: str | Path, run_id: str, settings: TrackingSettings, *, resumed_at: int, recipe: dict[str, Any]
    ) -> None:
        path = Path(run_dir) / FILE_NAME
        kept = [row for row in read_figures(run_dir) if row["step"] <= resumed_at] if resumed_at else []
        aside = path.with_suffix(".partial")
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(aside, path)
        self._file = path.open("a", encoding="utf-8")
        self._wandb = None if settings.wandb == "disabled" else _wandb_run(run_dir, run_id, settings, recipe)

    def write(self, kind: str, step: int, **figures: Any) -> None:
        """Append one row, and send its numbers to W&B under `kind/name`."""
        row = {"kind": kind, "step": step, "unix_time": round(time.time(), 3), **figures}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._wandb is not None:
            numbers = {f"{kind}/{name}": value for name, value in figures.items() if value is not None}
            self._wandb.log({"global_step": step, **numbers})

    def close(self) -> None:
        """End the W&B run and close the file."""
        if self._wandb is not None:
            self._wandb.finish()
        self._file.close()


def _wandb_run(run_dir: str | Path, run_id: str, settings: TrackingSettings, recipe: dict[str, Any]) -> Any:
    import wandb  # slow to import, and not needed where tracking is disabled

    run = wandb.init(
        project=settings.project,
        id=run_id,
        name=Path(run_dir).name,
        dir=str(run_dir),
        mode=settings.wandb,
        resume="allow",
        config=recipe,
        settings=wandb.Settings(silent=True),
    )
    # Replayed steps after a restart would collide with W&B's own step, which only grows.
    run.define_metric("*", step_metric="global_step")
    return run


class StepWindow:
    """Sums over the steps between two rows of figures.

    Args:
        clock: seconds, monotonic; another one in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begin(clock())

    def _begin(self, now: float) -> None:
        self._began = now
        self._losses: list[float] = []
        self._steps = 0
        self._targets = 0
        self._events = 0
        self._padded_events = 0
        self._waited = 0.0

    def add(
        self, *, head_losses: list[float], num_targets: int, num_events: int, num_padded: int, waited_seconds: float
    ) -> None:
        """Count one batch: `num_padded` computed positions of which `num_events` hold an event."""
        sums = self._losses or [0.0] * len(head_losses)
        self._losses = [total + loss * num_targets for total, loss in zip(sums, head_losses, strict=True)]
        self._steps += 1
        self._targets += num_targets
        self._events += num_events
        self._padded_events += num_padded
        self._waited += waited_seconds

    def figures(self, world: int) -> dict[str, float]:
        """Rates over the window, for all `world` workers together, and a fresh window."""
        now = self._clock()
        seconds = max(1e-9, now - self._began)
        losses = [total / max(1, self._targets) for total in self._losses]
        by_head = {f"loss_head_{head}": loss for head, loss in enumerate(losses, start=1)}
        result = {
            "loss": sum(losses),
            **(by_head if len(losses) > 1 else {}),
            "events_per_second": self._events * world / seconds,
            "seconds_per_batch": seconds / max(1, self._steps),
            "padding_share": 1 - self._events / max(1, self._padded_events),
            "waiting_share": self._waited / seconds,
            "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        if torch.cuda.is_available():
            result["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._begin(now)
        return result
