"""What an answer can be asked to satisfy: categories of the catalogue, and named pools of young items."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.errors import RecipeError
from data.ragged import IntArray
from data.schema import FIRST_SEEN

_DAY_SECONDS = 86_400
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Conditions:
    """Conditions 1, 2, ... by name: the categories in alphabetical order, then the pools. 0 asks for nothing."""

    names: list[str]
    category_codes_VG: IntArray  # categories of each item row, at most G; 0 = no further one. Row 0 has none.
    first_seen_V: IntArray  # seconds UTC of each item's first event; `NEVER` where it has none
    pool_seconds_P: IntArray  # a pool holds the items that are younger than this

    @classmethod
    def of(cls, catalogue: pa.Table, pools: Sequence[tuple[str, float]] = ()) -> "Conditions":
        """The conditions of a dataset's catalogue.

        Args:
            catalogue: of a prepared dataset or an artifact.
            pools: name and largest age in days of each pool; an item's age counts from its first event.

        Raises:
            RecipeError: a pool has the name of a category or of another pool, or the catalogue lacks ages.
        """
        lists = catalogue.column("categories").combine_chunks()
        lengths_V = np.concatenate([[0], lists.value_lengths().fill_null(0).to_numpy().astype(np.int64)])
        values = lists.flatten().to_pylist()
        categories = sorted(set(values))
        names = [*categories, *(name for name, _ in pools)]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise RecipeError(f"model.condition.pools: {', '.join(twice)} names something else too; choose other names")
        if pools and FIRST_SEEN not in catalogue.column_names:
            raise RecipeError("model.condition.pools: this dataset lacks the items' first times; ingest again")
        code_of = {name: code for code, name in enumerate(categories, start=1)}
        codes_VG = np.zeros((len(lengths_V), max(int(lengths_V.max()), 1)), np.int64)
        row_E = np.repeat(np.arange(len(lengths_V)), lengths_V)
        place_E = np.arange(len(row_E)) - np.repeat(np.cumsum(lengths_V) - lengths_V, lengths_V)
        codes_VG[row_E, place_E] = [code_of[value] for value in values]
        first_V = np.full(len(lengths_V), NEVER)
        if FIRST_SEEN in catalogue.column_names:
            first_V[1:] = catalogue.column(FIRST_SEEN).fill_null(NEVER).to_numpy()
        return cls(names, codes_VG, first_V, np.array([round(days * _DAY_SECONDS) for _, days in pools], np.int64))

    def of_others(self, categories: Sequence[Sequence[str]], first_seen: Sequence[int]) -> "Conditions":
        """The same conditions, asked of other items.

        Args:
            categories: of each item, in the order of their rows from 1; names that are no condition here are left out.
            first_seen: seconds UTC from which each item is known.
        """
        codes_VG = category_codes(self.names[: self.num_categories], categories)
        return replace(self, category_codes_VG=codes_VG, first_seen_V=np.array([NEVER, *first_seen], np.int64))

    @property
    def num_categories(self) -> int:
        """Conditions that are categories; they have the codes 1 to this."""
        return len(self.names) - len(self.pool_seconds_P)

    def code(self, name: str) -> int | None:
        """The code of a condition; None if there is none of this name."""
        return self.names.index(name) + 1 if name in self.names else None

    def category_counts(self, rows_L: IntArray) -> IntArray:
        """How many events of a history have each category; entry c is that of code c + 1."""
        codes = self.category_codes_VG[rows_L].ravel()
        return np.bincount(codes, minlength=self.num_categories + 1)[1 : self.num_categories + 1].astype(np.int64)

    def satisfied(self, code: int, rows_N: IntArray, at_seconds: int | IntArray) -> npt.NDArray[np.bool_]:
        """Whether items satisfied a condition at a moment; of code 0, any item does. Row 0 is no item.

        An item of which no event is known yet at that moment belongs to no pool.
        """
        if code == 0:
            return rows_N > 0
        if code <= self.num_categories:
            return np.asarray((self.category_codes_VG[rows_N] == code).any(-1))
        first_N, seconds = self.first_seen_V[rows_N], self.pool_seconds_P[code - self.num_categories - 1]
        return np.asarray((rows_N > 0) & (first_N <= at_seconds) & (first_N > at_seconds - seconds))

    def items(self, code: int, at_seconds: int) -> npt.NDArray[np.bool_]:
        """Which item rows satisfy a condition at a moment."""
        return self.satisfied(code, np.arange(len(self.first_seen_V)), at_seconds)


def category_codes(names: Sequence[str], categories: Sequence[Sequence[str]]) -> IntArray:
    """The categories of items in rows from 1, as codes [V, G]; row 0 has none, and what has no name here is left out.

    Args:
        names: of the codes 1, 2, ...
    """
    code_of = {name: code for code, name in enumerate(names, start=1)}
    lists = [[], *([code_of[name] for name in said if name in code_of] for said in categories)]
    codes_VG = np.zeros((len(lists), max(1, *map(len, lists))), np.int64)
    for row, codes in enumerate(lists):
        codes_VG[row, : len(codes)] = codes
    return codes_VG
