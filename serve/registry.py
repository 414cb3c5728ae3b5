"""A registry: the releases of one application in a directory that all nodes read, and a journal of what became of them.

DIR/manifest.json    says that this is a registry
DIR/RELEASE_ID/      a release: whole once it can be seen, and never changed
DIR/journal/         of `serve.journal`; a release is there if the journal says so
"""

import json
import logging
import re
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import ArtifactError, MachineError
from data.storage import MANIFEST, link_or_copy, published_once, read_manifest, write_json
from serve.index.store import FORMAT_VERSION as INDEX_VERSION
from serve.index.store import KIND as INDEX_KIND
from serve.journal import CURRENT, LATEST, PREVIOUS, Journal, Standing
from serve.release import FORMAT_VERSION as RELEASE_VERSION
from serve.release import INDEX, Release
from serve.release import KIND as RELEASE_KIND

logger = logging.getLogger(__name__)

KIND = "registry"
FORMAT_VERSION = 1
JOURNAL = "journal"
# What a crash may leave in a registry, and how old it must be to be nobody's work under way.
_LEFTOVER = re.compile(r"[0-9a-f]{12}|\.[0-9a-f]{12}\.[0-9a-f]{8}\.(partial|old)")
_LEFTOVER_SECONDS = 86_400


@dataclass(frozen=True)
class Registry:
    """A directory that is a registry, or becomes one when the first release is added."""

    directory: Path

    @classmethod
    def open(cls, directory: str | Path) -> "Registry":
        """Open a registry that stands.

        Raises:
            ArtifactError: the directory is none.
        """
        try:
            read_manifest(directory, KIND, FORMAT_VERSION, ArtifactError)
        except ArtifactError as error:
            raise ArtifactError(
                f"{directory}: not a registry of releases ({error}); farsight releases DIR --add RELEASE makes one"
            ) from None
        return cls(Path(directory))

    def add(self, release: Path) -> str:
        """Take in a finished release, checked, and return its id; the same again changes nothing.

        Its files are second names of those given, which costs no space, where the file system allows it.

        Raises:
            ArtifactError: the release is damaged, or this directory is something else than a registry.
            MachineError: the storage cannot be written.
        """
        release_id = str(read_manifest(release, RELEASE_KIND, RELEASE_VERSION, ArtifactError)["release_id"])
        self._establish()
        place = self.directory / release_id
        if not published_once(place, lambda aside: _take_in(release, aside)):
            try:
                Release.open(place)
            except ArtifactError as error:
                raise ArtifactError(
                    f"{place}: damaged in the registry ({error}); remove it there and add the release again"
                ) from None
        self._journal.append("added", lambda standing: None if release_id in standing.added else release_id)
        return release_id

    def resolve(self, reference: str | None = None) -> Path:
        """The directory of a release.

        Args:
            reference: `current`, `previous`, `latest`, or the beginning of an id; by default the current one, or the
                latest where none was deployed yet.

        Raises:
            ArtifactError: no release is called so, or several are.
        """
        standing = self._journal.read()
        names, ids = standing.names, [*standing.added]
        if reference is None:
            reference = CURRENT if CURRENT in names else LATEST
        found = [names[reference]] if reference in names else [one for one in ids if one.startswith(reference)]
        if len(found) > 1:
            raise ArtifactError(
                f"{self.directory}: {reference!r} begins {len(found)} ids ({', '.join(found)}); give more digits"
            )
        if not found:
            raise ArtifactError(
                f"{self.directory}: found no release {reference!r}, expected one of: "
                f"{', '.join([*names, *ids[::-1]]) or '(none was added yet)'}; {CURRENT} and {PREVIOUS} are the last "
                "two that were deployed from here"
            )
        return self.directory / found[0]

    def record(self, release_id: str) -> None:
        """Note that the application answers with a release from now on; the current one again changes nothing."""

        def if_new(standing: Standing) -> str | None:
            if release_id not in standing.added:
                logger.warning("%s: release %s is answered with and no longer here", self.directory, release_id)
                return None
            return None if standing.names.get(CURRENT) == release_id else release_id

        self._journal.append("deployed", if_new)

    def prune(self, keep: int) -> list[str]:
        """Remove all releases but the newest so many, the current and the previous one; return their ids."""
        removed = []
        while release_id := self._journal.append("removed", lambda standing: standing.oldest_beyond(keep)):
            self._discard(self.directory / release_id)
            removed.append(release_id)
        listed, old = self._journal.read().added, time.time() - _LEFTOVER_SECONDS
        unlisted = [place for place in self.directory.iterdir() if place.name not in listed]
        for place in unlisted:
            if _LEFTOVER.fullmatch(place.name) and place.stat().st_mtime < old:
                self._discard(place)
        return removed

    def releases(self) -> list[dict[str, Any]]:
        """The releases, newest first: `release_id`, `names`, times when `added` and last `deployed` (or None), and
        `items`, `index` (its kind) and `recall`, or the `problem` for which these are not known.
        """
        standing = self._journal.read()
        return [
            {
                "release_id": release_id,
                "names": [name for name, named in standing.names.items() if named == release_id],
                "added": added,
                "deployed": standing.deployed.get(release_id),
                **_figures(self.directory / release_id),
            }
            for release_id, added in reversed(standing.added.items())
        ]

    @property
    def _journal(self) -> Journal:
        return Journal(self.directory / JOURNAL)

    def _establish(self) -> None:
        """Make a registry of an empty directory, such as storage that was just mounted, or of none."""
        manifest = self.directory / MANIFEST
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            others = [place.name for place in self.directory.iterdir() if not place.name.startswith(".")]
            if not others:
                write_json(manifest, {"kind": KIND, "format_version": FORMAT_VERSION})
        except OSError as error:
            raise MachineError(f"{self.directory}: cannot be a registry ({error}); choose a writable place") from None
        if not manifest.exists():
            raise ArtifactError(
                f"{self.directory}: found {others[0]!r} and no {MANIFEST}, expected a registry or an empty directory; "
                "choose another place"
            )
        Registry.open(self.directory)

    def _discard(self, place: Path) -> None:
        """Remove a directory that nobody may see in part."""
        if place.exists():
            aside = self.directory / f".{place.name.strip('.')[:12]}.{uuid.uuid4().hex[:8]}.old"
            place.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def run(registry: str, add: str | None = None, keep: int | None = None) -> dict[str, Any]:
    """Add a release to a registry, remove old ones, and list what is there then.

    Args:
        registry: directory; the first release that is added makes it.
        add: a release, as `find_release` finds it.
        keep: remove all but the newest so many, the current one and the one before it.

    Returns:
        `registry`, `added` (id or None), `removed` (ids) and `releases`, of `Registry.releases`.

    Raises:
        ArtifactError: no registry, or the release is damaged.
        MachineError: the storage cannot be written.
    """
    opened = Registry.open(registry) if add is None else Registry(Path(registry))
    added = None if add is None else opened.add(find_release(add))
    removed = [] if keep is None else opened.prune(keep)
    return {"registry": registry, "added": added, "removed": removed, "releases": opened.releases()}


