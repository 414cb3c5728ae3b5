"""What accuracy does not say of recommended lists: popularity, novelty, variety, and how far ahead they reach.

Lists are `top_BK` as `modeling.metrics.top_rows` gives them: best first, row 0 where fewer items may be
shown; such places are not counted. A value is NaN where there is nothing to measure, so that a mean can
leave the query out. "More popular" always means more training events, ties by row, the smaller first.

Letters: B queries, K places of a list, V catalogue rows with padding, T targets, H steps ahead, R distinct
rows, C categories, E entries laid end to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BUCKETS = ("cold", "tail", "middle", "head")  # by training events, as `popularity_buckets` numbers them
# Pairs grow with the square of the places, and nobody sees the variety of a longer list at once.
DIVERSITY_PLACES = 50
_QUERIES_AT_ONCE = 64


@dataclass(frozen=True)
class ItemCategories:
    """The distinct categories of each item row laid end to end; row 0 has none."""

    codes_E: Tensor
    offsets_V1: Tensor  # row v has entries `offsets_V1[v]:offsets_V1[v + 1]`


def events_of_more_popular(train_events_V: Int[Tensor, "V"]) -> Int[Tensor, "V"]:
    """Training events of all items that are more popular than each item."""
    order_V = train_events_V.argsort(descending=True, stable=True)
    before_V = torch.empty_like(train_events_V)
    before_V[order_V] = train_events_V[order_V].cumsum(0) - train_events_V[order_V]
    return before_V


def head_items(train_events_V: Int[Tensor, "V"]) -> Bool[Tensor, "V"]:
    """The head: the fewest most popular items that together hold at least half of all training events."""
    return 2 * events_of_more_popular(train_events_V) < train_events_V.sum()


def popularity_buckets(train_events_V: Int[Tensor, "V"]) -> Int[Tensor, "V"]:
    """Index in `BUCKETS` of each item: cold without training events, the others cut in thirds of the events.

    With the items laid end to end by popularity, an item belongs to the third in which its first event
    lies; so `head` is the fewest items that hold a third, `head` and `middle` the fewest that hold two.
    """
    thirds_V = 3 * events_of_more_popular(train_events_V) // train_events_V.sum().clamp(min=1)
    return torch.where(train_events_V > 0, 3 - thirds_V, 0)


def item_novelty(train_events_V: Int[Tensor, "V"], num_users: int) -> Float[Tensor, "V"]:
    """Bits of surprise of each item: -log2(training events / users with training events).

    An item without training events counts as one with a single event. Where users repeat items there may
    be more events than users, and novelty is negative.

    Source: Zhou et al., PNAS 2010 (self-information). Deviation: events stand for users, so the figure
    equals RecTools' MeanInvUserFreq where no user repeats an item.
    """
    return -(train_events_V.clamp(min=1).double() / max(num_users, 1)).log2()


def means_at(
    values_BK: Float[Tensor, "B K"], counted_BK: Bool[Tensor, "B K"], ks: Sequence[int]
) -> dict[int, Float[Tensor, "B"]]:
    """Mean over the counted places among the first k, for each k; NaN where none is."""
    sums_BK = torch.where(counted_BK, values_BK, 0.0).cumsum(1)
    places_BK = counted_BK.cumsum(1)
    ends = {k: min(k, values_BK.shape[1]) - 1 for k in ks}
    return {k: sums_BK[:, end] / places_BK[:, end] for k, end in ends.items()}


def in_history(top_BK: Int[Tensor, "B K"], histories: Sequence[Tensor], num_rows: int) -> Bool[Tensor, "B K"]:
    """Whether each recommended item is one of the query's history."""
    lengths_B = torch.tensor([len(rows) for rows in histories], dtype=torch.long)
    seen_BV = torch.zeros(len(histories), num_rows, dtype=torch.bool)
    seen_BV[torch.repeat_interleave(torch.arange(len(histories)), lengths_B), torch.cat(list(histories))] = True
    return seen_BV.gather(1, top_BK)


