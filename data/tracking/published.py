"""A published directory as a node of the lineage: what it is, what names its content, and the files that it holds."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import ArtifactError
from data.storage import MANIFEST


@dataclass(frozen=True)
class Published:
    """A prepared dataset, artifact, index or release."""

    directory: Path
    manifest: dict[str, Any]

    @classmethod
    def of(cls, directory: str | Path) -> "Published":
        """The directory with its manifest, whatever its kind.

        Raises:
            ArtifactError: no manifest is there, or it names no kind.
        """
        path = Path(directory).resolve() / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            manifest["kind"]
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(
                f"{directory}: no {MANIFEST} of a dataset, artifact, index or release ({error!r}); give a finished one"
            ) from None
        return cls(path.parent, manifest)

    @property
    def label(self) -> str:
        """What a person knows it by: its last two folders."""
        return "/".join(self.directory.parts[-2:])

    @property
    def kind(self) -> str:
        """What it is: dataset, artifact, index, release."""
        return str(self.manifest["kind"])

    @property
    def content_hash(self) -> str:
        """Names the content: equal hashes mean equal files. A release's is its id."""
        for name in ("content_hash", "release_id"):
            if name in self.manifest:
                return str(self.manifest[name])
        return hashlib.sha256(json.dumps(self.hashes(), sort_keys=True).encode()).hexdigest()

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file by relative path, as its manifest and those of the pieces in it state them."""
        found = dict(self.manifest.get("files") or self.manifest.get("hashes") or {})
        for place in sorted(self.directory.glob(f"*/{MANIFEST}")):
            inner = Published.of(place.parent)
            found |= {f"{place.parent.name}/{name}": value for name, value in inner.hashes().items()}
        return found

    def sizes(self) -> dict[str, int]:
        """Bytes of each file by relative path."""
        files = sorted(file for file in self.directory.rglob("*") if file.is_file())
        return {file.relative_to(self.directory).as_posix(): file.stat().st_size for file in files}
