"""Amazon review files of 2014, 2018 and 2023: https://jmcauley.ucsd.edu/data/amazon/, https://amazon-reviews-2023.github.io/.

| year | reviews | fields | time |
| --- | --- | --- | --- |
| 2014, 2018 | JSON lines | reviewerID, asin, overall, unixReviewTime | seconds |
| 2014 | `ratings_X.csv`, no header | user, item, rating, timestamp | seconds |
| 2018 | `X.csv`, no header | item, user, rating, timestamp | seconds |
| 2023 | JSON lines, or CSV with a header | user_id, parent_asin (or asin), rating, timestamp | milliseconds |
"""

import ast
import csv
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from data.catalogue import distinct_categories
from data.errors import LogError
from data.import_source import EventSource
from data.log_files import LogFile, TextFormat, file_columns, list_files, open_text

FieldOrder = Literal["user-first", "item-first"]

_HEADERS: dict[FieldOrder, tuple[str, ...]] = {
    "user-first": ("user_id", "item_id", "weight", "timestamp"),
    "item-first": ("item_id", "user_id", "weight", "timestamp"),
}
_ASIN_LENGTH = 10
_PROBED_LINES = 1000


def find_files(source: str) -> tuple[LogFile, str | None]:
    """The review file of a file or folder, and the metadata file beside it (`meta*`), if there is one.

    Raises:
        LogError: more or fewer than one review file.
    """
    files = list_files([source])
    metadata = [file.location for file in files if file.location.rpartition("/")[2].lower().startswith("meta")]
    reviews = [file for file in files if file.location not in metadata]
    if len(reviews) != 1 or len(metadata) > 1:
        names = ", ".join(file.location.rpartition("/")[2] for file in files)
        raise LogError(f"{source}: expected one review file and at most one meta* file, found {names}; give the file")
    return reviews[0], metadata[0] if metadata else None


def event_source(file: LogFile, field_order: FieldOrder | None) -> EventSource:
    """How to read a review file, told by its fields.

    Raises:
        LogError: no known fields, or a CSV file without header whose order of fields cannot be told.
    """
    names = file_columns(file, TextFormat())
    if "reviewerID" in names:
        columns = {"user_id": "reviewerID", "item_id": "asin", "weight": "overall", "timestamp": "unixReviewTime"}
        return EventSource(file.location, columns, "s")
    if "user_id" in names:
        item = "parent_asin" if "parent_asin" in names else "asin"
        columns = {"user_id": "user_id", "item_id": item, "weight": "rating", "timestamp": "timestamp"}
        return EventSource(file.location, columns, "ms")
    if file.format != "csv" or len(names) != 4:
        raise LogError(
            f"{file.location}: found {', '.join(names) or 'no fields'}; expected reviewerID and asin (2014, 2018), "
            "user_id and parent_asin (2023), or four fields without a header"
        )
    return EventSource(file.location, {}, "s", TextFormat(header=_HEADERS[field_order or _told_order(file.location)]))


def _told_order(location: str) -> FieldOrder:
    """The field whose values all have the ten characters of an ASIN is the item; user ids are longer."""
    with open_text(location, "utf-8") as lines:
        rows = [row for row in islice(csv.reader(lines), _PROBED_LINES) if len(row) == 4]
    asins = [all(len(row[place]) == _ASIN_LENGTH for row in rows) for place in (0, 1)]
    if asins == [True, False]:
        return "item-first"
    if asins == [False, True]:
        return "user-first"
    raise LogError(
        f"{location}: cannot tell users from items; state the field order: user-first (2014) or item-first (2018)"
    )


def read_metadata(location: str) -> pa.Table:
    """Item ids, categories, titles and brands of a metadata file; of an item listed twice the first is kept.

    Raises:
        LogError: a line is neither JSON nor a Python literal (as in 2014), or has no item id.
    """
    items: dict[str, dict[str, Any]] = {}
    with open_text(location, "utf-8") as lines:
        for number, row in _objects(lines, location):
            item = row.get("parent_asin") or row.get("asin")
            if not isinstance(item, str):
                raise LogError(f"{location} line {number}: no parent_asin or asin; found {', '.join(row)}")
            categories = distinct_categories(row.get("categories") or row.get("category"))
            texts = {"title": row.get("title"), "brand": row.get("brand") or row.get("store")}
            kept = {name: text if isinstance(text, str) else None for name, text in texts.items()}
            items.setdefault(item, {"item_id": item, "categories": categories, **kept})
    text = pa.string()
    schema = pa.schema([("item_id", text), ("categories", pa.list_(text)), ("title", text), ("brand", text)])
    return pa.Table.from_pylist(list(items.values()), schema=schema)


def _objects(lines: Iterator[str], location: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            try:
                row = ast.literal_eval(line.strip())  # the metadata of 2014
            except (ValueError, SyntaxError):
                row = None
        if not isinstance(row, dict):
            raise LogError(f"{location} line {number}: not a JSON object; found {line[:80]!r}")
        yield number, row
