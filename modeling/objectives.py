"""Several objectives in one vector (CSMF): blocks of coordinates, neurons that are shared out, stages that stay.

Of S objectives each has a block of the D coordinates of user and item vectors, and the score of
stage s is the sum of the inner products of the blocks up to s:

    s_1 = <u_1, e_1>,   s_2 = s_1 + <u_2, e_2>,   ...

Each block is normalised by itself, to the square root of its share of the D coordinates. So a whole
vector has length 1, no block changes when a later one is learnt, and s_s over the share of its
blocks is a cosine, whatever s: one temperature serves all stages.

Source: CSMF (arXiv 2504.12920), of whose text only the abstract and notes were at hand: stages, the
percentile rule, recovery, disjoint masks and one vector of unchanged width are the paper's. Ours, and
perhaps otherwise there: blocks of fixed width, their normalisation, the nested score, and that
neurons are freed in the one layer behind the shared blocks, which are frozen whole after the first stage.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from data.batch import Batch
from modeling.foresight import Foresight
from modeling.item_table import INITIAL_DEVIATION
from modeling.margin_loss import passed_over


class BlockTable(nn.Module):
    """Item vectors in blocks of columns, each a weight of its own, so that a stage learns its block alone.

    Args:
        num_rows: rows, padding row 0 included.
        widths: coordinates of each block; they add up to D.
    """

    def __init__(self, num_rows: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.blocks = nn.ModuleList(nn.Embedding(num_rows, width, padding_idx=0) for width in widths)
        for block in self.blocks:
            assert isinstance(block, nn.Embedding)
            nn.init.normal_(block.weight, std=INITIAL_DEVIATION)
            with torch.no_grad():
                block.weight[0].zero_()

    def hold(self, *rows: Int[Tensor, "..."]) -> "BlockTable":
        """The table itself: every row is here."""
        return self

    def forward(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """The vectors of these rows."""
        return torch.cat([block(rows) for block in self.blocks], -1)


class StagePart(nn.Module):
    """What one objective has of the layer behind the encoder: weights for F neurons, and a projection to its block.

    Only the neurons that it owns count. Full matrices are kept all the same, because how many
    neurons an objective will own is known only once its stage begins.
    """

    def __init__(self, width: int, neurons: int, block_width: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, neurons, bias=False)
        self.write = nn.Linear(neurons, width, bias=False)
        self.project = nn.Linear(width, block_width, bias=False)
        for layer in (self.read, self.write):
            nn.init.normal_(layer.weight, std=INITIAL_DEVIATION)

    def added(self, normed_BRD: Float[Tensor, "B R D"], counted: Shaped[Tensor, "... F"]) -> Float[Tensor, "B R D"]:
        """What the neurons add to the hidden vector, each as far as it counts: 1 or 0, or the share of a gate."""
        added_BRD: Tensor = self.write(functional.silu(self.read(normed_BRD)) * counted)
        return added_BRD

    def masses(self) -> Float[Tensor, "F"]:
        """Of each neuron, the sum of the absolute weights that it reads and writes with."""
        return self.read.weight.detach().abs().sum(1) + self.write.weight.detach().abs().sum(0)


class Objectives(nn.Module):
    """From a hidden vector to the blocks of a query, stage by stage; and which weights which stage may change.

    Stage s reads what the neurons of earlier stages add, and never writes where they read: all
    neurons read the encoder's vector h alone, and the block of stage s projects
    h + (what the neurons of stages 1 to s add).

    Args:
        width: D.
        widths: coordinates of each objective's block.
        neurons: F.
        stage: place of the objective that is trained and answers; None for all at once, with one set of neurons.
        experts: E of the mixture (MMoE, Ma et al., KDD 2018; each expert is F / E of the neurons); 1 for none.
        margin: largest margin of `modeling.margin_loss`, in logits; 0 for none.
        levels: of each action code, 0 (none) first, of how many objectives its events are; None if nothing is trained.
    """

    owners_F: Tensor
    levels_A: Tensor

    def __init__(
        self,
        width: int,
        widths: Sequence[int],
        *,
        neurons: int,
        stage: int | None,
        experts: int = 1,
        margin: float = 0.0,
        levels: Sequence[int] | None,
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.stage = stage
        self.margin = margin
        self.num_learnt = len(widths) if stage is None else stage + 1
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.parts = nn.ModuleList(StagePart(width, neurons, own) for own in widths)
        self.gates = nn.ModuleList(nn.Linear(width, experts) for _ in widths) if experts > 1 else None
        # The number of the stage that owns each neuron, from 1; 0: freed, for the next stage to take.
        self.register_buffer("owners_F", torch.ones(neurons, dtype=torch.long))
        self.register_buffer("levels_A", torch.tensor(levels or [1]), persistent=False)

    @property
    def trained(self) -> Sequence[int]:
        """Places of the objectives that have a loss."""
        return range(len(self.widths)) if self.stage is None else (self.stage,)

    def forward(self, hidden_BRD: Float[Tensor, "B R D"]) -> Float[Tensor, "B R D"]:
        """The blocks of the query vector, not normalised; those that are not learnt yet are 0."""
        normed_BRD, blocks = self.norm(hidden_BRD), []
        for place, part in enumerate(self._learnt()):
            if self.gates is None:
                hidden_BRD = hidden_BRD + part.added(normed_BRD, self.owners_F == place + 1)
                blocks.append(part.project(hidden_BRD))
            else:
                blocks.append(part.project(hidden_BRD + self._mixture(normed_BRD, place)))
        return self._padded(torch.cat(blocks, -1))

    def _mixture(self, normed_BRD: Float[Tensor, "B R D"], place: int) -> Float[Tensor, "B R D"]:
        """What the experts add for one objective, by its gate."""
        assert self.gates is not None
        shares_BRE = self.gates[place](normed_BRD).softmax(-1)
        neurons_each = len(self.owners_F) // shares_BRE.shape[-1]
        return self._learnt()[0].added(normed_BRD, shares_BRE.repeat_interleave(neurons_each, -1))

    def seen(self, item_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """What the encoder sees of item vectors: with stages the first block alone, since the others change later."""
        if self.stage is None:
            return item_BLD
        first = self.widths[0]
        return functional.pad(item_BLD[..., :first], (0, item_BLD.shape[-1] - first))

    def normalized(self, vectors: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Each learnt block at the square root of its share of D, the others 0; a vector that is so already stays."""
        blocks = torch.split(vectors, list(self.widths), -1)[: self.num_learnt]
        shares = [functional.normalize(block, dim=-1) * self._share(place) ** 0.5 for place, block in enumerate(blocks)]
        return self._padded(torch.cat(shares, -1))

    def compared(self, vectors: Float[Tensor, "... D"], place: int) -> Float[Tensor, "... P"]:
        """The P coordinates up to the block of an objective, of length 1: their inner product is a loss's cosine."""
        width = sum(self.widths[: place + 1])
        compared: Tensor = vectors[..., :width] * (sum(self.widths) / width) ** 0.5
        return compared

    def labels(self, plan: Foresight, next_actions_BL: Int[Tensor, "B L"]) -> Foresight:
        """The same plan with one column of labels for each objective that has a loss: of its own events alone."""
        levels_BL = self.levels_A[next_actions_BL]
        own = [plan.labels_BLK[..., 0].where(levels_BL > place, 0) for place in self.trained]
        return replace(plan, labels_BLK=torch.stack(own, -1))

    @torch.no_grad()
    def margins(
        self,
        batch: Batch,
        kept_BL: Bool[Tensor, "B L"],
        query_ED: Float[Tensor, "E D"],
        negative_ND: Float[Tensor, "N D"],
        negative_rows_N: Int[Tensor, "N"],
        *,
        head: int,
        temperature: float,
    ) -> Float[Tensor, "E N"] | None:
        """What is added to the logits of negatives in the loss of a trained objective; None for nothing.

        Args:
            kept_BL: the places of the E targets.
        """
        place = self.trained[head]
        if not self.margin or not place:
            return None
        own_BL = self.levels_A[batch["next_actions_BL"]] > place
        shown_BN = passed_over(batch["targets_BL"], own_BL, negative_rows_N)
        first_EN = self.compared(query_ED, 0).float() @ self.compared(negative_ND, 0).float().T / temperature
        return self.margin * first_EN.sigmoid() * shown_BN[kept_BL.nonzero()[:, 0]]

    @torch.no_grad()
    def begin(self, learnt_before: int, items: BlockTable, *, recover: bool, free_mass: float) -> None:
        """Share out the neurons for this stage, given those of the artifact that it begins with.

        The next stage takes the neurons that are free; where none are (no recovery came before), the
        weakest of the newest stage are freed first. With `recover` they are freed and stay free. The
        block of the next stage begins as a copy of the block before it, so its score begins close to
        that stage's, and its own events, which are fewer, need not learn every item anew (ours).

        Args:
            learnt_before: objectives that the artifact has learnt.
            items: the item table, with the artifact's vectors.
            free_mass: tau.
        """
        next_stage = self.num_learnt > learnt_before
        if recover or (next_stage and not (self.owners_F == 0).any()):
            owned_F = self.owners_F == learnt_before
            part = self.parts[learnt_before - 1]
            assert isinstance(part, StagePart)
            self.owners_F[weakest(part.masses(), owned_F, free_mass)] = 0
        if next_stage:
            self.owners_F[self.owners_F == 0] = self.num_learnt
            self._copy_block(items, learnt_before - 1, learnt_before)

    def _copy_block(self, items: BlockTable, before: int, new: int) -> None:
        """As many coordinates as both blocks have, of item vectors and of what projects queries to them."""
        shared = min(self.widths[before], self.widths[new])
        blocks, parts = list(items.blocks.parameters()), self._learnt()
        blocks[new][:, :shared] = blocks[before][:, :shared]
        parts[new].project.weight[:shared] = parts[before].project.weight[:shared]

    def freeze(self, items: BlockTable, *shared: nn.Module) -> None:
        """Leave only what this stage may change to the optimiser.

        Args:
            items: the item table.
            shared: the encoder's modules, which the first stage trains and all others read.
        """
        for module in shared:
            module.requires_grad_(self.stage in (None, 0))
        for place, (block, part) in enumerate(zip(items.blocks, self.parts, strict=True)):
            block.requires_grad_(place in self.trained)
            part.requires_grad_(place in self.trained)

    def _learnt(self) -> Sequence[StagePart]:
        return [part for part in self.parts if isinstance(part, StagePart)][: self.num_learnt]

    def _share(self, place: int) -> float:
        return self.widths[place] / sum(self.widths)

    def _padded(self, learnt: Float[Tensor, "... P"]) -> Float[Tensor, "... D"]:
        return functional.pad(learnt, (0, sum(self.widths) - learnt.shape[-1]))


def weakest(masses_F: Float[Tensor, "F"], owned_F: Bool[Tensor, "F"], free_mass: float) -> Bool[Tensor, "F"]:
    """Cumulative percentile pruning: of the owned neurons the weakest that hold at most a share of their mass.

    Source: CSMF's rule c_j <= tau c_n, where c accumulates absolute weights. That the neurons stand in
    ascending order is ours: in another order it would free whichever come first.
    """
    owned = owned_F.nonzero()[:, 0]
    ascending_N, order_N = masses_F[owned].double().sort(stable=True)
    cumulative_N = ascending_N.cumsum(0)
    freed = owned[order_N[cumulative_N <= free_mass * cumulative_N[-1:]]]
    return torch.zeros_like(owned_F).index_fill(0, freed, True)
