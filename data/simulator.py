"""What simulated users do: a generating process whose next-event distribution is known exactly.

Each user holds a few interests (leaves of the category tree) with weights. A session drifts the
weights and at times replaces an interest; a request picks one interest as its focus. An event then is

- with `repeat_probability` one of the user's last `NUM_RECENT` events again, the nearer the likelier;
- with `explore_probability` an item by popularity of the day, from the whole catalogue;
- otherwise of the focus: with `successor_probability` a successor of the user's last two items in
  that leaf, else an item of the leaf by popularity of the day. A successor that is unborn or known
  to the user, or a leaf without last items, gives way to the leaf's popularity.

Draws by popularity that hit an item the user knows are repeated, `NUM_ATTEMPTS` draws at most.
`data.simulator_oracle` computes the distribution of this process.

Letters beside the house's: U users, I interests, A last items of an interest (anchors), R recent
events, S successors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from data.simulator_random import normals, uniforms
from data.simulator_time import BoolArray, Timeline, draw_timeline
from data.simulator_world import SUCCESSOR_WEIGHTS_S, FloatArray, IntArray, World

ACTIONS = ("click", "like", "buy")
NUM_ATTEMPTS = 8
NUM_RECENT = 8
NUM_ANCHORS = 2
RECENT_WEIGHTS_R = 0.7 ** np.arange(NUM_RECENT)
# The chance of each (anchor, successor) pair; the last item leads more strongly than the one before.
CANDIDATE_WEIGHTS_C = np.outer([0.8, 0.2], SUCCESSOR_WEIGHTS_S).ravel()
# Pulls the log-weights back, so that drifting interests do not freeze at one extreme.
WEIGHT_PERSISTENCE = 0.95
UNKNOWN = -1

# Streams of `simulator_random`, each used here only.
_INTERESTS, _WEIGHTS, _DRIFT, _TURNOVER, _EVENT = 20, 21, 23, 25, 26
# Columns of one event's uniforms.
_FOCUS, _KIND, _RECENT, _SUCCESSOR, _ACTION, _DRAWS = 0, 1, 2, 3, 4, 5


@dataclass
class Moments:
    """The latent state of B users, each at the moment before one event."""

    users_B: IntArray
    days_B: IntArray  # day of the event, counted from the log's first
    interests_BI: IntArray  # leaves
    log_weights_BI: FloatArray  # an interest's chance to be the focus of a request is the softmax of these
    focus_B: IntArray  # interest slot of the request in progress; UNKNOWN where the event opens a request
    anchors_BIA: IntArray  # last items in each interest's leaf, newest first; UNKNOWN where there is none
    recent_BR: IntArray  # items of the last events, newest first; UNKNOWN where there is none
    known_BV: BoolArray  # items the user has consumed

    def take(self, rows: IntArray | slice) -> "Moments":
        """The moments at these rows."""
        return Moments(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.users_B)


@dataclass(frozen=True)
class SimulatedEvents:
    """What U users did, and the latent states before their last events."""

    timeline: Timeline
    items_E: IntArray
    actions_E: IntArray  # position in ACTIONS
    # One per watched event: `watched_M` counts from a user's end (0 = last), `watched_items_M` is what came.
    moments: Moments
    watched_M: IntArray
    watched_items_M: IntArray


def simulate_users(world: World, users_U: IntArray, *, num_watched: int = 0) -> SimulatedEvents:
    """Simulate whole users; the result for a user does not depend on who is simulated beside them.

    Args:
        users_U: distinct non-negative user numbers.
        num_watched: of how many last events of each user the latent state is kept.
    """
    timeline = draw_timeline(world.settings, users_U)
    counts_U = np.diff(timeline.offsets_U1)
    # Most active first: the users who still have an event at step t are then a prefix.
    order_U = np.argsort(-counts_U, kind="stable")
    first_event_U = timeline.offsets_U1[:-1][order_U]
    sorted_counts_U = counts_U[order_U]
    num_active_T = np.searchsorted(-sorted_counts_U, -np.arange(1, sorted_counts_U[0] + 1), side="right")
    state = _first_state(world, users_U[order_U])
    items_E = np.zeros(len(timeline.times_E), np.int64)
    uniforms_ED = _event_uniforms(world, timeline)
    watched: list[tuple[Moments, IntArray, IntArray]] = []
    for step, num_active in enumerate(num_active_T):
        now = state.take(slice(0, num_active))  # views: changes reach `state`
        event_B = first_event_U[:num_active] + step
        now.days_B[:] = (timeline.times_E[event_B] - world.settings.start_seconds) // 86_400
        _open_sessions(world, now, np.flatnonzero(timeline.opens_session_E[event_B]), step)
        opens_B = timeline.opens_request_E[event_B]
        now.focus_B[opens_B] = UNKNOWN
        left_B = sorted_counts_U[:num_active] - step - 1
        rows = np.flatnonzero(left_B < num_watched)
        before = now.take(rows)
        _choose_focus(now, np.flatnonzero(opens_B), uniforms_ED[event_B, _FOCUS])
        items_B = _draw_items(world, now, uniforms_ED[event_B])
        _remember(world, now, items_B)
        items_E[event_B] = items_B
        if len(rows):
            watched.append((before, left_B[rows], items_B[rows]))
    return SimulatedEvents(
        timeline=timeline,
        items_E=items_E,
        actions_E=_actions(world, items_E, uniforms_ED[:, _ACTION]),
        moments=_joined([moments for moments, _, _ in watched]) if watched else state.take(slice(0, 0)),
        watched_M=np.concatenate([left for _, left, _ in watched]) if watched else np.zeros(0, np.int64),
        watched_items_M=np.concatenate([items for _, _, items in watched]) if watched else np.zeros(0, np.int64),
    )


def _first_state(world: World, users_B: IntArray) -> Moments:
    settings = world.settings
    num_users, num_interests = len(users_B), settings.interests_per_user
    # Gumbel top-k: distinct leaves, the popular ones likelier.
    gumbel_BL = -np.log(
        -np.log1p(-uniforms(settings.seed, _INTERESTS, users_B[:, None], np.arange(settings.num_leaves)))
    )
    interests_BI = np.argsort(-(gumbel_BL + np.log(world.leaf_weights_L)), axis=1)[:, :num_interests]
    return Moments(
        users_B=users_B,
        days_B=np.zeros(num_users, np.int64),
        interests_BI=interests_BI.copy(),
        log_weights_BI=normals(settings.seed, _WEIGHTS, users_B[:, None], np.arange(num_interests)),
        focus_B=np.full(num_users, UNKNOWN),
        anchors_BIA=np.full((num_users, num_interests, NUM_ANCHORS), UNKNOWN),
        recent_BR=np.full((num_users, NUM_RECENT), UNKNOWN),
        known_BV=np.zeros((num_users, settings.num_items), np.bool_),
    )


def _event_uniforms(world: World, timeline: Timeline) -> FloatArray:
    counts_U = np.diff(timeline.offsets_U1)
    user_E = np.repeat(timeline.users_U, counts_U)
    index_E = np.arange(len(user_E)) - np.repeat(timeline.offsets_U1[:-1], counts_U)
    columns = np.arange(_DRAWS + NUM_ATTEMPTS)
    return uniforms(world.settings.seed, _EVENT, user_E[:, None], index_E[:, None], columns)


def _open_sessions(world: World, now: Moments, rows: IntArray, step: int) -> None:
    """Drift the weights of users who come back; at times replace one interest. Changes `now`."""
    settings = world.settings
    if step == 0 or len(rows) == 0:
        return
    users = now.users_B[rows]
    slots = np.arange(settings.interests_per_user)
    noise = normals(settings.seed, _DRIFT, users[:, None], step, slots)
    now.log_weights_BI[rows] = WEIGHT_PERSISTENCE * now.log_weights_BI[rows] + settings.interest_drift * noise
    chance, place, which = (uniforms(settings.seed, _TURNOVER, users, step, draw) for draw in range(3))
    leaves = np.searchsorted(np.cumsum(world.leaf_weights_L)[:-1], which, side="right")
    # A leaf that the user already holds would not be a new interest.
    replaced = (chance < settings.interest_turnover) & ~(now.interests_BI[rows] == leaves[:, None]).any(axis=1)
    rows, dying = rows[replaced], (place[replaced] * settings.interests_per_user).astype(np.int64)
    now.interests_BI[rows, dying] = leaves[replaced]
    now.log_weights_BI[rows, dying] = 1.0  # a young interest is a strong one
    now.anchors_BIA[rows, dying] = UNKNOWN


def focus_probabilities(now: Moments) -> FloatArray:
    """The chance of each interest to be the focus: settled within a request, by weight where one opens."""
    weights_BI: FloatArray = np.exp(now.log_weights_BI - now.log_weights_BI.max(axis=1, keepdims=True))
    weights_BI /= weights_BI.sum(axis=1, keepdims=True)
    settled_B = now.focus_B != UNKNOWN
    weights_BI[settled_B] = np.eye(weights_BI.shape[1])[now.focus_B[settled_B]]
    return weights_BI


def _choose_focus(now: Moments, rows: IntArray, uniform_B: FloatArray) -> None:
    cumulative_BI = np.cumsum(focus_probabilities(now.take(rows)), axis=1)[:, :-1]
    now.focus_B[rows] = (cumulative_BI <= uniform_B[rows, None]).sum(axis=1)


def candidates(world: World, now: Moments, anchors_BA: IntArray) -> tuple[IntArray, FloatArray]:
    """Successors of the anchors (C = A x S of them) and each one's chance; 0 where unborn, known or without anchor."""
    items_BC = world.successors_VS[anchors_BA].reshape(len(now), -1)
    there_BC = np.repeat(anchors_BA != UNKNOWN, len(SUCCESSOR_WEIGHTS_S), axis=1)
    born_BC = world.birth_days_V[items_BC] <= now.days_B[:, None]
    known_BC = np.take_along_axis(now.known_BV, items_BC, axis=1)
    return items_BC, CANDIDATE_WEIGHTS_C * (there_BC & born_BC & ~known_BC)


