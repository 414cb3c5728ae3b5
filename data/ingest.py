"""Ingest: log files -> prepared dataset, in two streaming passes of Ray Data.

Pass 1 reads fragments of the log, checks each row and spills the good ones by bucket of users.
Pass 2 takes one bucket at a time, sorts it, and writes its histories. Each user is in one bucket,
so no task needs more than one bucket in memory, and nothing is shuffled through the object store
(a groupby there measured five times slower). The spill lies inside the unfinished dataset: on a
cluster that must be storage which all nodes share.
"""

import shutil
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data.catalogue import (
    CatalogueFormat,
    aligned_catalogue,
    merged_catalogue,
    num_undescribed,
    own_catalogue,
    read_catalogue,
)
from data.dataset import CATALOGUE, FORMAT_VERSION, HISTORIES, KIND, QUARANTINE
from data.errors import LogError, RecipeError
from data.extend import Earlier, open_earlier
from data.histories import HistoryRules
from data.ingest_checks import (
    SHARD_COUNTS,
    Report,
    check_order,
    check_unreadable,
    item_facts,
    known_actions,
    reconciled_counts,
    row_rules,
    time_range,
    without_damaged,
    write_vocabulary,
)
from data.ingest_settings import IngestSettings, SplitSettings
from data.log_files import LogFile, TextFormat, list_files, plan_fragments
from data.row_tally import RowTally, check_share, total
from data.settings import Recipe, read_section
from data.spill import Plan, hash_file, spill_fragment, times_in_bin, write_bucket
from data.splits import bin_of_rank, cut_rank
from data.storage import MANIFEST, directory_hashes, link_or_copy, published_directory, write_json
from data.tasks import over_items

_BUCKET_BYTES = 16 * 2**20
_MIN_BUCKETS = 8
_MAX_BUCKETS = 4096


