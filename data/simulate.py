"""`farsight simulate`: write the simulator's log directory.

    events/part-*.parquet   the log, sharded by time, users interleaved
    catalogue.parquet       items with category paths, title, birth (`born`, seconds UTC) and price
    oracle.parquet          rankings of the generating process: `user_id`, `split`, `item_ids`, likeliest first
    manifest.json

Users are simulated in chunks and their events set aside by time span; each span is then sorted and
written as one shard. Memory is bounded by a chunk and by the largest shard.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.progress import counter, progress
from data.schema import LOG_SCHEMA
from data.settings import Recipe, read_section
from data.simulate_settings import SimulateSettings
from data.simulator import ACTIONS, SimulatedEvents, simulate_users
from data.simulator_oracle import oracle_rankings
from data.simulator_world import World, build_world, catalogue_table
from data.storage import MANIFEST, directory_hashes, published_directory, write_json

LOG_KIND = "log"
LOG_FORMAT_VERSION = 1
EVENTS_FOLDER = "events"
CATALOGUE_FILE = "catalogue.parquet"
ORACLE_FILE = "oracle.parquet"
ORACLE_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("item_ids", pa.list_(pa.string()), nullable=False),
    ]
)
# By how many events follow it in its user's history.
_SPLITS = ("test", "validation")

MAX_USERS_PER_CHUNK = 2048
# A chunk marks which items each user knows: one byte per user and item, three times over.
_KNOWN_CELLS_PER_CHUNK = 128_000_000

# An event set aside; plain numbers until its shard is written.
_SPILLED = np.dtype(
    [("time", "<i8"), ("user", "<i8"), ("order", "<i4"), ("item", "<i4"), ("request", "<i4"), ("action", "<i4")]
)

logger = logging.getLogger(__name__)


def run(recipe: Recipe, out: str | Path) -> dict[str, Any]:
    """Simulate a log as section `simulate` of the recipe says and write it to the directory `out`.

    Returns:
        JSON-able summary: the directory and the manifest's counts.

    Raises:
        RecipeError: a setting is wrong.
        FarsightError: `out` exists.
    """
    settings = read_section(recipe, "simulate", SimulateSettings)
    with published_directory(out) as directory:
        counts = write_log(settings, directory)
    logger.info("wrote %s: %d events of %d users", out, counts["events"], settings.num_users)
    return {"directory": str(out), **counts}


def write_log(settings: SimulateSettings, directory: Path) -> dict[str, int]:
    """Simulate a log into an existing directory; returns the manifest's counts."""
    world = build_world(settings)
    pq.write_table(catalogue_table(world), directory / CATALOGUE_FILE)
    spill = directory / "spill"
    spill.mkdir()
    num_requests = _simulate(world, spill, directory / ORACLE_FILE)
    num_events, num_shards = _write_shards(world, spill, directory / EVENTS_FOLDER)
    spill.rmdir()
    counts = {
        "users": settings.num_users,
        "items": settings.num_items,
        "events": num_events,
        "requests": num_requests,
        "shards": num_shards,
    }
    write_log_manifest(directory, settings, counts)
    return counts


def write_log_manifest(directory: Path, settings: SimulateSettings, counts: dict[str, int]) -> None:
    """Write the manifest of a log whose files stand."""
    manifest = {
        "kind": LOG_KIND,
        "format_version": LOG_FORMAT_VERSION,
        "source": "simulator",
        "timestamp_unit": "seconds",
        "counts": counts,
        "settings": settings.model_dump(mode="json"),
        "hashes": directory_hashes(directory),
    }
    write_json(directory / MANIFEST, manifest)


