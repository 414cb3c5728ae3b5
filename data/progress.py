"""A progress bar for people at a terminal, and a line now and then for logs."""

import sys
from collections.abc import Iterable
from typing import Any, Never, TypeVar

from tqdm import tqdm

# Often enough to see that a job moves, seldom enough for a log of days.
SECONDS_PER_LINE = 30.0

T = TypeVar("T")


def progress(items: Iterable[T], *, doing: str, unit: str, total: int | None = None) -> "tqdm[T]":
    """Go through items and show on standard error how far one has come.

    Where that is no terminal, a line every `SECONDS_PER_LINE`, and none of what takes less.

    Args:
        doing: what it says.
        total: how many there are, where `items` cannot tell.
    """
    return tqdm(items, desc=doing, unit=unit, total=total, **_style())


def counter(*, doing: str, unit: str, total: int) -> "tqdm[Never]":
    """The same for what counts itself: call `update`."""
    return tqdm(desc=doing, unit=unit, total=total, **_style())


def _style() -> dict[str, Any]:
    if sys.stderr.isatty():
        return {}
    times = dict.fromkeys(("delay", "mininterval", "maxinterval"), SECONDS_PER_LINE)
    return {"file": _Lines(), "ncols": 100, "ascii": True, **times}


class _Lines:
    """Standard error, with each state of a bar on a line of its own instead of over the one before."""

    def write(self, text: Any) -> None:
        """Print what a bar writes, without what moves the cursor."""
        state = str(text).strip()
        if state:
            print(state, file=sys.stderr)

    def flush(self) -> None:
        """Hand on what was printed."""
        sys.stderr.flush()
