"""Keeps a replica at what a store of updates says."""

import logging
import threading
from collections.abc import Callable

from serve.engine import Engine
from serve.updates.contract import Change, Changed, UpdateStore, UpdatesUnavailable
from serve.updates.overlay import Overlay, lay_over

logger = logging.getLogger(__name__)

# How often a replica asks the store for its version. With the reading of what is new it stays below a second.
POLL_SECONDS = 0.25


class Follower:
    """One replica's view of the updates. A thread of its own asks the store and prepares what is new; requests meet it
    as one assignment. While the store does not answer, what stands stands.
    """

    def __init__(self, store: UpdateStore, engine: Engine, show: Callable[[Overlay], None]) -> None:
        """Read all updates and show them.

        Args:
            show: is given each overlay, also from the thread.

        Raises:
            UpdatesUnavailable: the store does not answer; answers without it could hold what was removed.
        """
        self._store, self._engine, self._show = store, engine, show
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._reachable = True
        self._overlay = lay_over(engine, store.updates())
        show(self._overlay)
        self._thread = threading.Thread(target=self._follow, name="updates", daemon=True)
        self._thread.start()

    @property
    def overlay(self) -> Overlay:
        """What requests are answered from now."""
        return self._overlay

    @property
    def engine(self) -> Engine:
        """Whose release it is laid over."""
        return self._engine

    def apply(self, change: Change) -> tuple[Changed, Overlay]:
        """Write a change, and show it before this returns.

        Raises:
            TooManyUpdates: more would stand than the store keeps.
            UpdatesUnavailable: the store does not answer.
        """
        changed = self._store.apply(change)
        self._refresh()
        return changed, self._overlay

    def close(self) -> None:
        """Stop following, and close the store."""
        self._stopped.set()
        self._thread.join()
        self._store.close()

    def _refresh(self) -> None:
        with self._lock:
            if self._store.version() != self._overlay.updates.version:
                self._overlay = lay_over(self._engine, self._store.updates())
                self._show(self._overlay)

    def _follow(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            try:
                self._refresh()
                if not self._reachable:
                    logger.warning("the store of updates answers again")
                self._reachable = True
            except UpdatesUnavailable as error:
                if self._reachable:
                    logger.warning("the updates of items stay as they were: %s", error)
                self._reachable = False
            except Exception:  # the thread must outlive a defect, or takedowns would never come here
                logger.exception("the updates of items stay as they were")
