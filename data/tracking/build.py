"""The `tracking` section of a recipe to trackers."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import MachineError
from data.settings import Recipe, read_section
from data.tracking.contract import RunFacts, Tracker
from data.tracking.following import Tracking
from data.tracking.jsonl import JsonLines
from data.tracking.settings import TrackerName, TrackingSettings

# What each tracker needs that not every installation has.
_NEEDS = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboardX"}
LOCAL_MLFLOW = Path("runs", "mlflow", "mlflow.db")


def tracking_settings(recipe: Recipe) -> TrackingSettings:
    """Read the section, and settle what depends on the process that asks: workers have another folder.

    Raises:
        RecipeError: wrong settings.
        MachineError: a tracker's package is not installed.
    """
    stated = read_section(recipe, "tracking", TrackingSettings)
    for name in stated.to:
        package = _NEEDS.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise MachineError(
                f"tracking.to names {name}, and the Python package {package} is not installed; "
                "pip install 'farsight[tracking]', or leave it out of tracking.to"
            )
    uri = stated.mlflow.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{LOCAL_MLFLOW.resolve()}"
    return stated.model_copy(update={"mlflow": stated.mlflow.model_copy(update={"uri": uri})})


def start_tracking(settings: TrackingSettings, run: RunFacts) -> Tracking:
    """The chosen trackers, started for a run; none where they are not to be told of its step."""
    # A release comes from the command that builds its index; alerts of a pipeline are always wanted.
    step = "index" if run.step == "release" else run.step
    names = settings.to if step == "pipeline" or step in settings.steps else ()
    if run.step not in ("train", "pipeline"):  # other steps end before Prometheus looks
        names = tuple(name for name in names if name != "prometheus")
    return Tracking({name: _tracker(name, settings) for name in dict.fromkeys(names)}, run)


@contextmanager
def tracked(settings: TrackingSettings, run: RunFacts) -> Iterator[Tracking]:
    """The chosen trackers while the body runs, which fails in them as it does here."""
    tracking = start_tracking(settings, run)
    failed = True
    try:
        yield tracking
        failed = False
    finally:
        tracking.finish(failed=failed)


def _tracker(name: TrackerName, settings: TrackingSettings) -> Tracker:
    # Each is imported where it is chosen: their libraries are slow to import, and some are extras.
    match name:
        case "jsonl":
            return JsonLines()
        case "wandb":
            from data.tracking.on_wandb import Wandb

            return Wandb(settings)
        case "mlflow":
            from data.tracking.on_mlflow import Mlflow

            return Mlflow(settings)
        case "tensorboard":
            from data.tracking.on_tensorboard import TensorBoard

            return TensorBoard()
        case "prometheus":
            from data.tracking.on_prometheus import Prometheus

            return Prometheus()
