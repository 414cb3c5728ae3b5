"""Blocks of the vectors, neurons that are shared out, and stages that stay as they were learnt."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from data.batch import Batch, collate
from data.encode import EncodedHistories
from modeling.build import build_retriever
from modeling.losses import sampled_softmax
from modeling.margin_loss import margin_softmax
from modeling.objectives import BlockTable, Objectives, weakest
from modeling.objectives_settings import ObjectivesSettings
from modeling.retriever import Retriever
from modeling.settings import ModelSettings

WIDTH, NUM_ROWS, LENGTH = 12, 40, 6
ACTIONS = ["click", "view", "purchase"]
OWN = {"click": ("click",), "conversion": ("purchase",)}


def settings(**objectives: Any) -> ModelSettings:
    return ModelSettings.model_validate(
        {
            "width": WIDTH,
            "max_events": LENGTH,
            "encoder": {"kind": "transformer", "blocks": 1, "feedforward_width": 16},
            "negatives": {"kind": "uniform", "num_uniform": 16},
            "dropout": 0.0,
            "objectives": {"actions": OWN, "neurons": 20, **objectives},
        }
    )


def built(seed: int = 0, **objectives: Any) -> Retriever:
    torch.manual_seed(seed)
    counts = np.ones(NUM_ROWS, np.int64)
    return build_retriever(
        settings(**objectives), num_rows=NUM_ROWS, num_actions=3, actions=ACTIONS, train_counts=counts
    )


def random_batch(rows: int = 8, seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    items = random.integers(1, NUM_ROWS, (rows, LENGTH + 1))
    actions = random.integers(0, 4, (rows, LENGTH + 1))
    nothing = np.zeros(rows * LENGTH, np.int64)
    return collate(
        EncodedHistories(
            items_E=items[:, :-1].flatten(),
            times_E=nothing,
            actions_E=actions[:, :-1].flatten(),
            requests_E=nothing - 1,
            offsets_B1=np.arange(rows + 1) * LENGTH,
            query_times_B=np.zeros(rows, np.int64),
            next_items_B=items[:, -1],
            next_requests_B=np.full(rows, -1, np.int64),
            next_actions_B=actions[:, -1],
            users_B=np.arange(rows),
        )
    )


def of(retriever: Retriever) -> Objectives:
    assert retriever.objectives is not None
    return retriever.objectives


def table_of(retriever: Retriever) -> BlockTable:
    assert isinstance(retriever.items, BlockTable)
    return retriever.items


def next_stage(before: Retriever, *, learnt: int, **objectives: Any) -> Retriever:
    """What `trainer.start.start_from` does: the weights of the stage before, and the neurons shared out again."""
    after = built(seed=learnt, **objectives)
    after.load_state_dict(before.state_dict())
    recover, free_mass = bool(objectives.get("recover")), objectives.get("free_mass", 0.4)
    of(after).begin(learnt, table_of(after), recover=recover, free_mass=free_mass)
    return after


def trained(retriever: Retriever, steps: int = 5) -> Retriever:
    """A few steps of what the engine runs: AdamW over what asks for gradients, with decay, momentum and clipping."""
    asked = [parameter for parameter in retriever.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(asked, lr=0.05, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    retriever.train()
    for step in range(steps):
        optimizer.zero_grad()
        retriever(random_batch(seed=step), generator)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(asked, 1.0)
        optimizer.step()
    return retriever.eval()


def stage_scores(retriever: Retriever, place: int) -> Tensor:
    """Scores of the objective at a place, of every item for every history: the sum of the blocks up to its own."""
    end = sum(of(retriever).widths[: place + 1])
    with torch.inference_mode():
        return retriever.query_vectors(random_batch())[:, :end] @ retriever.catalogue_vectors()[:, :end].T


def test_a_weighted_query_scores_the_weighted_sum_of_the_stages_whatever_the_weights_and_blocks() -> None:
    random = np.random.default_rng(0)
    for widths in [(4, 4, 4), (1, 2, 9), (7, 4, 1)]:
        retriever = built(widths=widths).double().eval()
        query_BD, item_VD = retriever.query_vectors(random_batch()), retriever.catalogue_vectors()
        stated = settings(widths=widths).objectives
        assert stated is not None
        stages = [stage_scores(retriever, place) for place in range(3)]
        for _ in range(20):
            weights = dict(zip(stated.names, random.uniform(0, 3, 3), strict=True))
            wanted = sum(weight * scores for weight, scores in zip(weights.values(), stages, strict=True))
            scales_D = torch.tensor(stated.scales(WIDTH, weights), dtype=torch.float64)
            assert torch.allclose((query_BD * scales_D) @ item_VD.T, torch.as_tensor(wanted), atol=1e-12)


def test_weights_of_one_stage_give_its_scores_bit_by_bit() -> None:
    retriever, stated = built(widths=(8, 2, 2)).eval(), settings(widths=(8, 2, 2)).objectives
    assert stated is not None
    query_BD, item_VD = retriever.query_vectors(random_batch()), retriever.catalogue_vectors()
    assert stated.scales(WIDTH, {"exposure": 1.0}) == [1.0] * 8 + [0.0] * 4
    assert stated.scales(WIDTH, {"click": 2.0, "conversion": 0.5}) == [2.5] * 10 + [0.5] * 2
    assert stated.scales(WIDTH) == [1.0] * WIDTH
    alone = (query_BD * torch.tensor(stated.scales(WIDTH, {"exposure": 1.0}))) @ item_VD.T
    assert torch.allclose(alone, stage_scores(retriever, 0), atol=1e-7)


def test_vectors_have_length_one_after_the_last_stage_and_the_share_of_their_blocks_before_it() -> None:
    for stage, share in (("exposure", 6 / 12), ("click", 10 / 12), ("conversion", 1.0), (None, 1.0)):
        retriever = built(widths=(6, 4, 2), stage=stage).eval()
        for vectors in (retriever.query_vectors(random_batch()), retriever.catalogue_vectors()[1:]):
            assert torch.allclose(vectors.norm(dim=-1), torch.full((len(vectors),), share**0.5), atol=1e-6)
            assert torch.equal(vectors[:, round(share * 12) :], torch.zeros(len(vectors), 12 - round(share * 12)))
            assert torch.allclose(retriever.normalized(vectors), vectors, atol=1e-7)


def test_the_loss_of_a_stage_is_the_softmax_of_its_nested_cosine_over_its_own_events() -> None:
    retriever, batch = built(stage="click", widths=(6, 4, 2)), random_batch()
    found = retriever(batch, torch.Generator().manual_seed(3))
    negatives = torch.randint(1, NUM_ROWS, (16,), generator=torch.Generator().manual_seed(3))
    # By hand: clicks and purchases (codes 1 and 3) are targets; the score is the cosine of the first ten coordinates.
    item_VD, losses = retriever.catalogue_vectors()[:, :10] / (10 / 12) ** 0.5, []
    for row in range(len(batch["lengths_B"])):
        for place in range(LENGTH):
            if batch["next_actions_BL"][row, place] not in (1, 3):
                continue
            query_D = retriever.query_vectors(_beginning(batch, row, place + 1))[0, :10] / (10 / 12) ** 0.5
            target = int(batch["targets_BL"][row, place])
            others = [item for item in negatives.tolist() if item != target]
            logits = item_VD[[target, *others]] @ query_D / retriever.temperature
            losses.append(-logits.log_softmax(0)[0])
    assert found["num_targets"] == len(losses)
    assert torch.allclose(found["loss"], torch.stack(losses).mean(), atol=1e-4)


def test_a_margin_is_added_to_what_the_user_was_shown_without_a_click_and_to_nothing_else() -> None:
    plain, batch = built(stage="click"), random_batch(rows=6)
    margined = built(stage="click", margin=2.0)
    margined.load_state_dict(plain.state_dict())
    found, without = (one(batch, torch.Generator().manual_seed(3)) for one in (margined, plain))
    negatives = torch.randint(1, NUM_ROWS, (16,), generator=torch.Generator().manual_seed(3)).tolist()
    item_VD, losses, num_margins = plain.catalogue_vectors(), [], 0
    clicked = (batch["next_actions_BL"] == 1) | (batch["next_actions_BL"] == 3)
    for row, place in clicked.nonzero().tolist():
        own = set(batch["targets_BL"][row][clicked[row]].tolist())
        shown = set(batch["targets_BL"][row].tolist()) - own
        query_D = plain.query_vectors(_beginning(batch, row, place + 1))[0]
        target = int(batch["targets_BL"][row, place])
        logits = [item_VD[target, :8] @ query_D[:8] * 12 / 8 / plain.temperature]
        for item in (item for item in negatives if item != target):
            exposure = item_VD[item, :4] @ query_D[:4] * 12 / 4 / plain.temperature
            margin = 2 * exposure.sigmoid() if item in shown else 0.0
            num_margins += item in shown
            logits.append(item_VD[item, :8] @ query_D[:8] * 12 / 8 / plain.temperature + margin)
        losses.append(-torch.stack(logits).log_softmax(0)[0])
    assert num_margins > 3
    assert torch.allclose(found["loss"], torch.stack(losses).mean(), atol=1e-4)
    assert found["loss"] > without["loss"]
    found["loss"].backward()
    assert margined.get_parameter("items.blocks.0.weight").grad is None  # nothing learns through the margin


def test_without_margins_the_loss_is_the_sampled_softmax() -> None:
    draw = torch.Generator().manual_seed(0)
    vectors = [torch.nn.functional.normalize(torch.randn(rows, 8, generator=draw), dim=-1) for rows in (30, 30, 12)]
    rest = {
        "positive_rows_EK": torch.randint(1, 9, (30, 2), generator=draw),
        "negative_rows_N": torch.randint(1, 9, (12,), generator=draw),
        "target_log_q_E": torch.randn(30, generator=draw),
        "negative_log_q_N": torch.randn(12, generator=draw),
    }
    found = margin_softmax(*vectors, margins_EN=torch.zeros(30, 12), **rest, temperature=0.1)
    torch.testing.assert_close(found, sampled_softmax(*vectors, **rest, temperature=0.1), atol=1e-5, rtol=1e-5)


def _beginning(batch: Batch, row: int, length: int) -> Batch:
    tensors = cast(dict[str, Tensor], batch)
    cut = {
        name: value[row : row + 1, :length] if value.ndim == 2 else value[row : row + 1]
        for name, value in tensors.items()
    }
    return cast(Batch, {**cut, "lengths_B": torch.tensor([length])})


def test_without_stages_every_objective_has_a_loss_of_its_own_events() -> None:
    batch = random_batch()
    losses = built()(batch, torch.Generator().manual_seed(0))
    codes = batch["next_actions_BL"]
    assert losses["num_targets"] == codes.numel()
    assert losses["head_losses_K"].shape == (3,)
    assert (losses["head_losses_K"] > 0).all()


def test_experts_are_mixed_by_the_gate_of_each_objective() -> None:
    found, hidden_BRD = of(built(experts=4)), torch.randn(2, 3, WIDTH)
    normed_BRD, [first, *_] = found.norm(hidden_BRD), found.parts
    wanted = []
    for gate, part in zip(cast(torch.nn.ModuleList, found.gates), found.parts, strict=True):
        shares = gate(normed_BRD).softmax(-1)
        mixed = hidden_BRD
        for expert in range(4):  # by hand: expert e is neurons 5 e to 5 e + 4
            own = slice(5 * expert, 5 * expert + 5)
            inner = torch.nn.functional.silu(normed_BRD @ first.read.weight[own].T)  # type: ignore[union-attr, index]
            mixed = mixed + shares[..., expert : expert + 1] * (inner @ first.write.weight[:, own].T)  # type: ignore[union-attr, index]
        wanted.append(part.project(mixed))  # type: ignore[operator]
    torch.testing.assert_close(found(hidden_BRD), torch.cat(wanted, -1), atol=1e-5, rtol=1e-5)


def test_earlier_stages_are_bitwise_unchanged_by_later_ones() -> None:
    model = trained(built(stage="exposure"))
    scores: list[Tensor] = []
    owned: list[Tensor] = []
    for learnt, name, later in ((1, "exposure", "click"), (2, "click", "conversion")):
        recovered = trained(next_stage(model, learnt=learnt, stage=name, recover=True))
        before = _copied(recovered)
        scores.append(stage_scores(recovered, learnt - 1))
        owned.append(of(recovered).owners_F == learnt)
        assert 0 < (of(recovered).owners_F == 0).sum() < 20
        model = trained(next_stage(recovered, learnt=learnt, stage=later))
        after, owners = model.state_dict(), of(model).owners_F
        for place in range(learnt):  # masks are disjoint and stay, and so does every bit of the scores
            assert torch.equal(stage_scores(model, place), scores[place])
            assert torch.equal(owners == place + 1, owned[place])
        assert set(owners.tolist()) == set(range(1, learnt + 2))
        earlier = tuple(f"objectives.parts.{place}." for place in range(learnt))
        frozen = [key for key in before if key.startswith(("encoder", "branches", *earlier))]
        frozen += [f"items.blocks.{place}.weight" for place in range(learnt)]
        assert len(frozen) > 4 * learnt
        assert all(torch.equal(after[key], before[key]) for key in frozen)
        moved = [f"items.blocks.{learnt}.weight", *(f"objectives.parts.{learnt}.{layer}.weight" for layer in PARTS)]
        assert not any(torch.equal(after[key], before[key]) for key in moved)
    assert not torch.allclose(scores[0], scores[1])


def test_recovery_tunes_its_stage_and_leaves_the_stages_before_it() -> None:
    second = trained(next_stage(trained(built(stage="exposure")), learnt=1, stage="click"))
    before, exposure = _copied(second), stage_scores(second, 0)
    recovered = trained(next_stage(second, learnt=2, stage="click", recover=True))
    assert torch.equal(stage_scores(recovered, 0), exposure)
    after = recovered.state_dict()
    changed = {key for key in before if not torch.equal(after[key], before[key])}
    parts = {f"objectives.parts.1.{layer}.weight" for layer in PARTS}
    assert changed == {"objectives.owners_F", "items.blocks.1.weight", *parts}


PARTS = ("read", "write", "project")


def _copied(retriever: Retriever) -> Mapping[str, Tensor]:
    return {name: value.clone() for name, value in retriever.state_dict().items()}


def test_the_next_stage_frees_neurons_itself_where_no_recovery_did() -> None:
    first = built(stage="exposure")
    second = next_stage(first, learnt=1, stage="click", free_mass=0.4)
    owners = of(second).owners_F
    assert set(owners.tolist()) == {1, 2}
    assert torch.equal(owners == 2, weakest(of(first).parts[0].masses(), torch.ones(20, dtype=torch.bool), 0.4))  # type: ignore[operator]
    same = next_stage(second, learnt=2, stage="click")  # the same stage on later data: nothing is freed
    assert torch.equal(of(same).owners_F, owners)
    none = next_stage(first, learnt=1, stage="click", free_mass=0.0)
    assert (of(none).owners_F == 1).all()


def test_the_next_stage_begins_as_a_copy_of_the_block_before_it() -> None:
    for widths in [(4, 4, 4), (3, 4, 5), (6, 4, 2)]:
        first = trained(built(stage="exposure", widths=widths))
        second = next_stage(first, learnt=1, stage="click", widths=widths)
        shared = min(widths[:2])
        vectors = [table_of(model).blocks[place].weight[:, :shared] for place, model in enumerate((first, second))]  # type: ignore[index]
        projections = [of(model).parts[place].project.weight[:shared] for place, model in enumerate((first, second))]  # type: ignore[union-attr, index]
        assert torch.equal(*vectors)
        assert torch.equal(*projections)
        if widths == (4, 4, 4):  # so that its lists are those of the stage before, but for what its new neurons add
            with torch.no_grad():
                of(second).parts[1].write.weight.zero_()  # type: ignore[union-attr, operator]
            own = stage_scores(second.eval(), 1) - stage_scores(second, 0)
            assert torch.allclose(own, stage_scores(second, 0), atol=1e-6)
        trained(second)
        again = next_stage(second, learnt=2, stage="click", widths=widths)  # the same stage on later data goes on
        assert torch.equal(table_of(again).blocks[1].weight, table_of(second).blocks[1].weight)  # type: ignore[arg-type]


def test_the_weakest_neurons_that_hold_at_most_tau_of_the_mass_are_freed() -> None:
    masses = torch.tensor([5.0, 1.0, 3.0, 2.0, 9.0])
    every = torch.ones(5, dtype=torch.bool)
    assert weakest(masses, every, 0.15).tolist() == [False, True, False, True, False]  # 1, 3 of 20
    assert weakest(masses, every, 0.149).tolist() == [False, True, False, False, False]
    assert weakest(masses, every, 0.0).tolist() == [False] * 5
    owned = torch.tensor([True, False, True, False, False])
    assert weakest(masses, owned, 0.4).tolist() == [False, False, True, False, False]  # 3 of 8
    assert not weakest(masses, torch.zeros(5, dtype=torch.bool), 0.9).any()


def test_events_of_a_later_objective_count_for_the_earlier_ones() -> None:
    stated = ObjectivesSettings(actions=OWN)
    assert stated.levels(ACTIONS) == [1, 2, 1, 3]
    assert [stated.actions_of(name) for name in stated.names] == [None, ("click", "purchase"), ("purchase",)]
    alone = ObjectivesSettings(names=("conversion",), actions={"conversion": ("purchase",)})
    assert alone.levels(ACTIONS) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"clik": 1.0}, "found clik, expected some of exposure, click"),
        ({"conversion": 1.0}, "found conversion, expected some of exposure, click, which the model has learnt"),
        ({"click": -1.0}, "found click=-1, expected finite numbers that are not negative"),
        ({"click": float("nan")}, "found click=nan, expected finite numbers"),
        ({"click": 0.0}, "found no weight above 0"),
        ({}, "found no weight above 0"),
        ({"click": 0.5, "exposure": 0.0}, None),
    ],
)
def test_wrong_weights_are_named(weights: dict[str, float], problem: str | None) -> None:
    found = ObjectivesSettings(actions=OWN, stage="click").wrong_weights(weights)
    assert found == problem if problem is None else problem in (found or "")


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        ({"names": ["a", "a"]}, "an objective stands there twice"),
        ({"stage": "buy"}, "stage names the objective 'buy'"),
        ({"actions": {"buy": ["x"]}}, "actions names the objective 'buy'"),
        ({"actions": {"click": ["x"]}}, "no action of conversion"),
        ({"widths": [6, 6]}, "expected one number of at least 1 for each"),
        ({"widths": [6, 6, 6]}, "do not make a width of 12"),
        ({"recover": True}, "recover tunes a stage"),
        ({"experts": 3}, "experts 3 split 20 neurons into equal parts"),
        ({"experts": 4, "stage": "click"}, "where there are no stages"),
        ({"weights": {"click": -1}}, "weights: found click=-1"),
    ],
)
def test_wrong_settings_are_refused(stated: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem.replace("[", r"\[")):
        settings(**stated)


def test_what_does_not_go_with_objectives_is_refused() -> None:
    for other in ({"items": {"kind": "hashed"}}, {"prediction": {"heads": 2}}, {"condition": {}}):
        with pytest.raises(ValidationError, match="objectives needs one head"):
            ModelSettings.model_validate({"objectives": {"actions": OWN}, **other})
