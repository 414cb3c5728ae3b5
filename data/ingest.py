"""Ingest: log files -> prepared dataset, in two streaming passes of Ray Data.

Pass 1 reads fragments of the log, checks each row and spills the good ones by bucket of users.
Pass 2 takes one bucket at a time, sorts it, and writes its histories. Each user is in one bucket,
so no task needs more than one bucket in memory, and nothing is shuffled through the object store
(a groupby there measured five times slower). The spill lies inside the unfinished dataset: on a
cluster that must be storage which all nodes share.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import ray.exceptions
from tqdm import tqdm

from data import session
from data.catalogue import CatalogueFormat, aligned_catalogue, read_catalogue
from data.dataset import CATALOGUE, FORMAT_VERSION, HISTORIES, KIND, QUARANTINE
from data.errors import FarsightError, LogError, RecipeError
from data.histories import HistoryRules
from data.ingest_checks import (
    Report,
    check_order,
    logged_actions,
    reconciled_counts,
    row_rules,
    time_range,
    train_events,
    write_vocabulary,
)
from data.ingest_settings import IngestSettings
from data.log_files import Fragment, LogFile, TextFormat, list_files, own_catalogue, plan_fragments
from data.row_tally import RowTally, check_share, total
from data.settings import Recipe, read_section
from data.spill import Plan, spill_fragment, times_in_bin, write_bucket
from data.splits import bin_of_rank, cut_rank
from data.storage import MANIFEST, directory_hashes, published_directory, write_json

_BUCKET_BYTES = 64 * 2**20
_MIN_BUCKETS = 8
_MAX_BUCKETS = 4096
_MAX_TASKS = 1024


def run(recipe: Recipe, out: str | None = None) -> dict[str, Any]:
    """Ingest a log as the `ingest` section of a recipe states.

    Args:
        out: directory to write, in place of the recipe's.

    Returns:
        Where the dataset stands, its counts, and the refused rows by reason.

    Raises:
        RecipeError: the section is wrong.
        LogError: the log cannot be read as stated, or too many rows are bad.
        FarsightError: the directory exists already.
    """
    settings = read_section(recipe, "ingest", IngestSettings)
    place = out or settings.out
    if place is None:
        raise RecipeError("ingest.out: no directory to write; set it in the recipe")
    with published_directory(place, replace=settings.replace) as directory:
        manifest = _ingest(settings, directory.absolute())
    return {"directory": place, **{key: manifest[key] for key in ("counts", "quarantined_by_reason", "time_range")}}


def _ingest(settings: IngestSettings, directory: Path) -> dict[str, Any]:
    """Write a whole prepared dataset into an existing directory and return its manifest."""
    locations = [settings.log] if isinstance(settings.log, str) else settings.log
    text = TextFormat(settings.separator, settings.encoding)
    files = list_files(locations, settings.format)
    fragments = plan_fragments(files, settings.columns, text)
    if not fragments:
        raise LogError(f"{', '.join(locations)}: the log holds no rows")
    check_order(settings, fragments[0])
    has_times = "timestamp" in fragments[0].columns
    catalogue = _catalogue(settings, locations, text)
    plan = Plan(directory, text, row_rules(settings, has_times), settings.num_buckets or _default_buckets(files))
    for folder in (directory / HISTORIES, directory / QUARANTINE, plan.spill):
        folder.mkdir()
    first = _spill_log(fragments, plan)
    read = total(RowTally(**report["tally"]) for report in first)
    check_share(read, settings.max_bad_share)
    vocabulary, num_uncatalogued = write_vocabulary(catalogue, plan)
    actions = logged_actions(first)
    cuts = _cuts(settings, read.good, plan)
    rules = HistoryRules(settings.sort, settings.duplicates, settings.min_user_events, cuts)
    second = _write_histories(plan, rules, actions, settings.users_per_row_group)
    counts = reconciled_counts(read, second, vocabulary.num_items, num_uncatalogued)
    if counts["events"] == 0:
        raise LogError(f"{', '.join(locations)}: no events are left of the {counts['events_read']} rows that were read")
    pq.write_table(aligned_catalogue(catalogue, vocabulary, train_events(plan, vocabulary)), directory / CATALOGUE)
    shutil.rmtree(plan.spill)
    shards = [report for report in second if report["users"]]
    manifest = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "counts": counts,
        "quarantined_by_reason": read.reasons,
        "has_times": has_times,
        "time_range": time_range(second) if has_times else None,
        "max_time": plan.rules.max_seconds,
        "actions": actions,
        "split": {
            "kind": settings.split.kind,
            "validation_start": cuts[0] if cuts else None,
            "test_start": cuts[1] if cuts else None,
        },
        "vocabulary_hash": vocabulary.content_hash,
        "shards": [{key: report[key] for key in ("file", "users", "events")} for report in shards],
        "files": directory_hashes(directory, lambda name: not name.startswith(f"{HISTORIES}/"))
        | {report["file"]: report["sha256"] for report in shards},
        "settings": settings.model_dump(mode="json"),
    }
    write_json(directory / MANIFEST, manifest)
    return manifest


def _catalogue(settings: IngestSettings, locations: Sequence[str], text: TextFormat) -> pa.Table | None:
    place = settings.catalogue or (own_catalogue(locations[0]) if len(locations) == 1 else None)
    if place is None:
        return None
    return read_catalogue(place, CatalogueFormat(settings.catalogue_columns, settings.category_separator, text))


def _default_buckets(files: Sequence[LogFile]) -> int:
    """By the size of the log alone, so that the same log gives the same dataset on every machine."""
    num_bytes = sum(file.size for file in files)
    return min(max(-(-num_bytes // _BUCKET_BYTES), _MIN_BUCKETS), _MAX_BUCKETS)


def _mapped(items: Sequence[Any], task: Callable[[int, Any], Any], doing: str) -> list[Any]:
    """Run `task(number, item)` on the cluster for every item; items and results are JSON values.

    Raises:
        FarsightError: what a task raised, without Ray's wrapping.
    """
    rows = [{"number": number, "item": json.dumps(item)} for number, item in enumerate(items)]

    def one(row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["number"])
        return {"number": number, "result": json.dumps(task(number, json.loads(row["item"])))}

    session.connect()
    results: dict[int, Any] = {}
    with _quiet_ray_data():
        dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_TASKS)).map(one)
        try:
            # Our own bar, on stderr alone: Ray's goes to stdout, where a machine may read the answer.
            for row in tqdm(dataset.iter_rows(), desc=doing, total=len(rows), unit="part", disable=None):
                results[int(row["number"])] = json.loads(row["result"])
        except ray.exceptions.RayError as error:
            plain = _farsight_cause(error)
            if plain is None:
                raise
            raise plain from None
    return [results[number] for number in range(len(rows))]


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """No bars and no notes of Ray Data; its own log files keep them."""
    context = ray.data.DataContext.get_current()
    notes = logging.getLogger("ray.data")
    before = context.enable_progress_bars, notes.level
    context.enable_progress_bars = False
    notes.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        notes.setLevel(before[1])


def _farsight_cause(error: BaseException) -> FarsightError | None:
    """The error of ours inside Ray's, which wraps it once or more."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        found = queue.pop()
        if found is None or found in seen:
            continue
        # Ray's own class of a task error inherits from ours as well; only the original is plain.
        if isinstance(found, FarsightError) and not isinstance(found, ray.exceptions.RayError):
            return found
        seen.append(found)
        queue += [found.__cause__, found.__context__, getattr(found, "cause", None)]
    return None


