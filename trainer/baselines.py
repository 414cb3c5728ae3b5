"""Rankings to compare a retriever with: popularity, and lists made elsewhere."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from data.cases import Cases
from data.dataset import PreparedDataset, Split
from data.errors import DatasetError
from data.vocabulary import Vocabulary


class Popularity:
    """The same scores for everyone: how often each item occurs in training events."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self._counts_V = torch.from_numpy(dataset.train_counts()).double()

    def __call__(self, cases: Cases) -> Float[Tensor, "B V"]:
        return self._counts_V.repeat(len(cases), 1)


class ExternalRanking:
    """Lists of items per user that another system, or a simulator's oracle, wrote to a Parquet file.

    Args:
        path: Parquet with `user_id`, `item_ids` (list of strings, best first) and optionally
            `split` ("validation" or "test").

    Raises:
        DatasetError: the file or a column is missing.
    """

    def __init__(self, path: str | Path, vocabulary: Vocabulary, split: Split) -> None:
        if not Path(path).is_file():
            raise DatasetError(f"{path}: no such file; expected Parquet with user_id and item_ids")
        table = pq.read_table(path)
        missing = [name for name in ("user_id", "item_ids") if name not in table.column_names]
        if missing:
            raise DatasetError(f"{path}: no column {missing[0]!r}; found {', '.join(table.column_names)}")
        if "split" in table.column_names:
            table = table.filter(pc.equal(table.column("split"), split))
        self._vocabulary = vocabulary
        self._lists = dict(
            zip(table.column("user_id").cast("string").to_pylist(), table.column("item_ids"), strict=True)
        )

    def __call__(self, cases: Cases) -> Float[Tensor, "B V"]:
        scores_BV = torch.full((len(cases), self._vocabulary.num_rows), float("-inf"), dtype=torch.float64)
        for query, user_id in enumerate(cases.user_ids):
            if user_id in self._lists:
                rows = self._vocabulary.rows(str(item_id) for item_id in self._lists[user_id].as_py())
                # Written last to first, so that an item listed twice keeps its better place.
                places = np.arange(len(rows))[::-1].copy()
                scores_BV[query, torch.from_numpy(rows[places])] = -torch.from_numpy(places).double()
        return scores_BV
