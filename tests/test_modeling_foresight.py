"""Time-aware multi-item prediction: what each position predicts, and that what is hidden stays hidden."""

from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data.batch import Batch
from modeling.build import build_retriever
from modeling.foresight import Hidden, Prediction, foresee, last_visible, staircase, window_labels
from modeling.losses import sampled_softmax
from modeling.retriever import Retriever
from modeling.settings import (
    EncoderSettings,
    HstuSettings,
    ModelSettings,
    PredictionSettings,
    SasrecSettings,
    TransformerSettings,
)

NUM_ROWS = 40
GAP = 10
ENCODERS: list[EncoderSettings] = [
    HstuSettings(blocks=3, heads=2, query_width=4, value_width=4),
    TransformerSettings(blocks=3, heads=2, feedforward_width=8, time_bias=True),
    SasrecSettings(blocks=3, heads=1),
]


def histories(times: list[list[int]], *, requests: list[list[int]] | None = None, seed: int = 0) -> Batch:
    """Training histories with these times; of each the last event is only a target."""
    random = torch.Generator().manual_seed(seed)
    length = max(len(row) for row in times) - 1
    columns = {"items": [], "times": times, "requests": requests or [[-1] * len(row) for row in times]}
    columns["items"] = [torch.randint(1, NUM_ROWS, (len(row),), generator=random).tolist() for row in times]
    padded = {name: torch.zeros(len(times), length + 1, dtype=torch.int64) for name in columns}
    for name, rows in columns.items():
        for number, row in enumerate(rows):
            padded[name][number, : len(row)] = torch.tensor(row)
    last = torch.tensor([len(row) - 1 for row in times])
    real = torch.arange(length) < last[:, None]

    def now(name: str) -> Tensor:
        return padded[name][:, :-1].where(real, 0)

    def ahead(name: str) -> Tensor:
        return padded[name][:, 1:].where(real, 0)

    return Batch(
        items_BL=now("items"),
        times_BL=now("times"),
        query_times_BL=ahead("times"),
        actions_BL=torch.ones(len(times), length, dtype=torch.int64) * real,
        requests_BL=now("requests"),
        next_requests_BL=ahead("requests"),
        next_actions_BL=(ahead("items") > 0).long(),
        targets_BL=ahead("items"),
        lengths_B=last,
        users_B=torch.arange(len(times)),
    )


def retriever(encoder: EncoderSettings, prediction: PredictionSettings, *, dropout: float = 0.0) -> Retriever:
    torch.manual_seed(0)
    settings = ModelSettings(
        width=8, max_events=12, dropout=dropout, encoder=encoder, prediction=prediction, use_actions=True
    )
    return build_retriever(settings, num_rows=NUM_ROWS, num_actions=2, train_counts=np.ones(NUM_ROWS, np.int64))


def losses(model: Retriever, batch: Batch) -> Tensor:
    return model(batch, torch.Generator().manual_seed(5))["head_losses_K"]


def query_of(model: Retriever, batch: Batch, row: int, place: int, head: int = 0) -> Tensor:
    """The vector that predicts what follows one position."""
    plan = foresee(batch, model.prediction)
    return list(model._asked(batch, plan, model.items, None))[head][row, place]


BURSTS = [0, 1, 2, 100, 100, 105, 300, 301, 302, 303, 500]  # three of three events, one of four, the last alone

ascending = st.lists(st.integers(0, 30), min_size=2, max_size=12).map(sorted)


@given(st.lists(ascending, min_size=1, max_size=4), st.integers(0, 12))
def test_the_staircase_equals_the_mask_pair_by_pair(times: list[list[int]], gap: int) -> None:
    batch = histories(times)
    ends_BL = last_visible(batch, gap)
    allowed_BLL = staircase(ends_BL)
    for row, events in enumerate(times):
        for i in range(len(events) - 1):
            visible = [j <= i and events[j] < events[i + 1] - gap for j in range(len(events) - 1)]
            assert ends_BL[row, i] == max((j for j, seen in enumerate(visible) if seen), default=-1)
            if not any(visible):
                visible = [j == i for j in range(len(events) - 1)]
            assert allowed_BLL[row, i, : len(visible)].tolist() == visible
            assert not allowed_BLL[row, i, len(visible) :].any()
    assert allowed_BLL.any(-1).all()  # padding, too


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=12).map(sorted), min_size=1, max_size=3))
def test_the_gap_by_request_hides_the_request_of_the_target_and_nothing_else(requests: list[list[int]]) -> None:
    batch = histories([list(range(len(row))) for row in requests], requests=requests)
    ends_BL = last_visible(batch, "request")
    for row, events in enumerate(requests):
        for i in range(len(events) - 1):
            others = [j for j in range(i + 1) if events[j] != events[i + 1]]
            assert ends_BL[row, i] == max(others, default=-1)


