"""What every store of histories keeps and promises."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class HistoriesUnavailable(Exception):
    """The store cannot be reached or written just now; the same call may succeed later."""


@dataclass(frozen=True)
class StoredEvent:
    """One event of a user.

    Two of a user's events are the same event if their ids are equal, or if item, time and action are: a log that
    comes in twice, once by hand and once as a dataset, counts once, as in `ingest.duplicates=drop`.
    """

    item_id: str
    timestamp: int  # seconds UTC
    action: str | None = None
    event_id: str | None = None


@dataclass(frozen=True)
class Appended:
    """What became of the events of a call."""

    accepted: int
    known: int  # were there already
    too_old: int  # not after the oldest event of a history that is full


class HistoryStore(Protocol):
    """Histories of a bounded number of events, in the stable order of (timestamp, arrival).

    A late event takes its place by its time. A full history gives up its oldest event for one that is later than
    that, so what it gave up once, it never takes again: sending the same events twice, in whatever parts, changes
    nothing.
    """

    def append(self, events: Mapping[str, Sequence[StoredEvent]]) -> Appended:
        """Add events by user id, all of a user's or none."""
        ...

    def replace(self, histories: Mapping[str, Sequence[StoredEvent]], until: int) -> None:
        """Let these be all that the users did up to a time, that second included; later events stay."""
        ...

    def history(self, user_id: str) -> list[StoredEvent]:
        """A user's events, oldest first; none for an unknown user."""
        ...

    def forget(self, user_id: str) -> bool:
        """Remove all of a user; whether there was anything."""
        ...

    def close(self) -> None:
        """Give back connections and files."""
        ...
