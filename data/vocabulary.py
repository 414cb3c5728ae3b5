"""Vocabulary: external item id <-> dense row. Row 0 is padding and belongs to no item."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DatasetError

PAD_ROW = 0
FILE_NAME = "vocabulary.parquet"


class Vocabulary:
    """The items of a catalogue in row order; external ids are strings.

    Items hold rows 1 to `num_items`; tables indexed by row therefore have `num_rows` rows.
    """

    def __init__(self, item_ids: Sequence[str]) -> None:
        self._item_ids = list(item_ids)
        self._rows = {item_id: row for row, item_id in enumerate(self._item_ids, start=1)}
        if len(self._rows) != len(self._item_ids):
            raise DatasetError("the vocabulary holds an item id twice; ingest the log again")

    @classmethod
    def from_items(cls, item_ids: Iterable[str]) -> "Vocabulary":
        """Rows in the order of the sorted distinct ids, so that the same items give the same rows."""
        return cls(sorted(set(item_ids)))

    def grown(self, item_ids: Iterable[str]) -> "Vocabulary":
        """The same items in their rows, and behind them those that are new, sorted."""
        return Vocabulary([*self._item_ids, *sorted(set(item_ids) - self._rows.keys())])

    def begins(self, other: "Vocabulary") -> bool:
        """Whether the other one has all of these items in the same rows."""
        return self._item_ids == other._item_ids[: len(self._item_ids)]

    @property
    def num_items(self) -> int:
        """Number of items, padding not counted."""
        return len(self._item_ids)

    @property
    def num_rows(self) -> int:
        """Rows of a table indexed by item row, padding included."""
        return len(self._item_ids) + 1

    @property
    def item_ids(self) -> list[str]:
        """External ids in row order, starting with row 1."""
        return list(self._item_ids)

    @property
    def content_hash(self) -> str:
        """SHA-256 over the ids in row order; equal hashes mean equal rows for all items."""
        digest = hashlib.sha256()
        for item_id in self._item_ids:
            encoded = item_id.encode()
            digest.update(len(encoded).to_bytes(4, "little") + encoded)
        return digest.hexdigest()

    def rows(self, item_ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """Row of each id; an id that is not in the vocabulary gets `PAD_ROW`."""
        return np.fromiter((self._rows.get(item_id, PAD_ROW) for item_id in item_ids), dtype=np.int64)

    def external(self, rows: Iterable[int]) -> list[str]:
        """External id of each row. Rows must be 1 to `num_items`."""
        return [self._item_ids[row - 1] for row in rows]

    def save(self, directory: Path) -> None:
        """Write `vocabulary.parquet`."""
        pq.write_table(pa.table({"item_id": pa.array(self._item_ids, pa.string())}), directory / FILE_NAME)

    @classmethod
    def load(cls, directory: Path) -> "Vocabulary":
        """Read `vocabulary.parquet`.

        Raises:
            DatasetError: the file is missing.
        """
        path = directory / FILE_NAME
        if not path.is_file():
            raise DatasetError(f"{path}: no such file; a finished dataset or artifact holds it")
        return cls(pq.read_table(path).column("item_id").to_pylist())
