"""A progress bar for a run whose work happens in other processes: it follows the run's figures."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from trainer.telemetry import read_figures

POLL_SECONDS = 1.0


@contextmanager
def progress_bar(run_dir: str, *, total_batches: int) -> Iterator[None]:
    """Show batches, loss and the best validation while the body runs; nothing where stderr is no terminal."""
    done = threading.Event()
    bar: Any = tqdm(total=total_batches, desc="train", unit="batch", disable=None)

    def follow() -> None:
        while not done.wait(POLL_SECONDS):
            _show(bar, run_dir)

    if bar.disable:
        yield
        return
    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
        _show(bar, run_dir)
        bar.close()


def _show(bar: Any, run_dir: str) -> None:
    rows = read_figures(run_dir)
    if not rows:
        return
    bar.n = rows[-1]["step"]
    losses = [row["loss"] for row in rows if row["kind"] == "step"]
    best = max((row["ndcg@10"] for row in rows if row["kind"] == "validation"), default=None)
    bar.set_postfix({"loss": losses[-1] if losses else None, "best ndcg@10": best})