def test_events_without_a_request_are_bursts_of_one() -> None:
    batch = histories([[0, 1, 2, 3]], requests=[[-1, -1, 7, 7]])
    assert last_visible(batch, "request").tolist() == [[0, 1, 1]]


def test_a_history_that_goes_back_in_time_hides_what_stands_behind_a_late_event() -> None:
    assert last_visible(histories([[50, 20, 61, 90]]), GAP).tolist() == [[-1, 1, 2]]
    assert last_visible(histories([[50, 20, 59, 90]]), GAP).tolist() == [[-1, -1, 2]]


@pytest.mark.parametrize("hidden", ["nothing", "faithful", "strict"])
def test_labels_are_the_items_that_follow(hidden: Hidden) -> None:
    batch = histories([BURSTS, BURSTS[:5]])
    plan = foresee(batch, Prediction(3, hidden, GAP))
    for row in range(2):
        length = int(batch["lengths_B"][row])
        items = [*batch["items_BL"][row, :length].tolist(), int(batch["targets_BL"][row, length - 1])]
        for i in range(batch["items_BL"].shape[1]):
            first_burst = hidden != "nothing" and i < 2
            expected = [items[i + k] if i + k < len(items) and not first_burst else 0 for k in (1, 2, 3)]
            assert plan.labels_BLK[row, i].tolist() == expected


def test_strict_predicts_a_burst_from_the_last_event_before_it_and_asks_at_the_time_of_its_first() -> None:
    plan = foresee(histories([BURSTS]), Prediction(2, "strict", GAP))
    assert plan.rows_BL is not None
    assert plan.rows_BL.tolist() == [[0, 0, 2, 2, 2, 5, 5, 5, 5, 9]]
    assert plan.query_times_BL[0, [2, 5, 9]].tolist() == [100, 300, 500]
    assert plan.query_times_BL[0, [3, 4, 6]].tolist() == [100, 105, 301]  # nothing is predicted from these


@pytest.mark.parametrize("encoder", ENCODERS)
def test_one_head_that_sees_all_is_next_item_prediction_to_the_bit(encoder: EncoderSettings) -> None:
    batch = histories([BURSTS, BURSTS[:4]])
    plain = retriever(encoder, PredictionSettings())
    [next_item] = losses(plain, batch)
    trunk, _ = plain._last(batch)
    hidden_BLD = trunk.layers[0]
    for block in [*plain.encoder.blocks, *plain.branches]:
        hidden_BLD = block(hidden_BLD, trunk.view)
    kept_BL, generator = batch["targets_BL"] > 0, torch.Generator().manual_seed(5)
    targets_E = batch["targets_BL"][kept_BL]
    assert plain.sampler is not None
    negatives_N = plain.sampler(targets_E, generator)
    expected = sampled_softmax(
        torch.nn.functional.normalize(hidden_BLD[kept_BL], dim=-1),
        plain.item_vectors(targets_E),
        plain.item_vectors(negatives_N),
        positive_rows_EK=targets_E[:, None],
        negative_rows_N=negatives_N,
        target_log_q_E=plain.sampler.log_q(targets_E),
        negative_log_q_N=plain.sampler.log_q(negatives_N),
        temperature=plain.temperature,
    )
    assert torch.equal(next_item, expected)
    torch.testing.assert_close(
        plain.query_vectors(batch), torch.nn.functional.normalize(hidden_BLD[[0, 1], batch["lengths_B"] - 1], dim=-1)
    )
    # Further heads change nothing of what the first answers.
    several = retriever(encoder, PredictionSettings(heads=3))
    several.load_state_dict({**several.state_dict(), **plain.state_dict()})
    assert torch.equal(several.query_vectors(batch), plain.query_vectors(batch))


def hidden_events(batch: Batch) -> Iterator[tuple[int, int]]:
    """(position, hidden event) of every label that has something to be predicted from."""
    for i, end in enumerate(last_visible(batch, GAP)[0].tolist()):
        if end >= 0:
            yield from ((i, j) for j in range(end + 1, i + 1))


