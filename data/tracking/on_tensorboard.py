"""TensorBoard event files in `tensorboard` of the run's directory; `tensorboard --logdir runs` shows all runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboardX import SummaryWriter

from data.tracking.contract import AXES, GLOBAL_STEP, RunFacts
from data.tracking.published import Published

FOLDER = "tensorboard"


class TensorBoard:
    """Scalars over global_step; everything else as text."""

    def __init__(self) -> None:
        self._writer: Any = None
        self._step = 0

    def start(self, run: RunFacts) -> None:
        """Open a file of its own for the attempt; what an earlier one wrote past its checkpoint is hidden."""
        self._step = run.resumed_at or 0
        purged = None if run.resumed_at is None else run.resumed_at + 1
        self._writer = SummaryWriter(str(run.directory / FOLDER), purge_step=purged, flush_secs=10)
        self._text("config", "```json\n" + json.dumps(run.config, indent=2, default=str) + "\n```")

    def log(self, figures: Mapping[str, float], axes: Mapping[str, int]) -> None:
        """Write scalars, those of the other axes among them."""
        self._step = axes.get(GLOBAL_STEP, self._step)
        others = {f"axes/{name}": axes[name] for name in AXES if name in axes and name != GLOBAL_STEP}
        for name, value in {**figures, **others}.items():
            self._writer.add_scalar(name, value, self._step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], axes: Mapping[str, int]) -> None:
        """Write it as a Markdown table."""
        self._step = axes.get(GLOBAL_STEP, self._step)
        lines = [columns, ["---"] * len(columns), *rows]
        self._text(name, "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))

    def alert(self, title: str, text: str) -> None:
        """Write it as a text."""
        self._text("alerts", f"**{title}** {text}")

    def used(self, piece: Published) -> None:
        """Write what names it as a text."""
        self._text(f"used/{piece.kind}", f"{piece.directory} `{piece.content_hash}`")

    def made(self, piece: Published) -> None:
        """Write what names it as a text."""
        self._text(f"made/{piece.kind}", f"{piece.directory} `{piece.content_hash}`")

    def finish(self, *, failed: bool) -> None:
        """Close the file."""
        self._text("end", "failed" if failed else "finished")
        self._writer.close()

    def _text(self, name: str, text: str) -> None:
        self._writer.add_text(name, text, self._step)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
