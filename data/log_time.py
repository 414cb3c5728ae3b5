"""Times of a log: every form they come in -> int64 nanoseconds since 1970 UTC.

Nanoseconds, because events that share a second still have an order; the prepared dataset keeps
whole seconds.
"""

import datetime
from typing import Literal

import polars as pl

TimeUnit = Literal["s", "ms", "us", "ns", "iso"]

NANOSECONDS = 10**9
_UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def seconds_of(text: str) -> int:
    """Seconds UTC of an ISO 8601 date or time; without a zone it is UTC.

    Raises:
        ValueError: not ISO 8601.
    """
    return _nanoseconds_of(text) // NANOSECONDS


def _nanoseconds_of(text: str) -> int:
    moment = datetime.datetime.fromisoformat(text.strip())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    # Whole microseconds by integer arithmetic: `timestamp()` would go through a float.
    microseconds = (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
    return microseconds * 1000


def nanoseconds(values: pl.Series, unit: TimeUnit, *, max_seconds: int) -> tuple[pl.Series, pl.Series]:
    """Parse a column of times.

    Args:
        values: integers, floats, Datetime, Date or text.
        unit: of numbers, and of text that holds numbers; `iso` for ISO 8601 text.
        max_seconds: latest time allowed, seconds UTC; less than 2**33.

    Returns:
        int64 nanoseconds (null where refused), and the reason of each refusal (null where fine).
    """
    if isinstance(values.dtype, pl.Datetime):
        counts, per_second = values.to_physical(), _UNITS_PER_SECOND[values.dtype.time_unit]
    elif values.dtype == pl.Date:
        counts, per_second = values.to_physical().cast(pl.Int64) * 86_400, 1
    elif unit == "iso":
        counts, per_second = _parsed_iso(values), NANOSECONDS
    else:
        counts, per_second = _whole_counts(values), _UNITS_PER_SECOND[unit]
    empty = values.is_null()
    if values.dtype == pl.String:
        empty = empty | (values.str.strip_chars() == "").fill_null(True)
    frame = pl.DataFrame({"count": counts, "empty": empty})
    count = pl.col("count")
    # The range is checked in the column's own unit: a wild value would overflow nanoseconds.
    reason = (
        pl.when(pl.col("empty"))
        .then(pl.lit("timestamp is empty"))
        .when(count.is_null())
        .then(pl.lit("timestamp cannot be read"))
        .when(count < 0)
        .then(pl.lit("timestamp is negative"))
        .when(count > max_seconds * per_second)
        .then(pl.lit("timestamp is in the future"))
    )
    frame = frame.with_columns(reason=reason)
    parsed = frame.select(pl.when(pl.col("reason").is_null()).then(count * (NANOSECONDS // per_second)))
    return parsed.to_series(), frame["reason"]


def _whole_counts(values: pl.Series) -> pl.Series:
    """Int64 counts of the unit; fractions are cut off, what is no finite number is null."""
    if values.dtype == pl.String:
        stripped = values.str.strip_chars()
        whole = stripped.cast(pl.Int64, strict=False)
        return whole.fill_null(_whole_counts(stripped.cast(pl.Float64, strict=False)))
    if values.dtype.is_float():
        return values.cast(pl.Float64).floor().cast(pl.Int64, strict=False)
    return values.cast(pl.Int64, strict=False)


def _parsed_iso(values: pl.Series) -> pl.Series:
    parsed: dict[str | None, int | None] = {}
    for text in values.unique().to_list():
        try:
            parsed[text] = None if text is None else _nanoseconds_of(text)
        except ValueError:
            parsed[text] = None
        # Years past 2262 do not fit; they are in the future anyway.
        found = parsed[text]
        if found is not None:
            parsed[text] = max(min(found, 2**63 - 1), -1)
    return pl.Series([parsed[text] for text in values.to_list()], dtype=pl.Int64)