def run(recipe: Recipe, out: str | None = None) -> dict[str, Any]:
    """Ingest a log as the `ingest` section of a recipe states.

    Args:
        out: directory to write, in place of the recipe's.

    Returns:
        Where the dataset stands, its counts, and the refused rows by reason.

    Raises:
        RecipeError: the section is wrong.
        LogError: the log cannot be read as stated, or too many rows are bad.
        DatasetError: the dataset that `extends` names cannot be extended so.
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
    earlier = open_earlier(settings)
    unreadable: dict[str, str] = {}
    files = _unread(list_files(locations, settings.format), earlier)
    fragments = plan_fragments(files, settings.columns, text, unreadable)
    if fragments:
        check_order(settings, fragments[0])
    elif settings.extends is None:
        raise LogError(f"{', '.join(locations)}: the log holds no rows")
    has_times = settings.extends is not None or "timestamp" in fragments[0].columns
    catalogue = merged_catalogue(_catalogue(settings, locations, text), earlier.catalogue)
    num_buckets = earlier.num_buckets or settings.num_buckets or _default_buckets(files, unreadable)
    plan = Plan(directory, text, row_rules(settings, has_times), num_buckets, earlier.next_part)
    plan.make_folders()
    for part in earlier.quarantine:
        link_or_copy(part, directory / QUARANTINE / part.name)
    first = over_items(spill_fragment, [asdict(fragment) for fragment in fragments], "reading log", plan=plan)
    first, damaged = without_damaged(first, fragments, plan)
    left_out = check_unreadable({**unreadable, **damaged}, settings.max_bad_files)
    read = total(RowTally(**report["tally"]) for report in first)
    check_share(read, settings.max_bad_share)
    vocabulary = write_vocabulary(catalogue, plan, earlier.vocabulary)
    actions = known_actions(first, earlier.actions)
    cuts = _cuts(settings, read.good, plan, earlier.newest)
    split = _stated_split(settings.split, cuts)
    rules = HistoryRules(settings.sort, settings.duplicates, settings.min_user_events, cuts, settings.split.test_events)
    fixed: dict[str, Any] = {"rules": rules, "actions": actions, "users_per_row_group": settings.users_per_row_group}
    kept: dict[str, Any] = {"stored": earlier.shards, "rebuild": split != earlier.split}
    second = over_items(write_bucket, list(range(num_buckets)), "writing histories", plan=plan, **fixed, **kept)
    earlier.log_kept(second)
    facts = item_facts(plan, vocabulary, earlier.catalogue, has_times=has_times)
    aligned = aligned_catalogue(catalogue, vocabulary, facts)
    items = {"items": vocabulary.num_items, "items_without_catalogue": num_undescribed(aligned)}
    counts = reconciled_counts(read, second, earlier.counts, items)
    if counts["events"] == 0:
        raise LogError(f"{', '.join(locations)}: no events are left of the {counts['events_read']} rows that were read")
    pq.write_table(aligned, directory / CATALOGUE)
    shutil.rmtree(plan.spill)
    manifest = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "counts": counts,
        "quarantined_by_reason": dict(sorted((Counter(earlier.reasons) + Counter(read.reasons)).items())),
        "has_times": has_times,
        "time_range": time_range(second) if has_times else None,
        "max_time": plan.rules.max_seconds,
        "actions": actions,
        "split": split,
        "vocabulary_hash": vocabulary.content_hash,
        "num_buckets": num_buckets,
        **_shards(second, directory),
        "unreadable_files": left_out,
        "log_files": earlier.log_files + [report["log_file"] for report in first if report["log_file"]],
        "settings": settings.model_dump(mode="json"),
    }
    write_json(directory / MANIFEST, manifest)
    return manifest


def _unread(files: Sequence[LogFile], earlier: Earlier) -> list[LogFile]:
    """Files that have not gone into the dataset that is extended."""
    places = [file.location for file in earlier.perhaps_read(files)]
    return earlier.unread(files, dict(zip(places, over_items(hash_file, places, "comparing log"), strict=True)))


def _stated_split(split: SplitSettings, cuts: tuple[int, int] | None) -> dict[str, Any]:
    """The split as the manifest states it: where two agree, so do the parts of all histories."""
    return {
        "kind": split.kind,
        "test_events": None if cuts else split.test_events,
        "validation_start": cuts[0] if cuts else None,
        "test_start": cuts[1] if cuts else None,
    }


def _shards(reports: Sequence[Report], directory: Path) -> dict[str, Any]:
    """The shards that hold users, and the hash of every file; tasks have hashed their own."""
    filled = [report for report in reports if report["users"]]
    hashes = directory_hashes(directory, lambda name: not name.startswith(f"{HISTORIES}/"))
    return {
        "shards": [{key: report[key] for key in ("file", "time_range", *SHARD_COUNTS)} for report in filled],
        "files": hashes | {report["file"]: report["sha256"] for report in filled},
    }


def _catalogue(settings: IngestSettings, locations: Sequence[str], text: TextFormat) -> pa.Table | None:
    place = settings.catalogue or (own_catalogue(locations[0]) if len(locations) == 1 else None)
    if place is None:
        return None
    return read_catalogue(place, CatalogueFormat(settings.catalogue_columns, settings.category_separator, text))


def _default_buckets(files: Sequence[LogFile], unreadable: Container[str]) -> int:
    """By the size of the log alone, so that the same log gives the same dataset on every machine."""
    num_bytes = sum(file.size for file in files if file.location not in unreadable)
    return min(max(-(-num_bytes // _BUCKET_BYTES), _MIN_BUCKETS), _MAX_BUCKETS)


def _cuts(settings: IngestSettings, num_events: int, plan: Plan, newest_before: int) -> tuple[int, int] | None:
    """First seconds of validation and of test; None where each history is cut by itself.

    With shares, a cut is the time of the event of rank floor(n * (1 - share)) among the n good
    rows in time order, duplicates counted; all events at that time go to the later part. With days,
    the test part ends with the newest event, which a dataset that is extended may hold.
    """
    split = settings.split
    if split.validation_start is not None and split.test_start is not None:
        return split.validation_start, split.test_start
    if split.kind != "time":
        return None
    if split.test_days is not None and split.validation_days is not None:
        newest = max(newest_before, _moment(num_events - 1, plan) if num_events else 0)
        test_start = newest + 1 - round(split.test_days * 86_400)
        return test_start - round(split.validation_days * 86_400), test_start
    if not num_events:
        return 0, 0  # nothing to cut; a dataset in which no event is left is refused
    assert split.validation_share is not None  # the settings see to one way to cut, and a whole one
    assert split.test_share is not None
    after_validation = split.validation_share + split.test_share
    return _moment(cut_rank(num_events, after_validation), plan), _moment(cut_rank(num_events, split.test_share), plan)


def _moment(rank: int, plan: Plan) -> int:
    """Seconds UTC of the row of a rank among the good rows in time order."""
    hours = pl.read_parquet(plan.spill / "hours-*.parquet").group_by("hour").agg(pl.col("events").sum()).sort("hour")
    starts, counts = hours["hour"].to_numpy().astype(np.int64), hours["events"].to_numpy().astype(np.int64)
    hour, rank_in_hour = bin_of_rank(starts, counts, rank)
    parts = over_items(times_in_bin, list(range(plan.num_buckets)), "finding cuts", hour=hour, plan=plan)
    return sorted(int(second) for part in parts for second in part)[rank_in_hour]
