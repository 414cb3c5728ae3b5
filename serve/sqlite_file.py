"""A SQLite file that several processes of one machine open, read and write."""

import sqlite3
import time
from pathlib import Path
from typing import Literal

RETRY_SECONDS = 0.01


def open_written_ahead(path: Path, busy_seconds: float, synchronous: Literal["NORMAL", "FULL"]) -> sqlite3.Connection:
    """A connection to the file in WAL mode, which readers share with one writer; transactions are begun by hand.

    Args:
        path: the file; made with its folder if it is not there.
        busy_seconds: how long this and every later statement waits for another process.
        synchronous: NORMAL survives the process, FULL the machine.

    Raises:
        sqlite3.DatabaseError, OSError: it cannot be opened or written, or is still locked after `busy_seconds`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, busy_seconds, isolation_level=None, check_same_thread=False)
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # SQLite does not wait here: of processes that open a new file at the same time, one would be turned away.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                connection.close()
                raise
            time.sleep(RETRY_SECONDS)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection
