"""Stages of a retriever with several objectives: which run may follow which, and what validation counts."""

from data.cases import check_targets
from data.dataset import PreparedDataset
from data.errors import ArtifactMismatch, DatasetError, RecipeError
from modeling.artifact import Artifact
from modeling.objectives_settings import ObjectivesSettings
from modeling.settings import ModelSettings
from trainer.settings import EvaluateSettings, TrainSettings

# What all stages of one model share.
SHARED = ("names", "actions", "widths", "neurons", "experts")


def check_objectives(train: TrainSettings, model: ModelSettings, dataset: PreparedDataset) -> None:
    """Refuse objectives that do not fit the run or the log.

    Raises:
        RecipeError: a stage without the artifact that it begins with, or in bf16 after fp32; a sharded item table.
        DatasetError: the log lacks an action.
    """
    stated = model.objectives
    if stated is None:
        return
    if train.item_table.kind == "sharded":
        raise RecipeError(
            "model.objectives learns blocks of the item vectors one after the other, and train.item_table.kind sharded "
            "trains whole rows; keep the table replicated"
        )
    if stated.stage is not None and train.start_from is None and (stated.recover or stated.stage != stated.names[0]):
        place = stated.names.index(stated.stage)
        needed = stated.stage if stated.recover else stated.names[place - 1]
        raise RecipeError(
            f"model.objectives.stage {stated.stage}{' with recover' * stated.recover} goes on from the artifact of "
            f"stage {needed}; set train.start_from, or train stage {stated.names[0]} first"
        )
    if stated.stage is not None and train.start_from is not None and train.engine.precision == "bf16":
        _check_precision(train.start_from)
    found = dataset.manifest["actions"]
    unknown = sorted({action for actions in stated.actions.values() for action in actions} - set(found))
    if unknown:
        raise DatasetError(
            f"{dataset.directory}: model.objectives.actions names {', '.join(unknown)}, and the log has "
            f"{', '.join(found) or 'no actions'}; name its actions, or make some of its weights with "
            "ingest.actions_by_weight"
        )


def _check_precision(start_from: str) -> None:
    """Weights that were learnt in bf16 stay as they are in bf16; those of fp32 would be rounded, frozen or not."""
    settings = Artifact.open(start_from).manifest["facts"].get("settings", {})
    before = settings.get("train", {}).get("engine", {}).get("precision", "fp32")
    if before != "bf16":
        raise RecipeError(
            f"train.engine.precision bf16 would round the weights of earlier stages, which {start_from} has in "
            f"{before}; train this stage in fp32, or all in bf16"
        )


def check_stage(directory: str, before: ObjectivesSettings | None, wanted: ObjectivesSettings | None) -> None:
    """Refuse to begin a stage with an artifact that does not stand right before it.

    Args:
        directory: of the artifact.
        before: its objectives.

    Raises:
        ArtifactMismatch: other objectives, or another stage.
    """
    if (before is None) != (wanted is None):
        raise ArtifactMismatch(
            f"model.objectives is {'not set' if wanted is None else 'set'}, but {directory} was trained "
            f"{'without' if before is None else 'with'} objectives; both need the same, or train from the beginning"
        )
    if before is None or wanted is None:
        return
    for name in SHARED:
        found, expected = getattr(wanted, name), getattr(before, name)
        if found != expected:
            raise ArtifactMismatch(
                f"model.objectives.{name} is {found}, but {directory} has {expected}; keep the artifact's, or train "
                "from the first stage"
            )
    follows = before.learnt == wanted.learnt or (before.learnt == wanted.learnt[:-1] and not wanted.recover)
    if (before.stage is None) != (wanted.stage is None) or not follows:
        asked = f"{wanted.stage}{' with recover' * wanted.recover}"
        raise ArtifactMismatch(
            f"model.objectives.stage is {asked}, but {directory} stands at stage {before.stage}; a stage goes on from "
            "itself or from the one before it, and recovery from its own stage"
        )


def validated(evaluate: EvaluateSettings, model: ModelSettings, dataset: PreparedDataset) -> EvaluateSettings:
    """The protocol of validation: a stage is validated on the events of its own objective, unless another is stated.

    Raises:
        DatasetError: no user has such a validation target.
    """
    stated = model.objectives
    if evaluate.target_actions is None and stated is not None and stated.stage is not None:
        evaluate = evaluate.model_copy(update={"target_actions": stated.actions_of(stated.stage)})
    check_targets(dataset, "validation", evaluate.target_actions)
    return evaluate
