"""Conditions: what they mean, and that a retriever that was told one answers from what it may see."""

from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from data.conditions import NEVER, Conditions
from data.errors import RecipeError
from modeling.build import build_retriever
from modeling.conditioning import ConditionTable
from modeling.foresight import Prediction, foresee, last_labels
from modeling.retriever import Retriever
from modeling.settings import EncoderSettings, HstuSettings, ModelSettings, SasrecSettings, TransformerSettings
from tests.test_modeling_foresight import BURSTS, GAP, histories

DAY = 86_400
KINDS = ["cgsa", "head", "adaln", "token"]
ENCODERS: list[EncoderSettings] = [
    HstuSettings(blocks=3, heads=2, query_width=4, value_width=4),
    TransformerSettings(blocks=3, heads=2, feedforward_width=8, time_bias=True, position_bias=True),
    SasrecSettings(blocks=3, heads=1),
]
CATEGORIES = ["comedy", "drama", "war"]
# Item v has category v % 3, every fifth item also another one, every seventh none; 39 items.
LISTS = [
    [] if v % 7 == 0 else sorted({CATEGORIES[v % 3], *([CATEGORIES[(v + 1) % 3]] if v % 5 == 0 else [])})
    for v in range(1, 40)
]
FIRST_SEEN = [None if v == 39 else v * DAY for v in range(1, 40)]
CATALOGUE = pa.table({"categories": LISTS, "first_seen": pa.array(FIRST_SEEN, pa.int64())})
POOLS = [("new", 3.0)]
NEW = 4


def retriever(encoder: EncoderSettings, kind: str, **changed: object) -> Retriever:
    torch.manual_seed(0)
    condition = {"kind": kind, "pools": [{"name": "new", "max_age_days": 3}], **changed}
    settings = ModelSettings.model_validate(
        {
            "width": 8,
            "max_events": 12,
            "dropout": 0.0,
            "use_actions": True,
            "encoder": encoder.model_dump(),
            "prediction": {"heads": 2, "hidden": "strict", "gap": GAP},
            "condition": condition,
        }
    )
    built = build_retriever(
        settings, num_rows=40, num_actions=2, train_counts=np.ones(40, np.int64), catalogue=CATALOGUE
    )
    with torch.no_grad():
        for parameter in built.parameters():  # zeros at the start would hide that conditions matter
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built


def test_conditions_are_the_categories_and_the_pools() -> None:
    conditions = Conditions.of(CATALOGUE, POOLS)
    assert conditions.names == [*CATEGORIES, "new"]
    assert (conditions.code("war"), conditions.code("new"), conditions.code("western")) == (3, NEW, None)
    for code, name in enumerate(CATEGORIES, start=1):
        assert conditions.items(code, 0).tolist() == [False, *(name in found for found in LISTS)]
    at = 10 * DAY
    young = [first is not None and at - 3 * DAY < first <= at for first in FIRST_SEEN]
    assert conditions.items(NEW, at).tolist() == [False, *young]
    assert conditions.items(0, at).tolist() == [False] + [True] * 39
    assert conditions.first_seen_V[39] == NEVER


def test_names_that_mean_two_things_are_refused() -> None:
    with pytest.raises(RecipeError, match="war names something else too"):
        Conditions.of(CATALOGUE, [("war", 3.0)])
    with pytest.raises(RecipeError, match="lacks the items' first times"):
        Conditions.of(CATALOGUE.drop_columns("first_seen"), POOLS)
    assert Conditions.of(CATALOGUE.drop_columns("first_seen")).names == CATEGORIES


