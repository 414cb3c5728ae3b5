"""What a catalogue says of each item beside its id, as numbers: categories, buckets of numbers, content vectors.

Letters: V rows of items, row 0 padding; G categories of an item; N named numbers; P numbers of a content vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.conditions import Conditions, category_codes
from data.errors import RecipeError
from data.ragged import IntArray
from data.schema import FIRST_SEEN, TRAIN_EVENTS

FloatArray = npt.NDArray[np.float32]
_NO_NUMBERS = ("item_id", "categories", "title", TRAIN_EVENTS, FIRST_SEEN)


@dataclass(frozen=True)
class ItemFacts:
    """What is said of an item that a catalogue lacks; numbers and content vectors by the names of their columns."""

    categories: Sequence[str] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    contents: Mapping[str, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureCodes:
    """How features become numbers, as one catalogue has settled it."""

    category_names: list[str]  # of the codes 1, 2, ...
    edges: Mapping[str, npt.NDArray[np.float64]]  # of each number, by column: where its buckets end
    widths: Mapping[str, int]  # of each content vector, by column: its numbers, P

    def of_others(self, items: Sequence[ItemFacts]) -> "ItemFeatures":
        """The features of items that the catalogue lacks, in rows from 1; what the catalogue has not does not count.

        Args:
            items: none with a content vector of another width.
        """
        buckets_VN = np.zeros((len(items) + 1, len(self.edges)), np.int64)
        for place, (name, edges) in enumerate(self.edges.items()):
            buckets_VN[1:, place] = _buckets(np.array([item.numbers.get(name, np.nan) for item in items]), edges)
        contents = []
        for name, width in self.widths.items():
            known_I = np.array([name in item.contents for item in items], np.bool_)
            vectors = [item.contents[name] for item in items if name in item.contents]
            contents.append(_contents(_unit(np.array(vectors, np.float32).reshape(-1, width)), known_I))
        return ItemFeatures(
            self,
            category_codes(self.category_names, [item.categories for item in items]),
            buckets_VN,
            contents,
            np.zeros(len(items) + 1, np.bool_),
        )


@dataclass(frozen=True)
class ItemFeatures:
    """Features of all item rows."""

    codes: FeatureCodes
    categories_VG: IntArray  # codes; 0 = no further one
    buckets_VN: IntArray  # of each number, from 1; 0 = missing
    contents: list[FloatArray]  # [V, P + 1] each: a vector of length 1, or zeros and a 1 at the end where it is missing
    seen_V: npt.NDArray[np.bool_]  # whether training has events of the item

    @classmethod
    def of(
        cls, catalogue: pa.Table, *, numbers: Sequence[str] = (), num_buckets: int = 1, contents: Sequence[str] = ()
    ) -> "ItemFeatures":
        """The features of a dataset's or artifact's catalogue.

        Args:
            numbers: columns of numbers. Each is cut into buckets by the quantiles of the catalogue at hand, so bucket b
                of a catalogue that has grown is again its b-th.
            num_buckets: of each number, besides that of missing ones.
            contents: columns of vectors, all of one length.

        Raises:
            RecipeError: no such column, one of another type, or vectors of several lengths.
        """
        conditions = Conditions.of(catalogue)
        seen_V = np.concatenate([[False], catalogue.column(TRAIN_EVENTS).to_numpy() > 0])
        edges = {}
        buckets_VN = np.zeros((len(seen_V), len(numbers)), np.int64)
        for place, name in enumerate(numbers):
            values_I = _number_column(catalogue, name)
            edges[name] = _edges(values_I, num_buckets)
            buckets_VN[1:, place] = _buckets(values_I, edges[name])
        columns = {name: vector_column(catalogue, name, "model.items.contents") for name in contents}
        widths = {name: vectors_IP.shape[1] for name, (vectors_IP, _) in columns.items()}
        return cls(
            FeatureCodes(conditions.names, edges, widths),
            conditions.category_codes_VG,
            buckets_VN,
            [_contents(vectors_IP[known_I], known_I) for vectors_IP, known_I in columns.values()],
            seen_V,
        )


def vector_column(
    catalogue: pa.Table, name: str, setting: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The vectors of a catalogue's column, in its order: [I, P], each of length 1, or zeros; and which are there.

    Args:
        setting: that names the column, for messages.

    Raises:
        RecipeError: no such column, one of another type, or vectors of several lengths or with numbers that are none.
    """
    column = _column(catalogue, name, setting).combine_chunks()
    kind = column.type
    of_lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not of_lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise RecipeError(f"{setting}: column {name!r} of the catalogue is {kind}, expected lists of numbers")
    known_I = column.is_valid().to_numpy(zero_copy_only=False)
    vectors = column.drop_null()
    lengths = pc.list_value_length(vectors).to_numpy()
    sizes = sorted(set(lengths.tolist()))
    if len(sizes) != 1 or sizes[0] == 0:
        odd = f" ({_first_of(catalogue, known_I, lengths == sizes[0])!r} has {sizes[0]})" if sizes else ""
        raise RecipeError(
            f"{setting}: column {name!r} holds vectors of {', '.join(map(str, sizes)) or 'no'} "
            f"numbers{odd}; expected the same number in every row, at least 1, and null where an item has none"
        )
    values = pc.list_flatten(vectors).cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    if not np.isfinite(values).all():
        raise RecipeError(f"{setting}: column {name!r} holds numbers that are missing, NaN or infinite")
    found = values.reshape(-1, sizes[0])
    vectors_IP = np.zeros((len(column), sizes[0]), np.float32)
    vectors_IP[known_I] = _unit(found)
    return vectors_IP, known_I


