"""Log files wherever they are: listing, formats, columns, and fragments to read in parallel."""

import csv
import fnmatch
import hashlib
import io
import json
import lzma
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from data.errors import LogError, UnreadableFile
from data.schema import LOG_OPTIONAL, LOG_REQUIRED

Format = Literal["parquet", "csv", "jsonl"]

_ARROW_SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs")
_COMPRESSED = (".gz", ".bz2", ".zst", ".xz")
_FORMATS: Mapping[str, Format] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".dat": "csv",
    ".data": "csv",
    ".inter": "csv",
    ".item": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
# In directories: hidden and temporary files, and the catalogue beside a log.
_PASSED_OVER = (".", "_", "catalogue.")
# Rows that one fragment of a Parquet file has at least, where the file has more than one row group.
_FRAGMENT_ROWS = 500_000
# Lines looked at to find the keys of a JSON-lines file, whose lines may leave keys out.
_PROBED_LINES = 1000


@dataclass(frozen=True)
class TextFormat:
    """How lines of text become fields."""

    separator: str = ","
    encoding: str = "utf-8"
    header: tuple[str, ...] | None = None  # column names, for files without a header line


@dataclass(frozen=True)
class LogFile:
    """One file of a log; `index` is its place among the sorted files."""

    index: int
    location: str
    format: Format
    size: int  # bytes


@dataclass(frozen=True)
class Fragment:
    """A part of one file that one task reads: row groups of a Parquet file, or a whole text file."""

    file: LogFile
    columns: dict[str, str]  # our name -> the file's
    row_groups: tuple[int, ...] = ()
    first_row: int = 0


def resolve(location: str | Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a location and the path inside it.

    Raises:
        LogError: the scheme is not known or its package is missing.
    """
    text = str(location)
    scheme, mark, _ = text.partition("://")
    if not mark:
        return pyarrow.fs.LocalFileSystem(), Path(text).absolute().as_posix()
    try:
        if scheme in _ARROW_SCHEMES:
            filesystem, path = pyarrow.fs.FileSystem.from_uri(text)
            return filesystem, path
        remote, path = fsspec.core.url_to_fs(text)
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(remote)), path
    except (ImportError, ValueError, pa.ArrowInvalid) as error:
        raise LogError(f"{text}: cannot reach this place: {error}") from None


@contextmanager
def open_text(location: str, encoding: str) -> Iterator[io.TextIOWrapper]:
    """A text file, decompressed by the end of its name (.gz, .bz2, .zst, .xz)."""
    filesystem, path = resolve(location)
    packed = path.endswith(".xz")  # Arrow does not read xz
    with filesystem.open_input_stream(path, compression=None if packed else "detect") as stream:
        raw = lzma.open(stream) if packed else stream  # noqa: SIM115 (closed by the wrapper below)
        if encoding.lower() in ("utf-8", "utf8"):
            encoding = "utf-8-sig"  # plain UTF-8, less the mark that some programs put first
        with io.TextIOWrapper(raw, encoding=encoding, newline="") as text:
            yield text


def log_file_hash(location: str) -> str:
    """SHA-256 of a file's bytes, as hex."""
    filesystem, path = resolve(location)
    with filesystem.open_input_stream(path, compression=None) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def split_lines(lines: io.TextIOWrapper, text: TextFormat) -> Iterator[list[str]]:
    """Fields of each line; quotes are known only beside a separator of one character, as in CSV."""
    if len(text.separator) == 1:
        return csv.reader(lines, delimiter=text.separator)
    return (line.rstrip("\r\n").split(text.separator) for line in lines)


def list_files(locations: Sequence[str], format: Format | Literal["auto"] = "auto") -> list[LogFile]:
    """Files of the given files, directories and globs, sorted by path.

    In a directory, files of another kind and names that start with `.`, `_` or `catalogue.` are
    passed over; the `events` folder of a Farsight log directory is taken alone.

    Raises:
        LogError: a place is missing or holds no log file.
    """
    found: dict[str, int] = {}
    for location in locations:
        files = _listed(location, format)
        if not files:
            raise LogError(f"{location}: no log files here; looked for {', '.join(_FORMATS)}, plain or compressed")
        found.update(files)
    return [
        LogFile(index, name, _format_of(name) if format == "auto" else format, found[name])
        for index, name in enumerate(sorted(found))
    ]


def _listed(location: str, format: str) -> dict[str, int]:
    """Size by location of each file that a location names."""
    filesystem, path = resolve(location)
    prefix = location[: len(location) - len(path)] if "://" in location and location.endswith(path) else ""
    if "://" in location and not prefix:
        prefix = location.partition("://")[0] + "://"
    if any(mark in path for mark in "*?["):
        parts = PurePosixPath(path).parts
        fixed = next(number for number, part in enumerate(parts) if any(mark in part for mark in "*?["))
        base = str(PurePosixPath(*parts[:fixed]))
        infos = filesystem.get_file_info(pyarrow.fs.FileSelector(base, recursive=True, allow_not_found=True))
        infos = [info for info in infos if info.is_file and _matches(info.path, parts)]
        return {prefix + info.path: info.size for info in infos}
    info = filesystem.get_file_info(path)
    if info.type == pyarrow.fs.FileType.NotFound:
        raise LogError(f"{location}: no such file or directory")
    if info.is_file:
        return {prefix + path: info.size}
    events = filesystem.get_file_info(f"{path.rstrip('/')}/events")
    base = events.path if events.type == pyarrow.fs.FileType.Directory else path
    infos = filesystem.get_file_info(pyarrow.fs.FileSelector(base, recursive=True))
    kept = [info for info in infos if info.is_file and not info.base_name.startswith(_PASSED_OVER)]
    return {prefix + info.path: info.size for info in kept if format != "auto" or _known_format(info.path) is not None}


def _matches(path: str, pattern: Sequence[str]) -> bool:
    parts = PurePosixPath(path).parts
    return len(parts) == len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern))


