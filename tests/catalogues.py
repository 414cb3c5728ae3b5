"""Catalogues of items with given vectors and categories, without a model."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.catalogue import TEXTS
from data.conditions import Conditions
from data.vocabulary import Vocabulary
from serve.answer import popularity_order
from serve.catalogue import Catalogue, Segment
from serve.index.contract import Index
from serve.index.on_torch import MatrixIndex

Vectors = npt.NDArray[np.float32]


def segment_of(
    item_ids: Sequence[str],
    index: Index | None = None,
    categories: Sequence[Sequence[str]] | None = None,
    train_events: Sequence[int] | None = None,
) -> Segment:
    """Items of a release; by default with vectors of zeros, without categories and events."""
    lists = [[]] * len(item_ids) if categories is None else categories
    events_V = np.array([0] * len(item_ids) if train_events is None else train_events, np.int64)
    return Segment(
        Vocabulary(item_ids),
        index or MatrixIndex(np.zeros((len(item_ids), 1), np.float32)),
        Conditions.of(pa.table({"categories": pa.array(lists, TEXTS)})),
        events_V,
        popularity_order(events_V),
    )


def behind(release: Segment, item_ids: Sequence[str], item_AD: Vectors, categories: Sequence[Sequence[str]]) -> Segment:
    """Items that were added to a release."""
    return Segment(
        Vocabulary(item_ids),
        MatrixIndex(item_AD),
        release.conditions.of_others(categories, [0] * len(item_ids)),
        np.zeros(len(item_ids), np.int64),
        np.arange(1, len(item_ids) + 1),
        rows_before=release.vocabulary.num_items,
    )


def with_added(release_ids: Sequence[str], added_ids: Sequence[str]) -> Catalogue:
    """Items of which only the ids matter."""
    release = segment_of(release_ids)
    nothing = np.zeros((len(added_ids), 1), np.float32)
    return Catalogue(release, behind(release, added_ids, nothing, [[]] * len(added_ids)))
