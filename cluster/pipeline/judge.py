"""The judgement: what was measured of a day's data and of a candidate, against what the recipe allows.

Nothing here measures or reads; other limits are other settings and cost no work.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.pipeline.settings import ChecksSettings, GateSettings

MODEL, POPULARITY = "model", "popularity"

Figures = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `passed` is None where there was nothing to compare with."""

    name: str
    passed: bool | None
    found: float | None
    limit: float | None
    says: str

    def as_dict(self) -> dict[str, Any]:
        """As it stands in reports."""
        return asdict(self)


def at_least(name: str, found: float | None, limit: float | None, says: str) -> Check:
    """A check that a figure reaches a limit; not judged if either is not known."""
    known = found is not None and limit is not None
    return Check(name, found >= limit if known else None, found, limit, says)  # type: ignore[operator]


def at_most(name: str, found: float | None, limit: float | None, says: str) -> Check:
    """A check that a figure stays within a limit; not judged if either is not known."""
    known = found is not None and limit is not None
    return Check(name, found <= limit if known else None, found, limit, says)  # type: ignore[operator]


def judge_data(
    counts: Figures, measured: Figures, before: Sequence[Figures], settings: ChecksSettings, metric: str
) -> list[Check]:
    """Whether the data of a day can be trusted.

    Args:
        counts: of step `ingest`.
        measured: of step `check`; empty of a day without events.
        before: `events` and `accuracy` (of the release in use) of earlier days whose data were good, the newest last.
    """
    compared = before[-settings.compared_days :]
    usual = _median([day["events"] for day in compared])
    known = _median([day["accuracy"] for day in compared if day["accuracy"] is not None])
    rows = max(1, counts["rows_read"])
    in_use = measured.get("rows", {}).get(MODEL)
    fewest = max(1.0, settings.min_events_share * (usual or 0.0))
    most = None if usual is None else settings.max_events_share * usual
    floor = None if known is None else (1 - settings.max_accuracy_fall) * known
    refused, again = counts["quarantined"] / rows, counts["duplicates"] / rows
    cold = measured.get("cold_share")
    return [
        at_least("events", counts["events"], fewest, "events of the day, beside those of the days before"),
        at_most("surplus", counts["events"], most, "events of the day, beside those of the days before"),
        at_most(
            "silence",
            counts["silence_hours"],
            settings.max_silence_hours,
            "hours from the newest event to the day's end",
        ),
        at_most("quarantined", refused, settings.max_quarantined_share, "share of the log's rows that were refused"),
        at_most("duplicates", again, settings.max_duplicate_share, "share of the log's rows that were there already"),
        at_most("cold", cold, settings.max_cold_share, "share of the day's targets without any training event"),
        at_least(
            "recognised",
            in_use and in_use[metric],
            floor,
            f"{metric} of the release in use on this day, beside the days before",
        ),
    ]


def judge_candidate(
    measured: Figures, evaluated: Figures, index: Figures, settings: GateSettings, metric: str
) -> list[Check]:
    """Whether a candidate may follow the release in use.

    Args:
        measured: of step `check`.
        evaluated: of step `evaluate`.
        index: of step `index`.
    """
    own, in_use, change = evaluated["rows"][MODEL], measured["rows"].get(MODEL), evaluated["change"]
    popularity, coverage = measured["rows"][POPULARITY][metric], coverage_name(metric)
    says = f"change of {metric} beside the release in use, as a share of it"
    if settings.judged_by == "low":
        says += ", lower end of its 95% interval"
    fewest = in_use and settings.min_coverage_share * in_use[coverage]
    nearest = f"share of the {index['recall_k']} exact nearest items that the index finds"
    asked = f"{index['requests']} golden requests, asked again of the release as it is on disk"
    checks = [
        at_least("accuracy", change and change[settings.judged_by], -settings.max_accuracy_drop, says),
        at_least("coverage", own[coverage], fewest, f"{coverage}, beside that of the release in use"),
        at_least("recall", index["recall"], settings.min_recall, nearest),
        Check("golden", index["golden"] is None, None, None, index["golden"] or asked),
    ]
    if settings.above_popularity:
        better = own[metric] > popularity
        checks.append(Check("popularity", better, own[metric], popularity, f"{metric}, above that of popularity"))
    if index["overlap"] is not None:
        stays = "share of the answers to the golden requests of the release in use that stay"
        checks.append(at_least("overlap", index["overlap"], settings.min_overlap, stays))
    return checks


def relative(comparison: Figures, accuracy: float) -> Figures | None:
    """A paired comparison as shares of the accuracy of the release in use; None where that is zero."""
    if not accuracy:
        return None
    names = {"mean": "difference", "low": "low", "high": "high"}
    return {name: comparison[of] / accuracy for name, of in names.items()} | {
        name: comparison[name] for name in ("p_value", "users")
    }


def passed(checks: Sequence[Check]) -> bool:
    """Whether no check failed."""
    return all(check.passed is not False for check in checks)


def why(checks: Sequence[Check]) -> list[str]:
    """A sentence per failed check."""
    return [_sentence(check) for check in checks if check.passed is False]


def coverage_name(metric: str) -> str:
    """The coverage at the cut-off of a metric."""
    return f"coverage@{metric.partition('@')[2]}"


def _sentence(check: Check) -> str:
    if check.found is None or check.limit is None:
        return f"{check.name}: {check.says}"
    side = "at most" if check.found > check.limit else "at least"
    return f"{check.name}: found {check.found:.4g}, expected {side} {check.limit:.4g} ({check.says})"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
