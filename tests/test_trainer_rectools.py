"""The metrics of an evaluation against RecTools' on the same lists, where RecTools is installed.

RecTools is no dependency; `pip install rectools` in a virtual environment of your own runs this file.
Where its definitions differ from ours: its Recall divides by all targets, ours by at most k of them, so
users have at most as many targets as the smallest k; its NDCG equals ours with `divide_by_achievable`.
"""

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rectools", reason="RecTools is not installed: pip install rectools")

import pandas as pd
from rectools.metrics import NDCG, HitRate, IntraListDiversity, MeanInvUserFreq, Recall
from rectools.metrics.catalog import CatalogCoverage
from rectools.metrics.distances import PairwiseDistanceCalculator
from rectools.metrics.ranking import MRR

from modeling.beyond_accuracy import category_diversity, item_novelty, means_at
from modeling.metrics import hide, ranking_metrics, target_ranks, top_rows
from tests.test_modeling_beyond_accuracy import item_categories
from trainer.evaluation import Totals

NUM_ITEMS, NUM_USERS = 40, 60
KS = (3, 10)


class JaccardDistances(PairwiseDistanceCalculator):
    """1 - Jaccard of the category sets of two items."""

    def __init__(self, categories: list[set[int]]) -> None:
        self._categories = categories

    def _get_distances_for_item_pairs(self, items_0: Any, items_1: Any) -> Any:
        pairs = [(self._categories[one], self._categories[other]) for one, other in zip(items_0, items_1, strict=True)]
        return np.array([1 - len(one & other) / len(one | other) for one, other in pairs])


class World:
    """Random training events without repeats, targets and scores; items 1 to 5 have no event."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        users = range(NUM_USERS)
        self.items = [random.choice(np.arange(6, NUM_ITEMS + 1), random.integers(1, 9), replace=False) for _ in users]
        self.targets = [random.choice(NUM_ITEMS, random.integers(1, 4), replace=False) + 1 for _ in users]
        self.categories = [set(), *(set(random.integers(0, 6, 4).tolist()) for _ in range(NUM_ITEMS))]
        scores = torch.from_numpy(random.integers(0, 6, (NUM_USERS, NUM_ITEMS + 1)).astype(float))
        scores[:5, 3:] = float("-inf")  # short lists
        self.scores = hide(scores, [torch.from_numpy(rows) for rows in self.items])
        self.top = top_rows(self.scores, max(KS))[0]

    def frame(self, rows: list[Any]) -> Any:
        return pd.DataFrame(
            [(user, int(row)) for user, own in enumerate(rows) for row in own], columns=["user_id", "item_id"]
        )

    def lists(self) -> Any:
        reco = self.frame([[row for row in own if row] for own in self.top.tolist()])
        reco["rank"] = reco.groupby("user_id").cumcount() + 1
        return reco


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def per_user(values: Any) -> Any:
    """By user; a user to whom nothing was shown is not in RecTools' frame."""
    return values.reindex(range(NUM_USERS)).to_numpy()


@pytest.mark.parametrize("k", KS)
def test_accuracy_equals_rectools(world: World, k: int) -> None:
    queries = torch.from_numpy(np.repeat(np.arange(NUM_USERS), [len(rows) for rows in world.targets]))
    ranks = target_ranks(world.scores, queries, torch.from_numpy(np.concatenate(world.targets)))
    ours = ranking_metrics(ranks, queries, NUM_USERS, KS)
    reco, interactions = world.lists(), world.frame(world.targets)
    theirs = {
        "hr": HitRate(k=k),
        "recall": Recall(k=k),
        "ndcg": NDCG(k=k, divide_by_achievable=True),
        "mrr": MRR(k=k),
    }
    for name, metric in theirs.items():
        values = per_user(metric.calc_per_user(reco, interactions))
        np.testing.assert_allclose(ours[f"{name}@{k}"].numpy(), values, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("k", KS)
def test_novelty_diversity_and_coverage_equal_rectools(world: World, k: int) -> None:
    reco, shown = world.lists(), world.top > 0
    events = np.bincount(np.concatenate(world.items), minlength=NUM_ITEMS + 1)
    bits = item_novelty(torch.from_numpy(events), NUM_USERS)
    novelty = means_at(bits[world.top], shown, KS)[k].numpy()
    theirs = per_user(MeanInvUserFreq(k=k).calc_per_user(reco, world.frame(world.items)))
    np.testing.assert_allclose(novelty, theirs, rtol=0, atol=1e-9)
    diversity = category_diversity(world.top, item_categories(world.categories), KS)[k].numpy()
    calculator = JaccardDistances(world.categories)
    theirs = per_user(IntraListDiversity(k=k, distance_calculator=calculator).calc_per_user(reco))
    np.testing.assert_allclose(diversity, theirs, rtol=0, atol=1e-9)
    totals = Totals(KS, NUM_ITEMS + 1)
    totals.add({}, world.top)
    catalogue = np.arange(1, NUM_ITEMS + 1)
    assert CatalogCoverage(k=k, normalize=True).calc(reco, catalogue) == pytest.approx(
        totals.means()[f"coverage@{k}"], abs=1e-9
    )
