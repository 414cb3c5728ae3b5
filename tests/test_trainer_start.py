"""Beginning with an artifact's weights: what is taken over, what is fresh, what is refused."""

from pathlib import Path

import pytest
import torch

from data.dataset import PreparedDataset
from data.errors import ArtifactMismatch
from modeling.artifact import Artifact
from modeling.build import build_retriever
from modeling.retriever import Retriever
from modeling.settings import ConditionSettings, ModelSettings, PredictionSettings
from tests.small_world import ACTIONS, NUM_ITEMS, write_artifact, write_dataset
from trainer.start import check_start, start_from


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_dataset(tmp_path_factory.mktemp("start") / "dataset")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, dataset: PreparedDataset) -> Artifact:
    return write_artifact(tmp_path_factory.mktemp("start") / "artifact", dataset)


def fresh(settings: ModelSettings, dataset: PreparedDataset) -> Retriever:
    torch.manual_seed(7)
    return build_retriever(settings, num_rows=NUM_ITEMS + 1, num_actions=len(ACTIONS), catalogue=dataset.catalogue())


def test_what_both_have_is_taken_over_and_new_parts_are_fresh(dataset: PreparedDataset, artifact: Artifact) -> None:
    update = {"prediction": PredictionSettings(heads=2), "condition": ConditionSettings()}
    settings = artifact.settings.model_copy(update=update)
    assert check_start(str(artifact.directory), settings, dataset) == artifact.content_hash
    retriever, untouched = fresh(settings, dataset), fresh(settings, dataset).state_dict()
    start_from(str(artifact.directory), retriever, frozen="nothing")
    found, old = retriever.state_dict(), artifact.load_retriever().state_dict()
    for name, value in found.items():
        if name.startswith("branches.1."):  # a head that the artifact lacks begins as its first
            assert torch.equal(value, old[name.replace("branches.1.", "branches.0.")])
        elif name in old:
            assert torch.equal(value, old[name])
        else:
            assert name.startswith("conditioning.")
            assert torch.equal(value, untouched[name])
    assert all(parameter.requires_grad for parameter in retriever.parameters())


def test_a_frozen_backbone_leaves_the_branch_and_the_conditions_to_learn(
    dataset: PreparedDataset, artifact: Artifact
) -> None:
    retriever = fresh(artifact.settings.model_copy(update={"condition": ConditionSettings()}), dataset)
    start_from(str(artifact.directory), retriever, frozen="backbone")
    learning = {name.split(".")[0] for name, value in retriever.named_parameters() if value.requires_grad}
    assert learning == {"branches", "conditioning"}


def test_another_shape_or_vocabulary_is_refused(dataset: PreparedDataset, artifact: Artifact, tmp_path: Path) -> None:
    wider = artifact.settings.model_copy(update={"width": 32})
    with pytest.raises(ArtifactMismatch, match=r"model.width is 32, but .* has 16; keep the artifact's"):
        check_start(str(artifact.directory), wider, dataset)
    other = write_dataset(tmp_path / "other", num_items=NUM_ITEMS - 1)
    with pytest.raises(ArtifactMismatch, match=r"does not begin with that of .*; ingest with ingest.items_from="):
        check_start(str(artifact.directory), artifact.settings, other)


def test_items_that_are_new_since_the_artifact_begin_fresh_and_the_others_go_on(
    artifact: Artifact, tmp_path: Path
) -> None:
    grown = write_dataset(tmp_path / "grown", num_items=NUM_ITEMS + 5)
    assert check_start(str(artifact.directory), artifact.settings, grown) == artifact.content_hash
    torch.manual_seed(7)
    retriever = build_retriever(artifact.settings, num_rows=NUM_ITEMS + 6, num_actions=len(ACTIONS))
    fresh_VD = retriever.item_vectors(torch.arange(NUM_ITEMS + 6))
    start_from(str(artifact.directory), retriever, frozen="nothing")
    found_VD = retriever.item_vectors(torch.arange(NUM_ITEMS + 6))
    old_VD = artifact.load_retriever().item_vectors(torch.arange(NUM_ITEMS + 1))
    assert torch.equal(found_VD[: NUM_ITEMS + 1], old_VD)
    assert torch.equal(found_VD[NUM_ITEMS + 1 :], fresh_VD[NUM_ITEMS + 1 :])
