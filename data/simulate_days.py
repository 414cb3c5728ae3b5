"""`farsight simulate --days N`: a simulated log as days of it would have arrived, a log directory for each.

    OUT/YYYY-MM-DD/events/part-*.parquet   the events of that day (UTC); of the first one also all that were before
    OUT/YYYY-MM-DD/catalogue.parquet       the items that were born by the end of the day
    OUT/YYYY-MM-DD/manifest.json           as of any log

The days are the last before users begin to leave (`data.simulator_time`), so that they are as busy as real ones; what
comes after them is not written. Otherwise the events are those of `farsight simulate` with the same settings.
"""

import datetime
import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.errors import RecipeError
from data.settings import Recipe, read_section
from data.simulate import CATALOGUE_FILE, EVENTS_FOLDER, write_log, write_log_manifest
from data.simulate_settings import SimulateSettings
from data.simulator_time import EARLIEST_END_SHARE
from data.storage import published_directory

_DAY_SECONDS = 86_400

logger = logging.getLogger(__name__)


def run(recipe: Recipe, out: str | Path, days: int) -> dict[str, Any]:
    """Simulate a log as section `simulate` of the recipe says and write days of it apart.

    Args:
        out: directory to write; a log directory for each day lies in it.
        days: at least 1; the first also holds all events before it.

    Returns:
        JSON-able summary: the directory, and the events of each day.

    Raises:
        RecipeError: a setting is wrong, or the log has fewer days.
        FarsightError: `out` exists.
    """
    settings = read_section(recipe, "simulate", SimulateSettings)
    busy = int(settings.num_days * EARLIEST_END_SHARE)
    if not 1 <= days <= busy:
        raise RecipeError(
            f"--days {days}: expected 1 to {busy}, the days before users begin to leave; raise simulate.num_days"
        )
    with published_directory(out) as directory:
        whole = directory / "whole"
        whole.mkdir()
        write_log(settings, whole)
        begin = settings.end_date - datetime.timedelta(days=settings.num_days)
        dates = [begin + datetime.timedelta(days=busy - back) for back in range(days, 0, -1)]
        events = {date.isoformat(): _write_day(whole, directory, date, dates[0], settings) for date in dates}
        shutil.rmtree(whole)
    logger.info("wrote %s: %d events in logs of %d days", out, sum(events.values()), days)
    return {"directory": str(out), "days": events}


def _write_day(
    whole: Path, directory: Path, date: datetime.date, first: datetime.date, settings: SimulateSettings
) -> int:
    """Write the log of one day; returns its number of events."""
    stop = (date - datetime.date(1970, 1, 1)).days * _DAY_SECONDS + _DAY_SECONDS
    start = 0 if date == first else stop - _DAY_SECONDS
    log = directory / date.isoformat()
    (log / EVENTS_FOLDER).mkdir(parents=True)
    counts = {"events": 0, "shards": 0}
    users: set[str] = set()
    for shard in sorted((whole / EVENTS_FOLDER).iterdir()):
        table = pq.read_table(shard, filters=(pc.field("timestamp") >= start) & (pc.field("timestamp") < stop))
        if len(table):
            pq.write_table(table, log / EVENTS_FOLDER / f"part-{counts['shards']:05d}.parquet")
            counts["shards"] += 1
            counts["events"] += len(table)
            users.update(table.column("user_id").unique().to_pylist())
    born = pq.read_table(whole / CATALOGUE_FILE, filters=pc.field("born") < stop)
    pq.write_table(born, log / CATALOGUE_FILE)
    write_log_manifest(log, settings, {"users": len(users), "items": len(born), **counts})
    return counts["events"]
