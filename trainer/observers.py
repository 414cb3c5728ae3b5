"""What `farsight evaluate` measures besides accuracy, from the lists that accuracy was measured on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data.dataset import PreparedDataset, Split
from modeling.beyond_accuracy import (
    BUCKETS,
    ItemCategories,
    bucket_recall,
    category_diversity,
    head_items,
    hits_ahead,
    in_history,
    item_novelty,
    means_at,
    popularity_buckets,
)
from trainer.evaluation import Ranked

Figures = dict[str, float | int | None]


@dataclass
class Means:
    """Sums and counts by name. A value that is NaN is left out; a mean of nothing is None."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, values: Tensor) -> None:
        """Count the values of one batch."""
        self.add_sum(name, float(values.nansum()), int((~values.isnan()).sum()))

    def add_sum(self, name: str, total: float, count: int) -> None:
        """Count values that were summed already."""
        self.sums[name] = self.sums.get(name, 0.0) + total
        self.counts[name] = self.counts.get(name, 0) + count

    def mean(self, name: str) -> float | None:
        """Mean of what was counted under a name."""
        return self.sums[name] / self.counts[name] if self.counts.get(name) else None


@dataclass(frozen=True)
class CatalogueFacts:
    """What is known of the items, as the metrics need it; tensors are indexed by item row."""

    num_rows: int
    head_V: Tensor
    buckets_V: Tensor  # index in `BUCKETS`
    novelty_V: Tensor
    categories: ItemCategories

    @classmethod
    def of(cls, dataset: PreparedDataset) -> "CatalogueFacts":
        """Read the catalogue of a prepared dataset."""
        events_V = torch.from_numpy(dataset.train_counts())
        return cls(
            num_rows=dataset.num_rows,
            head_V=head_items(events_V),
            buckets_V=popularity_buckets(events_V),
            novelty_V=item_novelty(events_V, users_with_training(dataset)),
            categories=item_categories(dataset.catalogue().column("categories")),
        )


def users_with_training(dataset: PreparedDataset, split: Split | None = None) -> int:
    """Users with training events, or of them those with targets in a split."""
    total = 0
    wanted = "num_train" if split is None else f"num_{split}"
    for table in dataset.history_tables(list(dict.fromkeys(["num_train", wanted]))):
        total += int(((table.column("num_train").to_numpy() > 0) & (table.column(wanted).to_numpy() > 0)).sum())
    return total


def item_categories(lists: pa.ChunkedArray) -> ItemCategories:
    """Categories of the items of rows 1, 2, ... as numbers; row 0 has none."""
    column = lists.combine_chunks()
    lengths_V = np.concatenate([[0], column.value_lengths().fill_null(0).to_numpy().astype(np.int64)])
    codes_E = column.flatten().dictionary_encode().indices.to_numpy().astype(np.int64)
    offsets_V1 = np.concatenate([[0], np.cumsum(lengths_V)]).astype(np.int64)
    return ItemCategories(torch.from_numpy(codes_E), torch.from_numpy(offsets_V1))