def _spill_log(fragments: Sequence[Fragment], plan: Plan) -> list[Report]:
    def task(number: int, item: Any) -> Report:
        fragment = Fragment(LogFile(**item.pop("file")), **item)
        return spill_fragment(number, fragment, plan)

    return _mapped([asdict(fragment) for fragment in fragments], task, "reading log")


def _cuts(settings: IngestSettings, num_events: int, plan: Plan) -> tuple[int, int] | None:
    """First seconds of validation and of test; None where each history is cut by itself.

    With shares, a cut is the time of the event of rank floor(n * (1 - share)) among the n good
    rows in time order, duplicates counted; all events at that time go to the later part.
    """
    split = settings.split
    if split.validation_start is not None and split.test_start is not None:
        return split.validation_start, split.test_start
    if split.validation_share is None or split.test_share is None:
        return None
    hours = pl.read_parquet(plan.spill / "hours-*.parquet").group_by("hour").agg(pl.col("events").sum()).sort("hour")
    starts, counts = hours["hour"].to_numpy().astype(np.int64), hours["events"].to_numpy().astype(np.int64)

    def moment(share_after: float) -> int:
        hour, rank = bin_of_rank(starts, counts, cut_rank(num_events, share_after))
        parts = _mapped(range(plan.num_buckets), lambda bucket, _: times_in_bin(bucket, hour, plan), "finding cuts")
        seconds = sorted(int(second) for part in parts for second in part)
        return seconds[rank]

    return moment(split.validation_share + split.test_share), moment(split.test_share)


def _write_histories(plan: Plan, rules: HistoryRules, actions: list[str], users_per_row_group: int) -> list[Report]:
    def task(bucket: int, _: Any) -> Report:
        return write_bucket(bucket, plan, rules, actions, users_per_row_group)

    return _mapped(range(plan.num_buckets), task, "writing histories")
