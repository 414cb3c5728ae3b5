"""What stands of each day: one JSON file per step, written when the step begins and again when it is done.

DIR/lock                     held by the one run that is under way
DIR/running.json             who that is
DIR/YYYY-MM-DD/steps/*.json  `state` (begun, done or failed), `made_from`, `result`, `seconds`
DIR/YYYY-MM-DD/...           what the steps wrote (`PLACES`)
DIR/YYYY-MM-DD/report.json   the verdict; written last, so a day with a report is finished

A step is done again if what it is made from has changed since: its settings, or what an earlier step gave.
"""

import datetime
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data.errors import FarsightError, MachineError
from data.storage import write_json

logger = logging.getLogger(__name__)

# What each step writes besides its file, in the order of the steps.
PLACES = {
    "ingest": "dataset",
    "check": "in_use",
    "train": "train",
    "evaluate": "candidate",
    "index": "release",
    "promote": "deployment",
}
# Whose place is kept when it was interrupted: training goes on from its last checkpoint.
RESUMES = ("train",)
STEPS, REPORT = "steps", "report.json"
# A run that only looks whether the lock is free holds it for a moment.
_LOCK_SECONDS = 3.0

Result = dict[str, Any]


def digest(content: Any) -> str:
    """A short name for plain content: other content, another name."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Day:
    """The folder of one day."""

    folder: Path

    @property
    def name(self) -> str:
        """The date, as YYYY-MM-DD."""
        return self.folder.name

    def place(self, step: str) -> Path:
        """What a step writes."""
        return self.folder / PLACES[step]

    def step(self, name: str) -> Result:
        """What is known of a step; empty before it has begun."""
        return _read(self.folder / STEPS / f"{name}.json")

    def made_from(self, name: str) -> str | None:
        """What names the inputs of a step, and so what it gave."""
        found: str | None = self.step(name).get("made_from")
        return found

    def result(self, name: str) -> Result:
        """What a step that is done gave; empty otherwise."""
        found = self.step(name)
        return dict(found["result"]) if found.get("state") == "done" else {}

    @property
    def report(self) -> Result:
        """The report of a finished day; empty of another."""
        return _read(self.folder / REPORT)

    def take(self, name: str, inputs: Result, work: Callable[[], Result]) -> Result:
        """Do a step, unless it was done from the same inputs; return what it gave.

        Raises:
            FarsightError: what `work` raises, which is noted.
        """
        found, made_from = self.step(name), digest([name, inputs])
        same = found.get("made_from") == made_from
        if same and found["state"] == "done":
            return dict(found["result"])
        self._make_room(name, resume=same and name in RESUMES)
        logger.info("%s: %s", self.name, name)
        began = int(time.time())
        note = {"made_from": made_from, "inputs": inputs, "began": began}
        self._write(name, {"state": "begun", **note})
        clock = time.perf_counter()
        try:
            result = work()
        except FarsightError as error:
            failed = {"state": "failed", "error": plain(error)}
            self._write(name, {**failed, **note, "seconds": _since(clock)})
            raise
        self._write(name, {"state": "done", "result": result, **note, "seconds": _since(clock)})
        return result

    def forget(self) -> None:
        """Remove all that stands of the day."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def tidy(self) -> None:
        """Remove all but the report."""
        for place in [*PLACES.values(), STEPS]:
            shutil.rmtree(self.folder / place, ignore_errors=True)

    def _make_room(self, name: str, *, resume: bool) -> None:
        """Remove what stands of a step that is to be done."""
        (self.folder / REPORT).unlink(missing_ok=True)
        (self.folder / STEPS / f"{name}.json").unlink(missing_ok=True)
        if not resume:
            shutil.rmtree(self.place(name), ignore_errors=True)
        # Of a writer that was killed; the lock says that none is at work.
        for left in self.folder.glob(f".{PLACES[name]}.*"):
            shutil.rmtree(left, ignore_errors=True)

    def _write(self, name: str, content: Result) -> None:
        (self.folder / STEPS).mkdir(parents=True, exist_ok=True)
        write_json(self.folder / STEPS / f"{name}.json", content)


def plain(error: FarsightError) -> str:
    """What an error says, without the traceback that Ray puts around that of a worker."""
    cause = getattr(error, "cause", None)
    return str(cause if isinstance(cause, FarsightError) else error)


def days(directory: Path) -> list[Day]:
    """The days of which anything stands, ascending."""
    return [Day(folder) for folder in sorted(directory.glob("????-??-??")) if as_date(folder.name) is not None]


def as_date(text: str) -> datetime.date | None:
    """A date as YYYY-MM-DD; None for other text."""
    try:
        found = datetime.date.fromisoformat(text)
    except ValueError:
        return None
    return found if found.isoformat() == text else None


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the lock of a pipeline while the body runs; it ends with the process, however that ends.

    Raises:
        MachineError: another run holds it, or the storage has no locks.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / "lock", timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        who = _read(directory / "running.json")
        raise MachineError(
            f"{directory}: another run is under way ({who.get('who', 'unknown')}); wait for it, or stop it: the steps "
            "that it has done stay"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise MachineError(
            f"{directory / 'lock'}: cannot be locked ({error}); set pipeline.dir to storage with file locks (local "
            "disks and NFS have them)"
        ) from None
    try:
        write_json(directory / "running.json", {"who": f"process {os.getpid()} on {socket.gethostname()}"})
        yield
    finally:
        (directory / "running.json").unlink(missing_ok=True)
        lock.release()


def running(directory: Path) -> str | None:
    """Who runs the pipeline now, if anyone."""
    who = _read(directory / "running.json").get("who")
    if who is None:
        return None
    try:
        with FileLock(directory / "lock", timeout=0):
            return None  # left behind by a run that was killed
    except Timeout:
        return str(who)


def _since(clock: float) -> float:
    return round(time.perf_counter() - clock, 1)


def _read(path: Path) -> Result:
    if not path.is_file():
        return {}
    found: Result = json.loads(path.read_text(encoding="utf-8"))
    return found
