"""The artifact: the directory that training writes and evaluation, indexing and serving read.

DIR/manifest.json         hashes of the files below, content hash, where the weights came from
DIR/items.safetensors     the item table, or what its vectors are composed from
DIR/model.safetensors     all other weights
DIR/settings.json         model settings, table sizes, action names
DIR/vocabulary.parquet    item ids in row order
DIR/catalogue.parquet     items with categories, titles and training counts, in row order
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from data.conditions import Conditions
from data.dataset import CATALOGUE, PreparedDataset
from data.errors import ArtifactError, ArtifactMismatch
from data.storage import MANIFEST, directory_hashes, published_directory, read_manifest, write_json
from data.vocabulary import FILE_NAME as VOCABULARY
from data.vocabulary import Vocabulary
from modeling.build import build_retriever
from modeling.hashed_table import row_hashes
from modeling.retriever import Retriever
from modeling.settings import ModelSettings
from modeling.table_files import merge_table_files

KIND = "artifact"
FORMAT_VERSION = 3
WEIGHTS = "model.safetensors"
ITEMS = "items.safetensors"
ITEM_PREFIX = "items."
ITEM_WEIGHT = "items.weight"  # of a model whose items have a row each
ITEM_BLOCKS = "items.blocks."  # of one whose objectives have a block of each row
SETTINGS = "settings.json"


def save_artifact(
    directory: str | Path,
    weights: Mapping[str, torch.Tensor],
    settings: ModelSettings,
    dataset: PreparedDataset,
    *,
    table: str | Path | None = None,
    facts: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> "Artifact":
    """Write an artifact, whole or not at all.

    Args:
        weights: the state of a `Retriever` built from `settings`; stored in float32.
        table: directory with the files of a sharded item table, where the items are no part of the weights; it is
            copied file by file and never in memory as a whole.
        dataset: what the weights were trained on; its vocabulary and catalogue are copied.
        facts: anything worth keeping beside the weights, such as metrics and the recipe.
        replace: overwrite an artifact that is already there.
    """
    with published_directory(directory, replace=replace) as aside:
        stored = {name: value.detach().float().contiguous().cpu() for name, value in weights.items()}
        if table is None:
            names = [name for name in stored if name.startswith(ITEM_PREFIX)]
            save_file({name: stored.pop(name) for name in names}, aside / ITEMS)
        else:
            merge_table_files(table, aside / ITEMS, ITEM_WEIGHT)
        save_file(stored, aside / WEIGHTS)
        content = {
            "model": settings.model_dump(mode="json"),
            "num_rows": dataset.num_rows,
            "actions": dataset.manifest["actions"],
        }
        write_json(aside / SETTINGS, content)
        shutil.copyfile(dataset.directory / VOCABULARY, aside / VOCABULARY)
        shutil.copyfile(dataset.directory / CATALOGUE, aside / CATALOGUE)
        hashes = directory_hashes(aside)
        manifest = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "files": hashes,
            "content_hash": _content_hash(hashes),
            "vocabulary_hash": dataset.manifest["vocabulary_hash"],
            "facts": dict(facts or {}),
        }
        write_json(aside / MANIFEST, manifest)
    return Artifact.open(directory)


@dataclass(frozen=True)
class Artifact:
    """A finished artifact whose files are what its manifest says."""

    directory: Path
    manifest: dict[str, Any]
    settings: ModelSettings
    num_rows: int
    actions: list[str]  # names of the action codes 1, 2, ...

    @classmethod
    def open(cls, directory: str | Path) -> "Artifact":
        """Open an artifact and verify the hash of every file.

        Raises:
            ArtifactError: unfinished, damaged, or written by another format version.
        """
        path = Path(directory)
        manifest = read_manifest(path, KIND, FORMAT_VERSION, ArtifactError)
        missing = {WEIGHTS, ITEMS, SETTINGS, VOCABULARY} - set(manifest["files"])
        if missing:
            raise ArtifactError(
                f"{path}: {MANIFEST} names no {', '.join(sorted(missing))}, so another version of Farsight wrote it; "
                "train again with this one"
            )
        found = directory_hashes(path)
        for name, expected in manifest["files"].items():
            if found.get(name) != expected:
                state = "is missing" if name not in found else "was changed after it was written"
                raise ArtifactError(f"{path / name}: {state}; train again or restore the artifact")
        content = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        try:
            settings = ModelSettings.model_validate(content["model"])
        except ValidationError as error:
            raise ArtifactError(f"{path / SETTINGS}: not settings of this version of Farsight: {error}") from None
        return cls(path, manifest, settings, int(content["num_rows"]), list(content["actions"]))

    @property
    def content_hash(self) -> str:
        """Names the artifact: equal hashes mean equal weights, settings, vocabulary and catalogue."""
        return str(self.manifest["content_hash"])

    @property
    def max_events(self) -> int:
        """Events of a history that the model sees."""
        return self.settings.max_events

    def vocabulary(self) -> Vocabulary:
        """The items, in row order."""
        return Vocabulary.load(self.directory)

    def catalogue(self) -> pa.Table:
        """One row per item in row order, starting with row 1."""
        return pq.read_table(self.directory / CATALOGUE)

    def conditions(self) -> Conditions:
        """What its answers can be asked to satisfy: the catalogue's categories, and the pools of its settings."""
        condition = self.settings.condition
        return Conditions.of(self.catalogue(), [] if condition is None else condition.pool_ages)

    def load_retriever(self, device: str | torch.device = "cpu") -> Retriever:
        """The retriever with its weights, in evaluation mode; it answers but cannot train."""
        catalogue = self.catalogue() if self.settings.needs_catalogue else None
        hashed = self.settings.items.kind == "hashed"
        retriever = build_retriever(
            self.settings,
            num_rows=self.num_rows,
            num_actions=len(self.actions),
            catalogue=catalogue,
            item_hashes=row_hashes(self.vocabulary().item_ids) if hashed else None,
        )
        retriever.load_state_dict(self.weights())
        return retriever.to(device).eval()

    def weights(self) -> dict[str, torch.Tensor]:
        """The state of the retriever, item table included."""
        return {**self.dense_weights(), **load_file(self.directory / ITEMS)}

    def dense_weights(self) -> dict[str, torch.Tensor]:
        """The state of the retriever but for the item table, whose size is that of the catalogue."""
        return load_file(self.directory / WEIGHTS)

    def check_dataset(self, dataset: PreparedDataset) -> None:
        """Refuse a dataset whose item rows are not those of the artifact.

        Raises:
            ArtifactMismatch: the vocabularies differ.
        """
        found, expected = dataset.manifest["vocabulary_hash"], self.manifest["vocabulary_hash"]
        if found != expected:
            raise ArtifactMismatch(
                f"{dataset.directory}: vocabulary {found[:12]}, but {self.directory} was trained on {expected[:12]}; "
                "use the dataset it was trained on, or train on this one"
            )


def _content_hash(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(hashes), sort_keys=True).encode()).hexdigest()