def _simulate(world: World, spill: Path, oracle_path: Path) -> int:
    """Set all events aside under `spill`, write the oracle's rankings; returns the number of requests."""
    settings = world.settings
    chunk = max(1, min(MAX_USERS_PER_CHUNK, _KNOWN_CELLS_PER_CHUNK // settings.num_items))
    num_requests = 0
    with (
        pq.ParquetWriter(oracle_path, ORACLE_SCHEMA) as oracle,
        counter(doing="simulate", unit="user", total=settings.num_users) as bar,
    ):
        for start in range(0, settings.num_users, chunk):
            users_U = np.arange(start, min(start + chunk, settings.num_users))
            num_watched = len(_SPLITS) if start < settings.oracle_users else 0
            simulated = simulate_users(world, users_U, num_watched=num_watched)
            num_requests += int(simulated.timeline.opens_request_E.sum())
            _set_aside(world, simulated, spill)
            if num_watched:
                oracle.write_table(_oracle_table(world, simulated))
            bar.update(len(users_U))
    return num_requests


def _set_aside(world: World, simulated: SimulatedEvents, spill: Path) -> None:
    settings, timeline = world.settings, simulated.timeline
    counts_U = np.diff(timeline.offsets_U1)
    events = np.empty(len(timeline.times_E), _SPILLED)
    events["time"] = timeline.times_E
    events["user"] = np.repeat(timeline.users_U, counts_U)
    events["order"] = np.arange(len(events)) - np.repeat(timeline.offsets_U1[:-1], counts_U)
    events["item"] = simulated.items_E
    events["request"] = timeline.requests_E
    events["action"] = simulated.actions_E
    shard_E = (timeline.times_E - settings.start_seconds) * settings.num_shards // (settings.num_days * 86_400)
    by_shard = np.argsort(shard_E, kind="stable")
    borders = np.searchsorted(shard_E[by_shard], np.arange(settings.num_shards + 1))
    for shard in np.unique(shard_E):
        with (spill / f"{shard:05d}").open("ab") as file:
            file.write(events[by_shard[borders[shard] : borders[shard + 1]]].tobytes())


def _write_shards(world: World, spill: Path, directory: Path) -> tuple[int, int]:
    """Sort and write each time span, its spilled file removed; returns the numbers of events and shards."""
    directory.mkdir()
    item_ids = world.item_ids()
    num_events = 0
    paths = sorted(spill.iterdir())
    for shard, path in enumerate(progress(paths, doing="write shards", unit="shard")):
        events = np.fromfile(path, _SPILLED)
        events = events[np.lexsort((events["order"], events["user"], events["time"]))]
        pq.write_table(_log_table(events, item_ids), directory / f"part-{shard:05d}.parquet")
        num_events += len(events)
        path.unlink()
    return num_events, len(paths)


def _log_table(events: npt.NDArray[Any], item_ids: pa.Array) -> pa.Table:
    user_ids = _user_ids(events["user"])
    columns = [
        user_ids,
        item_ids.take(pa.array(events["item"])),
        pa.array(events["time"]),
        pa.array(ACTIONS).take(pa.array(events["action"])),
        pc.binary_join_element_wise(user_ids, pc.cast(pa.array(events["request"]), pa.string()), "-"),
        pa.array(np.ones(len(events), np.float32)),
        pa.array(events["order"].astype(np.int64)),
    ]
    return pa.table(columns, schema=LOG_SCHEMA)


def _oracle_table(world: World, simulated: SimulatedEvents) -> pa.Table:
    rows = np.flatnonzero(simulated.moments.users_B < world.settings.oracle_users)
    rows = rows[np.lexsort((-simulated.watched_M[rows], simulated.moments.users_B[rows]))]
    items, offsets = oracle_rankings(world, simulated.moments.take(rows), num_items=world.settings.oracle_items)
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), world.item_ids().take(pa.array(items)))
    splits = pa.array(_SPLITS).take(pa.array(simulated.watched_M[rows]))
    return pa.table([_user_ids(simulated.moments.users_B[rows]), splits, lists], schema=ORACLE_SCHEMA)


def _user_ids(users: npt.NDArray[np.int64]) -> pa.Array:
    digits = pc.utf8_lpad(pc.cast(pa.array(users), pa.string()), width=6, padding="0")
    return pc.binary_join_element_wise(pa.scalar("u"), digits, "")