def test_an_event_satisfies_what_its_item_satisfied_when_it_happened() -> None:
    conditions = Conditions.of(CATALOGUE, POOLS)
    table = ConditionTable(conditions)
    rows_BL = torch.arange(40).view(2, 20)
    times_BL = torch.full((2, 20), 10 * DAY)
    asked_BR = torch.tensor([[0, 1, NEW], [3, 2, NEW]])
    found = table.satisfied(rows_BL, times_BL, asked_BR)
    for b in range(2):
        for r, code in enumerate(asked_BR[b].tolist()):
            expected = conditions.items(code, 10 * DAY)[rows_BL[b]].tolist()
            expected[0] = expected[0] or (code == 0)  # padding: whether it may be looked at is the view's to say
            assert found[b, r].tolist() == expected
    drawn = torch.stack([table.draw(rows_BL, times_BL, None) for _ in range(200)])
    for b in range(2):
        for i, row in enumerate(rows_BL[b].tolist()):
            possible = {code for code in range(1, 5) if conditions.items(code, 10 * DAY)[row]} or {0}
            assert set(drawn[:, b, i].tolist()) == possible, row


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_several_conditions_in_one_pass_equal_a_pass_for_each(encoder: EncoderSettings, kind: str) -> None:
    model = retriever(encoder, kind)
    batch = histories([BURSTS, BURSTS[:5]])
    asked_BP = torch.tensor([[0, 1, 2, 3, NEW, 1], [3, 3, 2, 0, NEW, 1]])
    together = model.conditioned_query_vectors(batch, asked_BP)
    assert together.norm(dim=-1).allclose(torch.ones(2, 6))
    for place in range(6):
        alone = model.conditioned_query_vectors(batch, asked_BP[:, place : place + 1])
        torch.testing.assert_close(together[:, place], alone[:, 0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0, 1], together[0, 2], atol=1e-3)
    nothing = torch.zeros(2, 1, dtype=torch.int64)
    torch.testing.assert_close(model.query_vectors(batch), model.conditioned_query_vectors(batch, nothing)[:, 0])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_events_outside_the_condition_do_not_reach_the_branch(encoder: EncoderSettings) -> None:
    """What the shared blocks made of them does not matter, but for the row's own event, which asks."""
    model = retriever(encoder, "cgsa")
    assert model.conditioning is not None
    batch = histories([BURSTS])
    trunk, last_B1 = model._last(batch)
    asked_B1 = torch.tensor([[2]])
    inside = model.conditioning.conditioner.table.satisfied(batch["items_BL"], batch["times_BL"], asked_B1)[0, 0]
    assert 0 < inside.sum() < len(inside)

    def answer() -> Tensor:
        assert model.conditioning is not None
        blocks, branch = list(model.encoder.blocks), model.branches[0]
        return cast(Tensor, model.conditioning.conditioner(trunk, blocks, branch, last_B1, asked_B1))

    before = answer()
    for place in range(len(inside) - 1):
        kept = trunk.layers[-1].clone()
        trunk.layers[-1][0, place] += torch.randn(8)
        assert torch.equal(answer(), before) == (not inside[place])
        trunk.layers[-1].copy_(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_condition_that_nothing_in_the_history_satisfies_has_an_answer_of_its_own(kind: str) -> None:
    model = retriever(SasrecSettings(blocks=2), kind)
    batch = histories([BURSTS])
    batch["items_BL"][:] = 3  # a comedy
    answers = model.conditioned_query_vectors(batch, torch.tensor([[2, 3]]))
    assert torch.isfinite(answers).all()
    assert not torch.allclose(answers[0, 0], answers[0, 1], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_weight_learns_from_conditions(encoder: EncoderSettings, kind: str) -> None:
    model = retriever(encoder, kind)
    batch = histories([BURSTS, [5, 6], BURSTS[2:]])
    result = model(batch, torch.Generator().manual_seed(0))
    result["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_labels_that_drop_their_condition_are_those_of_the_plain_retriever() -> None:
    model = retriever(SasrecSettings(blocks=2), "head", drop=1.0)
    assert model.conditioning is not None
    labels_BL = torch.arange(40).view(2, 20)
    times_BL = torch.full((2, 20), 10 * DAY)
    assert not model.conditioning.draw(labels_BL, times_BL, None).any()
    model.conditioning.drop = 0.5
    drawn = torch.stack([model.conditioning.draw(labels_BL, times_BL, None) for _ in range(300)])
    assert 0.4 < (drawn[:, 0, 1] > 0).float().mean() < 0.6


def test_the_last_event_alone_is_the_target_of_every_head_as_published() -> None:
    batch = histories([BURSTS, BURSTS[:4]])
    plan = last_labels(foresee(batch, Prediction(3)), batch["lengths_B"])
    for row, length in enumerate(batch["lengths_B"].tolist()):
        target = int(batch["targets_BL"][row, length - 1])
        expected = torch.zeros_like(plan.labels_BLK[row])
        for head in range(3):
            expected[length - 1 - head, head] = target
        assert torch.equal(plan.labels_BLK[row], expected)
