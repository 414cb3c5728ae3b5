"""Rows of a log fragment: read in chunks, checked against the log form, bad rows set apart.

Numbers in text files are read as text and parsed column by column, so one wrong row is one wrong
row and never changes the type of its column.
"""

import csv
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import LogError, UnreadableFile
from data.log_files import Fragment, TextFormat, open_text, resolve, split_lines
from data.log_time import TimeUnit, nanoseconds

CHUNK_ROWS = 500_000

# Checked rows of a log. `position` is the log order: file index * 2**40 + row in the file.
CHECKED_SCHEMA: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "timestamp": pl.Int64(),  # nanoseconds UTC; 0 without times
    "action": pl.String(),
    "request_id": pl.String(),
    "weight": pl.Float32(),  # 1.0 without weights
    "order": pl.Int64(),
    "position": pl.Int64(),
}
REJECTED_SCHEMA: dict[str, pl.DataType] = {
    "file": pl.String(),
    "row": pl.Int64(),  # first row of the file is 0; a CSV header is not counted
    "reason": pl.String(),
    "content": pl.String(),  # the row's log columns as JSON text, or the line where it could not be split
}
_POSITIONS_PER_FILE = 2**40


@dataclass(frozen=True)
class RowRules:
    """What a good row is."""

    unit: TimeUnit
    max_seconds: int  # latest time allowed, seconds UTC
    max_id_bytes: int
    needs_order: bool  # whether a row without `order` is refused
    actions_by_weight: Mapping[str, float] = field(default_factory=dict)  # of `data.weight_actions`


@dataclass
class RawRows:
    """Rows of one file as read: our column names; `row` is the number of each in the file."""

    frame: pl.DataFrame
    row: list[int] | range
    malformed: list[tuple[int, str, str]] = field(default_factory=list)  # row, reason, line


def read_fragment(fragment: Fragment, text: TextFormat) -> Iterator[RawRows]:
    """Rows of a fragment in file order, at most `CHUNK_ROWS` at a time.

    Raises:
        UnreadableFile: the file cannot be read in its format.
        LogError: a Parquet column has a wrong type.
    """
    location = fragment.file.location
    try:
        if fragment.file.format == "parquet":
            yield from _parquet_rows(fragment)
        elif fragment.file.format == "csv":
            yield from _csv_rows(fragment, text)
        else:
            yield from _json_rows(fragment, text)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError, EOFError, csv.Error) as error:
        raise UnreadableFile(f"{location}: cannot be read as {fragment.file.format}: {error}") from None


def _parquet_rows(fragment: Fragment) -> Iterator[RawRows]:
    filesystem, path = resolve(fragment.file.location)
    first = fragment.first_row
    with filesystem.open_input_file(path) as source:
        file = pq.ParquetFile(source)
        for name, column in fragment.columns.items():
            _check_type(fragment, name, file.schema_arrow.field(column).type)
        names, groups = list(fragment.columns.values()), list(fragment.row_groups)
        # On the task's own thread: other tasks have the other cores, and Arrow's threads cost more than they save.
        for batch in file.iter_batches(CHUNK_ROWS, row_groups=groups, columns=names, use_threads=False):
            table = pa.table({name: batch.column(column) for name, column in fragment.columns.items()})
            yield RawRows(pl.DataFrame(table), range(first, first + len(table)))
            first += len(table)


def _check_type(fragment: Fragment, name: str, found: pa.DataType) -> None:
    value = found.value_type if pa.types.is_dictionary(found) else found
    is_text = pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
    is_integer = pa.types.is_integer(value)
    is_number = is_integer or pa.types.is_floating(value)
    allowed, expected = {
        "timestamp": (
            is_number or is_text or pa.types.is_timestamp(value) or pa.types.is_date32(value),
            "a number, text or an Arrow time",
        ),
        "weight": (is_number or is_text or pa.types.is_boolean(value), "a number"),
        "order": (is_integer or is_text, "an integer"),
    }.get(name, (is_text or is_integer, "a string or an integer"))
    if pa.types.is_null(value):
        return  # an all-null column; its rows are judged one by one
    if not allowed:
        hint = "; ids must not pass through floats, which merge large ids: cast the column when exporting"
        raise LogError(
            f"{fragment.file.location}: column {fragment.columns[name]!r} for {name} is {found}, expected {expected}"
            + (hint if name.endswith("_id") and pa.types.is_floating(value) else "")
        )


