"""The weights that a run begins with: those of an artifact, for further training or fine-tuning."""

from typing import Literal

from data.dataset import PreparedDataset
from data.errors import ArtifactMismatch
from modeling.artifact import ITEM_WEIGHT, Artifact
from modeling.retriever import Retriever
from modeling.settings import ModelSettings


def check_start(directory: str, model: ModelSettings, dataset: PreparedDataset) -> str:
    """Refuse to begin with an artifact that the model cannot take over.

    The dataset must have the artifact's vocabulary; of the model, what both have must have one shape.
    Conditions, and heads after the first, may be new.

    Returns:
        the artifact's content hash.

    Raises:
        ArtifactError: unfinished or damaged.
        ArtifactMismatch: the vocabularies or the shapes differ.
    """
    artifact = Artifact.open(directory)
    artifact.check_dataset(dataset)
    for name in ("width", "max_events", "use_actions", "encoder"):
        found, expected = getattr(model, name), getattr(artifact.settings, name)
        if found != expected:
            raise ArtifactMismatch(
                f"model.{name} is {_plain(found)}, but {directory} has {_plain(expected)}; keep the artifact's, or "
                "train from the beginning"
            )
    return artifact.content_hash


def start_from(directory: str, retriever: Retriever, *, frozen: Literal["nothing", "backbone"]) -> None:
    """Take over an artifact's weights; what it lacks keeps its fresh weights. Call `check_start` first.

    A head that the artifact lacks begins as its first.
    """
    weights = Artifact.open(directory).weights()
    state = retriever.state_dict()
    for name in state:
        if name.startswith("branches.") and name not in weights:
            _, _, rest = name.split(".", 2)
            weights[name] = weights[f"branches.0.{rest}"]
    retriever.load_state_dict({**state, **{name: value for name, value in weights.items() if name in state}})
    if frozen == "backbone":
        retriever.get_parameter(ITEM_WEIGHT).requires_grad_(False)
        retriever.encoder.requires_grad_(False)


def _plain(value: object) -> object:
    return value.model_dump() if hasattr(value, "model_dump") else value
