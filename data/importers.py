"""Public data sets' published files, or any table -> a log directory.

Every source comes down to the same things: event files with a column map, and a catalogue. Rows
are checked as in ingest; refused ones go to `quarantine/`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data import import_amazon
from data.catalogue import CatalogueFormat, read_catalogue
from data.errors import LogError, RecipeError
from data.import_amazon import FieldOrder
from data.import_movielens import MOVIELENS, read_genre_flags
from data.import_source import EventSource
from data.ingest_checks import latest_moment
from data.log_files import Fragment, TextFormat, list_files, parquet_schema, plan_fragments
from data.log_rows import RowRules, check_rows, read_fragment
from data.log_time import NANOSECONDS, TimeUnit
from data.row_tally import RowTally, check_share
from data.schema import LOG_SCHEMA
from data.storage import MANIFEST, directory_hashes, published_directory, write_json

NAMES = (*MOVIELENS, "amazon", "table")
LOG_KIND = "log"
LOG_FORMAT_VERSION = 1
_MAX_ID_BYTES = 256


@dataclass(frozen=True)
class _Import:
    """What is read, once the source is known."""

    events: EventSource
    catalogue: pa.Table | None


def run(
    name: str,
    source: str,
    out: str,
    columns: Mapping[str, str | None] | None = None,
    catalogue: str | None = None,
    catalogue_columns: Mapping[str, str] | None = None,
    timestamp_unit: str = "s",
    *,
    category_separator: str | None = None,
    separator: str = ",",
    encoding: str = "utf-8",
    field_order: str | None = None,
    max_bad_share: float = 0.01,
    replace: bool = False,
) -> dict[str, Any]:
    """Import a data set as a log directory.

    Args:
        name: one of `NAMES`.
        source: the folder of the published files; for `table` also a file or a glob.
        out: directory to write.
        columns, timestamp_unit, separator, encoding: of `table` only: our column name -> the table's, the
            unit of its times, and how its text is written.
        catalogue: catalogue file; the data set's own by default.
        catalogue_columns, category_separator: of the catalogue of `table`.
        field_order: of `amazon` CSV files without a header, where it cannot be told.
        max_bad_share: share of rows that may be refused before the import stops.
        replace: whether a directory at `out` may be replaced.

    Returns:
        The directory, its counts, and the refused rows by reason.

    Raises:
        RecipeError: `name`, the unit or the field order is not known.
        LogError: the source cannot be read as stated, or too many rows are bad.
        FarsightError: `out` exists.
    """
    if name not in NAMES:
        raise RecipeError(f"import {name}: no such source; there are {', '.join(NAMES)}")
    _check_choice("timestamp unit", timestamp_unit, get_args(TimeUnit))
    if field_order is not None:
        _check_choice("field order", field_order, get_args(FieldOrder))
    if name == "table":
        text = TextFormat(separator, encoding)
        form = CatalogueFormat(catalogue_columns or {}, category_separator, text)
        events = EventSource(source, columns or {}, cast(TimeUnit, timestamp_unit), text)
        plan = _Import(events, read_catalogue(catalogue, form) if catalogue else None)
    else:
        if columns or catalogue_columns:
            raise RecipeError(f"import {name}: its columns are known; a column map is for import table")
        order = cast(FieldOrder | None, field_order)
        plan = _amazon(source, catalogue, order) if name == "amazon" else _movielens(name, source, catalogue)
    with published_directory(out, replace=replace) as directory:
        manifest = _write_log(plan, directory, max_bad_share)
        write_json(directory / MANIFEST, {**manifest, "source": name, "hashes": directory_hashes(directory)})
    return {"directory": out, "counts": manifest["counts"], "quarantined_by_reason": manifest["quarantined_by_reason"]}


def _check_choice(what: str, found: str, choices: Sequence[str]) -> None:
    if found not in choices:
        raise RecipeError(f"{what} {found!r}: expected one of {', '.join(choices)}")


def _movielens(name: str, source: str, catalogue: str | None) -> _Import:
    known = MOVIELENS[name]
    folder = Path(source)
    for file in (known.events, known.catalogue):
        if not (folder / file).is_file() and not (file == known.catalogue and catalogue):
            found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
            raise LogError(
                f"{folder / file}: no such file; found {', '.join(found) or 'no folder'}. import {name} reads "
                f"GroupLens' own files; for another form of the data use import table with a column map"
            )
    place = catalogue or str(folder / known.catalogue)
    table = read_genre_flags(place) if known.has_genre_flags else read_catalogue(place, known.catalogue_format)
    return _Import(EventSource(str(folder / known.events), known.columns, "s", known.text), table)


def _amazon(source: str, catalogue: str | None, field_order: FieldOrder | None) -> _Import:
    reviews, metadata = import_amazon.find_files(source)
    events = import_amazon.event_source(reviews, field_order)
    place = catalogue or metadata
    return _Import(events, import_amazon.read_metadata(place) if place else None)


def _write_log(plan: _Import, directory: Path, max_bad_share: float) -> dict[str, Any]:
    """Write events, catalogue and quarantine; returns the manifest without its hashes."""
    events = plan.events
    files = list_files([events.location])
    fragments = plan_fragments(files, events.columns, events.text)
    if not fragments:
        raise LogError(f"{events.location}: holds no rows")
    for folder in ("events", "quarantine"):
        (directory / folder).mkdir()
    tally = RowTally()
    users: set[str] = set()
    items: set[str] = set()
    for number, (good, refused, fields) in enumerate(_chunks(fragments, events)):
        tally.add(good, refused)
        users.update(good["user_id"].unique())
        items.update(good["item_id"].unique())
        if good.height:
            pq.write_table(_log_table(good, fields), directory / "events" / f"part-{number:05d}.parquet")
        if refused.height:
            refused.write_parquet(directory / "quarantine" / f"part-{number:05d}.parquet")
    check_share(tally, max_bad_share)
    counts = {"users": len(users), "events": tally.good, "events_read": tally.rows, "quarantined": tally.refused}
    if plan.catalogue is not None:
        pq.write_table(plan.catalogue, directory / "catalogue.parquet")
        counts["catalogue_items"] = plan.catalogue.num_rows
    return {
        "kind": LOG_KIND,
        "format_version": LOG_FORMAT_VERSION,
        "timestamp_unit": "seconds",
        "counts": {**counts, "items": len(items)},
        "quarantined_by_reason": tally.reasons,
        "files_read": [file.location for file in files],
    }


def _chunks(fragments: list[Fragment], events: EventSource) -> Iterator[tuple[pl.DataFrame, pl.DataFrame, pa.Schema]]:
    """Good rows, refused rows, and the schema of the good ones' log file."""
    fields = [field for field in LOG_SCHEMA if field.name in fragments[0].columns]
    rules = RowRules(events.unit, latest_moment(), _MAX_ID_BYTES, needs_order="timestamp" not in fragments[0].columns)
    split_second = "timestamp" in fragments[0].columns and "order" not in fragments[0].columns
    split_second &= events.unit != "s" or _has_arrow_time(fragments[0])
    if split_second:
        fields.append(LOG_SCHEMA.field("order"))
    with tqdm(desc="import", unit="row", unit_scale=True, disable=None) as progress:
        for fragment in fragments:
            for raw in read_fragment(fragment, events.text):
                good, refused = check_rows(raw, fragment, rules)
                if split_second:
                    # The log form holds whole seconds: what is below one still orders the events.
                    good = good.with_columns(order=pl.col("timestamp") % NANOSECONDS)
                yield good, refused, pa.schema(fields)
                progress.update(good.height + refused.height)


def _has_arrow_time(fragment: Fragment) -> bool:
    if fragment.file.format != "parquet":
        return False
    return bool(pa.types.is_timestamp(parquet_schema(fragment.file).field(fragment.columns["timestamp"]).type))


def _log_table(rows: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    table = rows.with_columns(pl.col("timestamp") // NANOSECONDS).select(schema.names).to_arrow()
    # By column: a cast to the schema as a whole refuses columns that could be null but are not.
    columns = [table.column(field.name).cast(field.type) for field in schema]
    return pa.table(columns, schema=schema)
