"""The encoder: a history becomes one hidden vector per event."""

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from data.batch import Batch
from modeling.attention_bias import causal_mask, time_buckets
from modeling.dropout import Dropout


class Block(Protocol):
    """One encoder block. The mask is True where a row may look at a column."""

    def __call__(
        self,
        x_BLD: Float[Tensor, "B L D"],
        allowed_LL: Bool[Tensor, "L L"],
        buckets_BLL: Int[Tensor, "B L L"] | None,
    ) -> Float[Tensor, "B L D"]: ...


class Encoder(nn.Module):
    """Item vectors, positions and actions in; one hidden vector per event out.

    Hidden vector i depends on events 0 to i and on the time of query i, never on what follows, so
    padding on the right changes nothing.

    Args:
        blocks: modules that satisfy `Block`.
        width: D.
        max_events: longest history.
        num_actions: 0 to leave actions out.
        dropout: share of the input dropped in training.
        needs_times: whether any block has a time bias.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        width: int,
        max_events: int,
        num_actions: int,
        dropout: float,
        needs_times: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.positions = nn.Embedding(max_events, width)
        self.actions = nn.Embedding(num_actions + 1, width, padding_idx=0) if num_actions else None
        self.dropout = Dropout(dropout)
        self.scale = width**0.5
        self.needs_times = needs_times
        nn.init.normal_(self.positions.weight, std=width**-0.5)

    def forward(self, item_BLD: Float[Tensor, "B L D"], batch: Batch) -> Float[Tensor, "B L D"]:
        """Encode the histories of a batch, given the embedding of each item in them."""
        length = item_BLD.shape[1]
        x_BLD: Tensor = item_BLD * self.scale + self.positions(torch.arange(length, device=item_BLD.device))
        if self.actions is not None:
            x_BLD = x_BLD + self.actions(batch["actions_BL"])
        x_BLD = self.dropout(x_BLD)
        allowed_LL = causal_mask(length, item_BLD.device)
        buckets_BLL = time_buckets(batch["query_times_BL"], batch["times_BL"]) if self.needs_times else None
        for block in self.blocks:
            x_BLD = block(x_BLD, allowed_LL, buckets_BLL)
        return x_BLD
