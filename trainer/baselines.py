"""Rankings to compare a retriever with: popularity, lists made elsewhere, and the builder of all by settings."""

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
from trainer.baseline_settings import BaselineSettings, Ease, Ials, ItemKnn, MostPopular, RecentlyPopular
from trainer.collaborative import ease, ials, item_knn
from trainer.evaluation import Scorer
from trainer.training_part import training_events, training_matrix

SECONDS_PER_DAY = 86_400


def build_baseline(settings: BaselineSettings, dataset: PreparedDataset) -> Scorer:
    """Fit a baseline on the training part of a dataset's histories.

    Raises:
        DatasetError: the dataset lacks times where they are needed, or has no training events.
        RecipeError: the catalogue is too large for the method.
    """
    popularity_V = torch.from_numpy(dataset.train_counts()).double()
    match settings:
        case MostPopular():
            return Popularity(dataset)
        case RecentlyPopular():
            return RecentPopularity(dataset, days=settings.days)
        case ItemKnn():
            return item_knn(settings, training_matrix(dataset), popularity_V)
        case Ials():
            return ials(settings, training_matrix(dataset), popularity_V)
        case Ease():
            return ease(settings, training_matrix(dataset), popularity_V)


def baseline_name(settings: BaselineSettings) -> str:
    """Name of a baseline's row in a report: its kind, and days or weighting where it has them."""
    match settings:
        case RecentlyPopular():
            return f"{settings.kind}_{settings.days:g}d"
        case ItemKnn():
            return f"{settings.kind}_{settings.weighting}"
        case _:
            return settings.kind


class Popularity:
    """The same scores for everyone: how often each item occurs in training events."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self._counts_V = torch.from_numpy(dataset.train_counts()).double()

    def __call__(self, cases: Cases) -> Float[Tensor, "B V"]:
        return self._counts_V.repeat(len(cases), 1)


class RecentPopularity:
    """The same scores for everyone: training events of each item in the last days, ties by all training events.

    Args:
        days: length of the window that ends with the newest training event of any user.

    Raises:
        DatasetError: the log had no times.
    """

    def __init__(self, dataset: PreparedDataset, *, days: float) -> None:
        if not dataset.has_times:
            raise DatasetError(
                f"{dataset.directory}: the log has no times, so nothing is recent; expected a log with a time column, "
                "or take the baseline popularity"
            )
        newest = max((int(times.max()) for _, (times,) in training_events(dataset, ["times"]) if len(times)), default=0)
        counts_V = np.zeros(dataset.num_rows)
        for _, (items, times) in training_events(dataset, ["items", "times"]):
            recent = items[times > newest - round(days * SECONDS_PER_DAY)]
            counts_V += np.bincount(recent, minlength=dataset.num_rows)
        totals_V = dataset.train_counts()
        self._counts_V = torch.from_numpy(counts_V + totals_V / (1 + totals_V.max()))

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
