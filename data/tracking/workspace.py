"""`farsight dashboards wandb`: one page for a project's runs, described once, drawn by W&B."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.errors import MachineError
from data.settings import Recipe
from data.tracking.build import tracking_settings
from data.tracking.contract import EPOCH, GLOBAL_STEP
from data.tracking.settings import TrackingSettings

NAME = "Farsight"
DEFAULT_FILE = Path("runs", "wandb_workspace.json")


@dataclass(frozen=True)
class Plot:
    """Lines of figures over an axis."""

    title: str
    y: tuple[str, ...]
    x: str = GLOBAL_STEP


@dataclass(frozen=True)
class Section:
    """Plots that stand together, and tables under them."""

    name: str
    plots: tuple[Plot, ...]
    tables: tuple[str, ...] = ()


def _interval(metric: str) -> tuple[str, ...]:
    return (metric, f"{metric}_low", f"{metric}_high")


SECTIONS = (
    Section(
        "Quality",
        (
            Plot("validation NDCG@10, with its 95% interval", _interval("eval/ndcg_at_10"), EPOCH),
            Plot("validation recall@10, with its 95% interval", _interval("eval/recall_at_10"), EPOCH),
            Plot("share of the catalogue recommended", ("eval/coverage_at_10",), EPOCH),
        ),
        ("examples", "rankings"),
    ),
    Section(
        "Training",
        (
            Plot("loss", ("train/loss",)),
            Plot("gradient norm before clipping", ("train/gradient_norm",)),
            Plot("learning rate", ("train/learning_rate",)),
        ),
    ),
    Section(
        "Throughput",
        (
            Plot("events per second, all workers", ("data/events_per_second",)),
            Plot("share of the time spent waiting for data", ("data/waiting_share",)),
            Plot("share of computed positions that is padding", ("data/padding_share",)),
            Plot("seconds per batch", ("data/seconds_per_batch",)),
        ),
    ),
    Section(
        "System",
        (
            Plot("memory of rank 0, GiB", ("system/memory_gib", "system/gpu_memory_gib")),
            Plot("GPU utilisation of rank 0", ("system/gpu_utilisation",)),
            Plot("cores kept busy by rank 0", ("system/cpu_cores",)),
            Plot("workers", ("system/workers",)),
        ),
    ),
)


def run(recipe: Recipe, out: str | None = None) -> dict[str, Any]:
    """Create the workspace in W&B where the recipe is online; otherwise write its definition.

    Args:
        out: file for the definition, also where the workspace is created.

    Returns:
        `project`, `url` of the workspace (None offline), `definition` (file, or None), `sections` (their names).

    Raises:
        MachineError: W&B did not take it, or the package that speaks to it is not installed.
        RecipeError: wrong settings.
    """
    settings = tracking_settings(recipe)
    online = settings.wandb.mode == "online"
    url = _create(settings) if online else None
    place = Path(out) if out is not None else None if online else DEFAULT_FILE
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(definition(settings), indent=2) + "\n", encoding="utf-8")
    return {
        "project": settings.project,
        "url": url,
        "definition": None if place is None else str(place),
        "sections": [section.name for section in SECTIONS],
    }


def definition(settings: TrackingSettings) -> dict[str, Any]:
    """The page as plain values."""
    return {
        "name": NAME,
        "entity": settings.wandb.entity,
        "project": settings.project,
        "sections": [asdict(section) for section in SECTIONS],
    }


def workspace(settings: TrackingSettings, entity: str) -> Any:
    """The page as W&B's own object; needs no network."""
    # Slow to import, and an extra.
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2.interface import LinePlot, WeavePanelSummaryTable

    sections = []
    for section in SECTIONS:
        plots = [LinePlot(title=plot.title, x=plot.x, y=list(plot.y)) for plot in section.plots]
        tables = [WeavePanelSummaryTable(table_name=table) for table in section.tables]
        sections.append(workspaces.Section(name=section.name, panels=[*plots, *tables], is_open=True))
    return workspaces.Workspace(name=NAME, entity=entity, project=settings.project, sections=sections)


def _create(settings: TrackingSettings) -> str:
    try:
        import wandb_workspaces  # noqa: F401 - whether it is there
    except ImportError:
        raise MachineError(
            "a workspace in W&B needs the Python package wandb-workspaces; pip install 'farsight[tracking]', or set "
            "tracking.wandb.mode=offline to write its definition to a file"
        ) from None
    entity = settings.wandb.entity or os.environ.get("WANDB_ENTITY")
    if entity is None:
        raise MachineError("the workspace needs the user or team that owns the project; set tracking.wandb.entity=NAME")
    try:
        return str(workspace(settings, entity).save().url)
    except Exception as error:  # of a service that is not ours, in many kinds
        raise MachineError(
            f"W&B did not take the workspace ({type(error).__name__}: {error}); log in with wandb login, or set "
            "tracking.wandb.mode=offline to write its definition to a file"
        ) from error
