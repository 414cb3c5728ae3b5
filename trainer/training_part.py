"""The training part of every history: the only events that a baseline may be fitted on.

Letters: U users, V catalogue rows, E events laid end to end.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack

from data.dataset import PreparedDataset
from data.errors import DatasetError
from data.ragged import joined_ranges, list_column

IntArray = npt.NDArray[np.int64]


def training_events(dataset: PreparedDataset, names: Sequence[str]) -> Iterator[tuple[IntArray, list[IntArray]]]:
    """List columns of the histories up to their cut, one row group at a time.

    Args:
        names: list columns of `data.schema.HISTORY_SCHEMA` that hold integers, such as `items` and `times`.

    Yields:
        Offsets of the users in the events, one more than users, and the events of each column end to end.
    """
    for table in dataset.history_tables([*names, "num_train"]):
        rows = table.combine_chunks()
        lengths_U = rows.column("num_train").to_numpy().astype(np.int64)
        events, offsets_U1 = [], np.zeros(1, np.int64)
        for name in names:
            column = list_column(rows, name)
            starts_U = column.offsets.to_numpy().astype(np.int64)[:-1]
            positions_E, offsets_U1 = joined_ranges(starts_U, lengths_U)
            events.append(column.values.to_numpy().astype(np.int64)[positions_E])
        yield offsets_U1, events


def training_matrix(dataset: PreparedDataset) -> csr_matrix:
    """How often each user has each item in training events.

    Returns:
        Float32 counts, users in the order of the dataset by item row; column 0 is padding and empty.

    Raises:
        DatasetError: no history has a training event.
    """
    parts = [
        counts_matrix(offsets_U1, items_E, dataset.num_rows)
        for offsets_U1, (items_E,) in training_events(dataset, ["items"])
    ]
    if not sum(part.nnz for part in parts):
        raise DatasetError(f"{dataset.directory}: no training events to fit on; ingest with another split")
    return vstack(parts, format="csr")


def histories_matrix(items: Sequence[IntArray], num_rows: int) -> csr_matrix:
    """How often each history has each item row: float32 counts, one row per history."""
    offsets_B1 = np.concatenate([[0], np.cumsum([len(rows) for rows in items])]).astype(np.int64)
    return counts_matrix(offsets_B1, np.concatenate([*items, np.zeros(0, np.int64)]), num_rows)


def counts_matrix(offsets_U1: IntArray, items_E: IntArray, num_rows: int) -> csr_matrix:
    """Events laid end to end as a sparse matrix of float32 counts, users by item rows."""
    ones_E = np.ones(len(items_E), np.float32)
    matrix = csr_matrix((ones_E, items_E, offsets_U1), shape=(len(offsets_U1) - 1, num_rows))
    matrix.sum_duplicates()
    return matrix
