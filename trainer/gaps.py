"""`farsight gaps`: how long a burst of a log lasts, as a number and as a picture."""

from pathlib import Path
from typing import Any

from data.dataset import PreparedDataset
from data.gaps import Gaps, lower_edges, measure_gaps
from modeling.settings import ModelSettings
from trainer.settings import EvaluateSettings

FILE_NAME = "gaps.png"


def run(dataset: str, out: str | None = None) -> dict[str, Any]:
    """Estimate the gap that parts one burst of events from the next.

    Args:
        out: PNG file of the histogram; none is drawn without it.

    Returns:
        the estimate in seconds, where it comes from, shares of neighbouring events, the picture.

    Raises:
        DatasetError: the log had no times, or its gaps show no bursts.
    """
    gaps = measure_gaps(PreparedDataset.open(dataset))
    facts = gaps.facts()
    return facts if out is None else {**facts, "picture": str(draw_gaps(gaps, Path(out)))}


def with_gap(model: ModelSettings, dataset: PreparedDataset, run_dir: Path) -> ModelSettings:
    """The settings with an estimated gap where they need one and leave it open; its picture goes to the run.

    Raises:
        DatasetError: it cannot be estimated.
    """
    prediction = model.prediction
    if prediction.hidden == "nothing" or prediction.gap is not None:
        return model
    gaps = measure_gaps(dataset)
    run_dir.mkdir(parents=True, exist_ok=True)
    draw_gaps(gaps, run_dir / FILE_NAME)
    return model.model_copy(update={"prediction": prediction.model_copy(update={"gap": gaps.seconds})})


def settled(settings: EvaluateSettings, dataset: PreparedDataset) -> EvaluateSettings:
    """The settings with the gap as a number of seconds.

    Raises:
        DatasetError: it cannot be estimated.
    """
    if settings.gap_seconds != "estimated":
        return settings
    return settings.model_copy(update={"gap_seconds": measure_gaps(dataset).seconds})


def draw_gaps(gaps: Gaps, path: Path) -> Path:
    """Draw the histogram of the gaps, and where the estimate cuts it."""
    from matplotlib.figure import Figure  # slow to import

    edges_H = lower_edges()
    total = gaps.counts_H.sum()
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.step(edges_H, gaps.counts_H / total, where="post", label="all")
    if gaps.inside_H.any():
        axes.step(edges_H, gaps.inside_H / total, where="post", label="inside one request")
    axes.axvline(gaps.seconds, color="black", linestyle="--", label=f"gap {gaps.seconds:,} s (by {gaps.source})")
    axes.set_xscale("log")
    axes.set(xlabel="seconds between neighbouring events", ylabel="share of neighbours", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    return path
