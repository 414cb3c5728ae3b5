"""Reads what W&B keeps offline: the records of its run files, which have LevelDB's log format."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK_BYTES = 32 * 1024
FILE_HEADER_BYTES = 7
FULL, LAST = 1, 4
WAIT_SECONDS = 10


@dataclass
class OfflineRun:
    """One run file."""

    run_id: str = ""
    job_type: str = ""
    group: str = ""
    resumes: bool = False
    exit_code: int | None = None  # None: it never ended, as after a kill
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)  # metric or pattern -> what it is drawn over
    alerts: list[tuple[str, str]] = field(default_factory=list)
    used: list[Any] = field(default_factory=list)  # artifact records
    made: list[Any] = field(default_factory=list)


def offline_runs(directory: Path, run_id: str = "", *, killed: bool = False) -> list[OfflineRun]:
    """The run files under a directory's `wandb`, oldest first.

    Args:
        killed: whether all but the last may have been killed; otherwise their ends are waited for, since files are
            written from behind.
    """
    files = (directory / "wandb").glob(f"offline-run-*-{run_id}*/run-*.wandb")
    ordered = sorted(files, key=lambda file: file.parent.name)
    return [_read(file) if killed and file != ordered[-1] else _ended(file) for file in ordered]


def _ended(file: Path) -> OfflineRun:
    deadline = time.monotonic() + WAIT_SECONDS
    while (found := _read(file)).exit_code is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _records(content: bytes) -> Iterator[Record]:
    place, parts = FILE_HEADER_BYTES, b""
    while place + 7 <= len(content):
        room = BLOCK_BYTES - place % BLOCK_BYTES
        if room < 7:  # too little for another header: the rest of a block is empty
            place += room
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def _read(file: Path) -> OfflineRun:
    found = OfflineRun()
    for record in _records(file.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                found.run_id, found.job_type, found.group = run.run_id, run.job_type, run.run_group
                found.resumes = run.resume
                found.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
            case "config":
                found.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            case "history":
                found.history.append(_values(record.history.item))
            case "summary":
                found.summary |= _values(record.summary.update)
            case "metric":
                found.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "alert":
                found.alerts.append((record.alert.title, record.alert.text))
            case "artifact":
                (found.used if record.artifact.use_after_commit else found.made).append(record.artifact)
            case "exit":
                found.exit_code = record.exit.exit_code
    return found


def _values(items: Any) -> dict[str, Any]:
    """By path: `examples/nrows`."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
