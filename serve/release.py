"""A release: one artifact and the index built from it, addressed by a content id.

DIR/manifest.json   release id, hashes, when it was built, and what its dataset's requests were like
DIR/artifact/       copy of the artifact
DIR/index/          index.faiss and its manifest
DIR/golden.json     requests with the answers that this release must give
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import ArtifactError, ArtifactMismatch
from data.storage import MANIFEST, file_hash, read_manifest
from modeling.artifact import Artifact
from serve.index.contract import Index
from serve.index.store import open_index, read_index_manifest

KIND = "release"
FORMAT_VERSION = 2
ARTIFACT = "artifact"
INDEX = "index"
GOLDEN = "golden.json"


@dataclass(frozen=True)
class Release:
    """An opened release: its pieces were checked against each other."""

    directory: Path
    release_id: str
    artifact: Artifact
    index: Index
    golden: list[dict[str, Any]]  # of `serve.golden`
    top_score_deciles: list[float] | None = None  # of `serve.build`
    unknown_share: float | None = None  # of `serve.build`
    built_at: int | None = None  # unix time; None for one that was built before this was noted

    @classmethod
    def open(cls, directory: str | Path, device: str = "cpu", index: Index | None = None) -> "Release":
        """Open a release and check every hash.

        Args:
            device: where an index that is searched by torch keeps its vectors.
            index: what stands in for the index, whose files are then not read.

        Raises:
            ArtifactError: missing, unfinished or damaged.
            ArtifactMismatch: the index was not built from this artifact.
        """
        place = Path(directory)
        manifest = read_release_manifest(place)
        artifact = Artifact.open(place / ARTIFACT)
        if index is None:
            index, index_manifest = open_index(place / INDEX, device)
        else:
            index_manifest = read_index_manifest(place / INDEX)
        built_from = index_manifest["artifact_hash"]
        if built_from != artifact.content_hash:
            raise ArtifactMismatch(
                f"{place}: the index was built from artifact {built_from[:12]}, but {ARTIFACT}/ is "
                f"{artifact.content_hash[:12]}; build the release again with farsight index"
            )
        num_items = artifact.vocabulary().num_items
        if index.num_items != num_items:
            raise ArtifactMismatch(
                f"{place}: the index holds {index.num_items} items and the vocabulary {num_items}; "
                "build the release again with farsight index"
            )
        found = release_id(artifact.content_hash, index_manifest)
        if manifest["release_id"] != found:
            raise ArtifactMismatch(
                f"{place}: {MANIFEST} names release {manifest['release_id']}, but its pieces make {found}; "
                "build the release again with farsight index"
            )
        if not (place / GOLDEN).is_file() or file_hash(place / GOLDEN) != manifest["golden_hash"]:
            raise ArtifactError(f"{place / GOLDEN}: missing or damaged; build the release again with farsight index")
        golden = json.loads((place / GOLDEN).read_text(encoding="utf-8"))
        facts = {name: manifest.get(name) for name in ("top_score_deciles", "unknown_share", "built_at")}
        return cls(place, found, artifact, index, golden, **facts)


def read_release_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a release.

    Raises:
        ArtifactError: no finished release is there.
    """
    return read_manifest(directory, KIND, FORMAT_VERSION, ArtifactError)


def release_id(artifact_hash: str, index_manifest: dict[str, Any]) -> str:
    """First 12 hex digits of a SHA-256 over the artifact's and the index's hashes."""
    content = json.dumps([artifact_hash, index_manifest["hashes"]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
