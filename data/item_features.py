"""What a catalogue says of each item beside its id, as numbers: categories, buckets of numbers, content vectors.

Letters: V rows of items, row 0 padding; G categories of an item; N named numbers; P numbers of a content vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.conditions import Conditions
from data.errors import RecipeError
from data.ragged import IntArray
from data.schema import FIRST_SEEN, TRAIN_EVENTS

FloatArray = npt.NDArray[np.float32]
_NO_NUMBERS = ("item_id", "categories", "title", TRAIN_EVENTS, FIRST_SEEN)


@dataclass(frozen=True)
class ItemFeatures:
    """Features of all item rows."""

    category_names: list[str]  # of the codes 1, 2, ...
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
        buckets = [_buckets(_number_column(catalogue, name), num_buckets) for name in numbers]
        seen_V = np.concatenate([[False], catalogue.column(TRAIN_EVENTS).to_numpy() > 0])
        return cls(
            conditions.names,
            conditions.category_codes_VG,
            np.stack(buckets, 1) if buckets else np.zeros((len(seen_V), 0), np.int64),
            [_contents(catalogue, name) for name in contents],
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
    lengths_N1 = np.linalg.norm(found, axis=1, keepdims=True)
    vectors_IP[known_I] = found / np.maximum(lengths_N1, np.finfo(np.float32).tiny)
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


def _buckets(values_I: npt.NDArray[np.float64], num_buckets: int) -> IntArray:
    """The bucket of each row's number, row 0 first. Equal numbers share one, so that some may be empty."""
    known_I = ~np.isnan(values_I)
    buckets_V = np.zeros(len(values_I) + 1, np.int64)
    if known_I.any():
        edges = np.quantile(values_I[known_I], np.arange(1, num_buckets) / num_buckets, method="lower")
        buckets_V[1:][known_I] = 1 + np.searchsorted(edges, values_I[known_I], side="left")
    return buckets_V


def _contents(catalogue: pa.Table, name: str) -> FloatArray:
    """The vectors of a column, row 0 first, and a last number that says whether each is missing."""
    vectors_IP, known_I = vector_column(catalogue, name, "model.items.contents")
    contents_VP = np.zeros((len(known_I) + 1, vectors_IP.shape[1] + 1), np.float32)
    contents_VP[1:, :-1] = vectors_IP
    contents_VP[1:, -1] = ~known_I
    return contents_VP


def _first_of(catalogue: pa.Table, known_I: npt.NDArray[np.bool_], odd: npt.NDArray[np.bool_]) -> str:
    return str(catalogue.column("item_id")[int(np.flatnonzero(known_I)[np.argmax(odd)])].as_py())
