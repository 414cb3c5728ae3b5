"""What a tracker is: one place that shows people what a run does, such as W&B, MLflow or TensorBoard.

A tracker is driven by `data.tracking.following.Tracking` from a thread of its own, one call at a time, `start` first
and `finish` last. So a method may take its time and may raise: training waits for none of them, and goes on without.

Names of figures are the same in all trackers: `GROUP/NAME` in letters, digits and underscores, with the groups
`train` (loss, learning rate, gradient), `eval` (validation and evaluation), `data` (throughput, waiting, padding) and
`system` (memory, GPU, workers).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from data.tracking.published import Published

# What figures are drawn over. Our own axes, since those of most trackers only grow and a resumed run steps back.
GLOBAL_STEP = "global_step"  # batches since the run began
EPOCH = "epoch"  # epochs since the run began, complete or under way
EVENTS_SEEN = "events_seen"  # training targets since the run began, over all workers
AXES = (GLOBAL_STEP, EPOCH, EVENTS_SEEN)

# Title of the alert that a loss is not finite.
NOT_FINITE = "The loss is not finite"

Step = Literal["ingest", "train", "evaluate", "index", "release", "pipeline"]


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run when it starts."""

    run_id: str  # the same in every attempt of the run
    name: str
    step: Step  # of the path from log to release
    directory: Path  # of the run, where trackers may keep files
    config: Mapping[str, Any] = field(default_factory=dict)  # settings, commit, versions, cluster; without secrets
    resumed_at: int | None = None  # step of the checkpoint that the attempt goes on from; None at the first start


class Degraded(Exception):
    """Raised by a tracker that goes on, but otherwise than asked; the message says how."""


@runtime_checkable
class Tracker(Protocol):
    """One place that keeps what a run reports."""

    def start(self, run: RunFacts) -> None:
        """Begin a run, or go on with one of the same id. If it raises, and not `Degraded`, nothing follows."""

    def log(self, figures: Mapping[str, float], axes: Mapping[str, int]) -> None:
        """Keep figures of one moment: by `GROUP/NAME`, and by those of `AXES` that the run has."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], axes: Mapping[str, int]) -> None:
        """Keep a table of plain values, such as example retrievals; the next one of the name follows it."""

    def alert(self, title: str, text: str) -> None:
        """Tell a person that something needs them."""

    def used(self, piece: Published) -> None:
        """Note that the run read a dataset, artifact or index: an edge of the lineage into the run."""

    def made(self, piece: Published) -> None:
        """Note that the run wrote a dataset, artifact, index or release: an edge of the lineage out of the run."""

    def finish(self, *, failed: bool) -> None:
        """End the run, or this attempt of it, and hand over what is still held back."""
