"""Extending a prepared dataset by the logs of later days: what is taken over, and what must agree.

A history shard holds the users of one bucket (`data.spill.bucket_of`), so a later log concerns only the shards of
its own users. The others are linked into the new dataset, and their counts are taken from the old manifest.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.dataset import QUARANTINE, PreparedDataset
from data.errors import DatasetError, LogError
from data.ingest_settings import IngestSettings
from data.log_files import LogFile
from data.spill import StoredShard
from data.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Earlier:
    """What a new dataset takes over from the one that it extends; empty where it extends none."""

    vocabulary: Vocabulary | None = None
    catalogue: pa.Table | None = None
    actions: list[str] = field(default_factory=list)
    num_buckets: int | None = None
    shards: dict[str, StoredShard] = field(default_factory=dict)  # by file
    split: dict[str, Any] | None = None
    newest: int = 0  # seconds UTC of its last event
    counts: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    quarantine: list[Path] = field(default_factory=list)
    log_files: list[dict[str, Any]] = field(default_factory=list)  # name, size, sha256

    @property
    def next_part(self) -> int:
        """Number after that of the last quarantine file."""
        return max((int(path.stem.split("-")[1]) + 1 for path in self.quarantine), default=0)

    def perhaps_read(self, files: Sequence[LogFile]) -> list[LogFile]:
        """Files that may have gone in already: those as long as one that has."""
        sizes = {recorded["size"] for recorded in self.log_files}
        return [file for file in files if file.size in sizes]

    def unread(self, files: Sequence[LogFile], hashes: Mapping[str, str]) -> list[LogFile]:
        """Files whose content has not gone in yet, under whatever name.

        Args:
            hashes: SHA-256 by location, of the files of `perhaps_read`.

        Raises:
            LogError: a file went in, and has other content now.
        """
        contents = {recorded["sha256"] for recorded in self.log_files}
        by_name = {recorded["name"]: recorded for recorded in self.log_files}
        left = [file for file in files if hashes.get(file.location) not in contents]
        for file in left:
            if file.location in by_name:
                raise LogError(
                    f"{file.location}: {file.size} bytes, but other content of {by_name[file.location]['size']} bytes "
                    "went into the dataset under this name, and events cannot be taken out again; put new events into "
                    "a file of their own, or ingest the whole log again without ingest.extends"
                )
        if len(left) < len(files):
            logger.info("%d of %d log files are left out: they went in before", len(files) - len(left), len(files))
        return left

    def log_kept(self, reports: Sequence[Mapping[str, Any]]) -> None:
        """Say how many shards did not have to be read, given what was reported of each of the new dataset's."""
        if self.shards:
            former = {file: shard.report for file, shard in self.shards.items()}
            kept = sum(report == former.get(report["file"]) for report in reports)
            logger.info("%d of %d history shards are kept as they were", kept, len(self.shards))


def open_earlier(settings: IngestSettings) -> Earlier:
    """Open the dataset that `ingest.extends` names, if any.

    Raises:
        DatasetError: it is no finished dataset, or one that cannot be extended with these settings.
    """
    if settings.extends is None:
        known = settings.items_from
        return Earlier() if known is None else Earlier(vocabulary=Vocabulary.load(Path(known)))
    dataset = PreparedDataset.open(Path(settings.extends).absolute())
    _check(dataset, settings)
    manifest = dataset.manifest
    shards = {}
    for path, entry in zip(dataset.shards, manifest["shards"], strict=True):
        if not path.is_file():
            raise DatasetError(f"{path}: missing, so the dataset cannot be extended; ingest its whole log again")
        report = {**entry, "sha256": manifest["files"][entry["file"]], "duplicates": 0, "dropped_by_filter": 0}
        shards[entry["file"]] = StoredShard(path, report)
    return Earlier(
        vocabulary=dataset.vocabulary(),
        catalogue=dataset.catalogue(),
        actions=manifest["actions"],
        num_buckets=manifest["num_buckets"],
        shards=shards,
        split=manifest["split"],
        newest=manifest["time_range"][1],
        counts=manifest["counts"],
        reasons=manifest["quarantined_by_reason"],
        quarantine=sorted((dataset.directory / QUARANTINE).glob("part-*.parquet")),
        log_files=manifest["log_files"],
    )


def _check(dataset: PreparedDataset, settings: IngestSettings) -> None:
    place, manifest = dataset.directory, dataset.manifest
    if "log_files" not in manifest:
        raise DatasetError(
            f"{place}: does not say which log files went into it, since an earlier version of Farsight made it; "
            "ingest its whole log again, then extend that"
        )
    made = manifest["settings"]
    # What is not stored cannot be put in order, compared or counted later.
    expected = {
        "has_times": (manifest["has_times"], True),
        "sort": (made["sort"], "time"),
        "min_user_events": (made["min_user_events"], 1),
        "duplicates": (made["duplicates"], settings.duplicates),
        "num_buckets": (manifest["num_buckets"], settings.num_buckets or manifest["num_buckets"]),
    }
    for name, (found, needed) in expected.items():
        if found != needed:
            remedy = (
                f"set ingest.{name}={found}" if name in ("duplicates", "num_buckets") else "leave out ingest.extends"
            )
            raise DatasetError(
                f"{place}: {name} is {found}, extending it as stated needs {needed}; {remedy}, or ingest the whole log "
                f"again with {name} {needed}"
            )
