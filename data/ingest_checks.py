"""What ingest decides between its passes: whether to go on, the vocabulary, and the counts that must agree."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import LogError
from data.ingest_settings import IngestSettings
from data.log_files import Fragment
from data.log_rows import RowRules
from data.row_tally import RowTally
from data.schema import FIRST_SEEN, TRAIN_EVENTS
from data.spill import Plan
from data.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_MAX_ACTIONS = 2**15 - 1  # action codes are int16
_DAY_SECONDS = 86_400

Report = dict[str, Any]

# Counts of the histories of a shard: the manifest states them for each and for all.
SHARD_COUNTS = (
    "users", "events", "users_with_validation", "users_with_test", "train_events", "validation_events", "test_events",
)  # fmt: skip


def check_order(settings: IngestSettings, fragment: Fragment) -> None:
    """Refuse what the log's columns cannot give."""
    place, columns = fragment.file.location, fragment.columns
    found = ", ".join(columns.values())
    if "timestamp" not in columns:
        asking = {
            "require_times": settings.require_times,
            "split.kind: time": settings.split.kind == "time",
            "extends": settings.extends is not None,
        }
        for setting, asked in asking.items():
            if asked:
                raise LogError(f"{place}: no timestamp column, but {setting} needs times; found {found}")
        if "order" not in columns:
            raise LogError(f"{place}: neither timestamp nor order, so events have no order; map one of them in columns")
    if settings.actions_by_weight and "weight" not in columns:
        raise LogError(
            f"{place}: no weight column, but actions_by_weight makes actions of weights; found {found}. Map a column "
            "to weight in columns, or leave actions_by_weight out"
        )
    if settings.sort == "order" and "order" not in columns:
        raise LogError(f"{place}: no order column, but sort: order needs one; found {found}")


def latest_moment() -> int:
    """Latest time allowed by default, seconds UTC: clocks that run ahead by up to a day are forgiven."""
    return int(time.time()) + _DAY_SECONDS


def without_damaged(
    reports: Sequence[Report], fragments: Sequence[Fragment], plan: Plan
) -> tuple[list[Report], dict[str, str]]:
    """The reports of the files that could be read to their end, and of the others by location why they could not.

    What the other fragments of a damaged file have spilled is removed: a file goes in whole, or not at all.
    """
    pairs = list(zip(fragments, reports, strict=True))
    bad = {fragment.file.location: report["unreadable"] for fragment, report in pairs if "unreadable" in report}
    for number, fragment in enumerate(fragments):
        if fragment.file.location in bad:
            plan.forget(number)
    return [report for fragment, report in pairs if fragment.file.location not in bad], bad


def check_unreadable(reasons: Mapping[str, str], max_bad_files: int) -> list[str]:
    """The locations of unreadable files, sorted.

    Raises:
        LogError: there are more than `max_bad_files`; names them.
    """
    if len(reasons) > max_bad_files:
        raise LogError(
            "\n".join(reasons.values()) + f"\n{len(reasons)} log files cannot be read, and max_bad_files allows "
            f"{max_bad_files}. Mend or remove them, or set max_bad_files={len(reasons)} to go on without them"
        )
    for why in reasons.values():
        logger.warning("left out: %s", why)
    return sorted(reasons)


def row_rules(settings: IngestSettings, has_times: bool) -> RowRules:
    return RowRules(
        unit=settings.timestamp_unit,
        max_seconds=latest_moment() if settings.max_time is None else settings.max_time,
        max_id_bytes=settings.max_id_bytes,
        needs_order=settings.sort == "order" or not has_times,
        actions_by_weight=settings.actions_by_weight,
    )


def write_vocabulary(catalogue: pa.Table | None, plan: Plan, known: Vocabulary | None) -> Vocabulary:
    """Write the vocabulary of catalogue and log.

    Args:
        known: items that keep their rows; new ones come after them.
    """
    items = set(catalogue.column("item_id").to_pylist()) if catalogue is not None else set()
    for path in plan.spill.glob("items-*.parquet"):
        items.update(pl.read_parquet(path)["item_id"].to_list())
    vocabulary = Vocabulary.from_items(items) if known is None else known.grown(items)
    vocabulary.save(plan.directory)
    return vocabulary


def known_actions(reports: Sequence[Report], before: Sequence[str]) -> list[str]:
    """The action of code 1, 2, ...; those of an earlier dataset keep their codes."""
    logged = {action for report in reports for action in report["actions"]}
    actions = [*before, *sorted(logged - set(before))]
    if len(actions) > _MAX_ACTIONS:
        raise LogError(
            f"the log holds {len(actions)} actions, at most {_MAX_ACTIONS} are possible; is this the right column?"
        )
    return actions


def item_facts(plan: Plan, vocabulary: Vocabulary, before: pa.Table | None, *, has_times: bool) -> pl.DataFrame:
    """Training events and first time of each item, in vocabulary order.

    Args:
        before: the catalogue of the dataset that is extended. The spill then holds what changes: facts of the
            histories that were replaced, their training events below zero, and facts of those in their place.
    """
    counts_V = np.zeros(vocabulary.num_items, np.int64)
    never = np.iinfo(np.int64).max
    first_V = np.full(vocabulary.num_items, never)
    if before is not None:
        counts_V[: len(before)] = before.column(TRAIN_EVENTS).to_numpy()
        first_V[: len(before)] = before.column(FIRST_SEEN).fill_null(never).to_numpy()
    for path in plan.spill.glob("facts-*.parquet"):
        table = pq.read_table(path)
        place = table.column("item_row").to_numpy() - 1
        counts_V[place] += table.column(TRAIN_EVENTS).to_numpy()
        first_V[place] = np.minimum(first_V[place], table.column(FIRST_SEEN).to_numpy())
    known = pl.Series(first_V < never) & has_times
    return pl.DataFrame({TRAIN_EVENTS: counts_V, FIRST_SEEN: first_V}).with_columns(
        pl.when(known).then(pl.col(FIRST_SEEN)).alias(FIRST_SEEN)
    )


def time_range(reports: Sequence[Report]) -> list[int]:
    ranges = [report["time_range"] for report in reports if report["time_range"]]
    return [min(first for first, _ in ranges), max(last for _, last in ranges)]


def reconciled_counts(
    read: RowTally, histories: Sequence[Report], before: Mapping[str, int], items: Mapping[str, int]
) -> dict[str, int]:
    """The manifest's counts; every row that was ever read is in exactly one of four places.

    Args:
        read: rows of this log.
        histories: a report for every shard.
        before: counts of the dataset that is extended.
        items: counts of the catalogue.
    """
    counts = {name: sum(report[name] for report in histories) for name in SHARD_COUNTS}
    passed = {"events_read": read.rows, "quarantined": read.refused}
    passed |= {name: sum(report[name] for report in histories) for name in ("duplicates", "dropped_by_filter")}
    counts |= {name: before.get(name, 0) + count for name, count in passed.items()} | dict(items)
    placed = counts["events"] + counts["quarantined"] + counts["duplicates"] + counts["dropped_by_filter"]
    assert counts["events_read"] == placed
    return counts
