"""Where the vectors of items live while a retriever learns."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

INITIAL_DEVIATION = 0.02


@runtime_checkable
class HeldItems(Protocol):
    """Vectors of some rows of a table, for one batch."""

    def __call__(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... D"]: ...


@runtime_checkable
class TokenisedItems(HeldItems, Protocol):
    """Held items that also have a vector for each of several features (F tokens)."""

    def tokens(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... F D"]:
        """The tokens of each row."""
        ...


@dataclass(frozen=True)
class TokensHeldAs:
    """Held items with tokens in another number format."""

    held: TokenisedItems
    dtype: torch.dtype

    def __call__(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """The vector of each row."""
        return self.held(rows).to(self.dtype)

    def tokens(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... F D"]:
        """The tokens of each row."""
        return self.held.tokens(rows).to(self.dtype)


@runtime_checkable
class ItemTable(Protocol):
    """Rows of item vectors, of which a batch holds those that it names."""

    @property
    def num_rows(self) -> int:
        """Rows of the table, padding row 0 included."""
        ...

    def hold(self, *rows: Int[Tensor, "..."]) -> HeldItems:
        """The vectors of these rows, to be read as often as a batch needs them."""
        ...


class WholeTable(nn.Embedding):
    """All rows on every rank, as a weight of the model. Row 0 is padding."""

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__(num_rows, width, padding_idx=0)
        nn.init.normal_(self.weight, std=INITIAL_DEVIATION)
        with torch.no_grad():
            self.weight[0].zero_()

    @property
    def num_rows(self) -> int:
        """Rows of the table, padding row 0 included."""
        return self.num_embeddings

    def hold(self, *rows: Int[Tensor, "..."]) -> HeldItems:
        """The table itself: every row is here."""
        return self
