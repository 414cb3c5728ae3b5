"""Full-catalogue evaluation: every item is scored for every user, and the targets' exact ranks counted."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from data.batch import Batch, collate, to_device
from data.dataset import PreparedDataset, Split
from data.encode import encode_histories
from modeling.metrics import hide, ranking_metrics, target_ranks, top_rows
from modeling.retriever import Retriever
from trainer.ranks import Ranks

COLUMNS = ("user_id", "user_key", "items", "times", "actions", "num_train", "num_validation", "num_test")


@dataclass(frozen=True)
class Cases:
    """B users of one split: what was known before their targets, and the targets."""

    user_ids: list[str]
    user_keys: list[int]
    items: list[npt.NDArray[np.int64]]  # the whole history before the first target, item rows
    times: list[npt.NDArray[np.int64]]
    actions: list[npt.NDArray[np.int64]]
    query_times: list[int]  # time of the first target
    targets: list[npt.NDArray[np.int64]]  # distinct item rows, at least one

    def __len__(self) -> int:
        return len(self.user_ids)

    def batch(self, max_events: int) -> Batch:
        """The histories as the model sees them."""
        return collate(
            encode_histories(
                self.items, self.times, self.actions, self.query_times, max_events=max_events, users=self.user_keys
            )
        )


class Scorer(Protocol):
    """Scores the whole catalogue for each user; higher is better, -inf never recommended."""

    def __call__(self, cases: Cases) -> Float[Tensor, "B V"]: ...


class RetrieverScorer:
    """Scores of a trained retriever: inner products of query and item vectors.

    Args:
        retriever: in evaluation mode; item vectors are computed once, here.
        max_events: events of a history that the model sees.
    """

    def __init__(self, retriever: Retriever, *, max_events: int) -> None:
        self._retriever = retriever
        self._max_events = max_events
        self._device = retriever.items.weight.device
        with torch.inference_mode():
            self._items_VD = retriever.item_vectors(torch.arange(retriever.items.num_embeddings, device=self._device))

    def __call__(self, cases: Cases) -> Float[Tensor, "B V"]:
        batch = to_device(cases.batch(self._max_events), self._device)
        with torch.inference_mode():
            return self._retriever.query_vectors(batch) @ self._items_VD.T


def split_cases(
    dataset: PreparedDataset, split: Split, *, users_per_batch: int, rank: int = 0, world: int = 1
) -> Iterator[Cases]:
    """Users with targets in a split, similar history lengths together; each user on exactly one rank.

    The history of a validation target is the training part; of a test target, the training and
    validation part. The request time is the time of the first target.
    """
    for table in dataset.history_tables(COLUMNS, rank=rank, world=world):
        train, validation, test = (
            table.column(name).to_numpy().astype(np.int64) for name in ("num_train", "num_validation", "num_test")
        )
        starts = train if split == "validation" else train + validation
        stops = starts + (validation if split == "validation" else test)
        users = np.flatnonzero(stops > starts)
        users = users[np.argsort(starts[users], kind="stable")]
        for first in range(0, len(users), users_per_batch):
            chosen = users[first : first + users_per_batch]
            yield _cases(table.take(pa.array(chosen)), starts[chosen], stops[chosen])


def first_users(cases: Iterable[Cases], num_users: int) -> Iterator[Cases]:
    """Whole batches until at least `num_users` users are in them; ingest dealt users to shards by hash."""
    taken = 0
    for batch in cases:
        if taken >= num_users:
            return
        taken += len(batch)
        yield batch


def _cases(rows: pa.Table, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]) -> Cases:
    lists = {
        name: [np.asarray(row.values.to_numpy(), np.int64) for row in rows.column(name)]
        for name in ("items", "times", "actions")
    }
    return Cases(
        user_ids=rows.column("user_id").to_pylist(),
        user_keys=rows.column("user_key").to_pylist(),
        items=[row[:start] for row, start in zip(lists["items"], starts, strict=True)],
        times=[row[:start] for row, start in zip(lists["times"], starts, strict=True)],
        actions=[row[:start] for row, start in zip(lists["actions"], starts, strict=True)],
        query_times=[int(row[start]) for row, start in zip(lists["times"], starts, strict=True)],
        targets=[np.unique(row[start:stop]) for row, start, stop in zip(lists["items"], starts, stops, strict=True)],
    )


@dataclass
class Totals:
    """Sums over users that add up over batches and ranks."""

    ks: tuple[int, ...]
    num_rows: int
    num_users: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    shown: dict[int, Tensor] = field(default_factory=dict)  # per cut-off: how often each row was recommended

    def add(self, metrics: dict[str, Tensor], top_Bk: Tensor) -> None:
        """Count one batch: metrics per user, and the best rows of each."""
        self.num_users += len(top_Bk)
        for name, values_B in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(values_B.sum())
        for k in self.ks:
            counts_V = torch.bincount(top_Bk[:, :k].flatten().cpu(), minlength=self.num_rows)
            self.shown[k] = self.shown.get(k, torch.zeros(self.num_rows, dtype=torch.long)) + counts_V

    def over_ranks(self, ranks: Ranks) -> "Totals":
        """Sums over all ranks; a collective."""
        names = [f"{metric}@{k}" for k in self.ks for metric in ("hr", "recall", "ndcg", "mrr")]
        own = torch.tensor([float(self.num_users), *(self.sums.get(name, 0.0) for name in names)], dtype=torch.float64)
        users, *sums = ranks.sum(own).tolist()
        none = torch.zeros(self.num_rows, dtype=torch.long)
        shown = {k: ranks.sum(self.shown.get(k, none)) for k in self.ks}
        return Totals(self.ks, self.num_rows, int(users), dict(zip(names, sums, strict=True)), shown)

    def means(self) -> dict[str, float]:
        """Mean of each metric over users, and coverage: share of the catalogue recommended to anyone."""
        result = {name: total / max(1, self.num_users) for name, total in self.sums.items()}
        for k, counts_V in self.shown.items():
            result[f"coverage@{k}"] = float((counts_V[1:] > 0).sum()) / (self.num_rows - 1)
        result["users"] = self.num_users
        return result


def evaluate_cases(
    scorer: Scorer, cases: Iterable[Cases], *, num_rows: int, ks: Sequence[int], remove_seen: bool
) -> Totals:
    """Rank the whole catalogue for every user and add up the metrics."""
    totals = Totals(tuple(ks), num_rows)
    for batch in cases:
        seen = batch.items if remove_seen else [np.zeros(0, np.int64)] * len(batch)
        with torch.inference_mode():
            scores_BV = hide(scorer(batch), [torch.from_numpy(rows) for rows in seen])
            queries_T = torch.from_numpy(np.repeat(np.arange(len(batch)), [len(rows) for rows in batch.targets]))
            targets_T = torch.from_numpy(np.concatenate(batch.targets))
            device = scores_BV.device
            ranks_T = target_ranks(scores_BV, queries_T.to(device), targets_T.to(device)).cpu()
            totals.add(ranking_metrics(ranks_T, queries_T, len(batch), ks), top_rows(scores_BV, max(ks))[0])
    return totals
