"""The prepared dataset: what ingest writes, and what training and evaluation read.

DIR/manifest.json                counts, split, actions, hashes, log files, settings
DIR/vocabulary.parquet           item ids in row order
DIR/catalogue.parquet            one row per item in the same order, with `train_events` and `first_seen`
DIR/histories/part-00000.parquet one row per user (`data.schema.HISTORY_SCHEMA`)
DIR/quarantine/part-*.parquet    rows that were refused, each with a reason
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.errors import DatasetError
from data.schema import TRAIN_EVENTS
from data.storage import read_manifest
from data.vocabulary import Vocabulary

KIND = "dataset"
FORMAT_VERSION = 1
CATALOGUE = "catalogue.parquet"
HISTORIES = "histories"
QUARANTINE = "quarantine"

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class PreparedDataset:
    """A finished prepared dataset on local or mounted storage."""

    directory: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, directory: str | Path) -> "PreparedDataset":
        """Open a prepared dataset.

        Raises:
            DatasetError: not a finished dataset of this format version.
        """
        return cls(Path(directory), read_manifest(directory, KIND, FORMAT_VERSION, DatasetError))

    @property
    def num_users(self) -> int:
        """Users with at least one event."""
        return int(self.manifest["counts"]["users"])

    @property
    def num_rows(self) -> int:
        """Rows of a table indexed by item row, padding included; no need to read the vocabulary for it."""
        return int(self.manifest["counts"]["items"]) + 1

    @property
    def num_actions(self) -> int:
        """Distinct actions; codes run from 1 to this, 0 means none."""
        return len(self.manifest["actions"])

    @property
    def has_times(self) -> bool:
        """Whether the log had times; without them every time is 0."""
        return bool(self.manifest["has_times"])

    @property
    def shards(self) -> list[Path]:
        """The history files, in shard order."""
        return [self.directory / shard["file"] for shard in self.manifest["shards"]]

    def newest_time(self) -> int:
        """Time of the newest event, seconds UTC; 0 without times or events."""
        times = (pc.max(pc.list_flatten(table["times"])).as_py() for table in self.history_tables(["times"]))
        return max((time for time in times if time is not None), default=0)

    def vocabulary(self) -> Vocabulary:
        """The items, in row order."""
        return Vocabulary.load(self.directory)

    def catalogue(self) -> pa.Table:
        """One row per item in row order, starting with row 1."""
        return pq.read_table(self.directory / CATALOGUE)

    def train_counts(self) -> npt.NDArray[np.int64]:
        """Training events per item row; entry 0 is padding and 0."""
        counts = pq.read_table(self.directory / CATALOGUE, columns=[TRAIN_EVENTS]).column(TRAIN_EVENTS)
        return np.concatenate([np.zeros(1, np.int64), counts.to_numpy()])

    def history_tables(
        self, columns: Sequence[str] | None = None, *, rank: int = 0, world: int = 1
    ) -> Iterator[pa.Table]:
        """Tables of whole histories; with `world` > 1, every rank gets other row groups and none is dropped."""
        number = 0
        for shard in self.shards:
            with pq.ParquetFile(shard) as file:
                for group in range(file.num_row_groups):
                    if number % world == rank:
                        yield file.read_row_group(group, columns=list(columns) if columns else None)
                    number += 1
