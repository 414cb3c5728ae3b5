"""Catalogues as users bring them: any table of items -> `item_id`, `categories`, `title`, side features."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import LogError
from data.log_files import TextFormat, list_files, open_text, resolve
from data.schema import FIRST_SEEN, TRAIN_EVENTS
from data.vocabulary import Vocabulary

NO_CATEGORY = "(no genres listed)"  # how MovieLens writes an empty list
_OURS = ("item_id", "categories", "title")
# With 64-bit offsets: a column of a large catalogue is more than 2 GiB. In a Parquet file they are as any other text.
TEXT = pa.large_string()
TEXTS = pa.large_list(TEXT)


@dataclass(frozen=True)
class CatalogueFormat:
    """How a catalogue file becomes our columns."""

    columns: Mapping[str, str]  # our name -> the file's
    category_separator: str | None = None
    text: TextFormat = field(default_factory=TextFormat)


# `movies.dat` of MovieLens-1M is known by its name: it has no header and a separator of two characters.
MOVIES_DAT = CatalogueFormat({}, "|", TextFormat("::", "iso-8859-1", ("item_id", "title", "categories")))


def read_catalogue(location: str, form: CatalogueFormat) -> pa.Table:
    """A catalogue file with our column names; all other columns are carried along.

    Raises:
        LogError: no such file, no column for the item ids, an id of a wrong type, empty or twice.
    """
    if PurePosixPath(location).name == "movies.dat":
        form = MOVIES_DAT
    # The `.item` files of RecBole, which are no logs and so are not known by their names.
    file = list_files([location], "csv" if ".item" in PurePosixPath(location).suffixes else "auto")[0]
    if file.format == "parquet":
        filesystem, path = resolve(file.location)
        table = pq.read_table(path, filesystem=filesystem)
    elif file.format == "csv":
        table = _csv_table(file.location, form)
    else:
        table = _json_table(file.location, form)
    return named_catalogue(table, location, form)


def named_catalogue(table: pa.Table, location: str, form: CatalogueFormat) -> pa.Table:
    """Rename, check and type the columns of a catalogue table; `location` is for messages."""
    sources = {name: form.columns.get(name, name) for name in _OURS}
    unknown = sorted(set(form.columns) - set(_OURS))
    if unknown:
        raise LogError(f"catalogue_columns: {unknown[0]!r} is not one of {', '.join(_OURS)}")
    for name, source in sources.items():
        if source not in table.column_names and (name == "item_id" or name in form.columns):
            raise LogError(f"{location}: no column {source!r} for {name}; found {', '.join(table.column_names)}")
    ids = _item_ids(table.column(sources["item_id"]), location, sources["item_id"])
    columns: dict[str, Any] = {"item_id": ids}
    if sources["categories"] in table.column_names:
        cells = table.column(sources["categories"]).to_pylist()
        columns["categories"] = pa.array([distinct_categories(cell, form.category_separator) for cell in cells], TEXTS)
    else:
        columns["categories"] = pa.array([[]] * len(table), TEXTS)
    if sources["title"] in table.column_names:
        columns["title"] = table.column(sources["title"]).cast(TEXT)
    taken = {source for name, source in sources.items() if name in columns}
    for name in table.column_names:
        if name not in taken and name not in columns and name not in (TRAIN_EVENTS, FIRST_SEEN):
            columns[name] = table.column(name)
    return pa.table(columns)


def _item_ids(column: pa.ChunkedArray, location: str, name: str) -> pa.Array:
    found = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(found) or pa.types.is_string(found) or pa.types.is_large_string(found)):
        raise LogError(f"{location}: column {name!r} for item_id is {found}, expected a string or an integer")
    ids = pl.Series(column).cast(pl.String)
    num_empty = int((ids.fill_null("") == "").sum())
    if num_empty:
        raise LogError(f"{location}: column {name!r} is empty in {num_empty} rows; every item needs an id")
    twice = ids.filter(ids.is_duplicated())
    if len(twice):
        raise LogError(f"{location}: item {twice[0]!r} stands in more than one row; keep one row for each item")
    return ids.to_arrow().cast(TEXT)


def distinct_categories(cell: Any, separator: str | None = None) -> list[str]:
    """Distinct categories of a cell: a list (of lists), or text with a separator."""
    if cell is None:
        return []
    if isinstance(cell, str):
        parts = cell.split(separator) if separator else [cell]
    elif isinstance(cell, (list, tuple)):
        parts = [part for inner in cell for part in distinct_categories(inner, None)]
    else:
        parts = [str(cell)]
    stripped = (part.strip() for part in parts)
    return list(dict.fromkeys(part for part in stripped if part and part != NO_CATEGORY))


def _csv_table(location: str, form: CatalogueFormat) -> pa.Table:
    text = form.text
    with open_text(location, text.encoding) as lines:
        content = lines.read()
    try:
        if len(text.separator) > 1:
            rows = [line.split(text.separator) for line in content.splitlines() if line]
            names: Sequence[str] = text.header or rows.pop(0)
            return pa.table({name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)})
        return _typed_csv(content, form).to_arrow()
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise LogError(f"{location}: cannot be read as a CSV catalogue: {error}") from None


def _typed_csv(content: str, form: CatalogueFormat) -> pl.DataFrame:
    """All columns typed by their values, but our own as the text they are: an id may look like a number."""
    header = form.text.header

    def parsed(infer: bool) -> pl.DataFrame:
        return pl.read_csv(
            content.encode(),
            separator=form.text.separator,
            has_header=header is None,
            new_columns=list(header) if header else None,
            infer_schema=infer,
            infer_schema_length=None,
            quote_char=None if header else '"',
        )

    ours = {form.columns.get(name, name) for name in _OURS}
    typed = parsed(True)
    return typed.with_columns(parsed(False).select(name for name in typed.columns if name in ours))


def _json_table(location: str, form: CatalogueFormat) -> pa.Table:
    with open_text(location, form.text.encoding) as lines:
        try:
            rows = [json.loads(line) for line in lines if line.strip()]
        except json.JSONDecodeError as error:
            raise LogError(f"{location}: not valid JSON lines: {error}") from None
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns: dict[str, Any] = {}
    ours = {form.columns.get("item_id", "item_id"), form.columns.get("title", "title")}
    nested = form.columns.get("categories", "categories")
    for name in names:
        cells = [row.get(name) for row in rows]
        if name in ours:
            if any(isinstance(cell, (bool, float, list, dict)) for cell in cells):
                raise LogError(f"{location}: column {name!r} holds something else, expected a string or an integer")
            cells = [None if cell is None else str(cell) for cell in cells]
        elif name == nested:
            cells = [distinct_categories(cell, form.category_separator) for cell in cells]
        try:
            columns[name] = pa.array(cells)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise LogError(f"{location}: column {name!r} mixes types: {error}") from None
    return pa.table(columns)


def own_catalogue(location: str) -> str | None:
    """The catalogue of a Farsight log directory; None where the location is something else."""
    filesystem, path = resolve(location)
    name = "/catalogue.parquet"
    if filesystem.get_file_info(path.rstrip("/") + name).is_file:
        return location.rstrip("/") + name
    return None


def merged_catalogue(catalogue: pa.Table | None, earlier: pa.Table | None) -> pa.Table | None:
    """The rows of a catalogue, and those of an earlier dataset's for the items that it does not list.

    Raises:
        LogError: a side feature has types that do not go together.
    """
    if earlier is None:
        return catalogue
    earlier = earlier.drop_columns([TRAIN_EVENTS, FIRST_SEEN])
    if catalogue is None:
        return earlier
    listed = pl.DataFrame(catalogue)
    kept = pl.DataFrame(earlier).join(listed, on="item_id", how="anti")
    try:
        return pl.concat([listed, kept], how="diagonal_relaxed").to_arrow()
    except pl.exceptions.SchemaError as error:
        raise LogError(f"the catalogue and that of the dataset to extend hold other types: {error}") from None


def num_undescribed(aligned: pa.Table) -> int:
    """Items of which the catalogue of a dataset says nothing: no category, no title, no side feature."""
    rows = pl.DataFrame(aligned).drop("item_id", TRAIN_EVENTS, FIRST_SEEN)
    says_nothing = [pl.col(name).is_null() for name in rows.columns if name != "categories"]
    return rows.filter(pl.col("categories").list.len() == 0, *says_nothing).height


def aligned_catalogue(catalogue: pa.Table | None, vocabulary: Vocabulary, facts: pl.DataFrame) -> pa.Table:
    """The catalogue in vocabulary order, with the columns of `facts`; items it lacks get no categories."""
    rows = pl.DataFrame({"item_id": pl.Series(vocabulary.item_ids, dtype=pl.String)})
    if catalogue is None:
        catalogue = pa.table({"item_id": pa.array([], TEXT), "categories": pa.array([], TEXTS)})
    joined = rows.join(pl.DataFrame(catalogue), on="item_id", how="left", maintain_order="left")
    joined = joined.with_columns(pl.col("categories").fill_null([]), *facts.get_columns())
    table = joined.to_arrow()
    for name, kind in (("item_id", TEXT), ("categories", TEXTS), ("title", TEXT)):
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, table.column(name).cast(kind))
    return table
