"""Condition-guided sparse attention (CGSA), and other ways to tell a retriever what to answer with.

A retriever with a conditioner answers for a condition (a category, a pool of items) in the same
forward pass: the shared blocks run once, whatever is asked, and only the branch behind them is told.

Source: Climber-Pilot (arXiv 2602.13581), section 3.3, eq. 5-6; the other ways are named at their classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from data.batch import Batch
from data.conditions import Conditions
from modeling.view import View


@dataclass(frozen=True)
class Trunk:
    """What the shared blocks made of a batch."""

    layers: list[Float[Tensor, "B L D"]]  # the input of each shared block, and what came out of the last
    view: View
    batch: Batch


class ConditionTable(nn.Module):
    """Which items satisfy which condition. Its buffers follow the model to a device and are not saved with it."""

    codes_VG: Tensor
    first_seen_V: Tensor
    pool_seconds_P: Tensor

    def __init__(self, conditions: Conditions) -> None:
        super().__init__()
        self.num_categories = conditions.num_categories
        self.num_conditions = len(conditions.names)
        for name, values in (
            ("codes_VG", conditions.category_codes_VG),
            ("first_seen_V", conditions.first_seen_V),
            ("pool_seconds_P", conditions.pool_seconds_P),
        ):
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def satisfied(
        self, rows_BL: Int[Tensor, "B L"], times_BL: Int[Tensor, "B L"], conditions_BR: Int[Tensor, "B R"]
    ) -> Bool[Tensor, "B R L"]:
        """Whether the event at a column satisfied the condition of a row when it happened; condition 0 always holds."""
        asked = conditions_BR[:, :, None]
        holds = asked == 0
        for codes_BL in self.codes_VG[rows_BL].unbind(-1):
            holds = holds | (codes_BL[:, None] == asked)
        for number, seconds in enumerate(self.pool_seconds_P, start=self.num_categories + 1):
            young_BL = self._young(rows_BL, times_BL, seconds)
            holds = holds | ((asked == number) & young_BL[:, None])
        return holds

    def draw(
        self, rows_BL: Int[Tensor, "B L"], times_BL: Int[Tensor, "B L"], generator: torch.Generator | None
    ) -> Int[Tensor, "B L"]:
        """A random one of the conditions that each event satisfied when it happened; 0 where there is none."""
        codes = [*self.codes_VG[rows_BL].unbind(-1)]
        for number, seconds in enumerate(self.pool_seconds_P, start=self.num_categories + 1):
            codes.append(torch.where(self._young(rows_BL, times_BL, seconds), number, 0))
        codes_BLC = torch.stack(codes, -1)
        # Drawn on the CPU: one generator then serves every device.
        keys = torch.rand(codes_BLC.shape, generator=generator).to(codes_BLC.device)
        chosen = keys.masked_fill(codes_BLC == 0, -1).argmax(-1, keepdim=True)
        return codes_BLC.gather(-1, chosen)[..., 0]

    def _young(self, rows_BL: Tensor, times_BL: Tensor, seconds: Tensor) -> Tensor:
        first_BL = self.first_seen_V[rows_BL]
        return (first_BL <= times_BL) & (first_BL > times_BL - seconds) & (rows_BL > 0)


class Conditioner(nn.Module):
    """Hidden vectors that answer for a condition: base of the ways to do it.

    Args:
        table: the conditions.
        width: D.
    """

    def __init__(self, table: ConditionTable, width: int) -> None:
        super().__init__()
        self.table = table
        self.conditions = nn.Embedding(table.num_conditions + 1, width)  # row 0: nothing is asked for
        nn.init.normal_(self.conditions.weight, std=0.02)

    def forward(
        self,
        trunk: Trunk,
        blocks: Sequence[nn.Module],
        branch: nn.Module,
        places_BR: Int[Tensor, "B R"],
        conditions_BR: Int[Tensor, "B R"],
    ) -> Float[Tensor, "B R D"]:
        """Of R rows each stands at an event and is told a condition.

        Args:
            blocks: the shared blocks, for those who need to go through them again.
            branch: the block of the head that answers.
        """
        raise NotImplementedError

    @staticmethod
    def untold(trunk: Trunk, branch: nn.Module, places_BR: Int[Tensor, "B R"]) -> Float[Tensor, "B R D"]:
        """What the branch makes of the rows without a condition."""
        x_BLD = trunk.layers[-1]
        hidden_BRD: Tensor = branch(x_BLD, trunk.view.at(places_BR), rows_at(x_BLD, places_BR))
        return hidden_BRD


def rows_at(x_BLD: Float[Tensor, "B L D"], places_BR: Int[Tensor, "B R"]) -> Float[Tensor, "B R D"]:
    """The vectors of some events of each history."""
    return x_BLD.gather(1, places_BR[..., None].expand(-1, -1, x_BLD.shape[-1]))


class SparseAttention(Conditioner):
    """CGSA: in the branch alone, a row sees only events that satisfy its condition, and a token of the condition.

    The token is always visible, so a condition that nothing in the history satisfies has an answer,
    and one without a history of its own still says which it is. Deviation: the paper has the mask
    and does not say how the condition enters besides it.
    """

    def forward(
        self,
        trunk: Trunk,
        blocks: Sequence[nn.Module],
        branch: nn.Module,
        places_BR: Int[Tensor, "B R"],
        conditions_BR: Int[Tensor, "B R"],
    ) -> Float[Tensor, "B R D"]:
        x_BLD, view = trunk.layers[-1], trunk.view.at(places_BR)
        satisfied = self.table.satisfied(trunk.batch["items_BL"], trunk.batch["times_BL"], conditions_BR)
        masked = view.only(view.allowed & satisfied)
        hidden_BRD: Tensor = branch(x_BLD, masked, rows_at(x_BLD, places_BR), self.conditions(conditions_BR))
        return hidden_BRD


class HeadEmbedding(Conditioner):
    """The condition's embedding beside the last hidden vector, through two layers.

    Source: outcome conditioning of PinRec (arXiv 2504.10507). Deviation: what the layers give is
    added to the hidden vector, and is zero at first, so that training goes on from a plain retriever.
    """

    def __init__(self, table: ConditionTable, width: int) -> None:
        super().__init__(table, width)
        self.layer_in = nn.Linear(2 * width, 2 * width)
        self.layer_out = nn.Linear(2 * width, width)
        nn.init.zeros_(self.layer_out.weight)
        nn.init.zeros_(self.layer_out.bias)

    def forward(
        self,
        trunk: Trunk,
        blocks: Sequence[nn.Module],
        branch: nn.Module,
        places_BR: Int[Tensor, "B R"],
        conditions_BR: Int[Tensor, "B R"],
    ) -> Float[Tensor, "B R D"]:
        hidden_BRD = self.untold(trunk, branch, places_BR)
        both = torch.cat([hidden_BRD, self.conditions(conditions_BR)], -1)
        answer_BRD: Tensor = hidden_BRD + self.layer_out(functional.silu(self.layer_in(both)))
        return answer_BRD


class AdaptiveNorm(Conditioner):
    """AdaLN-Zero: one more feed-forward layer, its norm scaled and shifted and its output gated by the condition.

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers" (arXiv 2212.09748).
    Deviation: attention is not modulated, since its keys are shared by all conditions.
    """

    def __init__(self, table: ConditionTable, width: int) -> None:
        super().__init__(table, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.layer_in = nn.Linear(width, 4 * width)
        self.layer_out = nn.Linear(4 * width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        trunk: Trunk,
        blocks: Sequence[nn.Module],
        branch: nn.Module,
        places_BR: Int[Tensor, "B R"],
        conditions_BR: Int[Tensor, "B R"],
    ) -> Float[Tensor, "B R D"]:
        hidden_BRD = self.untold(trunk, branch, places_BR)
        scale, shift, gate = self.modulation(functional.silu(self.conditions(conditions_BR))).chunk(3, -1)
        inner_BRD = functional.silu(self.layer_in(self.norm(hidden_BRD) * (1 + scale) + shift))
        answer_BRD: Tensor = hidden_BRD + gate * self.layer_out(inner_BRD)
        return answer_BRD


class ConditionToken(Conditioner):
    """A token of the condition behind the event, which reads the history through all blocks and answers.

    Source: LUM (arXiv 2502.08309). Deviation: there the tokens of earlier conditions stand in the
    sequence and are read too; here each token reads the events and itself alone, so that several
    conditions share one pass, as in LUM's group query.
    """

    def forward(
        self,
        trunk: Trunk,
        blocks: Sequence[nn.Module],
        branch: nn.Module,
        places_BR: Int[Tensor, "B R"],
        conditions_BR: Int[Tensor, "B R"],
    ) -> Float[Tensor, "B R D"]:
        view = trunk.view.at(places_BR)
        token_BRD: Tensor = self.conditions(conditions_BR)
        for block, x_BLD in zip([*blocks, branch], trunk.layers, strict=True):
            token_BRD = block(x_BLD, view, token_BRD, token_BRD)
        return token_BRD


class Conditioning(nn.Module):
    """A conditioner, and how it is trained.

    Args:
        drop: share of the labels whose condition is left out, so that one model answers with and without.
        last_only: train on the last event of each history alone, as published, not on every event.
    """

    def __init__(self, conditioner: Conditioner, *, drop: float, last_only: bool) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.drop = drop
        self.last_only = last_only

    def draw(
        self, labels_BL: Int[Tensor, "B L"], times_BL: Int[Tensor, "B L"], generator: torch.Generator | None
    ) -> Int[Tensor, "B L"]:
        """What each label is asked for by: one of the conditions that it satisfied when it happened, or nothing."""
        drawn_BL = self.conditioner.table.draw(labels_BL, times_BL, generator)
        kept_BL = torch.rand(drawn_BL.shape, generator=generator) >= self.drop
        return drawn_BL * kept_BL.to(drawn_BL.device)


CONDITIONERS: dict[str, type[Conditioner]] = {
    "cgsa": SparseAttention,
    "head": HeadEmbedding,
    "adaln": AdaptiveNorm,
    "token": ConditionToken,
}
