"""The weights that a run begins with: those of an artifact, for further training or fine-tuning."""

from typing import Literal

from data.conditions import Conditions
from data.dataset import PreparedDataset
from data.errors import ArtifactMismatch
from modeling.artifact import ITEM_BLOCKS, ITEM_PREFIX, ITEM_WEIGHT, ITEMS, Artifact
from modeling.feature_table import FeatureTable
from modeling.objectives import BlockTable
from modeling.objectives_settings import ObjectivesSettings
from modeling.retriever import Retriever
from modeling.settings import ModelSettings
from modeling.sharded_table import ShardedTable
from trainer.stages import check_stage


def check_start(directory: str, model: ModelSettings, dataset: PreparedDataset) -> str:
    """Refuse to begin with an artifact that the model cannot take over.

    The dataset must have the artifact's items in the same rows, and may have new ones behind them
    (`ingest.items_from`); of the model, what both have must have one shape. Conditions, and heads
    after the first, may be new.

    Returns:
        the artifact's content hash.

    Raises:
        ArtifactError: unfinished or damaged.
        ArtifactMismatch: the vocabularies or the shapes differ.
    """
    artifact = Artifact.open(directory)
    _check_rows(artifact, dataset)
    _check_conditions(artifact, model, dataset)
    for name in ("width", "items", "max_events", "use_actions", "tokens", "encoder"):
        found, expected = getattr(model, name), getattr(artifact.settings, name)
        if found != expected:
            raise ArtifactMismatch(
                f"model.{name} is {_plain(found)}, but {directory} has {_plain(expected)}; keep the artifact's, or "
                "train from the beginning"
            )
    check_stage(directory, artifact.settings.objectives, model.objectives)
    return artifact.content_hash


def _check_rows(artifact: Artifact, dataset: PreparedDataset) -> None:
    vocabulary = dataset.vocabulary()
    if not artifact.vocabulary().begins(vocabulary):
        raise ArtifactMismatch(
            f"{dataset.directory}: its vocabulary ({vocabulary.num_items} items) does not begin with that of "
            f"{artifact.directory} ({artifact.num_rows - 1}); ingest with ingest.items_from={artifact.directory}"
        )
    if artifact.settings.reads_actions and artifact.actions != dataset.manifest["actions"]:
        raise ArtifactMismatch(
            f"{dataset.directory}: actions {dataset.manifest['actions']}, but {artifact.directory} has "
            f"{artifact.actions}; train from the beginning, or with model.use_actions=false (and tokens.actions)"
        )


def _check_conditions(artifact: Artifact, model: ModelSettings, dataset: PreparedDataset) -> None:
    """Conditions are numbered by name, so where both models have them the names must be the same."""
    if artifact.settings.condition is None or model.condition is None:
        return
    found = Conditions.of(dataset.catalogue(), model.condition.pool_ages).names
    expected = artifact.conditions().names
    if list(found) != list(expected):
        changed = sorted(set(found) ^ set(expected))[:5]
        raise ArtifactMismatch(
            f"{dataset.directory}: its categories and pools are not those of {artifact.directory} (first differences: "
            f"{', '.join(changed)}); begin with an artifact that has no conditions"
        )


def start_from(
    directory: str,
    retriever: Retriever,
    *,
    frozen: Literal["nothing", "backbone"],
    objectives: ObjectivesSettings | None = None,
) -> None:
    """Take over an artifact's weights; what it lacks keeps its fresh weights. Call `check_start` first.

    A head that the artifact lacks begins as its first; items that it lacks keep their fresh vectors, or, where vectors
    come from hashes or features, have that of their id or features. Of the vectors for a sharded table every rank reads
    its own.

    Args:
        objectives: of the model that begins, if it has any.
    """
    artifact, items, state = Artifact.open(directory), retriever.items, retriever.state_dict()
    if isinstance(items, ShardedTable):
        weights = artifact.dense_weights()
        items.begin(artifact.directory / ITEMS, ITEM_WEIGHT)
    else:
        weights = artifact.weights()
        for name in (name for name in state if name == ITEM_WEIGHT or name.startswith(ITEM_BLOCKS)):
            items_VD = state[name].clone()
            items_VD[: len(weights[name])] = weights[name]
            weights[name] = items_VD
        if isinstance(items, FeatureTable):
            told = {name.removeprefix(ITEM_PREFIX): weights[name] for name in weights if name.startswith(ITEM_PREFIX)}
            continued = items.continued(told, Conditions.of(artifact.catalogue()).names)
            weights |= {f"{ITEM_PREFIX}{name}": value for name, value in continued.items()}
    for name in state:
        if name.startswith("branches.") and name not in weights:
            _, _, rest = name.split(".", 2)
            weights[name] = weights[f"branches.0.{rest}"]
    retriever.load_state_dict({**state, **{name: value for name, value in weights.items() if name in state}})
    before = artifact.settings.objectives
    if retriever.objectives is not None and objectives is not None and before is not None:
        assert isinstance(items, BlockTable)
        recover, free_mass = objectives.recover, objectives.free_mass
        retriever.objectives.begin(len(before.learnt), items, recover=recover, free_mass=free_mass)
    if frozen == "backbone":
        retriever.encoder.requires_grad_(False)
        if isinstance(items, ShardedTable):
            items.frozen = True
        else:
            retriever.get_submodule("items").requires_grad_(False)


def _plain(value: object) -> object:
    return value.model_dump() if hasattr(value, "model_dump") else value