def changed_at(batch: Batch, event: int) -> Batch:
    """Another item and another action at one event of the first history."""
    other = cast(Batch, {name: value.clone() for name, value in cast(dict[str, Tensor], batch).items()})
    other["items_BL"][0, event] = other["items_BL"][0, event] % (NUM_ROWS - 1) + 1
    other["actions_BL"][0, event] = 2
    return other


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("head", [0, 1])
def test_strict_predictions_do_not_change_with_anything_hidden(encoder: EncoderSettings, head: int) -> None:
    model = retriever(encoder, PredictionSettings(heads=2, hidden="strict", gap=GAP))
    batch = histories([BURSTS])
    pairs = list(hidden_events(batch))
    assert len(pairs) == 9
    for place, event in pairs:
        before, after = (query_of(model, one, 0, place, head) for one in (batch, changed_at(batch, event)))
        assert torch.equal(before, after)
        seen = last_visible(batch, GAP)[0, place].item()
        assert not torch.allclose(before, query_of(model, changed_at(batch, int(seen)), 0, place, head))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_faithful_predictions_leak_their_own_hidden_event_and_no_other(encoder: EncoderSettings) -> None:
    """The paper's mask hides the event before the target from attention, and the residual path shows it."""
    model = retriever(encoder, PredictionSettings(heads=2, hidden="faithful", gap=GAP))
    batch = histories([BURSTS])
    for place, event in hidden_events(batch):
        before, after = (query_of(model, one, 0, place) for one in (batch, changed_at(batch, event)))
        assert torch.equal(before, after) == (event != place)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("hidden", ["faithful", "strict"])
@pytest.mark.parametrize("branch", ["block", "linear"])
def test_ties_first_bursts_and_padding_train_with_finite_gradients_for_every_weight(
    encoder: EncoderSettings, hidden: Hidden, branch: str
) -> None:
    prediction = PredictionSettings.model_validate({"heads": 2, "hidden": hidden, "gap": GAP, "branch": branch})
    model = retriever(encoder, prediction)
    result = model(histories([[5] * 6, BURSTS, [5, 6]]), torch.Generator().manual_seed(0))
    assert result["num_targets"] == 8
    result["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    nothing = model(histories([[5] * 6]), torch.Generator().manual_seed(0))  # all of one burst: no label
    assert nothing["loss"] == 0
    assert nothing["num_targets"] == 0


def test_none_of_what_follows_is_a_negative() -> None:
    model = retriever(SasrecSettings(blocks=1), PredictionSettings(heads=2))
    model.temperature = 1.0  # soft enough for every negative to show in the loss
    batch = histories([[0, 1, 2]])
    targets = set(batch["targets_BL"].flatten().tolist())
    drawn = torch.tensor([row for row in range(1, NUM_ROWS) if row not in targets])

    def with_negatives(rows: Tensor) -> Tensor:
        model.sampler = type(model.sampler)(torch.ones(NUM_ROWS, dtype=torch.int64), num_uniform=1, num_in_batch=0)  # type: ignore[operator, misc]
        model.sampler.forward = lambda targets, generator: rows  # type: ignore[method-assign, assignment]
        return losses(model, batch)

    # The first position has both items ahead; the second, with one ahead, must be told from the first item.
    plan = foresee(batch, model.prediction)
    assert plan.labels_BLK[0].tolist() == [[*batch["targets_BL"][0].tolist()], [int(batch["targets_BL"][0, 1]), 0]]
    alone, beside = with_negatives(drawn), with_negatives(torch.cat([drawn, batch["targets_BL"][0, 1:]]))
    torch.testing.assert_close(alone, beside, atol=0, rtol=1e-6)  # one more column moves the order of a sum
    assert with_negatives(torch.cat([drawn, batch["targets_BL"][0, :1]]))[0] > alone[0]


def test_linear_heads_begin_as_the_first() -> None:
    model = retriever(SasrecSettings(blocks=2), PredictionSettings(heads=3, branch="linear")).eval()
    batch = histories([BURSTS])
    first, *further = model._asked(batch, foresee(batch, model.prediction), model.items, None)
    assert len(model.branches) == 1
    assert len(further) == 2
    for hidden_BLD in further:
        torch.testing.assert_close(hidden_BLD, first)


def test_targets_of_a_window_are_drawn_from_what_happens_within_it() -> None:
    times = [0, 1, 2, 100, 100, 105, 300]
    batch = histories([times, [0, 500]])
    items = [*batch["items_BL"][0].tolist(), int(batch["targets_BL"][0, -1])]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([window_labels(batch, 98, generator) for _ in range(600)])
    for i in range(6):
        within = [j for j in range(i + 1, 7) if times[j] <= times[i] + 98] or [i + 1]
        found = {items.index(item) for item in drawn[:, 0, i].tolist()}
        assert found == {items.index(items[j]) for j in within}, i
    share = (drawn[:, 0, 2] == items[3]).float().mean()
    assert 0.25 < share < 0.75  # two events stand in that window
    assert (drawn[:, 1, 0] == batch["targets_BL"][1, 0]).all()
    assert not drawn[:, 1, 1:].any()


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="window_seconds draws one target and 2 heads predict several"):
        PredictionSettings(heads=2, window_seconds=60)
    assert ModelSettings(encoder=SasrecSettings(), prediction=PredictionSettings(hidden="strict", gap=60)).needs_times
    by_request = PredictionSettings(hidden="strict", gap="request")
    assert not ModelSettings(encoder=SasrecSettings(), prediction=by_request).needs_times
