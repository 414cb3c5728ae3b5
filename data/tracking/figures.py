"""Names of the figures that trackers keep, the same in all of them, and what each says.

The run's own file, `metrics.jsonl`, has them by row and without groups: `{"kind": "step", "loss": ...}`.
"""

from collections.abc import Mapping
from typing import Any

# Fixed names. Besides: train/loss_head_N, a share of train/loss per item predicted ahead, and eval/METRIC_at_K (below).
FIGURES = {
    "train/loss": "mean loss per target of rank 0 since the last row",
    "train/learning_rate": "learning rate of the dense weights",
    "train/gradient_norm": "global gradient norm before clipping",
    "data/events_per_second": "events trained on per second, all workers together",
    "data/seconds_per_batch": "seconds per batch",
    "data/waiting_share": "share of the time in which rank 0 waited for data",
    "data/padding_share": "share of the computed positions that held no event",
    "data/epoch_targets": "targets of the epoch that ended, all workers together",
    "system/memory_gib": "peak memory of rank 0's process, GiB",
    "system/cpu_cores": "cores that rank 0's process kept busy",
    "system/gpu_memory_gib": "peak memory allocated on rank 0's GPU, GiB",
    "system/gpu_utilisation": "share of the last moment in which rank 0's GPU computed; needs nvidia-ml-py",
    "system/workers": "workers of the attempt",
    "system/checkpoint_seconds": "seconds to save a checkpoint and hand it to Ray Train",
    "system/train_seconds": "seconds spent training and validating, all attempts together",
    "system/clusters": "clusters of the items, from which negatives are drawn",
    "system/largest_cluster": "items of the largest of them",
    "system/clustering_seconds": "seconds to put the items into clusters, beside training but for the first time",
    "system/clustering_waited_seconds": "seconds that training waited for the new clusters",
    "eval/users": "users of the validation",
    "eval/seconds": "seconds of the validation",
    "eval/coverage_at_10": "share of the catalogue that anyone was recommended",
}
# Metrics of a ranking, each with `_low` and `_high`, the ends of its 95% interval over users.
RANKING_METRICS = {
    "ndcg": "normalised discounted cumulative gain",
    "recall": "share of the targets among the first K",
    "hr": "share of the users with a target among the first K",
    "mrr": "mean of 1 / rank of the first target, 0 beyond K",
}
_GROUPS = {name.partition("/")[2]: name.partition("/")[0] for name in FIGURES}
_BY_KIND = {
    "step": "train",
    "validation": "eval",
    "epoch": "data",
    "start": "system",
    "checkpoint": "system",
    "clusters": "system",
}
_RENAMED = {
    ("epoch", "events"): "data/epoch_targets",
    ("validation", "train_seconds"): "system/train_seconds",
    ("checkpoint", "seconds"): "system/checkpoint_seconds",
    ("clusters", "seconds"): "system/clustering_seconds",
    ("clusters", "waited_seconds"): "system/clustering_waited_seconds",
}
# Of a row, what says when: the axes of `data.tracking.contract`, and what only the run's own file needs.
_NO_FIGURES = {"epoch", "events_seen", "windows"}


def plain_name(name: str) -> str:
    """A metric's name in letters, digits and underscores, as every tracker takes it: `ndcg@10` is `ndcg_at_10`."""
    spelt = name.replace("@", "_at_")
    return "".join(letter if letter.isalnum() or letter == "_" else "_" for letter in spelt).strip("_")


def tracked_figures(kind: str, figures: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one row of `metrics.jsonl` under their names in trackers.

    Args:
        kind: of the row: start, step, epoch, validation, checkpoint, clusters.
    """
    result = {}
    for name, value in figures.items():
        if name in _NO_FIGURES or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if kind == "start" and name == "seconds":  # of earlier attempts
            continue
        plain = plain_name(name)
        group = _BY_KIND[kind] if kind != "step" else _GROUPS.get(plain, "train")
        result[_RENAMED.get((kind, name), f"{group}/{plain}")] = float(value)
    return result
