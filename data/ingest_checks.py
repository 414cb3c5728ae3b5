"""What ingest decides between its passes: whether to go on, the vocabulary, and the counts that must agree."""

import time
from collections.abc import Sequence
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

_MAX_ACTIONS = 2**15 - 1  # action codes are int16
_DAY_SECONDS = 86_400

Report = dict[str, Any]


def check_order(settings: IngestSettings, fragment: Fragment) -> None:
    """Refuse what the log's columns cannot give."""
    place, columns = fragment.file.location, fragment.columns
    found = ", ".join(columns.values())
    if "timestamp" not in columns:
        asking = {"require_times": settings.require_times, "split.kind: time": settings.split.kind == "time"}
        for setting, asked in asking.items():
            if asked:
                raise LogError(f"{place}: no timestamp column, but {setting} needs times; found {found}")
        if "order" not in columns:
            raise LogError(f"{place}: neither timestamp nor order, so events have no order; map one of them in columns")
    if settings.sort == "order" and "order" not in columns:
        raise LogError(f"{place}: no order column, but sort: order needs one; found {found}")


def latest_moment() -> int:
    """Latest time allowed by default, seconds UTC: clocks that run ahead by up to a day are forgiven."""
    return int(time.time()) + _DAY_SECONDS


def row_rules(settings: IngestSettings, has_times: bool) -> RowRules:
    return RowRules(
        unit=settings.timestamp_unit,
        max_seconds=latest_moment() if settings.max_time is None else settings.max_time,
        max_id_bytes=settings.max_id_bytes,
        needs_order=settings.sort == "order" or not has_times,
    )


def write_vocabulary(catalogue: pa.Table | None, plan: Plan, known: Vocabulary | None) -> tuple[Vocabulary, int]:
    """Write the vocabulary of catalogue and log; also the number of its items that the catalogue lacks.

    Args:
        known: items that keep their rows; new ones come after them.
    """
    logged = pl.read_parquet(plan.spill / "items-*.parquet")["item_id"].unique().to_list()
    listed = set(catalogue.column("item_id").to_pylist()) if catalogue is not None else set()
    vocabulary = Vocabulary.from_items([*listed, *logged]) if known is None else known.grown([*listed, *logged])
    vocabulary.save(plan.directory)
    return vocabulary, vocabulary.num_items - len(listed)


def logged_actions(reports: Sequence[Report]) -> list[str]:
    actions = sorted({action for report in reports for action in report["actions"]})
    if len(actions) > _MAX_ACTIONS:
        raise LogError(
            f"the log holds {len(actions)} actions, at most {_MAX_ACTIONS} are possible; is this the right column?"
        )
    return actions


def item_facts(plan: Plan, vocabulary: Vocabulary, *, has_times: bool) -> pl.DataFrame:
    """Training events and first time of each item, in vocabulary order."""
    counts_V = np.zeros(vocabulary.num_items, np.int64)
    never = np.iinfo(np.int64).max
    first_V = np.full(vocabulary.num_items, never)
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
    read: RowTally, histories: Sequence[Report], num_items: int, num_uncatalogued: int
) -> dict[str, int]:
    """The manifest's counts; every row that was read is in exactly one of four places."""
    names = (
        "users", "events", "duplicates", "dropped_by_filter", "users_with_validation", "users_with_test",
        "train_events", "validation_events", "test_events",
    )  # fmt: skip
    counts = {name: sum(report[name] for report in histories) for name in names}
    counts |= {
        "items": num_items,
        "items_without_catalogue": num_uncatalogued,
        "events_read": read.rows,
        "quarantined": read.refused,
    }
    placed = counts["events"] + counts["quarantined"] + counts["duplicates"] + counts["dropped_by_filter"]
    assert counts["events_read"] == placed
    return counts
