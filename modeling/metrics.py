"""Exact full-catalogue ranking and the metrics computed from it.

The order of two items with equal scores is by row, the smaller first, so every figure is a
function of the scores alone. Metrics are computed from the ranks of the targets; a target that may
not be recommended (seen, where seen items are removed) counts as a miss.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

MISSED = 2**62  # rank of a target that may not be recommended: past every cut-off


def hide(scores_BV: Float[Tensor, "B V"], hidden_rows: Sequence[Tensor]) -> Float[Tensor, "B V"]:
    """Set padding and each query's hidden items to -inf, in place."""
    scores_BV[:, 0] = float("-inf")
    lengths = torch.tensor([len(rows) for rows in hidden_rows], dtype=torch.long)
    query_E = torch.repeat_interleave(torch.arange(len(hidden_rows)), lengths)
    if len(query_E):
        scores_BV[query_E.to(scores_BV.device), torch.cat(list(hidden_rows)).to(scores_BV.device)] = float("-inf")
    return scores_BV


def target_ranks(
    scores_BV: Float[Tensor, "B V"], queries_T: Int[Tensor, "T"], targets_T: Int[Tensor, "T"]
) -> Int[Tensor, "T"]:
    """Exact 0-based rank of each target among its query's scores, ties by row.

    Args:
        queries_T: query (row of `scores_BV`) of each target.
        targets_T: item row of each target. A target with score -inf gets rank `MISSED`.
    """
    scores_TV = scores_BV[queries_T]
    target_T1 = scores_TV.gather(1, targets_T[:, None])
    above_T = (scores_TV > target_T1).sum(1)
    rows_V = torch.arange(scores_BV.shape[1], device=scores_BV.device)
    tied_T = ((scores_TV == target_T1) & (rows_V < targets_T[:, None])).sum(1)
    ranks_T = above_T + tied_T
    return torch.where(target_T1[:, 0] == float("-inf"), MISSED, ranks_T)


def top_rows(scores_BV: Float[Tensor, "B V"], k: int) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
    """Rows and scores of the k best items of each query, ties by row; row 0 where fewer may be shown."""
    k = min(k, scores_BV.shape[1])
    scores_Bk, rows_Bk = scores_BV.topk(k, dim=1)
    # topk leaves open which of equal scores it takes at the k-th place; few queries have such.
    open_B = (scores_BV >= scores_Bk[:, -1:]).sum(1) > k
    if open_B.any():
        rows_Bk[open_B] = _first_rows(scores_BV[open_B], scores_Bk[open_B, -1:], k)
    rows_Bk = rows_Bk.sort(dim=1).values
    scores_Bk = scores_BV.gather(1, rows_Bk)
    order_Bk = scores_Bk.argsort(dim=1, descending=True, stable=True)
    rows_Bk, scores_Bk = rows_Bk.gather(1, order_Bk), scores_Bk.gather(1, order_Bk)
    return torch.where(scores_Bk == float("-inf"), 0, rows_Bk), scores_Bk


def _first_rows(scores_BV: Tensor, threshold_B1: Tensor, k: int) -> Tensor:
    """Everything above the k-th score, and of what equals it the first rows, in order of rows."""
    above_BV = scores_BV > threshold_B1
    tied_BV = scores_BV == threshold_B1
    room_B1 = k - above_BV.sum(1, keepdim=True)
    kept_BV = above_BV | (tied_BV & (tied_BV.cumsum(1) <= room_B1))
    return kept_BV.nonzero()[:, 1].view(-1, k)


def ranking_metrics(
    ranks_T: Int[Tensor, "T"], queries_T: Int[Tensor, "T"], num_queries: int, ks: Sequence[int]
) -> dict[str, Tensor]:
    """Metrics of each query at each cut-off, from the ranks of its targets.

    hr: 1 if any target is in the first k. recall: share of the targets there, of at most k.
    ndcg: binary gains 1/log2(rank + 2) over the best order possible. mrr: 1/(rank + 1) of the best
    target within k. With one target per query hr equals recall.

    Returns:
        `{"hr@10": values_B, ...}`, each of `num_queries` float64 values.
    """
    targets_B = torch.zeros(num_queries, dtype=torch.long).index_add_(0, queries_T, torch.ones_like(queries_T))
    gain_T = 1 / (ranks_T.double() + 2).log2()
    best_rank_B = torch.full((num_queries,), torch.iinfo(torch.long).max)
    best_rank_B = best_rank_B.scatter_reduce(0, queries_T, ranks_T, "amin")
    metrics: dict[str, Tensor] = {}
    for k in ks:
        found_T = ranks_T < k
        found_B = torch.zeros(num_queries).double().index_add_(0, queries_T, found_T.double())
        gain_B = torch.zeros(num_queries).double().index_add_(0, queries_T, gain_T * found_T)
        possible_B = targets_B.clamp(max=k)
        ideal_k = (1 / (torch.arange(max(1, int(possible_B.max()))).double() + 2).log2()).cumsum(0)
        metrics[f"hr@{k}"] = (found_B > 0).double()
        metrics[f"recall@{k}"] = found_B / possible_B
        metrics[f"ndcg@{k}"] = gain_B / ideal_k[possible_B - 1]
        metrics[f"mrr@{k}"] = torch.where(best_rank_B < k, 1 / (best_rank_B.double() + 1), 0.0)
    return metrics
