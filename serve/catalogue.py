"""The items that can be answered at one moment: a release's, less those that were removed, and behind them those that
were added since. Q queries, D width, K hits, V items of a segment.

A release is one segment of rows and the added items another, as in Lucene or Milvus: the large one stays as it was
built, what is removed is masked inside its search, and the small one is searched beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from jaxtyping import Bool, Float32

from data.conditions import Conditions
from data.ragged import IntArray
from data.vocabulary import PAD_ROW, Vocabulary
from serve.index.contract import Hits, Index, ordered_hits

FloatArray = npt.NDArray[np.float32]


class Filter(NamedTuple):
    """Which items a search may find."""

    code: int = 0  # of `data.conditions.Conditions`; 0 asks for nothing
    at_seconds: int = 0  # when it is asked, seconds UTC; a pool's items depend on it
    only: frozenset[int] | None = None  # rows of a catalogue


@dataclass(frozen=True, eq=False)
class Segment:
    """Items of consecutive rows. Its vocabulary, index and conditions count them from 1, whatever rows are in front."""

    vocabulary: Vocabulary
    index: Index
    conditions: Conditions
    train_events_V: IntArray
    popular_V: IntArray  # its rows, the most popular first
    titles: pa.Array | pa.ChunkedArray | None = None
    rows_before: int = 0
    kept_V: Bool[npt.NDArray[np.bool_], "V"] | None = None  # those not removed; None: all

    def allowed(self, wanted: Filter) -> Bool[npt.NDArray[np.bool_], "V"] | None:
        """Which of its items pass a filter; None: all."""
        masks = [] if self.kept_V is None else [self.kept_V]
        if wanted.code:
            masks.append(self.conditions.items(wanted.code, wanted.at_seconds)[1:])
        if wanted.only is not None:
            rows = np.fromiter(wanted.only, np.int64, len(wanted.only)) - self.rows_before
            only_V = np.zeros(self.vocabulary.num_items, bool)
            only_V[rows[(rows >= 1) & (rows <= len(only_V))] - 1] = True
            masks.append(only_V)
        return np.logical_and.reduce(masks) if masks else None

    def search(self, query_QD: Float32[npt.NDArray[np.float32], "Q D"], k: int, wanted: Filter) -> Hits:
        """The k best of its items that pass, in rows of the catalogue."""
        hits = self.index.search(query_QD, k, self.allowed(wanted))
        if not self.rows_before:
            return hits
        return Hits(np.where(hits.rows_QK == PAD_ROW, PAD_ROW, hits.rows_QK + self.rows_before), hits.scores_QK)

    def titles_of(self, rows: Sequence[int]) -> list[str | None]:
        """Titles of its own rows; None for `PAD_ROW`."""
        titles = self.titles
        if titles is None:
            return [None] * len(rows)
        return [None if row == PAD_ROW else titles[row - 1].as_py() for row in rows]

    def popular(self, k: int, wanted: Filter) -> tuple[IntArray, FloatArray]:
        """The k most popular of its items that pass, in rows of the catalogue, with their training events."""
        allowed_V, rows_K = self.allowed(wanted), self.popular_V
        if allowed_V is not None:
            rows_K = rows_K[allowed_V[rows_K - 1]]
        rows_K = rows_K[:k]
        return rows_K + self.rows_before, self.train_events_V[rows_K - 1].astype(np.float32)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """A release's items in its rows, and the added ones in the rows behind. It never changes: another takes its
    place, and a request keeps the one that it began with.
    """

    release: Segment
    added: Segment | None = None

    @property
    def segments(self) -> list[Segment]:
        """Those that there are, in the order of their rows."""
        return [self.release] if self.added is None else [self.release, self.added]

    @property
    def num_items(self) -> int:
        """Items that have a row, removed ones too."""
        return sum(segment.vocabulary.num_items for segment in self.segments)

    def rows(self, item_ids: Sequence[str]) -> IntArray:
        """Row of each id, removed ones too; `PAD_ROW` for one that is not known."""
        rows = self.release.vocabulary.rows(item_ids)
        if self.added is not None:
            behind = self.added.vocabulary.rows(item_ids)
            rows = np.where(behind == PAD_ROW, rows, behind + self.added.rows_before)
        return rows

    def released(self, rows: IntArray) -> IntArray:
        """The same rows, with `PAD_ROW` for added items: what the model knows."""
        return rows if self.added is None else np.where(rows > self.added.rows_before, PAD_ROW, rows)

    def item_ids(self, rows: Sequence[int]) -> list[str]:
        """External id of each row; rows are items."""
        if self.added is None:
            return self.release.vocabulary.external(rows)
        return [segment.vocabulary.external([row])[0] for segment, row in map(self._placed, rows)]

    def titles(self, rows: Sequence[int]) -> list[str | None]:
        """Title of each row; None for one that has none, and for `PAD_ROW`."""
        if self.added is None:
            return self.release.titles_of(rows)
        return [segment.titles_of([row])[0] for segment, row in map(self._placed, rows)]

    def _placed(self, row: int) -> tuple[Segment, int]:
        """The segment of a row, and the row there."""
        if self.added is not None and row > self.added.rows_before:
            return self.added, row - self.added.rows_before
        return self.release, row

    def search(self, query_QD: Float32[npt.NDArray[np.float32], "Q D"], k: int, wanted: Filter) -> Hits:
        """The best items of each query that pass a filter: k, or all if they are fewer. As `Index.search`."""
        found = [segment.search(query_QD, k, wanted) for segment in self.segments]
        if len(found) == 1:
            return found[0]
        rows_QC = np.concatenate([hits.rows_QK for hits in found], axis=1)
        return ordered_hits(rows_QC, np.concatenate([hits.scores_QK for hits in found], axis=1), k)

    def popular(self, k: int, wanted: Filter) -> tuple[IntArray, FloatArray]:
        """The k most popular items that pass, with their training events, of which an added item has none."""
        found = [segment.popular(k, wanted) for segment in self.segments]
        rows, train_events = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return rows[:k], train_events[:k]

    def has_any(self, wanted: Filter) -> bool:
        """Whether any item passes."""
        masks = [segment.allowed(wanted) for segment in self.segments]
        return any(mask is None or bool(mask.any()) for mask in masks)
