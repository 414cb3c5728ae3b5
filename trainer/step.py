"""One training step: the page to read first."""

import math
from typing import Any, TypedDict

import torch

from data.batch import Batch
from data.errors import NonFiniteLoss
from trainer.engine import gradient_norm
from trainer.ranks import Ranks
from trainer.table import Table


class StepFigures(TypedDict):
    """What one step reports; plain numbers."""

    loss: float  # of this rank
    head_losses: list[float]  # of this rank, one per item predicted ahead; their sum is the loss
    num_targets: int  # of this rank
    gradient_norm: float | None  # over all ranks, before clipping; None if not measured


def train_step(
    engine: Any,
    batch: Batch,
    *,
    table: Table | None = None,
    generator: torch.Generator,
    ranks: Ranks,
    where: str,
    measure_norm: bool,
) -> StepFigures:
    """Forward, backward, and an optimiser step whenever the accumulated batches are complete.

    Args:
        engine: the DeepSpeed engine; its module is a `modeling.retriever.Retriever`.
        table: the item table, where it is none of the engine's weights.
        where: epoch and batch, for the message of an error.
        measure_norm: whether to report the gradient norm, which costs a pass over all gradients.

    Raises:
        NonFiniteLoss: on every rank, before any weight changes, if the loss of any rank is NaN or
            infinite.
    """
    losses = engine(batch, generator=generator)
    loss = losses["loss"].item()
    if not ranks.all(math.isfinite(loss)):
        users = batch["users_B"][:5].tolist()
        raise NonFiniteLoss(
            f"{where}, rank {ranks.rank}: loss {loss}; its batch holds {len(batch['users_B'])} windows, of the users "
            f"with user_key {users} and others. Some rank's loss is not finite, so no weight was changed; lower "
            "train.optimizer.learning_rate or look at these histories"
        )
    engine.backward(losses["loss"])
    norm = gradient_norm(engine) if measure_norm else None
    if table is not None:
        table.learn(engine.get_lr()[0], complete=engine.is_gradient_accumulation_boundary())
    engine.step()
    return StepFigures(
        loss=loss,
        head_losses=losses["head_losses_K"].tolist(),
        num_targets=int(losses["num_targets"]),
        gradient_norm=norm,
    )
