"""Every figure beside accuracy against a plain program that sorts the catalogue and counts."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from data.cases import Cases
from modeling.beyond_accuracy import BUCKETS, head_items, item_novelty, popularity_buckets
from tests.small_world import write_dataset
from tests.test_modeling_beyond_accuracy import item_categories, plain_bucket, plain_diversity, plain_head
from trainer.evaluation import evaluate_cases
from trainer.observers import (
    BeyondAccuracy,
    CaseCounts,
    CatalogueFacts,
    Means,
    UserMetrics,
    users_with_training,
)
from trainer.observers import item_categories as read_categories

NUM_ITEMS, NUM_USERS, HORIZON = 14, 25, 5
KS = (3, 1, 8, 60)  # the first is the one of the horizon; the last is longer than the catalogue
Figures = dict[str, list[float]]


class World:
    """Random users, items and scores; few distinct values, so that ties are common."""

    def __init__(self, seed: int, shown: int = NUM_ITEMS) -> None:
        random = np.random.default_rng(seed)
        self.events = [0, *np.where(random.random(NUM_ITEMS) < 0.2, 0, random.integers(1, 9, NUM_ITEMS)).tolist()]
        self.categories = [
            set(),
            *(set(random.integers(0, 4, random.integers(0, 3)).tolist()) for _ in range(NUM_ITEMS)),
        ]
        self.facts = CatalogueFacts(
            num_rows=NUM_ITEMS + 1,
            head_V=head_items(torch.tensor(self.events)),
            buckets_V=popularity_buckets(torch.tensor(self.events)),
            novelty_V=item_novelty(torch.tensor(self.events), NUM_USERS),
            categories=item_categories(self.categories),
        )
        self.items = [random.integers(1, NUM_ITEMS + 1, random.integers(0, 6)) for _ in range(NUM_USERS)]
        self.following = [random.integers(1, NUM_ITEMS + 1, random.integers(1, 8)) for _ in range(NUM_USERS)]
        self.scores = random.integers(0, 5, (NUM_USERS, NUM_ITEMS + 1)).astype(float)
        self.scores[:, shown + 1 :] = -math.inf

    def batches(self, size: int = 7) -> list[Cases]:
        return [self._cases(range(first, min(first + size, NUM_USERS))) for first in range(0, NUM_USERS, size)]

    def _cases(self, users: range) -> Cases:
        return Cases(
            user_ids=[f"u{user}" for user in users],
            user_keys=list(users),
            items=[self.items[user] for user in users],
            times=[np.zeros_like(self.items[user]) for user in users],
            actions=[np.zeros_like(self.items[user]) for user in users],
            query_times=[0] * len(users),
            targets=[np.unique(self.following[user]) for user in users],
            following=[self.following[user] for user in users],
        )

    def __call__(self, cases: Cases) -> torch.Tensor:
        return torch.from_numpy(self.scores[cases.user_keys])


def plain_figures(world: World, remove_seen: bool) -> Figures:
    """Every value that is to be averaged, by name."""
    found: Figures = defaultdict(list)
    for user in range(NUM_USERS):
        history, following = world.items[user].tolist(), world.following[user].tolist()
        hidden = set(history) if remove_seen else set()
        scores = world.scores[user]
        rows = [row for row in range(1, NUM_ITEMS + 1) if row not in hidden and scores[row] > -math.inf]
        order = sorted(rows, key=lambda row, scores=scores: (-scores[row], row))  # type: ignore[misc]
        for k in KS:
            best = order[:k]
            if best:
                in_head = plain_head(world.events)
                found[f"head_share@{k}"].append(sum(row in in_head for row in best) / len(best))
                bits = [-math.log2(max(world.events[row], 1) / NUM_USERS) for row in best]
                found[f"novelty@{k}"].append(sum(bits) / len(best))
                found[f"repeat_rate@{k}"].append(sum(row in history for row in best) / len(best))
            for row in set(following):
                found[f"recall@{k}[{plain_bucket(world.events, row)}]"].append(float(row in best))
        for k in {min(k, 50) for k in KS}:
            diversity = plain_diversity(order[:k], world.categories)
            found[f"category_diversity@{k}"] += [] if math.isnan(diversity) else [diversity]
        for step, row in enumerate(following[:HORIZON], start=1):
            found[f"hit@{KS[0]}[t+{step}]"].append(float(row in order[: KS[0]]))
    return found


@pytest.mark.parametrize("remove_seen", [True, False])
@pytest.mark.parametrize(("seed", "shown"), [(0, NUM_ITEMS), (1, NUM_ITEMS), (2, 4), (3, 1), (4, 0)])
def test_figures_equal_those_of_a_plain_program(seed: int, shown: int, remove_seen: bool) -> None:
    world = World(seed, shown)
    beyond = BeyondAccuracy(world.facts, KS, horizon=HORIZON)
    totals = evaluate_cases(
        world, world.batches(), num_rows=NUM_ITEMS + 1, ks=KS, remove_seen=remove_seen, observers=[beyond]
    )
    figures, expected = beyond.figures(), plain_figures(world, remove_seen)
    counts = {f"users[t+{step}]": len(expected[f"hit@{KS[0]}[t+{step}]"]) for step in range(1, HORIZON + 1)}
    counts |= {f"targets[{bucket}]": len(expected[f"recall@{KS[0]}[{bucket}]"]) for bucket in BUCKETS}
    means = {name: sum(values) / len(values) if values else None for name, values in expected.items()}
    for name in figures.keys() - means.keys():
        assert figures[name] == counts.get(name), name
    for name, value in means.items():
        assert figures.get(name) == (None if value is None else pytest.approx(value, abs=1e-9)), name
    assert totals.num_users == NUM_USERS


def test_one_step_ahead_of_one_target_is_the_hit_rate() -> None:
    world = World(5)
    world.following = [rows[:1] for rows in world.following]
    beyond = BeyondAccuracy(world.facts, (3,), horizon=HORIZON)
    totals = evaluate_cases(
        world, world.batches(), num_rows=NUM_ITEMS + 1, ks=(3,), remove_seen=True, observers=[beyond]
    )
    figures = beyond.figures()
    assert figures["hit@3[t+1]"] == pytest.approx(totals.means()["hr@3"], abs=1e-12)
    assert "hit@3[t+2]" not in figures


def test_a_catalogue_without_categories_has_no_diversity_and_a_horizon_of_none_no_curve() -> None:
    world = World(6)
    facts = CatalogueFacts(**{**vars(world.facts), "categories": item_categories([set()] * (NUM_ITEMS + 1))})
    beyond = BeyondAccuracy(facts, (3,), horizon=0)
    evaluate_cases(world, world.batches(), num_rows=NUM_ITEMS + 1, ks=(3,), remove_seen=True, observers=[beyond])
    assert beyond.figures()["category_diversity@3"] is None
    assert not any(name.startswith("hit@") for name in beyond.figures())


def test_per_user_metrics_average_to_the_totals_and_keep_their_users() -> None:
    world, users = World(7), UserMetrics()
    totals = evaluate_cases(
        world, world.batches(), num_rows=NUM_ITEMS + 1, ks=(3, 8), remove_seen=True, observers=[users]
    )
    table, means = users.table(), totals.means()
    assert table.column("user_id").to_pylist() == [f"u{user}" for user in range(NUM_USERS)]
    assert set(table.column_names[1:]) == {f"{name}@{k}" for name in ("hr", "recall", "ndcg", "mrr") for k in (3, 8)}
    for name in table.column_names[1:]:
        assert np.mean(table.column(name).to_numpy()) == pytest.approx(means[name], abs=1e-12)


def test_what_users_have_to_go_by_is_counted() -> None:
    world = World(8)
    counts = CaseCounts(world.facts)
    evaluate_cases(world, world.batches(), num_rows=NUM_ITEMS + 1, ks=(3,), remove_seen=False, observers=[counts])
    targets = [
        (set(items.tolist()), set(rows.tolist())) for items, rows in zip(world.items, world.following, strict=True)
    ]
    assert counts.num_users == NUM_USERS
    assert counts.num_without_history == sum(not len(items) for items in world.items) > 0
    assert counts.num_targets == sum(len(rows) for _, rows in targets)
    assert counts.num_repeated_targets == sum(len(rows & items) for items, rows in targets) > 0
    cold = sum(not world.events[row] for _, rows in targets for row in rows)
    assert counts.num_cold_targets == cold > 0


def test_the_facts_of_a_catalogue_are_read_from_the_prepared_dataset(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", num_users=30, test_events=4)
    events = [0, *(row["train_events"] for row in dataset.catalogue().to_pylist())]
    facts = CatalogueFacts.of(dataset)
    assert set(facts.head_V.nonzero().flatten().tolist()) == plain_head(events)
    assert [BUCKETS[code] for code in facts.buckets_V.tolist()] == [
        plain_bucket(events, row) for row in range(len(events))
    ]
    assert facts.novelty_V[2].item() == pytest.approx(-math.log2(2 / 30), abs=1e-9)
    held = sum(row["num_test"] > 0 for table in dataset.history_tables() for row in table.to_pylist())
    assert (users_with_training(dataset), users_with_training(dataset, "test")) == (30, held)


def test_categories_are_read_by_item_also_where_some_or_all_are_missing() -> None:
    lists: list[Any] = [["a", "b"], [], None, ["b"]]
    found = read_categories(pa.chunked_array([pa.array(lists[:1]), pa.array(lists[1:], pa.list_(pa.string()))]))
    assert found.offsets_V1.tolist() == [0, 0, 2, 2, 2, 3]
    assert found.codes_E.tolist() == [0, 1, 1]
    empty = read_categories(pa.chunked_array([pa.array([[], []], pa.list_(pa.string()))]))
    assert (empty.offsets_V1.tolist(), empty.codes_E.tolist()) == ([0, 0, 0, 0], [])


def test_a_mean_leaves_out_what_is_not_a_number_and_is_none_without_values() -> None:
    means = Means()
    means.add("a", torch.tensor([1.0, math.nan, 3.0]))
    means.add("b", torch.tensor([math.nan]))
    assert (means.mean("a"), means.mean("b"), means.mean("c")) == (2.0, None, None)
