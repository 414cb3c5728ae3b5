"""Plots of a suite's report."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]  # model -> metric -> mean, deviation, runs


def draw_bars(
    path: Path, figures: Figures, titles: Mapping[str, str], published: Mapping[str, Mapping[str, float]]
) -> Path:
    """NDCG@10 and HR@10 of every row with its deviation, and a mark where a figure was published."""
    from matplotlib.figure import Figure  # slow to import, needed once per report

    models = list(titles)
    figure = Figure(figsize=(10, 1.2 + 0.34 * len(models)), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2, sharey=True), ("ndcg@10", "hr@10"), strict=True):
        means = [figures[model][metric]["mean"] for model in models]
        errors = [figures[model][metric]["deviation"] or float("nan") for model in models]  # nan draws nothing
        axes.barh([titles[model] for model in models], means, xerr=errors, color="#4477aa", capsize=3)
        marks = [(published[model][metric], place) for place, model in enumerate(models) if metric in published[model]]
        if marks:
            axes.plot(*zip(*marks, strict=True), "|", color="#cc3311", markersize=14, label="published")
            axes.legend(loc="lower right")
        axes.set(title=metric.upper(), xlim=(0, None))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)
    return path


def draw_curves(path: Path, runs: Mapping[str, Sequence[Path]], titles: Mapping[str, str]) -> Path | None:
    """Validation NDCG@10 of every trained row over epochs and over seconds, mean of its seeds; None without any."""
    from matplotlib.figure import Figure  # slow to import, needed once per report

    curves = {
        model: [curve for folder in folders if (curve := _validations(folder))] for model, folders in runs.items()
    }
    curves = {model: found for model, found in curves.items() if found}
    if not curves:
        return None
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for model, found in curves.items():
        points = list(zip(*found, strict=False))  # up to the shortest of the seeds
        scores = [statistics.fmean(score for _, _, score in point) for point in points]
        left.plot([point[0][0] for point in points], scores, marker=".", label=titles[model])
        right.plot([statistics.fmean(seconds for _, seconds, _ in point) for point in points], scores, marker=".")
    left.set(title="validation by epoch", xlabel="epoch", ylabel="NDCG@10", ylim=(0, None))
    right.set(title="validation by time", xlabel="seconds of training")
    left.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def _validations(run_dir: Path) -> list[tuple[int, float, float]]:
    """Epoch, seconds of training, and NDCG@10 of each validation of a run."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["epoch"], row["train_seconds"], row["ndcg@10"]) for row in rows if row["kind"] == "validation"]


def draw_horizon(path: Path, figures: Figures, titles: Mapping[str, str]) -> Path | None:
    """How often the item of the h-th next event is in the first list; None where only the next is known."""
    from matplotlib.figure import Figure  # slow to import, needed once per report

    curves = {model: horizon_curve(figures[model]) for model in titles}
    if max(map(len, curves.values()), default=0) < 2:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for model, curve in curves.items():
        axes.plot([step for step, _ in curve], [value for _, value in curve], marker=".", label=titles[model])
    axes.set(title="horizon", xlabel="events after the request", ylabel="hit@10", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def horizon_curve(metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(h, mean) of every `hit@K[t+h]` among the metrics of one row."""
    found = [(re.fullmatch(r"hit@\d+\[t\+(\d+)\]", name), value) for name, value in metrics.items()]
    return sorted((int(match[1]), value["mean"]) for match, value in found if match)
