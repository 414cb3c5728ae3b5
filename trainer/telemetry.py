"""The figures of a run: JSON lines in the run directory, and whatever else follows it. Rank 0 only."""

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data.tracking.build import start_tracking
from data.tracking.contract import AXES, GLOBAL_STEP, RunFacts
from data.tracking.figures import tracked_figures
from data.tracking.settings import TrackingSettings

FILE_NAME = "metrics.jsonl"


def read_figures(run_dir: str | Path) -> list[dict[str, Any]]:
    """All rows of a run so far; a line that is still being written is left out."""
    path = Path(run_dir) / FILE_NAME
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Telemetry:
    """Writes rows `{"kind": KIND, "step": ..., ...}` as they come, and tells the run's trackers.

    KIND is start, step, epoch, validation, checkpoint or clusters.

    A run that resumes from step s first drops the rows past s, so that a step never stands twice.

    Args:
        run: its `resumed_at` is the step of the checkpoint that the attempt goes on from.
    """

    def __init__(self, run: RunFacts, settings: TrackingSettings) -> None:
        path = run.directory / FILE_NAME
        kept = [row for row in read_figures(run.directory) if row["step"] <= run.resumed_at] if run.resumed_at else []
        aside = path.with_suffix(".partial")
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(aside, path)
        self._file = path.open("a", encoding="utf-8")
        self._step = run.resumed_at or 0
        self.tracking = start_tracking(settings, run)

    def write(self, kind: str, step: int, **figures: Any) -> None:
        """Append one row, and send its numbers to the trackers under their names there."""
        self._step = step
        self._append({"kind": kind, "step": step, **figures})
        axes = {axis: int(figures[axis]) for axis in AXES if axis in figures}
        self.tracking.log(tracked_figures(kind, figures), {GLOBAL_STEP: step, **axes})

    def close(self, *, failed: bool = False) -> None:
        """End the attempt in the trackers, note which of them had problems, and close the file."""
        self.tracking.finish(failed=failed)
        if self.tracking.problems:
            self._append({"kind": "tracking", "step": self._step, "problems": self.tracking.problems})
        self._file.close()

    def _append(self, row: dict[str, Any]) -> None:
        kind, step, *rest = row.items()
        self._file.write(json.dumps(dict([kind, step, ("unix_time", round(time.time(), 3)), *rest])) + "\n")
        self._file.flush()


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
        self._cpu_began = time.process_time()

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
            "cpu_cores": (time.process_time() - self._cpu_began) / seconds,
            "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        if torch.cuda.is_available():
            result["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            result |= _gpu_utilisation()
        self._begin(now)
        return result


def _gpu_utilisation() -> dict[str, float]:
    """As the driver says, through nvidia-ml-py; nothing where either is missing or refuses."""
    try:
        return {"gpu_utilisation": torch.cuda.utilization() / 100}
    except Exception:  # of the driver's library, in many kinds, and no figure is worth a run
        return {}
