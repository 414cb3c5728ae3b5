"""The retriever: a history becomes a query vector, an item a vector, and their inner product a score."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypedDict, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from data.batch import Batch
from modeling.attention_bias import time_buckets
from modeling.conditioning import Conditioner, Conditioning, Trunk, rows_at
from modeling.encoder import Encoder
from modeling.foresight import Foresight, LinearHeads, Prediction, SharedHeads, following, foresee, last_labels
from modeling.item_table import HeldItems, ItemTable, TokenisedItems, TokensHeldAs
from modeling.losses import own_softmax, sampled_softmax
from modeling.margin_loss import margin_softmax
from modeling.negatives import Negatives, OwnNegatives
from modeling.objectives import Objectives
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
        items: the item table, padding row 0 included; one that is no module is trained by its own optimiser.
        width: D of item and query vectors.
        encoder: the shared blocks: item embeddings to one hidden vector per event.
        branches: the last block, once or once per head.
        linear_heads: gives all heads the vectors of one branch, as they are or mapped; None for one branch per head.
        reads_times: whether any block has a time bias.
        prediction: what a position learns to predict.
        conditioning: how answers are asked for, and how that is learned; None for a retriever without conditions.
        objectives: blocks of the vectors, and the stages that learn them; None for one objective.
        sampler: chooses the negatives of a batch; None for a retriever that only answers.
        temperature: divides the cosine scores in the loss.
    """

    def __init__(
        self,
        *,
        items: ItemTable,
        width: int,
        encoder: Encoder,
        branches: Sequence[nn.Module],
        linear_heads: LinearHeads | SharedHeads | None,
        reads_times: bool,
        prediction: Prediction,
        conditioning: Conditioning | None = None,
        objectives: Objectives | None = None,
        sampler: Negatives | None,
        temperature: float,
    ) -> None:
        super().__init__()
        self.items = items
        self.encoder = encoder
        self.branches = nn.ModuleList(branches)
        self.linear_heads = linear_heads
        self.reads_times = reads_times
        self.prediction = prediction
        self.conditioning = conditioning
        self.objectives = objectives
        self.sampler = sampler
        self.temperature = temperature

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """Loss of predicting what follows every event of the batch.

        Args:
            batch: histories with `targets_BL`; positions whose target is 0 do not count.
            generator: CPU generator of the negatives, and of the targets where those are drawn.
        """
        assert self.sampler is not None  # a retriever built for serving has none and is never trained
        plan = foresee(batch, self.prediction, generator)
        if self.conditioning is not None and self.conditioning.last_only:
            plan = last_labels(plan, batch["lengths_B"])
        if self.objectives is not None:
            plan = self.objectives.labels(plan, batch["next_actions_BL"])
        labelled_BLK = plan.labels_BLK > 0
        next_E = plan.labels_BLK[..., 0][labelled_BLK[..., 0]]
        negatives_N = self.sampler(next_E if len(next_E) else batch["items_BL"][:1, 0], generator)
        # Padding stands in where a head has no label, and counts for nothing: under ZeRO-3 all ranks must go one way.
        kept = [kept_BL if kept_BL.any() else _first_place(kept_BL) for kept_BL in labelled_BLK.unbind(-1)]
        positives = [plan.labels_BLK[kept_BL] for kept_BL in kept]
        own = [self.sampler.own(rows_EK[:, head], negatives_N, generator) for head, rows_EK in enumerate(positives)]
        named = [found.rows_EM for found in own if found is not None]
        items = self._hold(batch["items_BL"], plan.labels_BLK, negatives_N, *named)
        negative_ND = self.normalized(items(negatives_N))
        losses = []
        for head, asked_BLD in enumerate(self._asked(batch, plan, items, generator)):
            query_ED = self.normalized(asked_BLD[kept[head]])
            margins_EN = self._margins(batch, kept[head], query_ED, negative_ND, negatives_N, head)
            shared = (negatives_N, negative_ND, margins_EN)
            losses.append(self._head_loss(query_ED, positives[head], head, items, shared, own[head]))
        head_losses_K = torch.stack(losses)
        num_targets = torch.tensor(len(next_E), device=head_losses_K.device)
        return Losses(loss=head_losses_K.sum(), head_losses_K=head_losses_K.detach(), num_targets=num_targets)

    def _head_loss(
        self,
        query_ED: Float[Tensor, "E D"],
        positives_EK: Int[Tensor, "E K"],
        head: int,
        items: HeldItems,
        shared: tuple[Int[Tensor, "N"], Float[Tensor, "N D"], Float[Tensor, "E N"] | None],
        own: OwnNegatives | None,
    ) -> Float[Tensor, ""]:
        """Loss of one head, whose target is one of the positives; 0 where it is padding.

        Args:
            shared: rows and vectors of the negatives that all targets share, and their margins if they have any.
            own: what each target is told from besides.
        """
        assert self.sampler is not None
        (negatives_N, negative_ND, margins_EN), targets_E = shared, positives_EK[:, head]
        labelled = bool(targets_E.any())
        log_q_E = self.sampler.log_q(targets_E) if labelled else torch.zeros(1, device=targets_E.device)
        target_ED = self.normalized(items(targets_E))
        if own is None:
            softmax = sampled_softmax if margins_EN is None else partial(margin_softmax, margins_EN=margins_EN)
            loss = softmax(
                self._compared(query_ED, head),
                self._compared(target_ED, head),
                self._compared(negative_ND, head),
                positive_rows_EK=positives_EK,
                negative_rows_N=negatives_N,
                target_log_q_E=log_q_E,
                negative_log_q_N=self.sampler.log_q(negatives_N),
                temperature=self.temperature,
            )
        else:
            item_EMD = self.normalized(items(own.rows_EM))
            own_score_EX, kept_EX = own.scores(query_ED, target_ED, item_EMD, positives_EK)
            num_blends = own_score_EX.shape[1] - own.rows_EM.shape[1]
            loss = own_softmax(
                query_ED,
                target_ED,
                own_score_EX,
                negative_ND,
                kept_EX=kept_EX,
                positive_rows_EK=positives_EK,
                shared_rows_N=negatives_N,
                target_log_q_E=log_q_E,
                own_log_q_EX=torch.cat([own.log_q_EM, log_q_E[:, None].expand(-1, num_blends)], 1),
                shared_log_q_EN=own.shared_log_q_EN,
                temperature=self.temperature,
            )
        return loss if labelled else loss * 0

    def _margins(
        self, batch: Batch, kept_BL: Tensor, query_ED: Tensor, negative_ND: Tensor, negatives_N: Tensor, head: int
    ) -> Float[Tensor, "E N"] | None:
        if self.objectives is None:
            return None
        vectors = (query_ED, negative_ND, negatives_N)
        return self.objectives.margins(batch, kept_BL, *vectors, head=head, temperature=self.temperature)

    def _asked(
        self, batch: Batch, plan: Foresight, items: HeldItems, generator: torch.Generator | None
    ) -> Iterator[Float[Tensor, "B L D"]]:
        """Head by head, the hidden vector that each label is predicted from."""
        trunk = self._trunk(batch, items, plan.allowed, plan.query_times_BL)
        if self.conditioning is not None:
            yield from self._conditioned(trunk, plan, generator)
            return
        for hidden_BLD in self._heads(trunk):
            asked_BLD = hidden_BLD if plan.rows_BL is None else rows_at(hidden_BLD, plan.rows_BL)
            if self.objectives is None:
                yield asked_BLD
            else:  # one query, which every objective that is trained has a loss of
                yield from [self.objectives(asked_BLD)] * len(self.objectives.trained)

    def _heads(self, trunk: Trunk) -> Iterator[Float[Tensor, "B L D"]]:
        """Hidden vectors of every event, head by head."""
        if self.linear_heads is not None:
            yield from self.linear_heads(self.branches[0](trunk.layers[-1], trunk.view))
            return
        for branch in self.branches:
            yield branch(trunk.layers[-1], trunk.view)

    def _conditioned(
        self, trunk: Trunk, plan: Foresight, generator: torch.Generator | None
    ) -> Iterator[Float[Tensor, "B L D"]]:
        """Head by head, hidden vectors that were told a condition which the label satisfies, or none."""
        assert self.conditioning is not None
        places_L = torch.arange(plan.labels_BLK.shape[1], device=plan.labels_BLK.device)
        places_BL = places_L.expand(plan.labels_BLK.shape[:2]) if plan.rows_BL is None else plan.rows_BL
        times_BLK = following(trunk.batch["query_times_BL"], len(self.branches))
        for head, branch in enumerate(self.branches):
            conditions_BL = self.conditioning.draw(plan.labels_BLK[..., head], times_BLK[..., head], generator)
            yield self._told(trunk, branch, places_BL, conditions_BL)

    def _told(
        self, trunk: Trunk, branch: nn.Module, places_BR: Int[Tensor, "B R"], conditions_BR: Int[Tensor, "B R"]
    ) -> Float[Tensor, "B R D"]:
        """Hidden vectors of rows that stand at events, each told a condition; without conditions, of the events."""
        if self.conditioning is None:
            hidden_BRD = Conditioner.untold(trunk, branch, places_BR)
            return hidden_BRD if self.objectives is None else self.objectives(hidden_BRD)
        blocks = list(self.encoder.blocks)
        told_BRD: Tensor = self.conditioning.conditioner(trunk, blocks, branch, places_BR, conditions_BR)
        return told_BRD

    def query_vectors(self, batch: Batch) -> Float[Tensor, "B D"]:
        """L2-normalised query vector after the last event of each history: that of the first head.

        A history without events gets the vector of a padding event; callers answer those from
        popularity instead.
        """
        trunk, last_B1 = self._last(batch)
        return self.normalized(self._told(trunk, self.branches[0], last_B1, torch.zeros_like(last_B1))[:, 0])

    def head_query_vectors(self, batch: Batch) -> Float[Tensor, "B K D"]:
        """L2-normalised query vectors after the last event of each history, one per item ahead."""
        trunk, last_B1 = self._last(batch)
        heads = [self._told(trunk, branch, last_B1, torch.zeros_like(last_B1)) for branch in self.branches]
        if self.linear_heads is not None:
            heads = list(self.linear_heads(heads[0]))
        return self.normalized(torch.cat(heads, 1))

    def conditioned_query_vectors(self, batch: Batch, conditions_BP: Int[Tensor, "B P"]) -> Float[Tensor, "B P D"]:
        """L2-normalised query vectors after the last event of each history, one per condition.

        The shared blocks run once, whatever P is, and the keys of the branch are shared too.

        Args:
            conditions_BP: codes of `data.conditions.Conditions`; 0 asks for nothing.
        """
        assert self.conditioning is not None  # who has no conditions offers none
        trunk, last_B1 = self._last(batch)
        places_BP = last_B1.expand_as(conditions_BP)
        return self.normalized(self._told(trunk, self.branches[0], places_BP, conditions_BP))

    def item_vectors(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """L2-normalised vector of each item row."""
        return self.normalized(self._hold(rows)(rows))

    def catalogue_vectors(self) -> Float[Tensor, "V D"]:
        """L2-normalised vectors of all rows."""
        return self.item_vectors(torch.arange(self.items.num_rows, device=next(self.parameters()).device))

    def normalized(self, vectors: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Vectors of queries or items that scores are inner products of: of length 1, or less before the last stage."""
        if self.objectives is None:
            return functional.normalize(vectors, dim=-1)
        return self.objectives.normalized(vectors)

    def _compared(self, vectors: Float[Tensor, "... D"], head: int) -> Tensor:
        """What of normalised vectors the loss of a head compares: all, or the blocks up to an objective's."""
        if self.objectives is None:
            return vectors
        return self.objectives.compared(vectors, self.objectives.trained[head])

    def _hold(self, *rows: Int[Tensor, "..."]) -> HeldItems:
        """The vectors of these rows in the number format of the model's own weights."""
        held, dtype = self.items.hold(*rows), self.encoder.positions.weight.dtype
        level = self.encoder.token_level
        if level is None or level.fused:
            return lambda wanted: held(wanted).to(dtype)
        return TokensHeldAs(cast(TokenisedItems, held), dtype)

    def _last(self, batch: Batch) -> tuple[Trunk, Int[Tensor, "B 1"]]:
        """Histories as they stand when an answer is wanted, nothing hidden, and the place of each last event."""
        allowed = causal(batch["items_BL"].shape[1], batch["items_BL"].device)
        items = self._hold(batch["items_BL"])
        trunk = self._trunk(batch, items, allowed, batch["query_times_BL"])
        return trunk, (batch["lengths_B"] - 1).clamp(min=0)[:, None]

    def _trunk(self, batch: Batch, items: HeldItems, allowed: Tensor, query_times_BL: Tensor) -> Trunk:
        view = View(allowed, time_buckets(query_times_BL, batch["times_BL"]) if self.reads_times else None)
        if self.objectives is None:
            return Trunk(self.encoder(items, batch, view), view, batch)
        seen = self.objectives.seen
        return Trunk(self.encoder(lambda rows: seen(items(rows)), batch, view), view, batch)


def _first_place(like_BL: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """True at the first event of the first history alone."""
    first_BL = torch.zeros_like(like_BL)
    first_BL[0, 0] = True
    return first_BL
