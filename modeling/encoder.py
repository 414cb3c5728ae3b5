"""The encoder: a history becomes one hidden vector per event."""

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from data.batch import Batch
from modeling.dropout import Dropout
from modeling.item_table import HeldItems
from modeling.token_level import TokenLevel
from modeling.view import View


class Block(Protocol):
    """One attention block.

    Args of a call:
        x_BLD: the L events that are looked at.
        view: which of them each row sees, and how far they are.
        rows_BRD: R rows that look; None if the events themselves do.
        sink_BRD: one more thing to look at for each row, which that row alone sees, always.
    """

    def __call__(
        self,
        x_BLD: Float[Tensor, "B L D"],
        view: View,
        rows_BRD: Float[Tensor, "B R D"] | None = None,
        sink_BRD: Float[Tensor, "B R D"] | None = None,
    ) -> Float[Tensor, "B R D"]: ...


class Encoder(nn.Module):
    """Item vectors, positions and actions in; one hidden vector per event out.

    Hidden vector i depends on the events that row i of the view sees (and on their own views), on
    event i and on the time of query i. Without a mask of its own that is events 0 to i, never what
    follows, so padding on the right changes nothing.

    Args:
        blocks: modules that satisfy `Block`; may be none.
        width: D.
        max_events: longest history.
        num_actions: 0 to leave actions out.
        dropout: share of the input dropped in training.
        token_level: makes an event's vector of its tokens; None for that of its item.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        width: int,
        max_events: int,
        num_actions: int,
        dropout: float,
        token_level: TokenLevel | None = None,
    ) -> None:
        super().__init__()
        self.token_level = token_level
        self.blocks = nn.ModuleList(blocks)
        self.positions = nn.Embedding(max_events, width)
        self.actions = nn.Embedding(num_actions + 1, width, padding_idx=0) if num_actions else None
        self.dropout = Dropout(dropout)
        self.scale = width**0.5
        nn.init.normal_(self.positions.weight, std=width**-0.5)

    def forward(self, items: HeldItems, batch: Batch, view: View) -> list[Float[Tensor, "B L D"]]:
        """Encode the histories of a batch, given the vectors of the items in them.

        Returns:
            The input of each block, and last the output of the last one.
        """
        if self.token_level is None:
            item_BLD = items(batch["items_BL"])
        else:
            item_BLD = self.token_level(items, batch, view.allowed)
        layers = [self._embed(item_BLD, batch)]
        for block in self.blocks:
            layers.append(block(layers[-1], view))
        return layers

    def _embed(self, item_BLD: Float[Tensor, "B L D"], batch: Batch) -> Float[Tensor, "B L D"]:
        places_L = torch.arange(item_BLD.shape[1], device=item_BLD.device)
        x_BLD: Tensor = item_BLD * self.scale + self.positions(places_L)
        if self.actions is not None:
            x_BLD = x_BLD + self.actions(batch["actions_BL"])
        dropped_BLD: Tensor = self.dropout(x_BLD)
        return dropped_BLD