def _csv_rows(fragment: Fragment, text: TextFormat) -> Iterator[RawRows]:
    csv.field_size_limit(sys.maxsize)
    with open_text(fragment.file.location, text.encoding) as lines:
        split = split_lines(lines, text)
        header = list(text.header) if text.header else next(split)
        places = [header.index(column) for column in fragment.columns.values()]
        first = 0
        while rows := list(islice(split, CHUNK_ROWS)):
            good: list[list[str]] = []
            numbers: list[int] = []
            malformed: list[tuple[int, str, str]] = []
            for number, row in enumerate(rows, start=first):
                if len(row) == len(header):
                    good.append(row)
                    numbers.append(number)
                elif row:  # an empty line is nothing
                    reason = f"line has {'fewer' if len(row) < len(header) else 'more'} fields than the header"
                    malformed.append((number, reason, text.separator.join(row)))
            first += len(rows)
            columns = list(zip(*good, strict=True)) or [()] * len(header)
            frame = {
                name: pl.Series(columns[place], dtype=pl.String)
                for name, place in zip(fragment.columns, places, strict=True)
            }
            yield RawRows(pl.DataFrame(frame), numbers, malformed)


def _json_rows(fragment: Fragment, text: TextFormat) -> Iterator[RawRows]:
    with open_text(fragment.file.location, text.encoding) as lines:
        first = 0
        while chunk := list(islice(lines, CHUNK_ROWS)):
            values: dict[str, list[str | None]] = {name: [] for name in fragment.columns}
            numbers: list[int] = []
            malformed: list[tuple[int, str, str]] = []
            for number, line in enumerate(chunk, start=first):
                if not line.strip():
                    continue
                try:
                    cells = _json_cells(json.loads(line), fragment.columns)
                except ValueError as error:  # also what json raises
                    reason = "line is not valid JSON" if isinstance(error, json.JSONDecodeError) else str(error)
                    malformed.append((number, reason, line.rstrip("\r\n")))
                    continue
                numbers.append(number)
                for name, cell in cells.items():
                    values[name].append(cell)
            first += len(chunk)
            frame = pl.DataFrame({name: pl.Series(cells, dtype=pl.String) for name, cells in values.items()})
            yield RawRows(frame, numbers, malformed)


def _json_cells(row: Any, columns: dict[str, str]) -> dict[str, str | None]:
    """The log columns of one JSON object as text.

    Raises:
        ValueError: the reason why the row is refused.
    """
    if not isinstance(row, dict):
        raise ValueError("line is not a JSON object")
    cells: dict[str, str | None] = {}
    for name, column in columns.items():
        value = row.get(column)
        wrong = isinstance(value, (list, dict)) or (isinstance(value, bool) and name != "weight")
        if wrong or (isinstance(value, float) and name not in ("timestamp", "weight")):
            raise ValueError(f"{name} has a wrong type")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is not finite")
        if isinstance(value, bool):
            value = int(value)
        cells[name] = None if value is None else str(value)
    return cells


