"""The training curve of a run as a PNG."""

from pathlib import Path

from trainer.telemetry import read_figures

FILE_NAME = "curve.png"


def draw_curve(run_dir: str | Path) -> Path:
    """Draw loss and validation NDCG@10 over steps, from the run's figures."""
    from matplotlib.figure import Figure  # slow to import, needed once per run

    rows = read_figures(run_dir)
    steps = [row for row in rows if row["kind"] == "step"]
    validations = [row for row in rows if row["kind"] == "validation"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([row["step"] for row in steps], [row["loss"] for row in steps])
    left.set(title="training loss", xlabel="batch", ylabel="sampled softmax, nats")
    right.plot([row["step"] for row in validations], [row["ndcg@10"] for row in validations], marker=".")
    right.set(title="validation", xlabel="batch", ylabel="NDCG@10", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path = Path(run_dir) / FILE_NAME
    figure.savefig(path, dpi=120)
    return path
