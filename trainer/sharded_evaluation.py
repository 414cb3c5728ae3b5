"""Full-catalogue evaluation over a sharded item table: every rank ranks its rows for the users of all ranks.

What travels is small: query vectors, rows that may not be shown, targets, and per shard the number
of items above each target and the best few. The ranks of the targets are exact, as in
`trainer.evaluation`, and no rank holds the catalogue.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from data.batch import to_device
from data.cases import Cases
from data.ragged import IntArray
from modeling.metrics import MISSED, ranking_metrics, top_rows
from modeling.retriever import Retriever
from modeling.sharded_table import ShardedTable
from trainer.evaluation import Observer, Ranked, Totals, popularity_scores
from trainer.ranks import Ranks


class ShardedRanker:
    """Ranks the catalogue for users with the item vectors where they are.

    Args:
        retriever: in evaluation mode, with the table as its items.
        train_events_V: training events per item row, by which a user without visible history is answered.
    """

    def __init__(
        self, retriever: Retriever, table: ShardedTable, ranks: Ranks, *, max_events: int, train_events_V: IntArray
    ) -> None:
        self._retriever, self._table, self._ranks, self._max_events = retriever, table, ranks, max_events
        self._device = table.vectors_RD.device
        rows_R = table.own_rows()
        self._real_R = ((rows_R > 0) & (rows_R < table.num_rows)).to(self._device)
        inside_R = rows_R.clamp(max=table.num_rows - 1)
        self._popularity_R = popularity_scores(train_events_V)[inside_R].to(self._device)
        self._rows_R = rows_R.to(self._device)
        with torch.inference_mode():
            self._items_RD = functional.normalize(table.vectors_RD.float(), dim=-1)

    def evaluate(
        self, cases: Iterator[Cases], *, ks: Sequence[int], remove_seen: bool, observers: Sequence[Observer] = ()
    ) -> Totals:
        """Metrics of this rank's users, whose batches the observers see. A collective: ranks without users left go
        on ranking for the others.
        """
        totals = Totals(tuple(ks), self._table.num_rows)
        while True:
            batch = next(cases, None)
            if not self._ranks.any(batch is not None):
                return totals
            with torch.inference_mode():
                own = self._asked(batch, remove_seen)
                found = [self._ranked(*asked, max(ks)) for asked in self._everyones(own)]
            ranks_T, top_BK = found[self._table.rank]
            if batch is not None:
                queries_T, targets_T = own[2].cpu().unbind(1)
                metrics = ranking_metrics(ranks_T, queries_T, len(batch), ks)
                totals.add(metrics, top_BK)
                for observer in observers:
                    observer.see(Ranked(batch, metrics, top_BK, queries_T, targets_T, ranks_T))

    def _asked(self, batch: Cases | None, remove_seen: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Query vectors, hidden rows and targets of this rank's users, as rows (query, item row)."""
        if batch is None:
            self._table.hold(torch.zeros(0, dtype=torch.long, device=self._device))  # others fetch theirs
            none = torch.zeros(0, 2, dtype=torch.long, device=self._device)
            return torch.zeros(0, self._table.width, device=self._device), none, none
        query_BD = self._retriever.query_vectors(to_device(batch.batch(self._max_events), self._device)).float()
        # A query of zeros stands for a user who is answered from popularity.
        query_BD[[place for place, rows in enumerate(batch.items) if not len(rows)]] = 0
        hidden = _pairs(batch.items) if remove_seen else torch.zeros(0, 2, dtype=torch.long)
        return query_BD, hidden.to(self._device), _pairs(batch.targets).to(self._device)

    def _ranked(self, query_BD: Tensor, hidden_E2: Tensor, target_T2: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Exact rank of each target and the k best rows of each query, over all shards."""
        scores_BR = query_BD @ self._items_RD.T
        scores_BR[~query_BD.any(1)] = self._popularity_R
        scores_BR[:, ~self._real_R] = float("-inf")
        queries_E, places_E = self._own(hidden_E2)
        scores_BR[queries_E, places_E] = float("-inf")
        # The owner of a target says its score, so that it is the number that its own shard compares with.
        target_T = torch.zeros(len(target_T2), device=self._device)
        mine_T = self._is_own(target_T2[:, 1])
        queries_M, places_M = self._own(target_T2)
        target_T[mine_T] = scores_BR[queries_M, places_M]
        target_T = self._sum(torch.where(target_T == float("-inf"), -2.0, target_T))  # a cosine is at least -1
        scores_TR = scores_BR[target_T2[:, 0]]
        above_TR = (scores_TR > target_T[:, None]) | (
            (scores_TR == target_T[:, None]) & (self._rows_R < target_T2[:, 1:])
        )
        ranks_T = self._sum(above_TR.sum(1))
        ranks_T = torch.where(target_T == -2, MISSED, ranks_T)
        short = max(0, k - scores_BR.shape[1])  # a shard may have fewer rows than k, or none
        padded_BR = functional.pad(scores_BR, (0, short), value=float("-inf"))
        place_Bk, best_Bk = top_rows(padded_BR, k)  # places ascend as rows do, so ties fall alike
        return ranks_T.cpu(), self._merged(best_Bk, functional.pad(self._rows_R, (0, short))[place_Bk], k)

    def _merged(self, best_Bk: Tensor, rows_Bk: Tensor, k: int) -> Tensor:
        """The k best of all shards; row 0 where fewer may be shown."""
        best = torch.cat(self._gather(best_Bk), 1)
        rows = torch.cat(self._gather(rows_Bk), 1)
        # By row first: of equal scores the smaller row wins.
        order = rows.argsort(dim=1)
        best, rows = best.gather(1, order), rows.gather(1, order)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :k]
        best, rows = best.gather(1, order), rows.gather(1, order)
        return torch.where(best == float("-inf"), 0, rows).cpu()

    def _everyones(self, own: tuple[Tensor, Tensor, Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What each rank asks, by rank."""
        query, hidden, target = (self._gather(part) for part in own)
        return list(zip(query, hidden, target, strict=True))

    def _is_own(self, rows: Tensor) -> Tensor:
        return self._table.owner(rows) == self._table.rank

    def _own(self, pairs_E2: Tensor) -> tuple[Tensor, Tensor]:
        """Of pairs (query, item row) those of this shard: queries, and places in the shard."""
        pairs_E2 = pairs_E2[self._is_own(pairs_E2[:, 1])]
        return pairs_E2[:, 0], self._table.place(pairs_E2[:, 1])

    def _gather(self, own: Tensor) -> list[Tensor]:
        """The tensors of all ranks, which may differ in their first axis."""
        table = self._table
        if table.world == 1:
            return [own]
        counts = [torch.zeros(1, dtype=torch.long, device=own.device) for _ in range(table.world)]
        dist.all_gather(counts, torch.tensor([len(own)], device=own.device), group=table.group)
        longest = max(int(count) for count in counts)
        padded = own.new_zeros(longest, *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(table.world)]
        dist.all_gather(parts, padded, group=table.group)
        return [part[: int(count)] for part, count in zip(parts, counts, strict=True)]

    def _sum(self, values: Tensor) -> Tensor:
        if self._table.world > 1:
            dist.all_reduce(values, group=self._table.group)
        return values


def _pairs(lists: Sequence[IntArray]) -> Tensor:
    """Lists of item rows as pairs (place of the list, item row)."""
    places = np.repeat(np.arange(len(lists)), [len(rows) for rows in lists])
    rows = np.concatenate(lists) if len(lists) else np.zeros(0)
    return torch.from_numpy(np.stack([places, rows.astype(np.int64)], 1))
