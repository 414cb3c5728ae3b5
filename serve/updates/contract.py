"""What every store of updates keeps and promises."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class UpdatesUnavailable(Exception):
    """The store cannot be reached or written just now; the same call may succeed later."""


class TooManyUpdates(Exception):
    """More would stand than a store keeps, so nothing of the call was done."""

    def __init__(self, field: str, found: int, limit: int) -> None:
        super().__init__(f"{field}: {found} of at most {limit}")
        self.field = field  # add or remove
        self.found = found
        self.limit = limit


@dataclass(frozen=True)
class AddedItem:
    """An item that a release may lack, and where its vector comes from: other items, a vector, or else its id or what
    is said of it. Vectors are float32, the lowest byte first.
    """

    item_id: str
    added_at: int  # seconds UTC; of an item that stands added already, the earlier time stays
    like: tuple[str, ...] = ()  # ids of items whose mean it gets
    vector: bytes | None = None
    artifact: str | None = None  # content hash of the artifact that the vector belongs to
    title: str | None = None
    categories: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)  # by column of the catalogue
    contents: Mapping[str, bytes] = field(default_factory=dict)  # vectors, by column of the catalogue


@dataclass(frozen=True)
class Change:
    """What a call asks for, done in this order. An id may stand in several parts: one that is removed and restored is
    forgotten.
    """

    remove: tuple[str, ...] = ()
    restore: tuple[str, ...] = ()
    add: tuple[AddedItem, ...] = ()

    @property
    def item_ids(self) -> list[str]:
        """All that it names, once each."""
        return list(dict.fromkeys([*self.remove, *self.restore, *(item.item_id for item in self.add)]))


@dataclass(frozen=True)
class Changed:
    """What a call changed, in items; all 0 for one that was done before."""

    removed: int = 0
    restored: int = 0
    added: int = 0  # or added otherwise than before
    forgotten: int = 0  # had been added, and are no more


@dataclass(frozen=True)
class Updates:
    """All that stands."""

    version: int = 0
    removed: frozenset[str] = frozenset()
    added: tuple[AddedItem, ...] = ()  # in the order of their ids


class UpdateStore(Protocol):
    """What was added and removed, by item id, whatever a release has of it.

    To remove an item bars its id until it is restored, and forgets it where it had been added; to restore one lifts
    the bar and brings nothing back. To add one again keeps the time of the first.
    """

    def version(self) -> int:
        """Another number whenever something has changed; 0 before anything did. Cheap."""
        ...

    def updates(self) -> Updates:
        """All that stands, of one moment."""
        ...

    def apply(self, change: Change) -> Changed:
        """Do all of a change or nothing.

        Raises:
            TooManyUpdates: more would stand than is kept.
        """
        ...

    def close(self) -> None:
        """Give back connections and files."""
        ...
