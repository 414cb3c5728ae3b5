"""Popularity, novelty, variety and reach of lists against plain Python."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.beyond_accuracy import (
    BUCKETS,
    DIVERSITY_PLACES,
    ItemCategories,
    category_diversity,
    events_of_more_popular,
    head_items,
    hits_ahead,
    in_history,
    item_novelty,
    means_at,
    popularity_buckets,
)
from modeling.metrics import MISSED

counts = st.lists(st.integers(0, 6), min_size=1, max_size=12).map(lambda events: [0, *events])


def by_popularity(events: list[int]) -> list[int]:
    """Rows with training events, the most popular first."""
    return sorted((row for row in range(len(events)) if events[row]), key=lambda row: (-events[row], row))


def plain_head(events: list[int]) -> set[int]:
    """Take items until half of the events are held."""
    head: set[int] = set()
    for row in by_popularity(events):
        if 2 * sum(events[each] for each in head) >= sum(events):
            break
        head.add(row)
    return head


def plain_bucket(events: list[int], row: int) -> str:
    """Lay the events end to end and look where the item's first one lies."""
    if not events[row]:
        return "cold"
    first = [each for each in by_popularity(events) for _ in range(events[each])].index(row)
    return ["head", "middle", "tail"][3 * first // sum(events)]


def plain_diversity(rows: list[int], categories: list[set[int]]) -> float:
    """Mean over all pairs of items with categories."""
    sets = [categories[row] for row in rows if categories[row]]
    pairs = [1 - len(one & other) / len(one | other) for one, other in combinations(sets, 2)]
    return math.nan if not sets else sum(pairs) / len(pairs) if pairs else 0.0


def item_categories(categories: list[set[int]]) -> ItemCategories:
    ends = torch.tensor([len(each) for each in categories]).cumsum(0)
    codes = torch.tensor([code for each in categories for code in sorted(each)], dtype=torch.long)
    return ItemCategories(codes, torch.cat([torch.zeros(1, dtype=torch.long), ends]))


@given(counts)
def test_head_and_buckets_are_what_filling_them_item_by_item_gives(events: list[int]) -> None:
    table = torch.tensor(events)
    assert set(head_items(table).nonzero().flatten().tolist()) == plain_head(events)
    found = [BUCKETS[code] for code in popularity_buckets(table).tolist()]
    assert found == [plain_bucket(events, row) for row in range(len(events))]


def test_head_and_buckets_of_a_table_computed_by_hand() -> None:
    events = torch.tensor([0, 6, 1, 0, 3, 3, 1, 1])  # fifteen events; ties by row: 1, 4, 5, 2, 6, 7
    assert events_of_more_popular(events).tolist() == [15, 0, 12, 15, 6, 9, 13, 14]
    assert head_items(events).nonzero().flatten().tolist() == [1, 4]
    names = [BUCKETS[code] for code in popularity_buckets(events).tolist()]
    assert names == ["cold", "head", "tail", "cold", "middle", "middle", "tail", "tail"]


def test_without_training_events_nothing_is_head_and_everything_cold() -> None:
    assert not head_items(torch.zeros(3, dtype=torch.long)).any()
    assert popularity_buckets(torch.zeros(3, dtype=torch.long)).tolist() == [0, 0, 0]


def test_novelty_is_bits_and_an_unseen_item_counts_as_one_event() -> None:
    novelty = item_novelty(torch.tensor([0, 8, 4, 1, 0]), 8)
    assert novelty.tolist() == [3, 0, 1, 3, 3]


@settings(max_examples=150)
@given(st.data())
def test_diversity_is_the_mean_over_all_pairs_of_items_with_categories(data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(2, 9))
    sets = st.sets(st.integers(0, 4), max_size=3)
    categories = [set(), *(data.draw(sets) for _ in range(num_rows - 1))]
    places = data.draw(st.integers(1, 6))
    row = st.integers(0, num_rows - 1)
    lists = data.draw(st.lists(st.lists(row, min_size=places, max_size=places), min_size=1, max_size=3))
    found = category_diversity(torch.tensor(lists), item_categories(categories), [1, 3, 100])
    assert set(found) == {1, 3, DIVERSITY_PLACES}
    for k, values in found.items():
        expected = [plain_diversity(rows[:k], categories) for rows in lists]
        assert values.tolist() == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_diversity_of_many_lists_is_that_of_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    lists = torch.randint(0, 30, (150, 60), generator=generator)
    categories = [set(), *({row % 3, row % 5 + 3} for row in range(1, 30))]
    whole = category_diversity(lists, item_categories(categories), [50])[50]
    for query in (0, 63, 64, 149):
        expected = plain_diversity(lists[query, :50].tolist(), categories)
        assert whole[query].item() == pytest.approx(expected, abs=1e-9)


@given(st.data())
def test_means_count_the_shown_places_alone(data: st.DataObject) -> None:
    places = data.draw(st.integers(1, 6))
    shown = data.draw(st.lists(st.booleans(), min_size=places, max_size=places))
    values = data.draw(st.lists(st.floats(-9, 9), min_size=places, max_size=places))
    found = means_at(torch.tensor([values]).double(), torch.tensor([shown]), [1, 3, 20])
    for k in (1, 3, 20):
        counted = [value for value, one in zip(values[:k], shown[:k], strict=True) if one]
        expected = sum(counted) / len(counted) if counted else math.nan
        assert found[k].item() == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_a_recommended_item_of_the_history_is_a_repeat_and_padding_is_not() -> None:
    top = torch.tensor([[3, 1, 0], [2, 3, 0]])
    found = in_history(top, [torch.tensor([1, 1, 2]), torch.tensor([], dtype=torch.long)], 5)
    assert found.tolist() == [[False, True, False], [False, False, False]]


def test_a_step_ahead_without_an_event_is_left_out_and_a_barred_one_is_a_miss() -> None:
    found = hits_ahead(torch.tensor([[0, 10, MISSED, -1]]), 10)
    assert found[0, :3].tolist() == [1, 0, 0]
    assert math.isnan(found[0, 3])
