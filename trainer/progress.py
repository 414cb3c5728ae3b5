"""A progress bar for a run whose work happens in other processes: it follows the run's figures."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.progress import SECONDS_PER_LINE, counter
from trainer.telemetry import FILE_NAME

POLL_SECONDS = 1.0


@contextmanager
def progress_bar(run_dir: str | Path, *, total_batches: int) -> Iterator[None]:
    """Show batches, loss and the best validation while the body runs."""
    bar: Any = counter(doing="train", unit="batch", total=total_batches)
    seconds = POLL_SECONDS if sys.stderr.isatty() else SECONDS_PER_LINE
    done, follower, began = threading.Event(), Follower(Path(run_dir) / FILE_NAME), time.monotonic()

    def follow() -> None:
        while not done.wait(seconds):
            _show(bar, follower)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if time.monotonic() - began >= seconds:  # a short run leaves no line in a log
            _show(bar, follower)
        bar.close()


class Follower:
    """Reads what was appended to a run's figures since the last look, and keeps the newest of each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_number = 0
        self._position = 0
        self.step = 0
        self.loss: float | None = None
        self.best: float | None = None

    def look(self) -> None:
        """Take in the new rows; a line that is still being written waits for the next look."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            number = os.fstat(file.fileno()).st_ino
            if number != self._file_number:  # a restarted attempt has put another file in its place
                self._file_number, self._position = number, 0
            file.seek(self._position)
            appended = file.read()
        complete = appended[: appended.rfind(b"\n") + 1]
        self._position += len(complete)
        for line in complete.splitlines():
            row = json.loads(line)
            self.step = row["step"]
            self.loss = row.get("loss", self.loss)
            if "ndcg@10" in row:
                self.best = max(row["ndcg@10"], self.best or 0.0)


def _show(bar: Any, follower: Follower) -> None:
    follower.look()
    bar.n = follower.step
    bar.set_postfix({"loss": follower.loss, "best ndcg@10": follower.best})
