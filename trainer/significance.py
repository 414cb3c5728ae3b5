"""Whether one ranking is better than another: a paired bootstrap over users, and a verdict with the seeds in view.

Letters: U users, N distinct values, R resamples.
"""

import statistics
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "no effect"]

INTERVAL = 0.95
# Of numbers held at once: 8 bytes each, so 32 MiB.
_CHUNK_NUMBERS = 2**22


def paired_bootstrap(
    a_U: npt.ArrayLike, b_U: npt.ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, float | int]:
    """How sure the mean difference a - b of a metric is, if other users of the same kind had been measured.

    Users are drawn with replacement and both values of a user go together. Drawing users is drawing how
    often each distinct difference occurs, so the cost is resamples times distinct differences, which
    ranking metrics have few of; memory stays within tens of MiB.

    Args:
        a_U, b_U: the metric of each user under two rankings, in the same order of users.
        resamples: at least 1. The p value is never below 2 / (resamples + 1).

    Returns:
        `difference` (mean of a - b), `low` and `high` (95% percentile interval), `p_value` (two-sided),
        `users`. The p value is twice the smaller share of resampled means at or beyond zero, the
        observed one counted among them, so it is 1 where the two are the same for everyone.

    Raises:
        ValueError: the two have other lengths, no users, or a value that is not finite; no resamples.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections 13.3 and 15.4; Sakai, SIGIR 2006.
    """
    a, b = np.asarray(a_U, np.float64), np.asarray(b_U, np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"shapes {a.shape} and {b.shape}: expected one value per user, the same users in both")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a value is not finite; leave out the users whose metric is not defined, in both")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, expected at least 1")
    means_R = _resampled_means(a - b, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means_R, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    beyond = min(int((means_R <= 0).sum()), int((means_R >= 0).sum()))
    return {
        "difference": float((a - b).mean()),
        "low": float(low),
        "high": float(high),
        "p_value": min(1.0, 2 * (beyond + 1) / (resamples + 1)),
        "users": len(a),
    }


def _resampled_means(differences_U: FloatArray, resamples: int, random: np.random.Generator) -> FloatArray:
    values_N, counts_N = np.unique(differences_U, return_counts=True)
    num_users = len(differences_U)
    at_once = max(1, _CHUNK_NUMBERS // len(values_N))
    means_R = np.empty(resamples)
    for start in range(0, resamples, at_once):
        stop = min(start + at_once, resamples)
        drawn_RN = random.multinomial(num_users, counts_N / num_users, size=stop - start)
        means_R[start:stop] = drawn_RN @ values_N / num_users
    return means_R


def verdict(
    mean_a: float, mean_b: float, *, seed_deviation: float, p_value: float, significance: float = 0.05
) -> Verdict:
    """What may be said of a against b: better, worse, or no effect.

    A difference under twice the deviation between seeds is "no effect", however sure the users make it:
    another seed could undo it. So is one whose p value is not below `significance`.

    Args:
        mean_a, mean_b: means over seeds of a metric of which more is better.
        seed_deviation: standard deviation of the metric between runs that differ by their seed alone; of
            two models, the larger one.
        p_value: of `paired_bootstrap`.

    Raises:
        ValueError: the deviation is negative or not a number.
    """
    if not seed_deviation >= 0:
        raise ValueError(f"seed_deviation is {seed_deviation}, expected 0 or more")
    difference = mean_a - mean_b
    if difference == 0 or abs(difference) < 2 * seed_deviation or p_value >= significance:
        return "no effect"
    return "better" if difference > 0 else "worse"


def compare(
    a_U: npt.ArrayLike, b_U: npt.ArrayLike, *, a_seeds: Sequence[float], b_seeds: Sequence[float]
) -> dict[str, Any]:
    """`paired_bootstrap` of two models, and the verdict that their seeds allow.

    Args:
        a_U, b_U: the metric of each user, averaged over the seeds of one model.
        a_seeds, b_seeds: the mean metric of each seed.

    Returns:
        What `paired_bootstrap` returns, `seed_deviation` (the larger of the two; None if either has a
        single seed) and `verdict`, which is "one seed" where a deviation is not known.
    """
    found: dict[str, Any] = paired_bootstrap(a_U, b_U)
    found["seed_deviation"], found["verdict"] = None, "one seed"
    if len(a_seeds) > 1 and len(b_seeds) > 1:
        deviation = max(statistics.stdev(a_seeds), statistics.stdev(b_seeds))
        found["seed_deviation"] = deviation
        found["verdict"] = verdict(
            statistics.fmean(a_seeds), statistics.fmean(b_seeds), seed_deviation=deviation, p_value=found["p_value"]
        )
    return found
