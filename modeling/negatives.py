"""Negative samplers: which items a target is told from, and how likely each item was to be drawn."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# Blends are taken to be at least this long before they get unit length: vectors that point away from each other could
# cancel out.
SHORTEST = 1e-3


@dataclass(frozen=True)
class OwnNegatives:
    """What each of E targets is told from, besides the negatives that all share: M items, and W blends of them.

    A blend is a virtual negative: a vector between those of the target and of its items.
    """

    rows_EM: Int[Tensor, "E M"]  # items; 0 = a place that nothing was found for
    log_q_EM: Float[Tensor, "E M"]  # natural log of the probability that one draw for this target gives the item
    shared_log_q_EN: Float[Tensor, "E N"]  # the same of the shared negatives, for this target
    weights_EWM: Float[Tensor, "E W M"]  # of the items in each blend
    target_weights_EW: Float[Tensor, "E W"]  # of the target in it

    def scores(
        self,
        query_ED: Float[Tensor, "E D"],
        target_ED: Float[Tensor, "E D"],
        item_EMD: Float[Tensor, "E M D"],
        positive_rows_EK: Int[Tensor, "E K"],
    ) -> tuple[Float[Tensor, "E X"], Bool[Tensor, "E X"]]:
        """Cosines of each query with its M items and W blends, X = M + W in all, and which of them count; in float32.

        An item that is one of the row's positives does not count and has no part in any blend; a blend without items
        does not count either. Blends have unit length and pass gradients to the target and the items, but stand
        nowhere: their cosines and lengths come from the inner products of what they are made of.

        Args:
            query_ED, target_ED, item_EMD: L2-normalised vectors.
        """
        kept_EM = (self.rows_EM > 0) & (self.rows_EM[:, :, None] != positive_rows_EK[:, None]).all(-1)
        kept_weights_EWM = self.weights_EWM * kept_EM[:, None]
        weights_EWP = torch.cat([kept_weights_EWM, self.target_weights_EW[..., None]], -1)
        # P = M + 1 parts of blends, the target behind the items, and Q = P + 1 with the query behind those.
        part_EQD = torch.cat([item_EMD.float(), target_ED.float()[:, None], query_ED.float()[:, None]], 1)
        inner_EPQ = (part_EQD @ part_EQD.mT)[:, :-1]
        blended_EWQ = weights_EWP @ inner_EPQ
        squared_EW = (blended_EWQ[..., :-1] * weights_EWP).sum(-1)
        blend_EW = blended_EWQ[..., -1] * squared_EW.clamp(min=SHORTEST**2).rsqrt()
        return torch.cat([inner_EPQ[:, :-1, -1], blend_EW], 1), torch.cat([kept_EM, kept_weights_EWM.any(-1)], 1)


class Negatives(nn.Module):
    """Which items a batch's targets are told from: base of the ways to choose them."""

    @property
    def scored_per_target(self) -> int:
        """Candidates that each target is scored against, itself not counted."""
        raise NotImplementedError

    def forward(self, targets_E: Int[Tensor, "E"], generator: torch.Generator | None) -> Int[Tensor, "N"]:
        """Rows of the negatives, shared by all targets; never row 0."""
        raise NotImplementedError

    def log_q(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Natural log of the probability that one draw gives each of these rows."""
        raise NotImplementedError

    def own(
        self, targets_E: Int[Tensor, "E"], shared_N: Int[Tensor, "N"], generator: torch.Generator | None
    ) -> OwnNegatives | None:
        """What each target is told from besides the shared negatives; None where that is nothing."""
        return None


class EveryItem(Negatives):
    """The whole catalogue, once: sampled softmax over it is the full softmax.

    For catalogues up to some 200,000 items; past that a step is all logits.
    """

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.num_rows = num_rows

    @property
    def scored_per_target(self) -> int:
        """Every item but padding."""
        return self.num_rows - 1

    def forward(self, targets_E: Int[Tensor, "E"], generator: torch.Generator | None) -> Int[Tensor, "N"]:
        """Every row but padding."""
        return torch.arange(1, self.num_rows, device=targets_E.device)

    def log_q(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Zero: nothing is drawn, so there is nothing to correct."""
        return torch.zeros(rows.shape, device=rows.device)


class NegativeSampler(Negatives):
    """Draws negatives shared by all targets of a batch, from the catalogue and from the targets.

    The probability that one draw gives item v is the mixture
    q(v) = (U / V + S * p(v)) / (U + S), with U uniform draws over V items, S draws from the batch's
    targets, and p(v) the share of training targets that are v. `log_q_V` holds its logarithm; it is
    constant, and so without effect, when all draws are uniform.

    Args:
        num_uniform, num_in_batch: draws of each kind; both with replacement.
        train_counts_V: training events per item row (row 0 is padding). Needed, for p, by in-batch
            draws. Items never seen in training count as seen once.

    Source: log-q correction of Yi et al., RecSys 2019; mixture of Yang et al., "Mixed Negative
    Sampling", WWW 2020. Deviation: p is counted exactly at ingest, not estimated from the stream.
    """

    log_q_V: Tensor

    def __init__(self, train_counts_V: Int[Tensor, "V"], *, num_uniform: int, num_in_batch: int) -> None:
        super().__init__()
        self.num_uniform = num_uniform
        self.num_in_batch = num_in_batch
        self.num_rows = len(train_counts_V)
        counts_V = train_counts_V.double().clamp(min=1)
        counts_V[0] = 0
        share_V = counts_V / counts_V.sum()
        mixture_V = (num_uniform / (self.num_rows - 1) + num_in_batch * share_V) / (num_uniform + num_in_batch)
        mixture_V[0] = 0
        # A buffer that is not saved: it belongs to training, not to the artifact.
        self.register_buffer("log_q_V", mixture_V.log().float(), persistent=False)

    @property
    def scored_per_target(self) -> int:
        """All that a batch draws: its targets share them."""
        return self.num_uniform + self.num_in_batch

    def forward(self, targets_E: Int[Tensor, "E"], generator: torch.Generator | None) -> Int[Tensor, "N"]:
        """Rows of `num_uniform + num_in_batch` negatives; never row 0."""
        device = targets_E.device
        # Drawn on the CPU: one generator then serves every device, and its state is easy to store.
        uniform = torch.randint(1, self.num_rows, (self.num_uniform,), generator=generator)
        positions = torch.randint(len(targets_E), (self.num_in_batch,), generator=generator)
        return torch.cat([uniform.to(device), targets_E[positions.to(device)]])

    def log_q(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Natural log of the probability that one draw gives each of these rows."""
        return self.log_q_V[rows].float()