def check_rows(raw: RawRows, fragment: Fragment, rules: RowRules) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split rows into good ones (`CHECKED_SCHEMA`) and refused ones (`REJECTED_SCHEMA`).

    The first reason found names a refused row, in the order user, item, time, then the rest.
    """
    frame = raw.frame
    columns: dict[str, pl.Series] = {}
    reasons: list[pl.Series] = []
    for name, dtype in list(CHECKED_SCHEMA.items())[:-1]:  # all but the position
        if name not in frame.columns:
            fill = {"timestamp": 0, "weight": 1.0}.get(name)
            columns[name] = pl.repeat(fill, frame.height, dtype=dtype, eager=True)
            continue
        values = frame[name]
        if values.dtype in (pl.Categorical, pl.Null):
            values = values.cast(pl.String)
        if name == "timestamp":
            columns[name], reason = nanoseconds(values, rules.unit, max_seconds=rules.max_seconds)
        elif name == "weight":
            columns[name], reason = _weights(values)
        elif name == "order":
            columns[name], reason = _orders(values, required=rules.needs_order)
        else:
            columns[name], reason = _texts(name, values, rules.max_id_bytes)
        reasons.append(reason)
    row = pl.Series("row", raw.row, dtype=pl.Int64)
    checked = pl.DataFrame({**columns, "position": row + fragment.file.index * _POSITIONS_PER_FILE})
    lines = [(fragment.file.location, *line) for line in raw.malformed]
    refused = pl.DataFrame(lines, schema=REJECTED_SCHEMA, orient="row")
    numbered = [part.alias(str(number)) for number, part in enumerate(reasons) if part.null_count() < frame.height]
    if not numbered:
        return checked, refused
    first_reason = pl.DataFrame(numbered).select(pl.coalesce(pl.all())).to_series()
    good = first_reason.is_null()
    rejected = _rejected(fragment, frame.filter(~good), row.filter(~good), first_reason.filter(~good))
    return checked.filter(good), pl.concat([rejected, refused]).sort("row")


def _texts(name: str, values: pl.Series, max_bytes: int) -> tuple[pl.Series, pl.Series]:
    """Ids must stand there; an empty action or request id means none."""
    text = values.cast(pl.String)
    # Only what begins outside the visible ASCII can be nothing but white space; a comparison is cheaper than stripping.
    empty = ((text < "!") | (text > "~")).fill_null(True)
    if empty.any():
        empty = (text.str.strip_chars() == "").fill_null(True)
    too_long = (text.str.len_bytes() > max_bytes).fill_null(False)
    if name in ("user_id", "item_id"):
        return text, _first_reason((empty, f"{name} is empty"), (too_long, f"{name} is longer than allowed"))
    return (text.set(empty, None) if empty.any() else text), _first_reason((too_long, f"{name} is longer than allowed"))


def _first_reason(*cases: tuple[pl.Series, str]) -> pl.Series:
    """Of the cases that hold in a row the text of the first; null where none does."""
    reason = pl.repeat(None, len(cases[0][0]), dtype=pl.String, eager=True)
    for holds, text in reversed(cases):
        if holds.any():
            reason = reason.set(holds, text)
    return reason


def _weights(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """A weight that is not there is 1."""
    parsed = _number_text(values).cast(pl.Float64, strict=False).cast(pl.Float32)
    frame = pl.DataFrame({"parsed": parsed, "given": _given(values)})
    reason = (
        pl.when(pl.col("given") & pl.col("parsed").is_null())
        .then(pl.lit("weight is not a number"))
        .when(~pl.col("parsed").is_finite())
        .then(pl.lit("weight is not finite"))
    )
    return parsed.fill_null(1.0), frame.select(reason).to_series()


def _orders(values: pl.Series, *, required: bool) -> tuple[pl.Series, pl.Series]:
    parsed = _number_text(values).cast(pl.Int64, strict=False)
    frame = pl.DataFrame({"parsed": parsed, "given": _given(values)})
    reason = (
        pl.when(pl.col("given") & pl.col("parsed").is_null())
        .then(pl.lit("order is not an integer"))
        .when(~pl.col("given") & pl.lit(required))
        .then(pl.lit("order is empty"))
    )
    return parsed, frame.select(reason).to_series()


def _number_text(values: pl.Series) -> pl.Series:
    return values.str.strip_chars() if values.dtype == pl.String else values


def _given(values: pl.Series) -> pl.Series:
    if values.dtype == pl.String:
        return (values.str.strip_chars() != "").fill_null(False)
    return values.is_not_null()


def _rejected(fragment: Fragment, frame: pl.DataFrame, row: pl.Series, reason: pl.Series) -> pl.DataFrame:
    content = [json.dumps(values, default=str, ensure_ascii=False) for values in frame.to_dicts()]
    columns: dict[str, Sequence[Any] | pl.Series] = {
        "file": [fragment.file.location] * frame.height,
        "row": row,
        "reason": reason,
        "content": content,
    }
    return pl.DataFrame(columns, schema=REJECTED_SCHEMA)
