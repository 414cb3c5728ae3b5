"""The journal of a registry: which releases were added, deployed and removed, in one order for everyone.

DIR/NUMBER/entry.json

Whoever writes reads the journal, decides, and publishes the next number, which one writer alone can have; another reads
and decides again. So it needs no lock, and a crash leaves out the entry that was under way and nothing else.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data.errors import ArtifactError
from data.storage import published_once, write_json

ENTRY = "entry.json"
# How releases are named besides by id, which has only hex digits.
CURRENT = "current"  # the one deployed last
PREVIOUS = "previous"  # the one deployed before it
LATEST = "latest"  # the one added last

Event = Literal["added", "deployed", "removed"]


@dataclass
class Standing:
    """What a journal comes to."""

    last: int = 0  # number of the newest entry
    added: dict[str, int] = field(default_factory=dict)  # when, by id, in this order; without what was removed
    deployed: dict[str, int] = field(default_factory=dict)  # when last, by id, in this order

    def follow(self, event: Event, release_id: str, seconds: int) -> None:
        """Take in the next entry; one that changes nothing, such as a release added twice, may stand in a journal."""
        match event:
            case "added":
                self.added.setdefault(release_id, seconds)
            case "removed":
                self.added.pop(release_id, None)
            case "deployed":
                self.deployed.pop(release_id, None)
                self.deployed[release_id] = seconds

    @property
    def names(self) -> dict[str, str]:
        """Id by name, of the releases that have one."""
        deployed = [*self.deployed]
        found = {CURRENT: deployed[-1:], PREVIOUS: deployed[-2:-1], LATEST: [*self.added][-1:]}
        return {name: ids[0] for name, ids in found.items() if ids}

    def oldest_beyond(self, keep: int) -> str | None:
        """The oldest release that is neither among the newest so many, nor current or previous."""
        needed = {self.names.get(CURRENT), self.names.get(PREVIOUS)}
        older = [*self.added][: max(0, len(self.added) - keep)]
        return next((release_id for release_id in older if release_id not in needed), None)


@dataclass(frozen=True)
class Journal:
    """A directory of numbered entries; absent means empty."""

    directory: Path

    def read(self) -> Standing:
        """What all entries come to.

        Raises:
            ArtifactError: an entry is damaged.
        """
        standing = Standing()
        names = os.listdir(self.directory) if self.directory.is_dir() else []
        for number in sorted(int(name) for name in names if name.isdecimal()):
            path = self._place(number) / ENTRY
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
                standing.follow(entry["event"], entry["release_id"], entry["time"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ArtifactError(
                    f"{path}: not an entry of a registry's journal ({error!r}); restore it, or remove {path.parent} to "
                    "go on without it"
                ) from None
            standing.last = number
        return standing

    def append(self, event: Event, choose: Callable[[Standing], str | None]) -> str | None:
        """Write that something happened to the release that `choose` names, if any, and return its id.

        Args:
            choose: asked with what stands, and again when another writer was faster.

        Raises:
            MachineError: the storage cannot be written.
        """
        while True:
            standing = self.read()
            release_id = choose(standing)
            if release_id is None:
                return None
            entry = {"event": event, "release_id": release_id, "time": int(time.time())}
            if published_once(self._place(standing.last + 1), partial(_write, entry)):
                return release_id

    def _place(self, number: int) -> Path:
        return self.directory / f"{number:08d}"


def _write(entry: dict[str, Any], aside: Path) -> None:
    write_json(aside / ENTRY, entry)
    # On disk before it is published: else a power cut could leave a number with nothing in it.
    with (aside / ENTRY).open("rb") as file:
        os.fsync(file.fileno())
