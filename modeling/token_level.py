"""The token level of a hierarchical causal transformer: the tokens of a history become one vector per event.

Letters: T tokens of an event (those of its item, its action, its gap); S tokens of a window of events.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from data.batch import Batch
from modeling.attention_bias import LOG_BUCKET_WIDTH, NUM_TIME_BUCKETS
from modeling.dropout import Dropout
from modeling.item_table import INITIAL_DEVIATION, HeldItems, TokenisedItems
from modeling.softmax_attention import attend
from modeling.transformer import TransformerBlock


class TokenLevel(nn.Module):
    """Tokens in, one vector per event out: the item's vector and what its tokens add to it.

    A token sees the tokens of its own event up to itself, and all tokens of those of the last `window`
    events that its event may look at (`View.allowed`); its own event is never hidden from it. So
    attention costs L T x (window + 1) T, where all of the history would cost L T x L T.

    Args:
        blocks: whose attention is limited so; they have no bias.
        width: D.
        max_events: longest history.
        fused: whether an item is one token, its vector; otherwise the items have tokens (`TokenisedItems`).
        num_actions: 0 for no token of the action.
        gaps: whether there is a token of the time since the event before.
        window: events before its own that a token sees.
        summary: what becomes of an event's tokens; a norm and a linear map follow either way, and the sum with the
            item's vector.
        dropout: share of the input dropped in training.

    Source: the token level of HeterRec's hierarchical causal transformer (arXiv 2503.01469). No equation is published:
    the window, the form of the blocks, the summary and the sum are ours. The sum keeps input and item vectors in one
    space, as a model without this level has them; without it, what follows an item is learnt slower.
    """

    def __init__(
        self,
        blocks: Sequence[TransformerBlock],
        *,
        width: int,
        max_events: int,
        fused: bool,
        num_actions: int,
        gaps: bool,
        window: int,
        summary: Literal["mean", "last"],
        dropout: float,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.fused, self.window, self.summary = fused, window, summary
        self.positions = nn.Embedding(max_events, width)
        self.actions = nn.Embedding(num_actions + 1, width) if num_actions else None  # row 0: an event without one
        self.gaps = nn.Embedding(NUM_TIME_BUCKETS + 1, width) if gaps else None  # row 0: no event before
        self.dropout = Dropout(dropout)
        self.norm = nn.RMSNorm(width)
        self.project_out = nn.Linear(width, width, bias=False)
        self.scale = width**0.5
        nn.init.normal_(self.positions.weight, std=width**-0.5)
        for table in (self.actions, self.gaps):
            if table is not None:
                nn.init.normal_(table.weight, std=INITIAL_DEVIATION)
        # At first the tokens add a tenth of what a fresh row of an item table has.
        nn.init.normal_(self.project_out.weight, std=0.1 * INITIAL_DEVIATION * width**-0.5)

    def forward(self, items: HeldItems, batch: Batch, allowed: Bool[Tensor, "#B L L"]) -> Float[Tensor, "B L D"]:
        """One vector per event of the batch."""
        x_BLTD = self._tokens(items, batch, allowed)
        visible = window_mask(allowed, self.window, x_BLTD.shape[2])
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)  # which a ModuleList does not tell the type checker
            x_BLTD = attend_in_windows(block, x_BLTD, visible)
        summary_BLD = x_BLTD.mean(2) if self.summary == "mean" else x_BLTD[:, :, -1]
        out_BLD: Tensor = items(batch["items_BL"]) + self.project_out(self.norm(summary_BLD))
        return out_BLD

    def _tokens(self, items: HeldItems, batch: Batch, allowed: Tensor) -> Float[Tensor, "B L T D"]:
        rows_BL = batch["items_BL"]
        of_items = items(rows_BL)[:, :, None] if self.fused else cast(TokenisedItems, items).tokens(rows_BL)
        tokens = [of_items]
        if self.actions is not None:
            tokens.append(self.actions(batch["actions_BL"])[:, :, None])
        if self.gaps is not None:
            tokens.append(self.gaps(gap_buckets(batch["times_BL"], allowed))[:, :, None])
        places_L = torch.arange(rows_BL.shape[1], device=rows_BL.device)
        x_BLTD: Tensor = torch.cat(tokens, 2) * self.scale + self.positions(places_L)[:, None]
        dropped_BLTD: Tensor = self.dropout(x_BLTD)
        return dropped_BLTD


def gap_buckets(times_BL: Int[Tensor, "B L"], allowed: Bool[Tensor, "#B L L"]) -> Int[Tensor, "B L"]:
    """Logarithmic bucket, from 1, of the seconds since the newest earlier event that each one sees; 0 if it sees none.

    So an event that is hidden from a row is hidden here too. An event that lies later in time than the one after it,
    which a history that is sorted by `order` may have, counts as at its time.
    """
    places_L = torch.arange(times_BL.shape[1], device=times_BL.device)
    before_BL = places_L.where(allowed.tril(-1), -1).amax(-1).expand_as(times_BL)
    seconds_BL = times_BL - times_BL.gather(1, before_BL.clamp(min=0))
    buckets_BL = (seconds_BL.clamp(min=1).float().log() / LOG_BUCKET_WIDTH).clamp(max=NUM_TIME_BUCKETS - 1).long()
    return torch.where(before_BL < 0, 0, buckets_BL + 1)


def window_mask(allowed: Bool[Tensor, "#B L L"], window: int, num_tokens: int) -> Bool[Tensor, "#B L T S"]:
    """Whether token t of each event sees each token of its window, earliest event first, its own event last."""
    length = allowed.shape[1]
    earlier = [functional.pad(allowed.diagonal(-back, 1, 2), (min(back, length), 0)) for back in range(window, 0, -1)]
    own_TT = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=allowed.device).tril()
    own = own_TT.expand(len(allowed), length, -1, -1)
    if not earlier:
        return own
    seen_BLW = torch.stack(earlier, -1).repeat_interleave(num_tokens, -1)
    return torch.cat([seen_BLW[:, :, None].expand(-1, -1, num_tokens, -1), own], -1)


def attend_in_windows(
    block: TransformerBlock, x_BLTD: Float[Tensor, "B L T D"], visible: Bool[Tensor, "#B L T S"]
) -> Float[Tensor, "B L T D"]:
    """A block whose tokens see their windows alone: with the same mask over all L T tokens it gives the same.

    Args:
        visible: of `window_mask`.
    """
    batch, _, num_tokens, _ = x_BLTD.shape
    queries, keys, values = (part.view(x_BLTD.shape) for part in block.project(x_BLTD.flatten(1, 2)))
    window = visible.shape[-1] // num_tokens - 1
    pooled = attend(
        queries.flatten(0, 1),
        _windows(keys, window).flatten(0, 1),
        _windows(values, window).flatten(0, 1),
        block.heads,
        visible.expand(batch, -1, -1, -1).flatten(0, 1),
        None,
    )
    return block.add(x_BLTD.flatten(0, 1), pooled).view(x_BLTD.shape)


def _windows(x_BLTD: Float[Tensor, "B L T D"], window: int) -> Float[Tensor, "B L S D"]:
    """The tokens of each event's window, earliest event first; zeros before the first event."""
    length = x_BLTD.shape[1]
    padded = functional.pad(x_BLTD, (0, 0, 0, 0, window, 0))
    return torch.cat([padded[:, first : first + length] for first in range(window + 1)], 2)
