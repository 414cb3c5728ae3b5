"""What the process that started a run tells its trackers: that its workers failed, and what came of it."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from data.errors import NonFiniteLoss, TrainingError
from data.tracking.build import start_tracking
from data.tracking.contract import RunFacts
from data.tracking.following import Tracking
from data.tracking.published import Published
from data.tracking.settings import TrackingSettings
from trainer.telemetry import read_figures

logger = logging.getLogger(__name__)


def cluster_shape() -> dict[str, Any]:
    """Nodes and logical resources of the Ray cluster that this process is connected to."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    accelerators = {
        name.partition(":")[2]: count for name, count in resources.items() if name.startswith("accelerator_type:")
    }
    return {
        "nodes": sum(node["Alive"] for node in ray.nodes()),  # type: ignore[no-untyped-call]
        "cpus": resources.get("CPU", 0),
        "gpus": resources.get("GPU", 0),
        "accelerators": accelerators,
        "memory_gib": round(resources.get("memory", 0) / 2**30, 1),
    }


@contextmanager
def failure_reported(settings: TrackingSettings, run: RunFacts) -> Iterator[None]:
    """Alert where the body's training fails for good; a loss that is not finite is told by rank 0 itself.

    What trackers did not take is said here too: workers' own words stay in Ray's log files.
    """
    began = time.time()
    try:
        yield
    except TrainingError as error:
        if not isinstance(error, NonFiniteLoss):
            tracking = _again(settings, run)
            tracking.alert("Training failed", str(error))
            tracking.finish(failed=True)
        raise
    finally:
        for row in read_figures(run.directory):
            if row["kind"] == "tracking" and row["unix_time"] >= began:
                for name, problem in row["problems"].items():
                    logger.warning("tracking: %s: %s", name, problem)


def report_artifact(settings: TrackingSettings, run: RunFacts, artifact: Path) -> None:
    """Add the artifact to the lineage of the run that made it."""
    tracking = _again(settings, run)
    tracking.made(Published.of(artifact))
    tracking.finish()


def _again(settings: TrackingSettings, run: RunFacts) -> Tracking:
    """The run's trackers in this process, where its workers left off."""
    steps = [row["step"] for row in read_figures(run.directory)]
    return start_tracking(settings, replace(run, resumed_at=max(steps, default=None)))
