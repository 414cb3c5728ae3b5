"""When simulated users come: activity, sessions, requests (bursts) and the second of every event.

Nothing here depends on what is consumed, so it is drawn for whole chunks of users at once.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.simulate_settings import SimulateSettings
from data.simulator_random import normals, uniforms
from data.simulator_world import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]

MIN_EVENTS = 5
# Users come within the first half of the log and leave within its last 30%.
LATEST_START_SHARE = 0.5
EARLIEST_END_SHARE = 0.7
_MIN_REQUEST_GAP_SECONDS = 45

# Streams of `simulator_random`, each used here only.
_ACTIVITY, _BORDERS, _FIRST, _LAST, _SHORT_GAP, _SESSION_GAP = 10, 11, 12, 13, 14, 16


@dataclass(frozen=True)
class Timeline:
    """The events of U users laid end to end; user u holds events offsets_U1[u]:offsets_U1[u + 1]."""

    users_U: IntArray
    offsets_U1: IntArray
    times_E: IntArray  # seconds UTC, never falling within a user
    opens_request_E: BoolArray
    opens_session_E: BoolArray
    requests_E: IntArray  # ordinal of the request within the user


def draw_timeline(settings: SimulateSettings, users_U: IntArray) -> Timeline:
    """Draw how many events each user has, their grouping, and their times."""
    seed = settings.seed
    counts_U = _event_counts(settings, uniforms(seed, _ACTIVITY, users_U))
    offsets_U1 = np.concatenate([[0], np.cumsum(counts_U)])
    row_E = np.repeat(np.arange(len(users_U)), counts_U)
    index_E = np.arange(offsets_U1[-1]) - offsets_U1[row_E]
    user_E = users_U[row_E]

    request_E, session_E = (uniforms(seed, _BORDERS, user_E, index_E, border) for border in range(2))
    opens_request_E = (request_E < 1 / settings.events_per_request) | (index_E == 0)
    opens_session_E = opens_request_E & ((session_E < 1 / settings.requests_per_session) | (index_E == 0))

    waiting_E = -np.log1p(-uniforms(seed, _SHORT_GAP, user_E, index_E))
    between_requests_E = _MIN_REQUEST_GAP_SECONDS + waiting_E * (
        settings.request_gap_seconds - _MIN_REQUEST_GAP_SECONDS
    )
    short_E = np.where(opens_request_E, between_requests_E, waiting_E * settings.event_gap_seconds)
    short_E = np.where(opens_session_E, 0.0, np.floor(short_E))
    # Log-normal, so that a user's gaps between sessions run from hours to days.
    long_E = np.where(opens_session_E & (index_E > 0), np.exp(normals(seed, _SESSION_GAP, user_E, index_E)), 0.0)

    first_U = settings.num_days * 86_400 * LATEST_START_SHARE * uniforms(seed, _FIRST, users_U)
    last_U = settings.num_days * 86_400 * (1 - (1 - EARLIEST_END_SHARE) * uniforms(seed, _LAST, users_U))
    free_U = last_U - first_U - np.add.reduceat(short_E, offsets_U1[:-1])
    scale_U = free_U / np.maximum(np.add.reduceat(long_E, offsets_U1[:-1]), 1e-9)
    gap_E = np.floor(short_E + long_E * scale_U[row_E])
    gap_E[offsets_U1[:-1]] = np.floor(first_U)
    total_E = np.cumsum(gap_E.astype(np.int64))
    before_U = np.concatenate([[0], total_E])[offsets_U1[:-1]]
    request_count_E = np.cumsum(opens_request_E)
    return Timeline(
        users_U=users_U,
        offsets_U1=offsets_U1,
        times_E=settings.start_seconds + total_E - before_U[row_E],
        opens_request_E=opens_request_E,
        opens_session_E=opens_session_E,
        requests_E=request_count_E - request_count_E[offsets_U1[:-1]][row_E],
    )


def _event_counts(settings: SimulateSettings, uniform_U: FloatArray) -> IntArray:
    """Pareto counts cut off at `max_events_per_user`, with the mean asked for."""
    exponent, most = settings.activity_exponent, float(settings.max_events_per_user)
    low, high = 1.0, most
    for _ in range(60):  # bisection for the scale: the mean of the cut-off law has no inverse in closed form
        scale = (low + high) / 2
        mean = (exponent * scale - scale**exponent * most ** (1 - exponent)) / (exponent - 1)
        low, high = (scale, high) if mean < settings.events_per_user else (low, scale)
    counts_U = np.minimum(low * (1 - uniform_U) ** (-1 / exponent), most)
    return np.maximum(np.rint(counts_U), MIN_EVENTS).astype(np.int64)
