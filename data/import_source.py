"""What an importer needs to know of the event files of a source."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from data.log_files import TextFormat
from data.log_time import TimeUnit


@dataclass(frozen=True)
class EventSource:
    """Where the events are and how to read them."""

    location: str
    columns: Mapping[str, str | None]  # our name -> the file's
    unit: TimeUnit
    text: TextFormat = field(default_factory=TextFormat)
