"""What the rows of an attention layer look at: the one form in which masks and distances reach the blocks."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class View:
    """R rows that look at L events. In self-attention every event is a row, and R is L.

    Every row may look at one event at least: softmax attention is not defined over none.
    """

    allowed: Bool[Tensor, "#B R L"]  # whether a row may look at an event
    buckets: Int[Tensor, "B R L"] | None  # bucket of the seconds between them; None where no block reads times
    places: Int[Tensor, "B R"] | None = None  # the event at which each row stands; None: row i at event i

    def at(self, places: Int[Tensor, "B R"]) -> "View":
        """The same view for the rows that stand at these events alone."""
        whole = torch.arange(len(places), device=places.device)[:, None]
        return View(
            allowed=self.allowed.expand(len(places), -1, -1)[whole, places],
            buckets=None if self.buckets is None else self.buckets[whole, places],
            places=places,
        )

    def only(self, allowed: Bool[Tensor, "#B R L"]) -> "View":
        """The same view with another mask."""
        return replace(self, allowed=allowed)


def causal(length: int, device: torch.device) -> Bool[Tensor, "1 L L"]:
    """Every event looks at itself and at all before it."""
    return torch.ones(1, length, length, dtype=torch.bool, device=device).tril()
