"""The simulated catalogue: category tree, births, popularity by day, and which item leads to which.

Letters beside the house's: L leaves, T days, S successors. Items are numbered 0 to V - 1 so that
each leaf is one contiguous range; their external ids come from a random permutation.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.simulate_settings import SimulateSettings

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

# How strongly an item leads to each of its successors; the first is the next of its series.
SUCCESSOR_WEIGHTS_S = np.array([0.6, 0.25, 0.15])

_TOPICS = ("music", "film", "books", "games", "sport", "travel", "food", "garden", "fashion", "science")
_SUBTOPICS = ("classics", "indie", "family", "experts", "seasonal", "regional", "budget", "luxury")
_CATALOGUE_STREAM = 0x0C47


@dataclass(frozen=True)
class World:
    """Everything that is the same for all users."""

    settings: SimulateSettings
    leaf_V: IntArray
    leaf_starts_L1: IntArray  # leaf l is the items leaf_starts_L1[l]:leaf_starts_L1[l + 1]
    leaf_weights_L: FloatArray  # popularity of the leaves, sums to 1
    birth_days_V: IntArray  # day of birth at 00:00 UTC, counted from the log's first; negative = before it
    successors_VS: IntArray
    quality_V: FloatArray  # in [0, 1): how likely a consumer likes or buys it
    external_V: IntArray  # number in the external id
    cumulative_TV1: FloatArray  # [t, v] = t + popularity on day t of all items before v; one rising line over all days

    def item_ids(self) -> pa.Array:
        """External ids by item number."""
        return pa.array([f"i{number:05d}" for number in self.external_V], pa.string())

    def popularity_TV(self, days_B: IntArray) -> FloatArray:
        """Popularity of each item on each given day; a row sums to 1, items not yet born have 0."""
        return np.diff(self.cumulative_TV1[days_B], axis=1)

    def draw(self, days_B: IntArray, leaves_B: IntArray, uniform_B: FloatArray) -> IntArray:
        """Draw an item by popularity on a day, from one leaf, or from the whole catalogue where the leaf is -1."""
        num_items = len(self.leaf_V)
        whole_B = leaves_B < 0
        start_B = np.where(whole_B, 0, self.leaf_starts_L1[leaves_B])
        stop_B = np.where(whole_B, num_items, self.leaf_starts_L1[leaves_B + 1])
        low_B = self.cumulative_TV1[days_B, start_B]
        high_B = self.cumulative_TV1[days_B, stop_B]
        wanted_B = low_B + uniform_B * (high_B - low_B)
        found_B = np.searchsorted(self.cumulative_TV1.ravel(), wanted_B, side="right") - 1 - days_B * (num_items + 1)
        # Rounding may reach the end of the range; each leaf's last item is there from the first day.
        items_B: IntArray = np.clip(found_B, start_B, stop_B - 1)
        return items_B


def build_world(settings: SimulateSettings) -> World:
    """Draw the catalogue. Memory: 8 bytes x days x items, for popularity by day."""
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([settings.seed, _CATALOGUE_STREAM])))
    num_items, num_leaves = settings.num_items, settings.num_leaves
    leaf_V = np.arange(num_items) * num_leaves // num_items
    leaf_starts_L1 = np.searchsorted(leaf_V, np.arange(num_leaves + 1))
    leaf_weights_L: FloatArray = np.power(1.0 + random.permutation(num_leaves), -settings.leaf_exponent)
    leaf_weights_L /= leaf_weights_L.sum()
    rank_V = np.concatenate([1.0 + random.permutation(size) for size in np.diff(leaf_starts_L1)])
    birth_days_V = np.where(
        random.random(num_items) < settings.born_later_share,
        random.integers(1, max(settings.num_days, 2), num_items),
        -random.integers(0, 366, num_items),
    )
    birth_days_V[leaf_starts_L1[1:] - 1] = -365
    return World(
        settings=settings,
        leaf_V=leaf_V,
        leaf_starts_L1=leaf_starts_L1,
        leaf_weights_L=leaf_weights_L,
        birth_days_V=birth_days_V,
        successors_VS=_successors(leaf_starts_L1, random),
        quality_V=random.random(num_items),
        external_V=random.permutation(num_items),
        cumulative_TV1=_cumulative_popularity(
            settings, rank_V**-settings.popularity_exponent, birth_days_V, leaf_starts_L1, leaf_weights_L
        ),
    )


def _cumulative_popularity(
    settings: SimulateSettings,
    lasting_V: FloatArray,
    birth_days_V: IntArray,
    leaf_starts_L1: IntArray,
    leaf_weights_L: FloatArray,
) -> FloatArray:
    """Lasting popularity x youth among the born; births never change a leaf's share of the whole."""
    cumulative_TV1 = np.empty((settings.num_days, settings.num_items + 1))
    leaf_sizes_L = np.diff(leaf_starts_L1)
    for day in range(settings.num_days):
        age_V = day - birth_days_V
        youth_V = 1 + settings.young_boost * np.exp(-np.maximum(age_V, 0) / settings.young_days)
        weight_V = np.where(age_V >= 0, lasting_V * youth_V, 0.0)
        total_L = np.add.reduceat(weight_V, leaf_starts_L1[:-1])
        weight_V *= np.repeat(leaf_weights_L / total_L, leaf_sizes_L)
        cumulative_TV1[day, 0] = day
        cumulative_TV1[day, 1:] = day + np.cumsum(weight_V)
    return cumulative_TV1


