"""The retriever: a history becomes a query vector, an item a vector, and their inner product a score."""

from typing import TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from data.batch import Batch
from modeling.encoder import Encoder
from modeling.losses import sampled_softmax
from modeling.negatives import NegativeSampler


class Losses(TypedDict):
    """What a training step needs and reports."""

    loss: Float[Tensor, ""]  # mean over the targets of the batch
    num_targets: Int[Tensor, ""]


class Retriever(nn.Module):
    """Encoder and item table. Item vectors are shared by input, loss and index.

    Args:
        num_rows: rows of the item table, padding row 0 included.
        width: D of item and query vectors.
        encoder: turns item embeddings into one hidden vector per event.
        sampler: draws the negatives of a batch; None for a retriever that only answers.
        temperature: divides the cosine scores in the loss.
    """

    def __init__(
        self, *, num_rows: int, width: int, encoder: Encoder, sampler: NegativeSampler | None, temperature: float
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(num_rows, width, padding_idx=0)
        self.encoder = encoder
        self.sampler = sampler
        self.temperature = temperature
        nn.init.normal_(self.items.weight, std=0.02)
        with torch.no_grad():
            self.items.weight[0].zero_()

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """Loss of predicting every next item of the batch.

        Args:
            batch: histories with `targets_BL`; positions whose target is 0 do not count.
            generator: CPU generator of the negatives.
        """
        assert self.sampler is not None  # a retriever built for serving has none and is never trained
        hidden_BLD = self._encode(batch)
        kept_BL = batch["targets_BL"] > 0
        targets_E = batch["targets_BL"][kept_BL]
        negatives_N = self.sampler(targets_E, generator)
        loss = sampled_softmax(
            functional.normalize(hidden_BLD[kept_BL], dim=-1),
            self.item_vectors(targets_E),
            self.item_vectors(negatives_N),
            target_rows_E=targets_E,
            negative_rows_N=negatives_N,
            target_log_q_E=self.sampler.log_q(targets_E),
            negative_log_q_N=self.sampler.log_q(negatives_N),
            temperature=self.temperature,
        )
        return Losses(loss=loss, num_targets=kept_BL.sum())

    def query_vectors(self, batch: Batch) -> Float[Tensor, "B D"]:
        """L2-normalised query vector after the last event of each history.

        A history without events gets the vector of a padding event; callers answer those from
        popularity instead.
        """
        last_B = (batch["lengths_B"] - 1).clamp(min=0)
        hidden_BLD = self._encode(batch)
        rows_B = torch.arange(len(last_B), device=last_B.device)
        return functional.normalize(hidden_BLD[rows_B, last_B], dim=-1)

    def item_vectors(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """L2-normalised vector of each item row."""
        return functional.normalize(self.items(rows), dim=-1)

    def _encode(self, batch: Batch) -> Float[Tensor, "B L D"]:
        hidden_BLD: Tensor = self.encoder(self.items(batch["items_BL"]), batch)
        return hidden_BLD
