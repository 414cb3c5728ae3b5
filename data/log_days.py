"""Logs that come day by day: which days there are, and whether a log is still the one it was."""

import fnmatch
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow.fs

from data.errors import RecipeError
from data.ingest_settings import FileFormat
from data.log_files import list_files, resolve

DAY = "{day}"
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def run(log: str, marker: str | None = None) -> dict[str, Any]:
    """The days of which there is a log.

    Args:
        log: local or remote place with `{day}` where the date stands, as YYYY-MM-DD.
        marker: file, with `{day}`, without which a day does not count yet.

    Returns:
        `days`, ascending.

    Raises:
        RecipeError: a wildcard stands before the date, so that there is no folder to look in.
        LogError: the place cannot be reached.
    """
    filesystem, path = resolve(log)
    parts = PurePosixPath(path).parts
    place = next(number for number, part in enumerate(parts) if DAY in part)
    folder = str(PurePosixPath(*parts[:place]))
    if any(mark in folder for mark in "*?["):
        raise RecipeError(f"pipeline.log: {log}: expected no wildcard before {DAY}; days are looked for in one folder")
    before, _, after = parts[place].partition(DAY)
    days = set()
    for info in filesystem.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True)):
        rest = info.base_name.removeprefix(before)
        found = _DATE.match(rest)
        if found and info.base_name.startswith(before):
            day = found.group()
            if fnmatch.fnmatchcase(rest.removeprefix(day), after.replace(DAY, day)):
                days.add(day)
    return {"days": sorted(day for day in days if marker is None or _is_there(marker.replace(DAY, day)))}


def state(locations: Sequence[str], format: FileFormat = "auto") -> dict[str, Any]:
    """A digest of names, sizes and times of change of a log's files: another one says that the log was changed.

    Args:
        format: of the files, as `ingest.format` states it.

    Raises:
        LogError: a place is missing or holds no log file.
    """
    files = []
    for file in list_files(locations, format):
        filesystem, path = resolve(file.location)
        files.append([file.location, file.size, filesystem.get_file_info(path).mtime_ns])
    return {"digest": hashlib.sha256(json.dumps(files).encode()).hexdigest(), "files": len(files)}


def _is_there(location: str) -> bool:
    filesystem, path = resolve(location)
    return bool(filesystem.get_file_info(path).is_file)