def _successors(leaf_starts_L1: IntArray, random: np.random.Generator) -> IntArray:
    """Each item's successors, of its own leaf: the next in a random circle of the leaf, then random ones."""
    rows = []
    for start, stop in itertools.pairwise(leaf_starts_L1):
        size = int(stop - start)
        circle = random.permutation(size)
        next_in_circle = np.empty(size, np.int64)
        next_in_circle[circle] = np.roll(circle, -1)
        # Distances 2 .. size - 1 along the circle: never the item itself, never its first successor.
        place = np.argsort(circle)
        steps = 2 + np.argsort(random.random((size, size - 2)), axis=1)[:, : len(SUCCESSOR_WEIGHTS_S) - 1]
        others = circle[(place[:, None] + steps) % size]
        rows.append(start + np.column_stack([next_in_circle, others]))
    return np.concatenate(rows)


def catalogue_table(world: World) -> pa.Table:
    """The catalogue in the log form, in the order of the external ids, with birth and price as side features."""
    settings = world.settings
    order = np.argsort(world.external_V)
    paths = [_leaf_path(leaf, settings.num_subcategories) for leaf in range(settings.num_leaves)]
    leaves = world.leaf_V[order]
    price = np.round(5 * 4 ** (2 * world.quality_V[order]), 2)
    births = settings.start_seconds + world.birth_days_V[order] * 86_400
    numbers = world.external_V[order]
    return pa.table(
        {
            "item_id": world.item_ids().take(pa.array(order)),
            "categories": pa.array([paths[leaf] for leaf in leaves], pa.list_(pa.string())),
            "title": pa.array(
                [
                    f"{paths[leaf][-1].replace('/', ' ').capitalize()} {n}"
                    for leaf, n in zip(leaves, numbers, strict=True)
                ]
            ),
            "born": pa.array(births, pa.int64()),  # seconds UTC
            "price": pa.array(price, pa.float64()),
        }
    )


def _leaf_path(leaf: int, num_subcategories: int) -> list[str]:
    top, below = divmod(leaf, num_subcategories)
    topic = _TOPICS[top] if top < len(_TOPICS) else f"topic-{top + 1}"
    subtopic = _SUBTOPICS[below] if below < len(_SUBTOPICS) else f"part-{below + 1}"
    return [topic, f"{topic}/{subtopic}"]
