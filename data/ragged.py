"""Lists of unequal lengths laid end to end, in Arrow columns and numpy arrays."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

IntArray = npt.NDArray[np.int64]


def list_column(table: pa.Table, name: str) -> pa.ListArray:
    """A list column of a table in one chunk (`Table.combine_chunks`); its offsets need not begin at 0."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def joined_ranges(starts_B: IntArray, lengths_B: IntArray) -> tuple[IntArray, IntArray]:
    """Positions `starts_B[b]` to `starts_B[b] + lengths_B[b] - 1` of all b end to end, and their offsets."""
    offsets_B1 = np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int64)
    return np.arange(offsets_B1[-1]) + np.repeat(starts_B - offsets_B1[:-1], lengths_B), offsets_B1
