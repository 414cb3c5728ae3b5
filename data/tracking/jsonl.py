"""The whole record of a run as JSON lines, in `tracking.jsonl` of its directory: for scripts and tools of one's own."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from data.tracking.contract import RunFacts
from data.tracking.published import Published

FILE_NAME = "tracking.jsonl"


class JsonLines:
    """Appends `{"unix_time": ..., "event": ..., ...}` for every call; attempts of one run follow each other."""

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def start(self, run: RunFacts) -> None:
        """Open the file."""
        self._file = (run.directory / FILE_NAME).open("a", encoding="utf-8")
        self._write(
            "start", run_id=run.run_id, name=run.name, step=run.step, resumed_at=run.resumed_at, config=run.config
        )

    def log(self, figures: Mapping[str, float], axes: Mapping[str, int]) -> None:
        """Write the figures under their names."""
        self._write("figures", **axes, figures=figures)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], axes: Mapping[str, int]) -> None:
        """Write one mapping per row."""
        self._write("table", name=name, **axes, rows=[dict(zip(columns, row, strict=True)) for row in rows])

    def alert(self, title: str, text: str) -> None:
        """Write it."""
        self._write("alert", title=title, text=text)

    def used(self, piece: Published) -> None:
        """Write what names it."""
        self._write("used", kind=piece.kind, directory=str(piece.directory), content_hash=piece.content_hash)

    def made(self, piece: Published) -> None:
        """Write what names it."""
        self._write("made", kind=piece.kind, directory=str(piece.directory), content_hash=piece.content_hash)

    def finish(self, *, failed: bool) -> None:
        """Close the file."""
        if self._file is not None:
            self._write("finish", failed=failed)
            self._file.close()

    def _write(self, event: str, **content: Any) -> None:
        assert self._file is not None
        self._file.write(
            json.dumps({"unix_time": round(time.time(), 3), "event": event, **content}, default=str) + "\n"
        )
        self._file.flush()
