"""Metrics and exact top-k against a brute-force oracle, with ties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.metrics import MISSED, hide, ranking_metrics, target_ranks, top_rows


def brute_force(scores: list[float], hidden: set[int], targets: list[int], k: int) -> dict[str, float]:
    """Sort the catalogue in plain Python and count."""
    shown = [row for row in range(1, len(scores)) if row not in hidden and scores[row] > float("-inf")]
    best = sorted(shown, key=lambda row: (-scores[row], row))[:k]
    gains = [1 / math.log2(place + 2) for place, row in enumerate(best) if row in targets]
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(targets))))
    first = next((place for place, row in enumerate(best) if row in targets), None)
    return {
        f"hr@{k}": float(bool(gains)),
        f"recall@{k}": len(gains) / min(k, len(targets)),
        f"ndcg@{k}": sum(gains) / ideal,
        f"mrr@{k}": 0.0 if first is None else 1 / (first + 1),
    }


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_metrics_equal_brute_force_also_with_ties_seen_items_and_several_targets(data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(3, 12))
    queries = data.draw(st.integers(1, 4))
    # Few distinct values, so that ties are common; -inf as external rankings have it.
    value = st.sampled_from([0.0, 0.5, 1.0, 2.0, float("-inf")])
    scores = [data.draw(st.lists(value, min_size=num_rows, max_size=num_rows)) for _ in range(queries)]
    rows = st.integers(1, num_rows - 1)
    hidden = [data.draw(st.sets(rows, max_size=num_rows - 2)) for _ in range(queries)]
    targets = [data.draw(st.lists(rows, min_size=1, max_size=4, unique=True)) for _ in range(queries)]
    ks = [1, 2, 5, 20]
    table = hide(torch.tensor(scores), [torch.tensor(sorted(each), dtype=torch.long) for each in hidden])
    queries_T = torch.tensor([query for query in range(queries) for _ in targets[query]])
    targets_T = torch.tensor([row for each in targets for row in each])
    found = ranking_metrics(target_ranks(table, queries_T, targets_T), queries_T, queries, ks)
    for query in range(queries):
        for k in ks:
            for name, expected in brute_force(scores[query], hidden[query], targets[query], k).items():
                assert found[name][query].item() == pytest.approx(expected, abs=1e-9), name


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_top_rows_come_in_order_of_score_then_row(data: st.DataObject) -> None:
    num_rows, k = data.draw(st.integers(2, 12)), data.draw(st.integers(1, 14))
    value = st.sampled_from([0.0, 0.5, 1.0, float("-inf")])
    scores = [data.draw(st.lists(value, min_size=num_rows, max_size=num_rows)) for _ in range(3)]
    rows_Bk, scores_Bk = top_rows(hide(torch.tensor(scores), []), k)
    for query in range(3):
        shown = [row for row in range(1, num_rows) if scores[query][row] > float("-inf")]
        expected = sorted(shown, key=lambda row: (-scores[query][row], row))[:k]
        assert rows_Bk[query].tolist()[: len(expected)] == expected
        assert not any(rows_Bk[query].tolist()[len(expected) :])
        assert scores_Bk[query].tolist()[: len(expected)] == [scores[query][row] for row in expected]


def test_a_hand_computed_table() -> None:
    scores = torch.tensor([[9.0, 0.1, 0.4, 0.3, 0.2]])
    ranks = target_ranks(hide(scores, [torch.tensor([2])]), torch.tensor([0, 0]), torch.tensor([4, 1]))
    assert ranks.tolist() == [1, 2]  # row 3 is first, row 2 is hidden, row 0 is padding
    found = ranking_metrics(ranks, torch.tensor([0, 0]), 1, [2])
    assert found["recall@2"].item() == 0.5
    assert found["hr@2"].item() == 1
    assert found["mrr@2"].item() == 0.5
    assert found["ndcg@2"].item() == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))


def test_a_target_that_was_seen_is_a_miss_where_seen_items_are_removed() -> None:
    scores = hide(torch.tensor([[0.0, 3.0, 2.0, 1.0]]), [torch.tensor([1])])
    assert target_ranks(scores, torch.tensor([0]), torch.tensor([1])).tolist() == [MISSED]
