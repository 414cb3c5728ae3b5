"""The retriever: a history becomes a query vector, an item a vector, and their inner product a score."""

from collections.abc import Iterator, Sequence
from typing import TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from data.batch import Batch
from modeling.attention_bias import time_buckets
from modeling.encoder import Encoder
from modeling.foresight import Foresight, LinearHeads, Prediction, foresee
from modeling.losses import sampled_softmax
from modeling.negatives import NegativeSampler
from modeling.view import View, causal


class Losses(TypedDict):
    """What a training step needs and reports."""

    loss: Float[Tensor, ""]  # sum over the heads of each head's mean over its targets
    head_losses_K: Float[Tensor, "K"]  # of each head; 0 where a head has no target
    num_targets: Int[Tensor, ""]  # of the first head


class Retriever(nn.Module):
    """Encoder, branches and item table. Item vectors are shared by input, loss and index.

    The last attention block stands once for each item that is predicted ahead: branch 1 predicts
    the next item and answers requests, branch k the k-th (Climber-Pilot, arXiv 2602.13581, section
    3.1). With one branch the retriever is plain next-item prediction.

    Args:
        num_rows: rows of the item table, padding row 0 included.
        width: D of item and query vectors.
        encoder: the shared blocks: item embeddings to one hidden vector per event.
        branches: the last block, once or once per head.
        linear_heads: turns one branch's vectors into those of all heads; None for one branch per head.
        reads_times: whether any block has a time bias.
        prediction: what a position learns to predict.
        sampler: draws the negatives of a batch; None for a retriever that only answers.
        temperature: divides the cosine scores in the loss.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        width: int,
        encoder: Encoder,
        branches: Sequence[nn.Module],
        linear_heads: LinearHeads | None,
        reads_times: bool,
        prediction: Prediction,
        sampler: NegativeSampler | None,
        temperature: float,
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(num_rows, width, padding_idx=0)
        self.encoder = encoder
        self.branches = nn.ModuleList(branches)
        self.linear_heads = linear_heads
        self.reads_times = reads_times
        self.prediction = prediction
        self.sampler = sampler
        self.temperature = temperature
        nn.init.normal_(self.items.weight, std=0.02)
        with torch.no_grad():
            self.items.weight[0].zero_()

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """Loss of predicting what follows every event of the batch.

        Args:
            batch: histories with `targets_BL`; positions whose target is 0 do not count.
            generator: CPU generator of the negatives, and of the targets where those are drawn.
        """
        assert self.sampler is not None  # a retriever built for serving has none and is never trained
        plan = foresee(batch, self.prediction, generator)
        next_E = plan.labels_BLK[..., 0][plan.labels_BLK[..., 0] > 0]
        negatives_N = self.sampler(next_E, generator) if len(next_E) else next_E
        negative_ND = self.item_vectors(negatives_N)
        losses = []
        for head, hidden_BLD in enumerate(self.hidden_vectors(batch, plan)):
            row_E, place_E = (plan.labels_BLK[..., head] > 0).nonzero(as_tuple=True)
            if not len(row_E):
                losses.append(hidden_BLD.sum() * 0)  # every weight still gets a gradient, of zero
                continue
            asked_E = row_E * hidden_BLD.shape[1] + plan.rows_BL[row_E, place_E]
            positives_EK = plan.labels_BLK[row_E, place_E]
            targets_E = positives_EK[:, head]
            losses.append(
                sampled_softmax(
                    functional.normalize(hidden_BLD.flatten(0, 1).index_select(0, asked_E), dim=-1),
                    self.item_vectors(targets_E),
                    negative_ND,
                    positive_rows_EK=positives_EK,
                    negative_rows_N=negatives_N,
                    target_log_q_E=self.sampler.log_q(targets_E),
                    negative_log_q_N=self.sampler.log_q(negatives_N),
                    temperature=self.temperature,
                )
            )
        head_losses_K = torch.stack(losses)
        num_targets = torch.tensor(len(next_E), device=head_losses_K.device)
        return Losses(loss=head_losses_K.sum(), head_losses_K=head_losses_K.detach(), num_targets=num_targets)

    def hidden_vectors(self, batch: Batch, plan: Foresight) -> Iterator[Float[Tensor, "B L D"]]:
        """Hidden vectors of every event, head by head."""
        view = self._view(batch, plan.allowed, plan.query_times_BL)
        x_BLD = self.encoder(self.items(batch["items_BL"]), batch, view)
        if self.linear_heads is not None:
            yield from self.linear_heads(self.branches[0](x_BLD, view))
            return
        for branch in self.branches:
            yield branch(x_BLD, view)

    def query_vectors(self, batch: Batch) -> Float[Tensor, "B D"]:
        """L2-normalised query vector after the last event of each history: that of the first head.

        A history without events gets the vector of a padding event; callers answer those from
        popularity instead.
        """
        length, device = batch["items_BL"].shape[1], batch["items_BL"].device
        view = self._view(batch, causal(length, device), batch["query_times_BL"])
        x_BLD = self.encoder(self.items(batch["items_BL"]), batch, view)
        last_B1 = (batch["lengths_B"] - 1).clamp(min=0)[:, None]
        rows_B1D = x_BLD[torch.arange(len(last_B1), device=device)[:, None], last_B1]
        return functional.normalize(self.branches[0](x_BLD, view.at(last_B1), rows_B1D)[:, 0], dim=-1)

    def item_vectors(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """L2-normalised vector of each item row."""
        return functional.normalize(self.items(rows), dim=-1)

    def _view(self, batch: Batch, allowed: Tensor, query_times_BL: Tensor) -> View:
        return View(allowed, time_buckets(query_times_BL, batch["times_BL"]) if self.reads_times else None)
