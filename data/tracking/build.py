"""Settings to trackers."""

import importlib.util
from pathlib import Path

from data.errors import MachineError
from data.tracking.contract import RunFacts, Tracker
from data.tracking.following import Tracking
from data.tracking.jsonl import JsonLines
from data.tracking.settings import TrackerName, TrackingSettings

# What each tracker needs that not every installation has.
_NEEDS = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboardX"}


def check_installed(settings: TrackingSettings) -> None:
    """Refuse a tracker whose package is missing, before anything runs.

    Raises:
        MachineError: naming the tracker and what to install.
    """
    for name in settings.to:
        package = _NEEDS.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise MachineError(
                f"tracking.to names {name}, and the Python package {package} is not installed; "
                "pip install 'farsight[tracking]', or leave it out of tracking.to"
            )


def start_tracking(settings: TrackingSettings, run: RunFacts) -> Tracking:
    """The chosen trackers, started for a run."""
    Path(run.directory).mkdir(parents=True, exist_ok=True)
    return Tracking({name: _tracker(name, settings) for name in dict.fromkeys(settings.to)}, run)


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
