"""Artifacts: whole or refused, and the same vectors after a round trip."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from data.dataset import PreparedDataset
from data.errors import ArtifactError, ArtifactMismatch, FarsightError
from data.storage import MANIFEST, file_hash
from modeling.artifact import ITEMS, SETTINGS, WEIGHTS, Artifact
from modeling.hashed_table import HashedTable, row_hashes
from modeling.settings import HashedItems
from tests.small_world import write_artifact, write_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return write_dataset(tmp_path / "dataset")


def test_equal_weights_give_equal_hashes_and_the_same_vectors(dataset: PreparedDataset, tmp_path: Path) -> None:
    first = write_artifact(tmp_path / "one", dataset)
    second = write_artifact(tmp_path / "two", dataset)
    other = write_artifact(tmp_path / "three", dataset, seed=1)
    assert first.content_hash == second.content_hash != other.content_hash
    rows = torch.arange(1, first.num_rows)
    assert torch.equal(first.load_retriever().item_vectors(rows), second.load_retriever().item_vectors(rows))


def test_hashed_items_have_the_same_vectors_again_and_take_no_room_by_the_catalogue(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    hashed = HashedItems(kind="hashed", quotient_rows=16, remainder_rows=18)
    artifact = write_artifact(tmp_path / "artifact", dataset, items=hashed)
    weights = load_file(artifact.directory / ITEMS)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "items.quotients": (32, 16),
        "items.remainders": (36, 16),
    }
    table = HashedTable(
        torch.from_numpy(row_hashes(dataset.vocabulary().item_ids)), 16, quotient_rows=16, remainder_rows=18
    )
    table.load_state_dict({name.removeprefix("items."): value for name, value in weights.items()})
    rows = torch.arange(artifact.num_rows)
    retriever = artifact.load_retriever()
    assert torch.equal(retriever.item_vectors(rows), functional.normalize(table(rows), dim=-1))
    assert len(torch.unique(retriever.item_vectors(rows), dim=0)) == artifact.num_rows
    larger = write_artifact(tmp_path / "larger", write_dataset(tmp_path / "grown", num_items=200), items=hashed)
    sizes = [(found.directory / ITEMS).stat().st_size for found in (artifact, larger)]
    assert sizes[0] == sizes[1]


def test_nothing_in_an_artifact_is_pickled(dataset: PreparedDataset, tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact", dataset)
    assert {file.suffix for file in artifact.directory.iterdir()} == {".json", ".parquet", ".safetensors"}


def test_an_artifact_that_lists_no_item_table_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    """As those of the same format version once were, which had all weights in one file."""
    directory = write_artifact(tmp_path / "artifact", dataset).directory
    manifest = json.loads((directory / MANIFEST).read_text())
    del manifest["files"][ITEMS]
    (directory / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"names no items.safetensors, .* train again"):
        Artifact.open(directory)


def test_a_changed_or_missing_file_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    write_artifact(tmp_path / "artifact", dataset)
    weights = tmp_path / "artifact" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model.safetensors: was changed after it was written"):
        Artifact.open(tmp_path / "artifact")
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"model.safetensors: is missing"):
        Artifact.open(tmp_path / "artifact")


def test_an_unfinished_directory_another_kind_and_another_version_are_refused(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"no manifest.json, so this is not a finished artifact"):
        Artifact.open(tmp_path)
    with pytest.raises(ArtifactError, match="found kind 'dataset' version 1, expected 'artifact' version 3"):
        Artifact.open(dataset.directory)


def test_settings_of_another_version_are_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact", dataset)
    path = artifact.directory / SETTINGS
    content = json.loads(path.read_text())
    content["model"]["flux"] = 1
    path.write_text(json.dumps(content))
    manifest = artifact.directory / "manifest.json"
    known = json.loads(manifest.read_text())
    known["files"][SETTINGS] = file_hash(path)
    manifest.write_text(json.dumps(known))
    with pytest.raises(ArtifactError, match="not settings of this version"):
        Artifact.open(artifact.directory)


def test_a_dataset_with_other_items_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact", dataset)
    artifact.check_dataset(dataset)
    with pytest.raises(ArtifactMismatch, match="use the dataset it was trained on"):
        artifact.check_dataset(write_dataset(tmp_path / "other", num_items=61))


def test_an_artifact_is_replaced_only_on_request(dataset: PreparedDataset, tmp_path: Path) -> None:
    write_artifact(tmp_path / "artifact", dataset)
    with pytest.raises(FarsightError, match="already exists"):
        write_artifact(tmp_path / "artifact", dataset, seed=1)
