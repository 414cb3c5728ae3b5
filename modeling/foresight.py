"""Time-aware multi-item prediction (TAMIP): what each position predicts, and from how much of its history.

One request shows several items, and a log lays them end to end as if one had led to the next. An
event of the same burst as the target is therefore hidden from the prediction: everything not
earlier than the time of the target minus a gap, which a deployed system would not have seen either.

Source: Climber-Pilot (arXiv 2602.13581), section 3.2, eq. 1-4. Deviations are named where they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from data.batch import Batch
from modeling.view import causal

Hidden = Literal["nothing", "faithful", "strict"]
Gap = int | Literal["request"]


@dataclass(frozen=True)
class Prediction:
    """What a position learns to predict."""

    num_heads: int = 1  # K: the items ahead, one head each
    hidden: Hidden = "nothing"  # what of the history a prediction does not see
    gap: Gap = 0  # seconds before the target that are hidden; request: all of the target's request
    window_seconds: int | None = None  # draw the target from the events within it; None: the next ones


@dataclass(frozen=True)
class Foresight:
    """What position i of each history predicts, and from what."""

    labels_BLK: Int[Tensor, "B L K"]  # the items that follow i; 0 = none, or nothing to predict it from
    rows_BL: Int[Tensor, "B L"] | None  # the position whose hidden vector predicts them; None: i itself
    allowed: Bool[Tensor, "#B L L"]  # which events each position sees
    query_times_BL: Int[Tensor, "B L"]  # when each position is asked, seconds UTC


def foresee(batch: Batch, prediction: Prediction, generator: torch.Generator | None = None) -> Foresight:
    """Lay out the predictions of a training batch.

    `faithful` is the paper's: row i sees the events before the gap, in every layer, and predicts
    from its own position. Its own event stays visible to it through the residual path, also if it
    is of the target's burst: a leak that the paper has. `strict` closes it: attention is plainly
    causal, and the labels of row i are predicted from the last row before the gap, as in a
    deployed system. That row is asked at the time of the earliest of the labels it predicts.

    Where the gap leaves nothing (a first burst), there is no label, and under `faithful` the row
    sees its own event alone, so that attention is defined.

    Args:
        generator: CPU generator, for targets that are drawn from a window.
    """
    rows_BL = None
    if prediction.window_seconds is None:
        labels_BLK = following(batch["targets_BL"], prediction.num_heads)
    else:
        labels_BLK = window_labels(batch, prediction.window_seconds, generator)[..., None]
    items_BL, query_times_BL = batch["items_BL"], batch["query_times_BL"]
    allowed = causal(items_BL.shape[1], items_BL.device)
    if prediction.hidden != "nothing":
        ends_BL = last_visible(batch, prediction.gap)
        labels_BLK = labels_BLK.where((ends_BL >= 0)[..., None], 0)
        if prediction.hidden == "faithful":
            allowed = staircase(ends_BL)
        else:
            rows_BL = ends_BL.clamp(min=0)
            query_times_BL = _asked_first(rows_BL, query_times_BL, labels_BLK[..., 0] > 0)
    return Foresight(labels_BLK, rows_BL, allowed, query_times_BL)


def following(next_BL: Int[Tensor, "B L"], num_heads: int) -> Int[Tensor, "B L K"]:
    """What follows each event, of which the next is given, 1 to K steps ahead; 0 where the history ends before."""
    shifted = [next_BL] + [
        torch.cat([next_BL[:, ahead:], torch.zeros_like(next_BL[:, :ahead])], 1) for ahead in range(1, num_heads)
    ]
    return torch.stack(shifted, -1)


def last_labels(plan: Foresight, lengths_B: Int[Tensor, "B"]) -> Foresight:
    """The same plan with the last event of each history as its only label, seen from K rows (eq. 6 of the paper)."""
    length, num_heads = plan.labels_BLK.shape[1:]
    ahead_LK = torch.arange(length)[:, None] + torch.arange(num_heads)
    last_BLK = ahead_LK.to(lengths_B.device) == lengths_B[:, None, None] - 1
    return replace(plan, labels_BLK=plan.labels_BLK.where(last_BLK, 0))


def last_visible(batch: Batch, gap: Gap) -> Int[Tensor, "B L"]:
    """For each event i, the last event up to i that is not of the burst of event i + 1; -1 if none.

    With a gap in seconds: the last one earlier than the time of event i + 1 minus the gap, the end
    of a staircase. With `request`: the last one of another request than event i + 1.

    Where a history goes back in time, which one that is sorted by `order` may, an event counts as
    late as the latest before it.
    """
    times_BL, asked_BL = batch["times_BL"], batch["query_times_BL"]
    places_L = torch.arange(times_BL.shape[1], device=times_BL.device)
    if gap == "request":
        burst_BN = _bursts(batch)
        starts_BL = burst_BN[:, 1:] > burst_BN[:, :-1]
        # The event before the newest start of a burst, up to event i + 1.
        return torch.where(starts_BL, places_L, -1).cummax(1).values
    real_BL = places_L < batch["lengths_B"][:, None]
    # Padding counts as later than anything, so that each row of times ascends.
    ascending_BL = times_BL.where(real_BL, torch.iinfo(times_BL.dtype).max).cummax(1).values
    before_BL = torch.searchsorted(ascending_BL, (asked_BL - gap).contiguous(), right=False) - 1
    return before_BL.minimum(places_L)


def staircase(ends_BL: Int[Tensor, "B L"]) -> Bool[Tensor, "B L L"]:
    """Row i sees the events up to `ends_BL[:, i]`, or itself alone if that is -1."""
    length = ends_BL.shape[1]
    places_L = torch.arange(length, device=ends_BL.device)
    alone = (ends_BL < 0)[..., None] & torch.eye(length, dtype=torch.bool, device=ends_BL.device)
    return (places_L <= ends_BL[..., None]) | alone


def window_labels(batch: Batch, seconds: int, generator: torch.Generator | None) -> Int[Tensor, "B L"]:
    """A random one of the items that follow each event within some seconds; the next one if none does.

    Source: dense all-action loss of PinnerFormer (arXiv 2205.04507), as eSASRec's benchmark draws it.
    """
    places_L = torch.arange(batch["items_BL"].shape[1], device=batch["items_BL"].device)
    real_BL = batch["targets_BL"] > 0
    latest = torch.iinfo(batch["times_BL"].dtype).max
    asked_BL = batch["query_times_BL"].where(real_BL, latest).cummax(1).values
    last_BL = torch.searchsorted(asked_BL, (batch["times_BL"] + seconds).contiguous(), right=True) - 1
    count_BL = (last_BL.minimum(batch["lengths_B"][:, None] - 1) - places_L + 1).clamp(min=1)
    # Drawn on the CPU: one generator then serves every device.
    draw_BL = torch.rand(count_BL.shape, generator=generator, dtype=torch.float64).to(count_BL.device)
    drawn_BL = places_L + (draw_BL * count_BL).long().minimum(count_BL - 1)
    return batch["targets_BL"].gather(1, drawn_BL).where(real_BL, 0)


def _bursts(batch: Batch) -> Int[Tensor, "B N"]:
    """A number that goes up wherever another request begins: of each of L events and of the one after (N = L + 1)."""
    asked_BL = batch["next_requests_BL"]
    both = torch.cat([batch["requests_BL"][:, :1], asked_BL], 1)
    begins = (both[:, 1:] != both[:, :-1]) | (both[:, 1:] < 0)
    return torch.cat([torch.zeros_like(both[:, :1]), begins.long().cumsum(1)], 1)


def _asked_first(
    rows_BL: Int[Tensor, "B L"], query_times_BL: Int[Tensor, "B L"], labelled_BL: Bool[Tensor, "B L"]
) -> Int[Tensor, "B L"]:
    latest = torch.iinfo(query_times_BL.dtype).max
    earliest = torch.full_like(query_times_BL, latest)
    earliest.scatter_reduce_(1, rows_BL, query_times_BL.where(labelled_BL, latest), "amin")
    return earliest.where(earliest < latest, query_times_BL)


class LinearHeads(nn.Module):
    """The first head is the hidden vector itself; each further head a linear map of it, at first the identity.

    Source: listwise multi-step prediction of HeterRec (arXiv 2503.01469); of its forms the cheapest.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        further = [nn.Linear(width, width) for _ in range(num_heads - 1)]
        self.further = nn.ModuleList(further)
        for layer in further:
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden_BLD: Float[Tensor, "B L D"]) -> Sequence[Float[Tensor, "B L D"]]:
        """One tensor per head."""
        return [hidden_BLD, *(layer(hidden_BLD) for layer in self.further)]


class SharedHeads(nn.Module):
    """Every head is the hidden vector itself, so that it learns to be near all K items that follow; no weights.

    Source: listwise multi-step prediction (LMP) of HeterRec (arXiv 2503.01469), as one vector for the whole window. The
    paper's weights of the steps are not published; all count the same.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, hidden_BLD: Float[Tensor, "B L D"]) -> Sequence[Float[Tensor, "B L D"]]:
        """The same tensor for each head."""
        return [hidden_BLD] * self.num_heads
