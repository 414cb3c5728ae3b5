"""The simulator's oracle: the exact distribution of the next event, given the latent state before it.

The oracle knows what no log shows: the interests and their weights after the session's drift, the
focus of the request in progress, the successors, popularity by day. Where an event opens a request
its focus is not yet drawn, and the oracle sums over the interests. No model that sees only the log
can rank better in expectation, and since the latent state is never fully visible in a log, the
bound is not reached.
"""

import numpy as np

from data.simulator import (
    NUM_ATTEMPTS,
    RECENT_WEIGHTS_R,
    UNKNOWN,
    Moments,
    candidates,
    focus_probabilities,
)
from data.simulator_time import BoolArray
from data.simulator_world import FloatArray, IntArray, World


def next_event_probabilities(world: World, moments: Moments) -> FloatArray:
    """Probability of every item (B x V) to be the next event; rows sum to 1. Nothing the user knows is removed."""
    settings = world.settings
    popularity_BV = world.popularity_TV(moments.days_B)
    rows_B1 = np.arange(len(moments))[:, None]
    total_BV = np.zeros_like(popularity_BV)

    has_history_B = moments.recent_BR[:, 0] != UNKNOWN
    recent_BR = RECENT_WEIGHTS_R * (moments.recent_BR != UNKNOWN)
    recent_BR /= np.maximum(recent_BR.sum(axis=1, keepdims=True), 1e-300)
    repeat_B = settings.repeat_probability * has_history_B
    np.add.at(total_BV, (rows_B1, moments.recent_BR), repeat_B[:, None] * recent_BR)

    total_BV += settings.explore_probability * _novel(popularity_BV, moments)
    interest_B = 1 - repeat_B - settings.explore_probability
    for slot, focus_B in enumerate(focus_probabilities(moments).T):
        share_B = interest_B * focus_B
        items_BC, chance_BC = candidates(world, moments, moments.anchors_BIA[:, slot])
        chance_BC = chance_BC * settings.successor_probability
        np.add.at(total_BV, (rows_B1, items_BC), share_B[:, None] * chance_BC)
        leaf_BV = popularity_BV * (world.leaf_V == moments.interests_BI[:, slot, None])
        leaf_BV /= leaf_BV.sum(axis=1, keepdims=True)
        total_BV += (share_B * (1 - chance_BC.sum(axis=1)))[:, None] * _novel(leaf_BV, moments)
    return total_BV


def _novel(chance_BV: FloatArray, moments: Moments) -> FloatArray:
    """The distribution after redrawing known items: all draws but the last accept only what is new."""
    known_B1 = (chance_BV * moments.known_BV).sum(axis=1, keepdims=True)
    redrawn_B1 = sum((known_B1**attempt for attempt in range(NUM_ATTEMPTS - 1)), np.zeros_like(known_B1))
    novel_BV: FloatArray = chance_BV * (redrawn_B1 * ~moments.known_BV + known_B1 ** (NUM_ATTEMPTS - 1))
    return novel_BV


def oracle_rankings(
    world: World, moments: Moments, *, num_items: int, cells_per_block: int = 4_000_000
) -> tuple[IntArray, IntArray]:
    """The likeliest items of each moment, likeliest first, ties by item number.

    Each ranking goes on until it holds `num_items` items that the user does not know, so it serves
    evaluation with seen items removed and with seen items kept.

    Returns:
        Rankings laid end to end and their offsets (B + 1). Memory: about 50 bytes x `cells_per_block`.
    """
    block = max(1, cells_per_block // world.settings.num_items)
    rankings, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(moments), block):
        now = moments.take(slice(start, start + block))
        most = min(num_items + int(now.known_BV.sum(axis=1).max()), world.settings.num_items)
        probability_BV = next_event_probabilities(world, now)
        top_BK = np.argpartition(-probability_BV, most - 1, axis=1)[:, :most]
        top_BK.sort(axis=1)
        order_BK = np.argsort(-np.take_along_axis(probability_BV, top_BK, axis=1), axis=1, kind="stable")
        top_BK = np.take_along_axis(top_BK, order_BK, axis=1)
        novel_BK: BoolArray = ~np.take_along_axis(now.known_BV, top_BK, axis=1)
        kept_BK: BoolArray = np.less(np.cumsum(novel_BK, axis=1) - novel_BK, num_items)
        rankings.append(top_BK[kept_BK])
        lengths.append(kept_BK.sum(axis=1))
    return np.concatenate(rankings), np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