def _draw_items(world: World, now: Moments, uniforms_BD: FloatArray) -> IntArray:
    settings = world.settings
    rows = np.arange(len(now))
    kind_B = uniforms_BD[:, _KIND]
    repeats_B = (kind_B < settings.repeat_probability) & (now.recent_BR[:, 0] != UNKNOWN)
    explores_B = ~repeats_B & (kind_B >= 1 - settings.explore_probability)

    items_BC, chance_BC = candidates(world, now, now.anchors_BIA[rows, now.focus_B])
    cumulative_BC = np.cumsum(chance_BC, axis=1) * settings.successor_probability
    which_B = (cumulative_BC <= uniforms_BD[:, _SUCCESSOR, None]).sum(axis=1)
    follows_B = (which_B < items_BC.shape[1]) & ~explores_B
    successor_B = items_BC[rows, np.minimum(which_B, items_BC.shape[1] - 1)]

    weight_BR = np.cumsum(RECENT_WEIGHTS_R * (now.recent_BR != UNKNOWN), axis=1)
    wanted_B1 = uniforms_BD[:, _RECENT, None] * weight_BR[:, -1:]
    recent_B = now.recent_BR[rows, np.minimum((weight_BR <= wanted_B1).sum(axis=1), NUM_RECENT - 1)]

    leaves_B = np.where(explores_B, UNKNOWN, now.interests_BI[rows, now.focus_B])
    drawn_B = world.draw(now.days_B, leaves_B, uniforms_BD[:, _DRAWS])
    for attempt in range(1, NUM_ATTEMPTS):
        again = np.flatnonzero(now.known_BV[rows, drawn_B])
        drawn_B[again] = world.draw(now.days_B[again], leaves_B[again], uniforms_BD[again, _DRAWS + attempt])
    return np.where(repeats_B, recent_B, np.where(follows_B, successor_B, drawn_B))


def _remember(world: World, now: Moments, items_B: IntArray) -> None:
    """The event becomes history: recent items, known items, anchors of the interests in its leaf. Changes `now`."""
    now.recent_BR[:, 1:] = now.recent_BR[:, :-1].copy()
    now.recent_BR[:, 0] = items_B
    now.known_BV[np.arange(len(now)), items_B] = True
    rows, slots = np.nonzero(now.interests_BI == world.leaf_V[items_B][:, None])
    now.anchors_BIA[rows, slots, 1:] = now.anchors_BIA[rows, slots, :-1]
    now.anchors_BIA[rows, slots, 0] = items_B[rows]


def _actions(world: World, items_E: IntArray, uniform_E: FloatArray) -> IntArray:
    """Of good items, up to 12% of the events are purchases and up to 24% likes."""
    quality_E = world.quality_V[items_E]
    return (uniform_E < 0.36 * quality_E).astype(np.int64) + (uniform_E < 0.12 * quality_E)


def _joined(parts: Sequence[Moments]) -> Moments:
    return Moments(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Moments)))