def _known_format(location: str) -> Format | None:
    path = PurePosixPath(location)
    if path.suffix in _COMPRESSED:
        path = path.with_suffix("")
    return _FORMATS.get(path.suffix)


def _format_of(location: str) -> Format:
    known = _known_format(location)
    if known is None:
        raise LogError(f"{location}: the format of this file cannot be told from its name; set format")
    return known


def file_columns(file: LogFile, text: TextFormat) -> list[str]:
    """Column names of a file.

    Raises:
        UnreadableFile: the file cannot be read in its format.
    """
    try:
        if file.format == "parquet":
            return list(parquet_schema(file).names)
        with open_text(file.location, text.encoding) as lines:
            if file.format == "csv":
                return list(text.header or next(split_lines(lines, text), []))
            keys: dict[str, None] = {}
            for line in islice(lines, _PROBED_LINES):
                keys.update(dict.fromkeys(_keys(line)))
            return list(keys)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError, LookupError, EOFError, csv.Error) as error:
        raise UnreadableFile(f"{file.location}: cannot be read as {file.format}: {error}") from None


def _keys(line: str) -> list[str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return []
    return list(row) if isinstance(row, dict) else []


def parquet_schema(file: LogFile) -> pa.Schema:
    """Arrow schema of a Parquet file."""
    filesystem, path = resolve(file.location)
    return pq.read_schema(path, filesystem=filesystem)


def log_columns(file: LogFile, found: Sequence[str], mapping: Mapping[str, str | None]) -> dict[str, str]:
    """Our column name -> the file's, for the columns of the log form that the file has.

    Raises:
        LogError: a required or a mapped column is missing, naming file, column and what was found.
    """
    unknown = sorted(set(mapping) - {*LOG_REQUIRED, *LOG_OPTIONAL})
    if unknown:
        known = ", ".join((*LOG_REQUIRED, *LOG_OPTIONAL))
        raise LogError(f"columns: {unknown[0]!r} is not a column of the log form; it has {known}")
    columns: dict[str, str] = {}
    for name in (*LOG_REQUIRED, *LOG_OPTIONAL):
        source = mapping.get(name, name)
        if source in found:
            columns[name] = str(source)
        elif name in LOG_REQUIRED or (name in mapping and source is not None):
            raise LogError(
                f"{file.location}: no column {source!r} for {name}; found {', '.join(found) or 'no columns'}. "
                f"State the log's own names in columns, for example {name}: {found[0] if found else name}"
            )
    return columns


def plan_fragments(
    files: Sequence[LogFile],
    mapping: Mapping[str, str | None],
    text: TextFormat,
    unreadable: dict[str, str] | None = None,
) -> list[Fragment]:
    """Fragments of all files, in log order. Files that cannot be read are noted in `unreadable`, by location, if given.

    Raises:
        LogError: a file lacks a column, or files disagree on whether there are times or an order; `UnreadableFile`.
    """

    def file_fragments(file: LogFile) -> list[Fragment]:
        try:
            return _file_fragments(file, mapping, text)
        except UnreadableFile as error:
            if unreadable is None:
                raise
            unreadable[file.location] = str(error)
        return []

    # Footers and headers are small; on remote storage the wait for each is what costs.
    with ThreadPoolExecutor(max_workers=16) as pool:
        parts = list(pool.map(file_fragments, files))
    for name in ("timestamp", "order"):
        having = [part[0].file.location for part in parts if part and name in part[0].columns]
        lacking = [part[0].file.location for part in parts if part and name not in part[0].columns]
        if having and lacking:
            raise LogError(
                f"{lacking[0]}: no column for {name}, but {having[0]} has one; all files of a log need the same. "
                f"To do without it, set columns {name}: null"
            )
    return [fragment for part in parts for fragment in part]


def _file_fragments(file: LogFile, mapping: Mapping[str, str | None], text: TextFormat) -> list[Fragment]:
    if file.size == 0:  # writers that had nothing to write leave such files
        return []
    columns = log_columns(file, file_columns(file, text), mapping)
    if file.format != "parquet":
        return [Fragment(file, columns)]
    filesystem, path = resolve(file.location)
    with filesystem.open_input_file(path) as source:
        metadata = pq.ParquetFile(source).metadata
    fragments: list[Fragment] = []
    groups: list[int] = []
    first_row = num_rows = 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        num_rows += metadata.row_group(group).num_rows
        if num_rows >= _FRAGMENT_ROWS or group == metadata.num_row_groups - 1:
            fragments.append(Fragment(file, columns, tuple(groups), first_row))
            first_row, num_rows, groups = first_row + num_rows, 0, []
    return fragments
