"""Histories in one SQLite file: for one machine, without a server."""

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from serve.histories.contract import Appended, HistoriesUnavailable, StoredEvent
from serve.sqlite_file import open_written_ahead

# `number` counts a user's events in the order of their arrival.
_TABLE = """
CREATE TABLE IF NOT EXISTS events (
    user_id TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    number INTEGER NOT NULL,
    item_id TEXT NOT NULL,
    action TEXT,
    event_id TEXT,
    PRIMARY KEY (user_id, timestamp, number)
) WITHOUT ROWID
"""
_IDS = "CREATE UNIQUE INDEX IF NOT EXISTS ids ON events (user_id, event_id) WHERE event_id IS NOT NULL"
_KNOWN = """
SELECT EXISTS (SELECT 1 FROM events WHERE user_id = :user AND event_id = :id) OR EXISTS (
    SELECT 1 FROM events WHERE user_id = :user AND timestamp = :time AND item_id = :item AND action IS :action
)
"""
_OLDEST = "SELECT timestamp, number FROM events WHERE user_id = ? ORDER BY timestamp, number LIMIT 1"


class SqliteHistories:
    """A store in one file, written ahead (WAL), so that several processes of one machine read it while one writes.

    Args:
        path: the file; made with its folder if it is not there.
        max_events: longest history.
        busy_seconds: how long a call waits for another process that writes.

    Raises:
        HistoriesUnavailable: from every method, if the file cannot be read or written.
    """

    def __init__(self, path: Path, max_events: int, busy_seconds: float = 5) -> None:
        self._path, self._max_events = path, max_events
        self._lock = threading.Lock()  # keeps threads apart
        with self._explained():
            self._connection = open_written_ahead(path, busy_seconds, "NORMAL")
            for statement in (_TABLE, _IDS):
                self._connection.execute(statement)

    def append(self, events: Mapping[str, Sequence[StoredEvent]]) -> Appended:
        """See `HistoryStore`; all users of a call or none."""
        accepted = known = too_old = 0
        with self._writing():
            for user, added in events.items():
                size, number = self._size_and_number(user)
                for event in added:
                    if self._is_known(user, event):
                        known += 1
                        continue
                    oldest = self._one(_OLDEST, (user,)) if size >= self._max_events else None
                    if oldest is not None and event.timestamp <= oldest[0]:
                        too_old += 1
                        continue
                    number += 1
                    self._insert(user, number, event)
                    accepted += 1
                    if oldest is None:
                        size += 1
                    else:
                        delete = "DELETE FROM events WHERE user_id = ? AND timestamp = ? AND number = ?"
                        self._connection.execute(delete, (user, *oldest))
        return Appended(accepted, known, too_old)

    def replace(self, histories: Mapping[str, Sequence[StoredEvent]], until: int) -> None:
        """See `HistoryStore`; all users of a call or none."""
        with self._writing():
            for user, events in histories.items():
                self._connection.execute("DELETE FROM events WHERE user_id = ? AND timestamp <= ?", (user, until))
                later, number = self._size_and_number(user)
                newest = list(events)[max(0, len(events) - max(0, self._max_events - later)) :]
                for place, event in enumerate(newest, start=number + 1):
                    self._insert(user, place, event)

    def history(self, user_id: str) -> list[StoredEvent]:
        """See `HistoryStore`."""
        wanted = "SELECT item_id, timestamp, action, event_id FROM events WHERE user_id = ? ORDER BY timestamp, number"
        with self._lock, self._explained():
            return [StoredEvent(*row) for row in self._connection.execute(wanted, (user_id,))]

    def forget(self, user_id: str) -> bool:
        """See `HistoryStore`."""
        with self._writing():
            return self._connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount > 0

    def close(self) -> None:
        """See `HistoryStore`."""
        with self._lock:
            self._connection.close()

    def _is_known(self, user: str, event: StoredEvent) -> bool:
        named = {"user": user, "id": event.event_id, "time": event.timestamp, "item": event.item_id}
        (known,) = self._connection.execute(_KNOWN, {**named, "action": event.action}).fetchone()
        return bool(known)

    def _size_and_number(self, user: str) -> tuple[int, int]:
        size, number = self._one("SELECT count(*), coalesce(max(number), 0) FROM events WHERE user_id = ?", (user,))
        return size, number

    def _insert(self, user: str, number: int, event: StoredEvent) -> None:
        row = (user, event.timestamp, number, event.item_id, event.action, event.event_id)
        self._connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", row)

    def _one(self, statement: str, values: Sequence[object]) -> tuple[int, ...]:
        row: tuple[int, ...] = self._connection.execute(statement, values).fetchone()
        return row

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, begun as a writer: no other writer comes between what it reads and what it writes."""
        with self._lock, self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise HistoriesUnavailable(f"{self._path}: {error}; see that the file can be written") from error
