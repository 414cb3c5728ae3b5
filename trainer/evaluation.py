"""Full-catalogue evaluation: every item is scored for every user, and the targets' exact ranks counted."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from data.batch import to_device
from data.cases import Cases
from data.errors import RecipeError
from data.ragged import IntArray
from modeling.metrics import hide, ranking_metrics, target_ranks, top_rows
from modeling.retriever import Retriever
from modeling.settings import ModelSettings
from trainer.ranks import Ranks


class Scorer(Protocol):
    """Scores the whole catalogue for each user; higher is better, -inf never recommended."""

    def __call__(self, cases: Cases) -> Float[Tensor, "B V"]: ...


@dataclass(frozen=True)
class Ranked:
    """One batch of users after ranking, on the CPU: B users, T targets, the K best rows of each user."""

    cases: Cases
    metrics: dict[str, Tensor]  # of `modeling.metrics.ranking_metrics`, per user
    top_BK: Tensor
    queries_T: Tensor  # place in the batch of each target's user
    targets_T: Tensor
    ranks_T: Tensor


class Observer(Protocol):
    """Sees every ranked batch once, in order."""

    def see(self, ranked: Ranked) -> None: ...


class RetrieverScorer:
    """Scores of a trained retriever: inner products of query and item vectors.

    Args:
        retriever: in evaluation mode; item vectors are computed once, here.
        max_events: events of a history that the model sees.
        train_events_V: training events per item row, by which a user without visible history is answered,
            as an endpoint does.
        scales: what each coordinate of a query is multiplied by; None for 1.
    """

    def __init__(
        self, retriever: Retriever, *, max_events: int, train_events_V: IntArray, scales: Sequence[float] | None = None
    ) -> None:
        self._retriever = retriever
        self._max_events = max_events
        self._device = next(retriever.parameters()).device
        self._popularity_V = popularity_scores(train_events_V).to(self._device)
        with torch.inference_mode():
            self._items_VD = retriever.catalogue_vectors()
            self._scales_D = None if scales is None else self._items_VD.new_tensor(scales)

    def __call__(self, cases: Cases) -> Float[Tensor, "B V"]:
        batch = to_device(cases.batch(self._max_events), self._device)
        with torch.inference_mode():
            query_BD = self._retriever.query_vectors(batch)
            if self._scales_D is not None:
                query_BD = query_BD * self._scales_D
            scores_BV = query_BD @ self._items_VD.T
            unknown = [place for place, rows in enumerate(cases.items) if not len(rows)]
            scores_BV[unknown] = self._popularity_V.to(scores_BV.dtype)
            return scores_BV


def query_scales(model: ModelSettings, weights: Mapping[str, float] | None) -> list[float] | None:
    """What each coordinate of a query is multiplied by under these weights of the objectives; None for a model of one.

    Raises:
        RecipeError: weights for a model of one objective, or wrong ones.
    """
    if model.objectives is None:
        if weights is None:
            return None
        raise RecipeError("evaluate.objective_weights: the model was trained without model.objectives; leave them out")
    if weights is not None and (problem := model.objectives.wrong_weights(weights)):
        raise RecipeError(f"evaluate.objective_weights: {problem}")
    return model.objectives.scales(model.width, weights)


class EarlierScorer:
    """A scorer of fewer items than the dataset has by now, on the terms of an endpoint that goes on answering with it.

    Events of items that it does not know are left out of the histories that it sees, and it never recommends these
    items; actions that it does not know are none.

    Args:
        known_rows: rows that it scores, the first of the dataset's; padding included.
        num_rows: rows of the dataset.
        num_actions: actions that it knows, the first of the dataset's.
    """

    def __init__(self, scorer: Scorer, *, known_rows: int, num_rows: int, num_actions: int) -> None:
        self._scorer = scorer
        self._known_rows = known_rows
        self._num_new = num_rows - known_rows
        self._num_actions = num_actions

    def __call__(self, cases: Cases) -> Float[Tensor, "B V"]:
        known = [rows < self._known_rows for rows in cases.items]
        actions = [np.where(codes <= self._num_actions, codes, 0) for codes in cases.actions]
        scores_BK = self._scorer(
            replace(
                cases,
                items=[rows[kept] for rows, kept in zip(cases.items, known, strict=True)],
                times=[times[kept] for times, kept in zip(cases.times, known, strict=True)],
                actions=[codes[kept] for codes, kept in zip(actions, known, strict=True)],
            )
        )
        return functional.pad(scores_BK, (0, self._num_new), value=float("-inf"))


def popularity_scores(train_events_V: IntArray) -> Float[Tensor, "V"]:
    """Scores that order the items as their numbers of events do, small enough for float32 to hold them exactly."""
    return torch.from_numpy(np.unique(train_events_V, return_inverse=True)[1].astype(np.float32))


@dataclass
class Totals:
    """Sums over users that add up over batches and ranks."""

    ks: tuple[int, ...]
    num_rows: int
    num_users: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)  # sums of squares, for the intervals
    shown: dict[int, Tensor] = field(default_factory=dict)  # per cut-off: how often each row was recommended

    def add(self, metrics: dict[str, Tensor], top_BK: Tensor) -> None:
        """Count one batch: metrics per user, and the best rows of each."""
        self.num_users += len(top_BK)
        for name, values_B in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(values_B.sum())
            self.squares[name] = self.squares.get(name, 0.0) + float(values_B.square().sum())
        for k in self.ks:
            counts_V = torch.bincount(top_BK[:, :k].flatten(), minlength=self.num_rows)
            self.shown[k] = self.shown.get(k, torch.zeros(self.num_rows, dtype=torch.long)) + counts_V

    def over_ranks(self, ranks: Ranks) -> "Totals":
        """Sums over all ranks; a collective."""
        names = [f"{metric}@{k}" for k in self.ks for metric in ("hr", "recall", "ndcg", "mrr")]
        of_names = [kind.get(name, 0.0) for kind in (self.sums, self.squares) for name in names]
        users, *both = ranks.sum(torch.tensor([float(self.num_users), *of_names], dtype=torch.float64)).tolist()
        sums, squares = (dict(zip(names, part, strict=True)) for part in (both[: len(names)], both[len(names) :]))
        none = torch.zeros(self.num_rows, dtype=torch.long)
        shown = {k: ranks.sum(self.shown.get(k, none)) for k in self.ks}
        return Totals(self.ks, self.num_rows, int(users), sums, squares, shown)

    def means(self) -> dict[str, float]:
        """Mean of each metric over users, and coverage: share of the catalogue recommended to anyone."""
        result = {name: total / max(1, self.num_users) for name, total in self.sums.items()}
        for k, counts_V in self.shown.items():
            result[f"coverage@{k}"] = float((counts_V[1:] > 0).sum()) / (self.num_rows - 1)
        result["users"] = self.num_users
        return result

    def intervals(self) -> dict[str, float]:
        """`METRIC_low` and `METRIC_high`: the 95% interval of each mean, if other users of the same kind had been
        measured; normal approximation. Nothing for a single user.
        """
        result: dict[str, float] = {}
        if self.num_users > 1:
            for name, total in self.sums.items():
                mean = total / self.num_users
                variance = max(0.0, self.squares[name] - self.num_users * mean**2) / (self.num_users - 1)
                reach = 1.96 * math.sqrt(variance / self.num_users)
                result |= {f"{name}_low": max(0.0, mean - reach), f"{name}_high": min(1.0, mean + reach)}
        return result


def evaluate_cases(
    scorer: Scorer,
    cases: Iterable[Cases],
    *,
    num_rows: int,
    ks: Sequence[int],
    remove_seen: bool,
    observers: Sequence[Observer] = (),
) -> Totals:
    """Rank the whole catalogue for every user, add up the metrics, and show each batch to the observers."""
    totals = Totals(tuple(ks), num_rows)
    for batch in cases:
        seen = batch.items if remove_seen else [np.zeros(0, np.int64)] * len(batch)
        with torch.inference_mode():
            scores_BV = hide(scorer(batch), [torch.from_numpy(rows) for rows in seen])
            queries_T = torch.from_numpy(np.repeat(np.arange(len(batch)), [len(rows) for rows in batch.targets]))
            targets_T = torch.from_numpy(np.concatenate(batch.targets))
            device = scores_BV.device
            ranks_T = target_ranks(scores_BV, queries_T.to(device), targets_T.to(device)).cpu()
            metrics = ranking_metrics(ranks_T, queries_T, len(batch), ks)
            top_BK = top_rows(scores_BV, max(ks))[0].cpu()
            totals.add(metrics, top_BK)
            for observer in observers:
                observer.see(Ranked(batch, metrics, top_BK, queries_T, targets_T, ranks_T))
    return totals
