"""A catalogue in parts: each finds its own best, and the best of those are the catalogue's."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float32

from data.vocabulary import PAD_ROW
from serve.index.contract import Hits, Index, ordered_hits


class ShardedIndex:
    """Indexes of consecutive items as one.

    Args:
        shards: the first holds items 1 to its `num_items`, the second those that follow.
    """

    def __init__(self, shards: Sequence[Index]) -> None:
        self.shards = shards

    @property
    def num_items(self) -> int:
        """Items in all shards."""
        return sum(shard.num_items for shard in self.shards)

    @property
    def width(self) -> int:
        """D of the vectors."""
        return self.shards[0].width

    def search(
        self,
        query_QD: Float32[npt.NDArray[np.float32], "Q D"],
        k: int,
        allowed_V: Bool[npt.NDArray[np.bool_], "V"] | None = None,
    ) -> Hits:
        """The min(k, V) best of the allowed items of each query, exactly as the shards find them."""
        allowed = parts_of(allowed_V, [shard.num_items for shard in self.shards])
        found = [shard.search(query_QD, k, own_V) for shard, own_V in zip(self.shards, allowed, strict=True)]
        return merged(found, [shard.num_items for shard in self.shards], k)


def shard_sizes(num_items: int, shards: int) -> list[int]:
    """Items of each shard, as equal as can be."""
    ends = [num_items * number // shards for number in range(shards + 1)]
    return [end - start for start, end in pairwise(ends)]


def parts_of(
    allowed_V: Bool[npt.NDArray[np.bool_], "V"] | None, sizes: Sequence[int]
) -> list[npt.NDArray[np.bool_] | None]:
    """What each shard may find."""
    if allowed_V is None:
        return [None] * len(sizes)
    return np.split(allowed_V, list(accumulate(sizes))[:-1])  # type: ignore[return-value]  # a list of arrays


def merged(parts: Sequence[Hits], sizes: Sequence[int], k: int) -> Hits:
    """The k best of each query's hits in all shards, with rows of the catalogue.

    Args:
        parts: of each shard, with rows that begin at 1 in each.
        sizes: items of each shard.
    """
    starts = [0, *accumulate(sizes)]
    rows_QC = [
        np.where(part.rows_QK == PAD_ROW, PAD_ROW, part.rows_QK + start)
        for part, start in zip(parts, starts, strict=False)
    ]
    return ordered_hits(np.concatenate(rows_QC, axis=1), np.concatenate([part.scores_QK for part in parts], axis=1), k)
