"""Optimisers that read and write only the rows of a table that have a gradient."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor


class RowOptimizer(ABC):
    """Holds state for R rows and says how touched rows change."""

    steps = 0  # taken so far

    @abstractmethod
    def allocate(self, num_rows: int, width: int, device: torch.device | str) -> None:
        """Make room for the state of this many rows; called once, by the table."""

    @abstractmethod
    def change(
        self, touched_T: Int[Tensor, "T"], gradient_TD: Float[Tensor, "T D"], learning_rate: float
    ) -> Float[Tensor, "T D"]:
        """What to add to the touched rows, each of which is named once; `steps` counts this step too."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The state itself, by name, rows first; whoever writes into it restores it."""


class RowwiseAdagrad(RowOptimizer):
    """Adagrad with one number per row: the sum over steps of its mean squared gradient.

    A width-th of Adam's state, which is what tables larger than a device are trained with.

    Source: FBGEMM's `EXACT_ROWWISE_ADAGRAD` (Mudigere et al., arXiv 2104.05158). Deviation: none.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        self.eps = eps

    def allocate(self, num_rows: int, width: int, device: torch.device | str) -> None:
        self.squares_R = torch.zeros(num_rows, device=device)

    def change(
        self, touched_T: Int[Tensor, "T"], gradient_TD: Float[Tensor, "T D"], learning_rate: float
    ) -> Float[Tensor, "T D"]:
        squares_T = self.squares_R[touched_T] + gradient_TD.square().mean(1)
        self.squares_R[touched_T] = squares_T
        return gradient_TD * (-learning_rate / (squares_T.sqrt() + self.eps))[:, None]

    def state(self) -> dict[str, Tensor]:
        return {"squares": self.squares_R}


class LazyAdam(RowOptimizer):
    """Adam whose moments move only at rows that have a gradient, corrected for bias by the number of steps.

    Source: `torch.optim.SparseAdam`. Deviation: none. Against plain Adam: rows without a gradient do not drift on.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def allocate(self, num_rows: int, width: int, device: torch.device | str) -> None:
        self.first_RD = torch.zeros(num_rows, width, device=device)
        self.second_RD = torch.zeros(num_rows, width, device=device)

    def change(
        self, touched_T: Int[Tensor, "T"], gradient_TD: Float[Tensor, "T D"], learning_rate: float
    ) -> Float[Tensor, "T D"]:
        first_TD = self.first_RD[touched_T].lerp_(gradient_TD, 1 - self.beta1)
        second_TD = self.second_RD[touched_T].lerp_(gradient_TD.square(), 1 - self.beta2)
        self.first_RD[touched_T] = first_TD
        self.second_RD[touched_T] = second_TD
        rate = learning_rate * (1 - self.beta2**self.steps) ** 0.5 / (1 - self.beta1**self.steps)
        return first_TD.div_(second_TD.sqrt_().add_(self.eps)).mul_(-rate)

    def state(self) -> dict[str, Tensor]:
        return {"first": self.first_RD, "second": self.second_RD}