def _column(catalogue: pa.Table, name: str, setting: str) -> pa.ChunkedArray:
    offered = [column for column in catalogue.column_names if column not in _NO_NUMBERS]
    if name not in offered:
        raise RecipeError(
            f"{setting}: the catalogue has no side column {name!r}; it has {', '.join(offered) or 'none'}"
        )
    return catalogue.column(name)


def _number_column(catalogue: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """The numbers of a column; NaN where one is missing."""
    column = _column(catalogue, name, "model.items.numbers")
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise RecipeError(f"model.items.numbers: column {name!r} of the catalogue is {kind}, expected numbers")
    as_integers = column.cast(pa.int8()) if pa.types.is_boolean(kind) else column
    values: npt.NDArray[np.float64] = as_integers.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
    return values


def _edges(values_I: npt.NDArray[np.float64], num_buckets: int) -> npt.NDArray[np.float64]:
    """The last value of each bucket but the last: quantiles. Equal numbers share one, so some may be empty."""
    known = values_I[~np.isnan(values_I)]
    if not len(known):
        return np.empty(0)
    edges: npt.NDArray[np.float64] = np.quantile(known, np.arange(1, num_buckets) / num_buckets, method="lower")
    return edges


def _buckets(values_I: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> IntArray:
    """The bucket of each number, from 1; 0 for NaN, and for all where the catalogue has no number at all."""
    if not len(edges):
        return np.zeros(len(values_I), np.int64)
    return np.where(np.isnan(values_I), 0, 1 + np.searchsorted(edges, values_I, side="left"))


def _contents(vectors_NP: FloatArray, known_I: npt.NDArray[np.bool_]) -> FloatArray:
    """The vectors of the items that have one, at their rows, and a last number: is it missing?"""
    contents_VP = np.zeros((len(known_I) + 1, vectors_NP.shape[1] + 1), np.float32)
    contents_VP[1:, -1] = ~known_I
    contents_VP[1:, :-1][known_I] = vectors_NP
    return contents_VP


def _unit(vectors_NP: FloatArray) -> FloatArray:
    """At length 1; zero stays zero."""
    lengths_N1 = np.linalg.norm(vectors_NP, axis=1, keepdims=True)
    unit_NP: FloatArray = vectors_NP / np.maximum(lengths_N1, np.finfo(np.float32).tiny)
    return unit_NP


def _first_of(catalogue: pa.Table, known_I: npt.NDArray[np.bool_], odd: npt.NDArray[np.bool_]) -> str:
    return str(catalogue.column("item_id")[int(np.flatnonzero(known_I)[np.argmax(odd)])].as_py())
