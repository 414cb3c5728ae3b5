"""Prometheus, through Ray: what a training run does now, beside Ray's own metrics at the same port of the node.

It shows what lives: when the process that trains is gone, so are its gauges, and what remains is what was scraped.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray.util.metrics

from data.metrics import Metric, Recorder
from data.tracking.contract import EPOCH, EVENTS_SEEN, GLOBAL_STEP, NOT_FINITE, RunFacts
from data.tracking.published import Published

RUN = ("run", "run_id")
GIB = 2**30


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"farsight_train_{name}", "gauge", text, (*RUN, *labels))


# Figures by their names in trackers, and what of Prometheus's base units one of theirs is.
FIGURES: Mapping[str, tuple[Metric, float]] = {
    "train/loss": (_gauge("loss", "mean loss per target of rank 0 since the last figures"), 1),
    "train/learning_rate": (_gauge("learning_rate", "of the dense weights"), 1),
    "train/gradient_norm": (_gauge("gradient_norm", "of all weights, before clipping"), 1),
    "data/events_per_second": (_gauge("events_per_second", "trained on, all workers together"), 1),
    "data/seconds_per_batch": (_gauge("step_seconds", "per batch, waiting included"), 1),
    "data/waiting_share": (_gauge("data_wait_ratio", "of the time, that in which rank 0 waited for data"), 1),
    "data/padding_share": (_gauge("padding_ratio", "of the computed positions, those without an event"), 1),
    "system/memory_gib": (_gauge("memory_bytes", "peak of rank 0's process"), GIB),
    "system/gpu_memory_gib": (_gauge("gpu_memory_bytes", "peak that torch allocated on rank 0's GPU"), GIB),
    "system/gpu_utilisation": (_gauge("gpu_busy_ratio", "of the last moment, that in which rank 0's GPU computed"), 1),
    "system/cpu_cores": (_gauge("cpu_cores", "that rank 0's process kept busy"), 1),
    "system/workers": (_gauge("workers", "of the attempt"), 1),
    "system/checkpoint_seconds": (_gauge("checkpoint_seconds", "to save the last checkpoint"), 1),
    "eval/seconds": (_gauge("evaluation_seconds", "of the last validation"), 1),
}
AXES: Mapping[str, Metric] = {
    GLOBAL_STEP: _gauge("step", "batches since the run began"),
    EPOCH: _gauge("epoch", "epochs since the run began, complete or under way"),
    EVENTS_SEEN: _gauge("events_seen", "targets trained on since the run began"),
}
EVALUATION = _gauge("evaluation_ratio", "metrics of the last validation, such as ndcg_at_10", "metric")
PROGRESS = _gauge("progress_timestamp_seconds", "when the run last said anything")
CHECKPOINT = _gauge("checkpoint_timestamp_seconds", "when the last checkpoint was saved, or the attempt began")
ATTEMPTS = Metric("farsight_train_attempts", "counter", "times that the run was begun or gone on with", RUN)
FAILURES = Metric("farsight_train_failures", "counter", "attempts that ended with an error", RUN)
NOT_FINITE_LOSSES = Metric("farsight_train_not_finite", "counter", "losses that were not finite", RUN)
ALERTS = Metric("farsight_alerts", "counter", "what a run told people, but for those losses", (*RUN, "step", "title"))

TRAINING = (
    *(metric for metric, _ in FIGURES.values()),
    *AXES.values(),
    EVALUATION,
    PROGRESS,
    CHECKPOINT,
    ATTEMPTS,
    FAILURES,
    NOT_FINITE_LOSSES,
    ALERTS,
)
# Of a validation; the ends of the intervals are left to other trackers.
_EVALUATED = re.compile(r"eval/(\w+_at_\d+)")


class Prometheus:
    """Sets gauges to the newest figures of a training run; of a pipeline it has the alerts only."""

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._run: dict[str, str] = {}
        self._step = ""
        self._began = False  # an attempt, in this process

    def start(self, run: RunFacts) -> None:
        """Declare the metrics."""
        self._recorder = Recorder(TRAINING, ray.util.metrics)
        self._run, self._step = {"run": run.name, "run_id": run.run_id}, run.step

    def log(self, figures: Mapping[str, float], axes: Mapping[str, int]) -> None:
        """Set what the figures say; those without a metric are left out."""
        assert self._recorder is not None
        if self._step != "train":
            return
        recorder, now = self._recorder, time.time()
        if not self._began:
            self._began = True
            recorder.add(ATTEMPTS, 1, **self._run)
            recorder.set(CHECKPOINT, now, **self._run)
        recorder.set(PROGRESS, now, **self._run)
        if "system/checkpoint_seconds" in figures:
            recorder.set(CHECKPOINT, now, **self._run)
        for axis, count in axes.items():
            recorder.set(AXES[axis], count, **self._run)
        for name, value in figures.items():
            if name in FIGURES:
                metric, unit = FIGURES[name]
                recorder.set(metric, value * unit, **self._run)
            elif evaluated := _EVALUATED.fullmatch(name):
                recorder.set(EVALUATION, value, **self._run, metric=evaluated[1])

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], axes: Mapping[str, int]) -> None:
        """Prometheus keeps numbers only."""

    def alert(self, title: str, text: str) -> None:
        """Count it by its title."""
        assert self._recorder is not None
        if title == NOT_FINITE:
            self._recorder.add(NOT_FINITE_LOSSES, 1, **self._run)
        else:
            self._recorder.add(ALERTS, 1, **self._run, step=self._step, title=title)

    def used(self, piece: Published) -> None:
        """Prometheus keeps numbers only."""

    def made(self, piece: Published) -> None:
        """Prometheus keeps numbers only."""

    def finish(self, *, failed: bool) -> None:
        """Let go of the gauges. What was counted is exported when the process ends, if not before."""
        if self._recorder is not None:
            if failed and self._began:
                self._recorder.add(FAILURES, 1, **self._run)
            self._recorder.close()
