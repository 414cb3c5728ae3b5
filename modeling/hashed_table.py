"""An item table whose vectors are composed from the hash of an item's external id.

Its weights do not grow with the catalogue; a row costs eight bytes of hash. An item that no one has
seen has a vector at once: that of its id.

Letters: N items, Q rows of each quotient table, R rows of each remainder table.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from data.ragged import IntArray
from modeling.item_table import INITIAL_DEVIATION, HeldItems

HASH_BYTES = 8
HALF_BITS = 32
LOW_HALF = (1 << HALF_BITS) - 1


def id_hashes(item_ids: Iterable[str]) -> IntArray:
    """The int64 hash of each external id: BLAKE2b of its UTF-8 bytes, the same on every machine and for ever."""
    digests = (hashlib.blake2b(item_id.encode(), digest_size=HASH_BYTES).digest() for item_id in item_ids)
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


def row_hashes(item_ids: Iterable[str]) -> IntArray:
    """The hash of each row of a table over these items; row 0 is padding and has the hash 0."""
    return np.concatenate([np.zeros(1, np.int64), id_hashes(item_ids)])


class HashedTable(nn.Module):
    """Vectors that are sums of four rows, chosen by the hash: of two quotient and two remainder tables.

    Each half of the hash, modulo Q x R, is a number i, and adds `quotients[i // R] + remainders[i % R]`
    of its own pair of tables. Items share a vector only where both numbers are the same. Row 0 is
    padding: always zero, never trained.

    Args:
        hashes_V: hash of each row's item, as `row_hashes` gives them.
        quotient_rows, remainder_rows: Q and R.

    Source: LiRank (arXiv 2402.06859), quotient-remainder hashing in its sum form. Deviations: it takes the halves
    as they are, with Q = 2^32 / R, and we take them modulo a smaller Q x R, so that Q is free; the hash
    function and how the pairs are joined are not published, and we add them; first values are normal
    around 0, such that a sum begins as a row of `WholeTable` does.
    """

    hashes_V: Tensor

    def __init__(self, hashes_V: Int[Tensor, "V"], width: int, *, quotient_rows: int, remainder_rows: int) -> None:
        super().__init__()
        self.quotient_rows, self.remainder_rows = quotient_rows, remainder_rows
        # No part of the state: the ids say it again, also those of a catalogue that has grown since.
        self.register_buffer("hashes_V", hashes_V, persistent=False)
        # Of both pairs, one behind the other.
        self.quotients = nn.Parameter(torch.empty(2 * quotient_rows, width))
        self.remainders = nn.Parameter(torch.empty(2 * remainder_rows, width))
        for table in (self.quotients, self.remainders):
            nn.init.normal_(table, std=INITIAL_DEVIATION / 2)

    @property
    def num_rows(self) -> int:
        """Rows that have a vector, padding row 0 included."""
        return len(self.hashes_V)

    def hold(self, *rows: Int[Tensor, "..."]) -> HeldItems:
        """The table itself: every row can be composed here."""
        return self

    def forward(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """The vector of each row; zero for padding."""
        return self.compose(self.hashes_V[rows]) * (rows > 0)[..., None]

    def compose(self, hashes: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """The vector of an item with this hash (`id_hashes`), whether the table has a row for it or not."""
        parts = (hashes & LOW_HALF, hashes >> HALF_BITS & LOW_HALF)
        vectors = torch.zeros((), dtype=self.quotients.dtype, device=self.quotients.device)
        for pair, part in enumerate(parts):
            number = part % (self.quotient_rows * self.remainder_rows)
            quotient = number // self.remainder_rows + pair * self.quotient_rows
            remainder = number % self.remainder_rows + pair * self.remainder_rows
            vectors = vectors + functional.embedding(quotient, self.quotients)
            vectors = vectors + functional.embedding(remainder, self.remainders)
        return vectors
