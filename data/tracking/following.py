"""Hands what a run reports to its trackers; none of them can stop a run, or make it wait."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.tracking.contract import Degraded, RunFacts, Tracker
from data.tracking.facts import without_secrets
from data.tracking.published import Published

logger = logging.getLogger(__name__)

# Calls that may wait for a slow tracker; a row of figures every 20 batches fills it in hours.
MAX_WAITING = 10_000
# How long the end of a run waits for all trackers together, such as an upload to a server that does not answer.
FINISH_SECONDS = 120.0

Call = Callable[[Tracker], None]


class Tracking:
    """The trackers of one run.

    Args:
        trackers: by the names that settings give them.
        run: what each is started with.
        finish_seconds: how long `finish` waits for all of them together.
    """

    def __init__(
        self, trackers: Mapping[str, Tracker], run: RunFacts, *, finish_seconds: float = FINISH_SECONDS
    ) -> None:
        self._finish_seconds = finish_seconds
        self._lines = [_Line(name, tracker, run) for name, tracker in trackers.items()]

    def log(self, figures: Mapping[str, float], axes: Mapping[str, int]) -> None:
        """Keep figures of one moment."""
        figures, axes = dict(figures), dict(axes)
        self._all("figures", lambda tracker: tracker.log(figures, axes))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], axes: Mapping[str, int]) -> None:
        """Keep a table of plain values."""
        axes = dict(axes)
        self._all("a table", lambda tracker: tracker.table(name, columns, rows, axes))

    def alert(self, title: str, text: str) -> None:
        """Tell a person that something needs them."""
        text = without_secrets(text)
        self._all("an alert", lambda tracker: tracker.alert(title, text))

    def used(self, piece: Published) -> None:
        """Note what the run read."""
        self._all("lineage", lambda tracker: tracker.used(piece))

    def made(self, piece: Published) -> None:
        """Note what the run wrote."""
        self._all("lineage", lambda tracker: tracker.made(piece))

    def finish(self, *, failed: bool = False) -> None:
        """End the run in all trackers; those that take too long are left behind."""
        deadline = time.monotonic() + self._finish_seconds
        for line in self._lines:
            line.end(failed=failed)
        for line in self._lines:
            line.wait(deadline)

    @property
    def problems(self) -> dict[str, str]:
        """What went wrong first in each tracker that something went wrong in."""
        return {line.name: line.problem for line in self._lines if line.problem is not None}

    def _all(self, what: str, call: Call) -> None:
        for line in self._lines:
            line.put(what, call)


class _Line:
    """One tracker and the thread that it lives in."""

    def __init__(self, name: str, tracker: Tracker, run: RunFacts) -> None:
        self.name = name
        self.problem: str | None = None
        self._tracker = tracker
        self._calls: queue.Queue[tuple[str, Call] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._work, args=(run,), name=f"tracking-{name}", daemon=True)
        self._thread.start()

    def put(self, what: str, call: Call) -> None:
        try:
            self._calls.put_nowait((what, call))
        except queue.Full:
            self._note(f"{what}: not taken ({MAX_WAITING} calls wait already)")

    def end(self, *, failed: bool) -> None:
        self.put("the end of the run", lambda tracker: tracker.finish(failed=failed))
        try:
            self._calls.put_nowait(None)
        except queue.Full:
            self._note(f"the end of the run: not taken ({MAX_WAITING} calls wait already)")

    def wait(self, deadline: float) -> None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._note("it took too long to end and was left behind; some of the last figures may be missing there")

    def _work(self, run: RunFacts) -> None:
        def start(tracker: Tracker) -> None:
            run.directory.mkdir(parents=True, exist_ok=True)
            tracker.start(run)

        started = self._try("the start of the run", start)
        while (waiting := self._calls.get()) is not None:
            if started:  # otherwise what it is given is dropped; another attempt of the run starts it again
                self._try(*waiting)

    def _try(self, what: str, call: Call) -> bool:
        try:
            call(self._tracker)
        except Degraded as how:
            self._note(str(how))
        except Exception as error:  # a tracker is not ours, and no error of one may end a run
            logger.debug("%s did not take %s", self.name, what, exc_info=True)
            self._note(f"{what}: not taken ({type(error).__name__}: {error})")
            return False
        return True

    def _note(self, problem: str) -> None:
        """Say it once: a tracker that is down fails every call."""
        if self.problem is None:
            self.problem = without_secrets(problem)  # libraries name the address that they could not reach
            logger.warning("tracking: %s: %s", self.name, self.problem)