class BeyondAccuracy:
    """Metrics of the lists themselves, recall by popularity of the target, and hits by steps ahead.

    Per user, then the mean over users who were shown anything, at each cut-off: `head_share@k` (of the
    shown items, those of the head), `novelty@k`, `category_diversity@k` (up to
    `modeling.beyond_accuracy.DIVERSITY_PLACES`), `repeat_rate@k` (of the shown items, those of the
    visible history). Over all targets of a bucket: `recall@k[cold]`, ..., beside `targets[cold]`. Over
    the users with that many events in the split: `hit@K[t+1]`, ..., K the first cut-off, beside
    `users[t+1]`; steps that no user has are absent. What was not measured is None.
    """

    def __init__(self, facts: CatalogueFacts, ks: Sequence[int], *, horizon: int) -> None:
        self._facts = facts
        self._ks = tuple(ks)
        self._horizon = horizon
        self._means = Means()

    def see(self, ranked: Ranked) -> None:
        """Count one batch."""
        facts, top_BK = self._facts, ranked.top_BK
        shown_BK = top_BK > 0
        histories = [torch.from_numpy(rows) for rows in ranked.cases.items]
        by_place = {
            "head_share": facts.head_V[top_BK].double(),
            "novelty": facts.novelty_V[top_BK],
            "repeat_rate": in_history(top_BK, histories, facts.num_rows).double(),
        }
        for name, values_BK in by_place.items():
            for k, values_B in means_at(values_BK, shown_BK, self._ks).items():
                self._means.add(f"{name}@{k}", values_B)
        for k, values_B in category_diversity(top_BK, facts.categories, self._ks).items():
            self._means.add(f"category_diversity@{k}", values_B)
        for k in self._ks:
            found_N, targets_N = bucket_recall(ranked.ranks_T, facts.buckets_V[ranked.targets_T], k)
            for bucket, found, targets in zip(BUCKETS, found_N.tolist(), targets_N.tolist(), strict=True):
                self._means.add_sum(f"recall@{k}[{bucket}]", found, int(targets))
        if self._horizon:
            hits_BH = hits_ahead(following_ranks(ranked, self._horizon), self._ks[0])
            for step, hits_B in enumerate(hits_BH.T, start=1):
                self._means.add(_hit(self._ks[0], step), hits_B)

    def figures(self) -> Figures:
        """The metrics by name."""
        counts = self._means.counts
        result: Figures = {name: self._means.mean(name) for name in counts if "[" not in name}
        for bucket in BUCKETS:
            result |= {f"recall@{k}[{bucket}]": self._means.mean(f"recall@{k}[{bucket}]") for k in self._ks}
            result[f"targets[{bucket}]"] = counts.get(f"recall@{self._ks[0]}[{bucket}]", 0)
        for step in range(1, self._horizon + 1):
            name = _hit(self._ks[0], step)
            if counts.get(name):
                result |= {name: self._means.mean(name), f"users[t+{step}]": counts[name]}
        return result


def _hit(k: int, step: int) -> str:
    return f"hit@{k}[t+{step}]"


def following_ranks(ranked: Ranked, horizon: int) -> Tensor:
    """Rank of each of the first `horizon` events of the split, [B, H]; -1 where a user has fewer."""
    ranks_BH = np.full((len(ranked.cases), horizon), -1, np.int64)
    ranks_T = ranked.ranks_T.numpy()
    start = 0
    for user, (targets, following) in enumerate(zip(ranked.cases.targets, ranked.cases.following, strict=True)):
        ahead = following[:horizon]
        # The targets are the distinct rows of these very events, ascending.
        ranks_BH[user, : len(ahead)] = ranks_T[start + np.searchsorted(targets, ahead)]
        start += len(targets)
    return torch.from_numpy(ranks_BH)


class CaseCounts:
    """What the users of a split have to go by, whichever ranking is measured."""

    def __init__(self, facts: CatalogueFacts) -> None:
        self._facts = facts
        self.num_users = self.num_without_history = 0
        self.num_targets = self.num_cold_targets = self.num_repeated_targets = 0

    def see(self, ranked: Ranked) -> None:
        """Count one batch."""
        cases = ranked.cases
        self.num_users += len(cases)
        self.num_without_history += sum(not len(items) for items in cases.items)
        self.num_targets += len(ranked.targets_T)
        self.num_cold_targets += int((self._facts.buckets_V[ranked.targets_T] == BUCKETS.index("cold")).sum())
        pairs = zip(cases.items, cases.targets, strict=True)
        self.num_repeated_targets += sum(int(np.isin(targets, items).sum()) for items, targets in pairs)


class UserMetrics:
    """The accuracy metrics of every user, for tests that compare two rankings user by user."""

    def __init__(self) -> None:
        self._user_ids: list[str] = []
        self._metrics: dict[str, list[Tensor]] = {}

    def see(self, ranked: Ranked) -> None:
        """Keep one batch."""
        self._user_ids += ranked.cases.user_ids
        for name, values_B in ranked.metrics.items():
            self._metrics.setdefault(name, []).append(values_B)

    def table(self) -> pa.Table:
        """`user_id` and one float64 column per metric and cut-off, in the order of the evaluation."""
        metrics = {name: torch.cat(parts).numpy() for name, parts in self._metrics.items()}
        return pa.table({"user_id": pa.array(self._user_ids, pa.string()), **metrics})
