"""Negative samplers: which items a target is told from, and how likely each item was to be drawn."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Negatives(nn.Module):
    """Which items a batch's targets are told from: base of the ways to choose them."""

    def forward(self, targets_E: Int[Tensor, "E"], generator: torch.Generator | None) -> Int[Tensor, "N"]:
        """Rows of the negatives, shared by all targets; never row 0."""
        raise NotImplementedError

    def log_q(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Natural log of the probability that one draw gives each of these rows."""
        raise NotImplementedError


class EveryItem(Negatives):
    """The whole catalogue, once: sampled softmax over it is the full softmax.

    For catalogues up to some 200,000 items; past that a step is all logits.
    """

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.num_rows = num_rows

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
