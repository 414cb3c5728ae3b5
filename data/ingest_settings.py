"""Settings of ingest: the `ingest` section of a recipe."""

import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data.log_time import TimeUnit, seconds_of
from data.settings import Settings

FileFormat = Literal["auto", "parquet", "csv", "jsonl"]
SortRule = Literal["time", "order"]


class SplitSettings(Settings):
    """How each history is cut into training events, validation targets and test targets."""

    kind: Literal["last_out", "time"] = Field(
        "last_out",
        description="last_out: the last events of each history are test, the one before them validation, in histories "
        "that keep one for training; time: the same two moments for all users",
    )
    test_events: int = Field(1, ge=1, description="last_out: events of each history that are test, the last ones")
    validation_start: int | None = Field(None, description="first moment of validation: seconds UTC or an ISO date")
    test_start: int | None = Field(None, description="first moment of test: seconds UTC or an ISO date")
    validation_share: float | None = Field(None, gt=0, lt=1, description="share of all events, just before the test's")
    test_share: float | None = Field(None, gt=0, lt=1, description="share of all events, the newest")
    validation_days: float | None = Field(None, gt=0, description="days of validation, just before the test's")
    test_days: float | None = Field(None, gt=0, description="days of test, up to the newest event")

    @field_validator("validation_start", "test_start", mode="before")
    @classmethod
    def _moment(cls, value: Any) -> Any:
        return _moment(value)

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> "SplitSettings":
        starts = (self.validation_start, self.test_start)
        shares = (self.validation_share, self.test_share)
        days = (self.validation_days, self.test_days)
        if self.kind == "last_out":
            if any(value is not None for value in starts + shares + days):
                raise ValueError("kind last_out takes no starts, shares or days; set kind: time")
            return self
        if self.test_events != 1:
            raise ValueError("kind time takes no test_events; its test part ends with the log")
        given = [pair for pair in (starts, shares, days) if pair != (None, None)]
        if len(given) != 1 or None in given[0]:
            raise ValueError(
                "kind time needs validation_start and test_start, or validation_share and test_share, or "
                "validation_days and test_days, and not a mixture"
            )
        if starts in given and (self.validation_start or 0) >= (self.test_start or 0):
            raise ValueError("validation_start must be before test_start")
        if shares in given and (self.validation_share or 0) + (self.test_share or 0) >= 1:
            raise ValueError("validation_share and test_share together must be less than 1")
        return self


class IngestSettings(Settings):
    """The `ingest` section: where the log is, how to read it, and how to cut it."""

    log: str | list[str] = Field(
        description="a Farsight log directory, or a file, directory or glob of Parquet, CSV or JSON-lines files, or a "
        "list of these; local or any place that Arrow or fsspec reads (s3://, gs://)"
    )
    out: str | None = Field(None, description="directory to write; on a cluster, one that all nodes can write to")
    replace: bool = Field(False, description="whether a directory that stands at `out` may be replaced")
    catalogue: str | None = Field(
        None, description="catalogue file (Parquet, CSV, JSON lines, movies.dat); the log directory's own by default"
    )
    columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="our column name -> the log's; names not given are looked for under our name; null leaves one out",
    )
    catalogue_columns: dict[str, str] = Field(
        default_factory=dict, description="our column name -> the catalogue's, for item_id, categories and title"
    )
    items_from: str | None = Field(
        None,
        description="prepared dataset or artifact whose items keep their rows, new items getting the rows after them, "
        "so that its weights can be trained further (train.start_from); by default rows go by the sorted ids",
    )
    extends: str | None = Field(
        None,
        description="prepared dataset that this log continues: `out` then holds both, histories of users without new "
        "events are linked and not read, and log files that went in before are left out",
    )
    category_separator: str | None = Field(
        None, description="what stands between the categories of one item where they are one string, such as |"
    )
    format: FileFormat = Field("auto", description="format of the log files; auto goes by the file name")
    separator: str = Field(",", min_length=1, description="what stands between the fields of a CSV line")
    encoding: str = Field("utf-8", description="encoding of CSV and JSON-lines files")
    timestamp_unit: TimeUnit = Field(
        "s", description="unit of numeric times: s, ms, us or ns since 1970 UTC; iso for text; Arrow times know theirs"
    )
    actions_by_weight: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="action -> least weight, such as {exposure: 0, click: 4}: an event without an action gets that of "
        "the highest weight it reaches, for logs that have only ratings",
    )
    require_times: bool = Field(False, description="whether a log without times is refused")
    sort: SortRule = Field(
        "time", description="time: by time, then `order`, then log order; order: by `order`, then log order"
    )
    duplicates: Literal["drop", "keep"] = Field(
        "drop", description="drop: of events equal in every log column the first in log order is kept"
    )
    min_user_events: int = Field(1, ge=1, description="users with fewer events are left out, and counted")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="share of rows that may be refused before the run stops")
    max_bad_files: int = Field(
        0,
        ge=0,
        description="log files that may be left out because they cannot be read; each is left out whole, is named in "
        "the manifest, and can go in later, once mended, with ingest.extends",
    )
    max_time: int | None = Field(
        None, description="latest time allowed, seconds UTC or an ISO date; one day after the run starts by default"
    )
    max_id_bytes: int = Field(256, ge=1, description="longest id or action allowed, bytes of UTF-8")
    num_buckets: int | None = Field(
        None, ge=1, le=2**20, description="history shards; by default one per 16 MiB of log, at least 8"
    )
    users_per_row_group: int = Field(
        2000, ge=1, description="users in one Parquet row group; training ranks share a shard by row groups"
    )
    split: SplitSettings = Field(default_factory=lambda: SplitSettings.model_validate({}), description="the split")

    @field_validator("max_time", mode="before")
    @classmethod
    def _moment(cls, value: Any) -> Any:
        return _moment(value)

    @field_validator("actions_by_weight")
    @classmethod
    def _one_action_each(cls, stated: dict[str, float]) -> dict[str, float]:
        if "" in stated or len(set(stated.values())) < len(stated):
            raise ValueError(f"found {stated}, expected actions with names, each from a weight of its own")
        return stated

    @model_validator(mode="after")
    def _time_split_goes_by_time(self) -> "IngestSettings":
        if self.split.kind == "time" and self.sort != "time":
            raise ValueError("split.kind time needs sort: time, or a history would not be cut by time")
        return self

    @model_validator(mode="after")
    def _what_is_stored_is_enough_to_extend(self) -> "IngestSettings":
        if self.extends is None:
            return self
        if self.items_from is not None:
            raise ValueError("extends keeps the rows of all items already; leave out items_from")
        if self.sort != "time":
            raise ValueError("extends needs sort: time; `order` is not stored, so later events cannot be put among it")
        if self.min_user_events > 1:
            raise ValueError("extends needs min_user_events: 1; events of users that were left out are not stored")
        if self.split.test_share is not None:
            raise ValueError(
                "extends takes no shares, which need the times of all events; state split.test_days and "
                "validation_days, or the moments (the manifest of the dataset has them under split)"
            )
        return self


def _moment(value: Any) -> Any:
    """Seconds UTC of what YAML gave: a number, a date, or text."""
    if isinstance(value, datetime.date):
        return seconds_of(value.isoformat())
    return seconds_of(value) if isinstance(value, str) else value
