"""The sharded item table of a run, beside the DeepSpeed engine."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from data.dataset import PreparedDataset
from data.errors import RecipeError
from modeling.build import item_features
from modeling.row_optimizers import LazyAdam, RowOptimizer, RowwiseAdagrad
from modeling.sharded_table import ShardedTable
from modeling.token_settings import FeatureItems
from trainer.settings import OptimizerSettings, ReplicatedTable, ShardedTableSettings


@dataclass(frozen=True)
class Table:
    """The rows, and how fast they learn against the dense part."""

    rows: ShardedTable
    rate: float  # their learning rate over the dense part's

    def learn(self, learning_rate: float, *, complete: bool) -> None:
        """Take the gradients of the last batch, and change the rows once the batches of a step are complete."""
        self.rows.collect()
        if complete:
            self.rows.step(learning_rate * self.rate)


def check_features(
    table: ReplicatedTable | ShardedTableSettings, items: FeatureItems, dataset: PreparedDataset
) -> None:
    """Refuse items of features over a sharded table, or of columns that the catalogue lacks.

    Raises:
        RecipeError: naming what does not fit.
    """
    if table.kind == "sharded":
        raise RecipeError(
            "model.items.kind features composes vectors from weights that every worker has, and "
            "train.item_table.kind sharded splits a row per item; keep the table replicated, or model.items.kind rows"
        )
    item_features(items, dataset.catalogue())


def start_table(
    settings: ReplicatedTable | ShardedTableSettings,
    optimizer: OptimizerSettings,
    *,
    num_rows: int,
    width: int,
    seed: int,
    device: torch.device,
) -> Table | None:
    """The table of a run that splits it over its workers, None for one that does not. A collective."""
    if settings.kind == "replicated":
        return None
    own: RowOptimizer = (
        LazyAdam(optimizer.beta1, optimizer.beta2) if settings.optimizer == "lazy_adam" else RowwiseAdagrad()
    )
    rows = ShardedTable(
        num_rows,
        width,
        own,
        # Of its own, so that its exchanges never meet the engine's.
        group=dist.new_group() if dist.is_initialized() and dist.get_world_size() > 1 else None,
        device=device,
        dtype=torch.bfloat16 if settings.precision == "bf16" else torch.float32,
        seed=seed,
    )
    return Table(rows, (settings.learning_rate or optimizer.learning_rate) / optimizer.learning_rate)
