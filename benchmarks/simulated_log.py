"""A log of any size, drawn column by column; `data.simulate` models each user, which costs more.

Requests arrive in time order, a shard holding those of one span of time. A request belongs to a user of log-normal
activity and shows a few items, popular by Zipf's law, seconds apart. Equal arguments give equal files.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ACTIONS = ("click", "like", "purchase", "view")
START_SECONDS, SPAN_SECONDS = 1_700_000_000, 90 * 86_400
_ACTIVITY_SIGMA = 1.5  # of the logarithm: half of the events come from 7% of the users
_EVENTS_PER_REQUEST = 4
_SECONDS_BETWEEN = 20

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LogSize:
    """How large the log is, and the seed of its draws."""

    events: int
    users: int
    items: int
    events_per_shard: int = 1_000_000
    seed: int = 0

    @property
    def name(self) -> str:
        """A directory name that differs where the log does."""
        return f"log-{self.events}-{self.users}-{self.items}-{self.events_per_shard}-{self.seed}"


def write_log(size: LogSize, folder: Path) -> Path:
    """Write the log's Parquet shards, unless they stand there from an earlier run.

    Columns: `user_id`, `item_id`, `timestamp` (seconds UTC), `action`, `request_id`; all but the time are strings.

    Returns:
        The directory of the shards, under `folder`.
    """
    directory = folder / size.name
    if directory.is_dir():
        return directory
    aside = folder / f"{size.name}.partial"
    aside.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(size.seed)
    shares_U = np.exp(_ACTIVITY_SIGMA * random.standard_normal(size.users)).cumsum()
    users, items = _names("u", size.users), _names("i", size.items)
    popularity_I = random.permutation(size.items)  # so that the order of the ids says nothing
    num_shards = -(-size.events // size.events_per_shard)
    span = SPAN_SECONDS // num_shards
    for shard in range(num_shards):
        num_events = min(size.events_per_shard, size.events - shard * size.events_per_shard)
        drawn = np.random.default_rng((size.seed, shard))
        request_E, time_E = _requests(drawn, num_events, START_SECONDS + shard * span, span)
        user_R = np.searchsorted(shares_U, drawn.random(num_events) * shares_U[-1])
        # By the inverse of the distribution function of 1/rank: the logarithm of the rank is uniform.
        item_E = popularity_I[((size.items + 1) ** drawn.random(num_events)).astype(np.int64) - 1]
        columns = {
            "user_id": users.take(pa.array(user_R[request_E])),
            "item_id": items.take(pa.array(item_E)),
            "timestamp": pa.array(time_E),
            "action": pa.array(ACTIONS).take(pa.array(drawn.integers(len(ACTIONS), size=num_events))),
            "request_id": _names("r", num_events, shard * size.events_per_shard).take(pa.array(request_E)),
        }
        pq.write_table(pa.table(columns), aside / f"part-{shard:05d}.parquet")
    aside.rename(directory)
    return directory


def _requests(drawn: np.random.Generator, num_events: int, start: int, span: int) -> tuple[IntArray, IntArray]:
    """Number of the request in the shard, and time in seconds, of every event, in time order."""
    sizes_R = 1 + drawn.poisson(_EVENTS_PER_REQUEST - 1, num_events)
    stops_R = sizes_R.cumsum()
    num_requests = int(np.searchsorted(stops_R, num_events)) + 1
    request_E = np.repeat(np.arange(num_requests), sizes_R[:num_requests])[:num_events]
    opened_R = np.sort(drawn.integers(start, start + span, num_requests))
    place_E = np.arange(num_events) - (stops_R - sizes_R)[request_E]
    time_E = opened_R[request_E] + _SECONDS_BETWEEN * place_E
    order_E = np.argsort(time_E, kind="stable")
    return request_E[order_E], time_E[order_E]


def _names(letter: str, count: int, first: int = 0) -> pa.Array:
    digits = pc.utf8_lpad(pc.cast(pa.array(np.arange(first, first + count)), pa.string()), width=9, padding="0")
    return pc.binary_join_element_wise(pa.scalar(letter), digits, "")