def find_release(path: str | Path) -> Path:
    """The directory of a release: the path itself, or for `REGISTRY/REFERENCE` and `REGISTRY` what that resolves to.

    Raises:
        ArtifactError: the registry has no such release.
    """
    place = Path(path)
    if _is_registry(place):
        return Registry.open(place).resolve()
    return Registry.open(place.parent).resolve(place.name) if _is_registry(place.parent) else place


def record_deployment(release: str | Path) -> None:
    """Note that an application answers with a release, if that lies in a registry."""
    place = Path(release).resolve()
    if _is_registry(place.parent):
        Registry.open(place.parent).record(place.name)


def _is_registry(directory: Path) -> bool:
    try:
        return bool(json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["kind"] == KIND)
    except (OSError, ValueError, KeyError):
        return False


def _take_in(release: Path, aside: Path) -> None:
    """Link or copy a release and check what will be published; what was given may have been replaced meanwhile."""
    for file in release.rglob("*"):
        if file.is_file():
            target = aside / file.relative_to(release)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(file, target)
    try:
        Release.open(aside)
    except ArtifactError as error:
        raise type(error)(str(error).replace(str(aside), str(release))) from None


def _figures(release: Path) -> dict[str, Any]:
    try:
        manifest = read_manifest(release, RELEASE_KIND, RELEASE_VERSION, ArtifactError)
        index = read_manifest(release / INDEX, INDEX_KIND, INDEX_VERSION, ArtifactError)
    except ArtifactError as error:
        return {"problem": str(error)}
    return {
        "items": manifest["counts"]["items"],
        "index": index["settings"]["search"]["kind"],
        "recall": manifest["recall"],
    }
