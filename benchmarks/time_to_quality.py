"""Two learning curves side by side: seconds per epoch, seconds to a stated NDCG@10, and their ratios."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.report import spread

Row = Mapping[str, Any]
Clock = Literal["seconds", "wall_seconds"]


@dataclass(frozen=True)
class Point:
    """Where a run stood after an epoch."""

    epoch: int  # complete epochs
    seconds: float  # of training so far, evaluation left out
    wall_seconds: float  # since its process began, start-up and evaluation included
    ndcg: float  # NDCG@10, validation
    hr: float  # HR@10, validation


def our_curve(rows: Sequence[Row], began_unix: float) -> list[Point]:
    """The curve of a Farsight run that validates every epoch, from the rows of its `metrics.jsonl`.

    `train_seconds` of a row holds earlier validations and checkpoints; the validations are taken out.
    The checkpoints stay in, and so does Ray Data's start in the first epoch.
    """
    curve, validating = [], 0.0
    for row in rows:
        if row["kind"] != "validation":
            continue
        curve.append(
            Point(
                epoch=row["epoch"],
                seconds=row["train_seconds"] - validating,
                wall_seconds=row["unix_time"] - began_unix,
                ndcg=row["ndcg@10"],
                hr=row["hr@10"],
            )
        )
        validating += row["seconds"]
    return curve


def peer_curve(rows: Sequence[Row], set_up_seconds: float) -> list[Point]:
    """The curve of a peer from the rows it reported; the time it waited for its turn is in neither clock."""
    curve, evaluating = [], 0.0
    for row in rows:
        wall = set_up_seconds + row["seconds"] + evaluating
        validation = row["validation"]
        curve.append(Point(row["epoch"], row["seconds"], wall, validation["ndcg@10"], validation["hr@10"]))
        evaluating += row["evaluation_seconds"]
    return curve


def epoch_seconds(curve: Sequence[Point]) -> list[float]:
    """Training seconds of each epoch."""
    ends = [0.0, *(point.seconds for point in curve)]
    return [after - before for before, after in itertools.pairwise(ends)]


def seconds_to(curve: Sequence[Point], ndcg: float, clock: Clock = "seconds") -> float | None:
    """Seconds until NDCG@10 first reaches `ndcg`; None if it never does.

    Linear between the epoch that reaches it and the one before, so that long epochs are not
    counted to their end; a curve whose first point reaches it counts that whole epoch.
    """
    for number, point in enumerate(curve):
        if point.ndcg < ndcg:
            continue
        now: float = getattr(point, clock)
        if number == 0:
            return now
        before = curve[number - 1]
        then: float = getattr(before, clock)
        return then + (now - then) * (ndcg - before.ndcg) / (point.ndcg - before.ndcg)
    return None


def epoch_ratio(peer_epochs: Sequence[float], our_epochs: Sequence[float]) -> dict[str, Any]:
    """Peer over ours in seconds per epoch: the median over rounds, and their spread."""
    ratios = [peer / ours for peer, ours in zip(peer_epochs, our_epochs, strict=True)]
    return {"ratio_epoch": statistics.median(ratios), "ratio_epoch_spread": spread(ratios)}


def ndcg_ratio(peer: Sequence[Point], ours: Sequence[Sequence[Point]], ndcg: float) -> dict[str, Any]:
    """Peer over ours in seconds to NDCG@10 `ndcg`: the peer's one run over the median of our runs.

    A peer that stopped before it got there counts with what it had spent, and the ratio is then a
    lower bound. Without a ratio (None) where any of our runs did not get there.
    """
    needed = seconds_to(peer, ndcg)
    found = [seconds_to(curve, ndcg) for curve in ours]
    reached = [seconds for seconds in found if seconds is not None]
    figures: dict[str, Any] = {
        "ndcg": ndcg,
        "ratio_to_ndcg": None,
        "ratio_to_ndcg_is_lower_bound": needed is None,
        "peer_reached": needed is not None,
        "ours_reached": bool(ours) and len(reached) == len(ours),
        "peer_seconds_to_ndcg": needed,
        "our_seconds_to_ndcg": found,
    }
    if figures["ours_reached"] and peer:
        spent = peer[-1].seconds if needed is None else needed
        ratios = [spent / seconds for seconds in reached]
        figures["ratio_to_ndcg"] = spent / statistics.median(reached)
        figures["ratio_to_ndcg_spread"] = spread(ratios)
    return figures


def wall_ratio(peer: Sequence[Point], ours: Sequence[Sequence[Point]], ndcg: float) -> float | None:
    """As `ratio_to_ndcg`, by the clocks that run from the start of each process; a lower bound where that is one."""
    needed = seconds_to(peer, ndcg, "wall_seconds")
    found = [seconds_to(curve, ndcg, "wall_seconds") for curve in ours]
    reached = [seconds for seconds in found if seconds is not None]
    if not peer or not ours or len(reached) < len(ours):
        return None
    return (peer[-1].wall_seconds if needed is None else needed) / statistics.median(reached)