def category_diversity(
    top_BK: Int[Tensor, "B K"], categories: ItemCategories, ks: Sequence[int]
) -> dict[int, Float[Tensor, "B"]]:
    """Intra-list diversity: mean of 1 - Jaccard of the category sets, over all pairs of the first k items.

    Items without categories are left out of the list: what is not known is neither alike nor different.
    Of the rest, a list of one item has diversity 0, and an empty one NaN. Cut-offs above
    `DIVERSITY_PLACES` are replaced by it, so the keys of the result say what was measured.

    Source: Ziegler et al., WWW 2005 (intra-list similarity), as RecTools' IntraListDiversity.
    """
    lists_BK = top_BK[:, :DIVERSITY_PLACES]
    starts = range(0, len(lists_BK), _QUERIES_AT_ONCE)
    parts = [_diversity_by_place(lists_BK[start : start + _QUERIES_AT_ONCE], categories) for start in starts]
    diversity_BK = torch.cat(parts)
    ends = {min(k, DIVERSITY_PLACES): min(k, diversity_BK.shape[1]) - 1 for k in ks}
    return {k: diversity_BK[:, end] for k, end in ends.items()}


def _diversity_by_place(top_BK: Tensor, categories: ItemCategories) -> Tensor:
    """Diversity of the list that ends at each place."""
    rows_R, places_BK = torch.unique(top_BK, return_inverse=True)
    sets_BKC = _multi_hot(rows_R, categories)[places_BK]
    sizes_BK = sets_BKC.sum(2)
    common_BKK = sets_BKC @ sets_BKC.mT
    either_BKK = sizes_BK[:, :, None] + sizes_BK[:, None, :] - common_BKK
    known_BK = sizes_BK > 0
    # Pairs of each place with the places before it: sums over places then hold every pair once.
    pairs_BKK = (known_BK[:, :, None] & known_BK[:, None, :]).tril(-1)
    # Counts are exact in float32; their quotient is wanted to double precision.
    distance_BKK = torch.where(pairs_BKK, 1 - common_BKK.double() / either_BKK.clamp(min=1), 0.0)
    sums_BK = distance_BKK.sum(2).cumsum(1)
    num_known_BK = known_BK.cumsum(1)
    num_pairs_BK = num_known_BK * (num_known_BK - 1) // 2
    return torch.where(num_known_BK > 0, sums_BK / num_pairs_BK.clamp(min=1), float("nan"))


def _multi_hot(rows_R: Tensor, categories: ItemCategories) -> Tensor:
    """Categories of some rows as zeros and ones, in columns of the categories that occur there."""
    starts_R, stops_R = categories.offsets_V1[rows_R], categories.offsets_V1[rows_R + 1]
    lengths_R = stops_R - starts_R
    row_E = torch.repeat_interleave(torch.arange(len(rows_R)), lengths_R)
    first_R = lengths_R.cumsum(0) - lengths_R
    entries_E = torch.arange(len(row_E)) - first_R[row_E] + starts_R[row_E]
    codes_C, columns_E = torch.unique(categories.codes_E[entries_E], return_inverse=True)
    sets_RC = torch.zeros(len(rows_R), len(codes_C))
    sets_RC[row_E, columns_E] = 1
    return sets_RC


def bucket_recall(
    ranks_T: Int[Tensor, "T"], buckets_T: Int[Tensor, "T"], k: int
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Targets within the first k, and all targets, of each of `BUCKETS`."""
    found_T = (ranks_T < k).double()
    found_N = torch.bincount(buckets_T, found_T, minlength=len(BUCKETS))
    return found_N, torch.bincount(buckets_T, minlength=len(BUCKETS)).double()


def hits_ahead(ranks_BH: Int[Tensor, "B H"], k: int) -> Float[Tensor, "B H"]:
    """1 where the event so many steps ahead is within the first k, 0 where not, NaN where there is none.

    Args:
        ranks_BH: 0-based rank of the item of each of the next H events; -1 where the split holds no such
            event. An event whose item may not be recommended (in the history, where seen items are
            removed) has rank `MISSED` and counts as a miss, as everywhere else: so one step ahead with
            one target per user is `hr@k`, and every list is divided by the same users.
    """
    return torch.where(ranks_BH < 0, float("nan"), (ranks_BH < k).double())
