"""Updates in one SQLite file: for one machine, without a server."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve.sqlite_file import open_written_ahead
from serve.updates.contract import Change, Changed, Updates, UpdatesUnavailable
from serve.updates.states import ItemState, Room, changed_states, from_document, next_version, to_document

_TABLES = (
    "CREATE TABLE IF NOT EXISTS removed (item_id TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS added (item_id TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS version (number INTEGER NOT NULL)",  # one row
    "INSERT INTO version SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM version)",
)


class SqliteUpdates:
    """A store in one file, written ahead (WAL), so that several processes of one machine read it while one writes.

    Args:
        path: the file; made with its folder if it is not there.
        max_added, max_removed: items that may stand at a time.
        busy_seconds: how long a call waits for another process that writes.

    Raises:
        UpdatesUnavailable: from every method, if the file cannot be read or written.
    """

    def __init__(self, path: Path, max_added: int, max_removed: int, busy_seconds: float = 5) -> None:
        self._path, self._max_added, self._max_removed = path, max_added, max_removed
        self._lock = threading.Lock()  # keeps threads apart
        with self._explained():
            # A takedown that was answered must survive the machine, too; calls are few.
            self._connection = open_written_ahead(path, busy_seconds, "FULL")
        with self._transaction("IMMEDIATE"):
            for statement in _TABLES:
                self._connection.execute(statement)

    def version(self) -> int:
        """See `UpdateStore`."""
        with self._lock, self._explained():
            return self._version()

    def updates(self) -> Updates:
        """See `UpdateStore`."""
        with self._transaction("DEFERRED"):
            removed = self._connection.execute("SELECT item_id FROM removed").fetchall()
            added = self._connection.execute("SELECT document FROM added ORDER BY item_id").fetchall()
            version = self._version()
        return Updates(version, frozenset(row[0] for row in removed), tuple(from_document(row[0]) for row in added))

    def apply(self, change: Change) -> Changed:
        """See `UpdateStore`."""
        with self._transaction("IMMEDIATE"):
            states = {item_id: self._state(item_id) for item_id in change.item_ids}
            room = Room(self._count("removed"), self._count("added"), self._max_removed, self._max_added)
            differ, found = changed_states(states, change, room)
            for item_id, state in differ.items():
                self._write(item_id, state)
            if differ:
                self._connection.execute("UPDATE version SET number = ?", (next_version(self._version()),))
        return found

    def close(self) -> None:
        """See `UpdateStore`."""
        with self._lock:
            self._connection.close()

    def _version(self) -> int:
        return int(self._connection.execute("SELECT number FROM version").fetchone()[0])

    def _count(self, table: str) -> int:
        return int(self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def _state(self, item_id: str) -> ItemState:
        removed = self._connection.execute("SELECT 1 FROM removed WHERE item_id = ?", (item_id,)).fetchone()
        added = self._connection.execute("SELECT document FROM added WHERE item_id = ?", (item_id,)).fetchone()
        return ItemState(removed is not None, None if added is None else from_document(added[0]))

    def _write(self, item_id: str, state: ItemState) -> None:
        for table in ("removed", "added"):
            self._connection.execute(f"DELETE FROM {table} WHERE item_id = ?", (item_id,))
        if state.removed:
            self._connection.execute("INSERT INTO removed VALUES (?)", (item_id,))
        if state.added is not None:
            self._connection.execute("INSERT INTO added VALUES (?, ?)", (item_id, to_document(state.added)))

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        """One transaction; an IMMEDIATE one begins as a writer, so that no other comes between."""
        with self._lock, self._explained():
            self._connection.execute(f"BEGIN {kind}")
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
            raise UpdatesUnavailable(f"{self._path}: {error}; see that the file can be written") from error
