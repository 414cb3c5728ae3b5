"""Encoders: causality, padding, and the attention of both blocks against slow oracles."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from data.batch import Batch, collate
from data.encode import encode_histories
from modeling.attention_bias import NUM_TIME_BUCKETS, RelativeBias, time_buckets
from modeling.build import build_retriever
from modeling.foresight import Prediction, foresee
from modeling.hstu import HstuBlock
from modeling.retriever import Retriever
from modeling.sasrec import SasrecBlock
from modeling.settings import HstuSettings, ModelSettings, SasrecSettings, TransformerSettings
from modeling.softmax_attention import attend, attend_from_few
from modeling.transformer import TransformerBlock
from modeling.view import View, causal

ENCODERS = [
    HstuSettings(blocks=2, heads=2, query_width=4, value_width=3),
    HstuSettings(blocks=1, heads=1, query_width=4, value_width=4, position_bias=False, time_bias=False),
    TransformerSettings(blocks=2, heads=2, feedforward_width=16),
    TransformerSettings(blocks=1, heads=4, feedforward_width=16, position_bias=True, time_bias=True),
    TransformerSettings(blocks=2, heads=2, feedforward_width=16, gated_residuals=True),
    SasrecSettings(blocks=2, heads=2),
    SasrecSettings(blocks=1, heads=1, position_bias=True, time_bias=True),
]


def retriever(
    encoder: HstuSettings | TransformerSettings | SasrecSettings, *, seed: int = 0, actions: bool = True
) -> Retriever:
    torch.manual_seed(seed)
    settings = ModelSettings(width=8, max_events=6, encoder=encoder, use_actions=actions)
    built = build_retriever(settings, num_rows=30, num_actions=3).eval()
    for parameter in built.parameters():  # larger than at the start, so that a difference would show
        parameter.data.mul_(2)
    return built


def histories(lengths: list[int], *, seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    items = [random.integers(1, 30, length) for length in lengths]
    times = [np.sort(random.integers(10**9, 10**9 + 10**6, length)) for length in lengths]
    actions = [random.integers(0, 4, length) for length in lengths]
    return collate(encode_histories(items, times, actions, [2 * 10**9] * len(lengths), max_events=6))


def hidden_vectors(model: Retriever, batch: Batch) -> Tensor:
    [hidden_BLD] = model._asked(batch, foresee(batch, Prediction()), model.items, None)
    return hidden_BLD


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_history_gets_the_same_query_vector_alone_and_beside_longer_ones(encoder: HstuSettings) -> None:
    model = retriever(encoder)
    together = model.query_vectors(histories([3, 6, 1]))
    random = np.random.default_rng(0)
    items = [random.integers(1, 30, n) for n in (3, 6, 1)]
    times = [np.sort(random.integers(10**9, 10**9 + 10**6, n)) for n in (3, 6, 1)]
    actions = [random.integers(0, 4, n) for n in (3, 6, 1)]
    for row in range(3):
        alone = collate(encode_histories([items[row]], [times[row]], [actions[row]], [2 * 10**9], max_events=6))
        # Other padding means other blocking of the matrix products: rounding only.
        torch.testing.assert_close(model.query_vectors(alone)[0], together[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_later_events_do_not_change_earlier_hidden_vectors(encoder: HstuSettings) -> None:
    model = retriever(encoder)
    batch = histories([6])
    changed = Batch(**{name: value.clone() for name, value in batch.items()})  # type: ignore[typeddict-item, attr-defined]
    changed["items_BL"][0, 4:] = 7
    changed["actions_BL"][0, 4:] = 1
    changed["times_BL"][0, 4:] += 5000
    changed["query_times_BL"][0, 4:] += 9000
    before, after = hidden_vectors(model, batch), hidden_vectors(model, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4], atol=0, rtol=0)
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("encoder", [encoder for encoder in ENCODERS if encoder.time_bias])
def test_the_time_of_the_request_changes_the_query_vector_when_time_is_modelled(encoder: HstuSettings) -> None:
    model = retriever(encoder)
    batch = histories([5])
    later = Batch(**{name: value.clone() for name, value in batch.items()})  # type: ignore[typeddict-item, attr-defined]
    later["query_times_BL"][0, 4] -= 10**9 - 10**5
    assert not torch.allclose(model.query_vectors(batch), model.query_vectors(later))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_parameter_but_padding_receives_a_gradient(encoder: HstuSettings) -> None:
    torch.manual_seed(0)
    settings = ModelSettings(width=8, max_events=6, encoder=encoder, use_actions=True, dropout=0.0)
    model = build_retriever(settings, num_rows=30, num_actions=3, train_counts=np.ones(30, np.int64))
    batch = histories([6, 4, 5])
    batch["targets_BL"] = batch["items_BL"].roll(1, 1)
    model(batch, torch.Generator().manual_seed(0))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert model.items.weight.grad is not None
    assert not model.items.weight.grad[0].any()


def test_hstu_attention_equals_a_pair_by_pair_oracle() -> None:
    torch.manual_seed(0)
    block = HstuBlock(
        8, heads=2, query_width=3, value_width=5, max_events=7, dropout=0.0, position_bias=True, time_bias=False
    )
    for parameter in block.parameters():
        parameter.data.normal_()
    x_BLD = torch.randn(2, 6, 8)
    found = block(x_BLD, View(causal(6, x_BLD.device), None))
    normed_BLD = functional.layer_norm(x_BLD, (8,))
    gates, queries = functional.silu(block.project_rows(normed_BLD)).split(block.widths, -1)
    values, keys = functional.silu(block.project_events(normed_BLD)).split(block.widths, -1)
    position_L = block.bias.position_L
    assert position_L is not None
    for row in range(2):
        heads = []
        for head in range(2):
            pooled = torch.zeros(6, 5)
            for i in range(6):
                for j in range(i + 1):
                    score = queries[row, i, 3 * head : 3 * head + 3] @ keys[row, j, 3 * head : 3 * head + 3]
                    pooled[i] += (
                        functional.silu(score + position_L[i - j]) / 7 * values[row, j, 5 * head : 5 * head + 5]
                    )
            heads.append(pooled)
        pooled_LV = functional.layer_norm(torch.cat(heads, -1), (10,))
        expected = x_BLD[row] + block.project_out(gates[row] * pooled_LV)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_attention_equals_masked_softmax() -> None:
    torch.manual_seed(0)
    queries_BLD, keys_BLD, values_BLD = torch.randn(3, 2, 6, 8).unbind()
    bias_BLL = torch.randn(2, 6, 6)
    allowed = causal(6, bias_BLL.device)
    found = attend(queries_BLD, keys_BLD, values_BLD, 2, allowed, bias_BLL)
    for row in range(2):
        for head in (slice(0, 4), slice(4, 8)):
            scores_LL = queries_BLD[row, :, head] @ keys_BLD[row, :, head].T / 2 + bias_BLL[row]
            weights_LL = scores_LL.masked_fill(~allowed[0], float("-inf")).softmax(-1)
            torch.testing.assert_close(found[row, :, head], weights_LL @ values_BLD[row, :, head])


def with_random_weights(block: TransformerBlock | SasrecBlock) -> None:
    for parameter in block.parameters():
        parameter.data.normal_()


@pytest.mark.parametrize("gated", [False, True])
def test_a_transformer_block_adds_both_halves_through_its_gates(gated: bool) -> None:
    torch.manual_seed(0)
    block = TransformerBlock(
        8,
        heads=2,
        feedforward_width=16,
        gated_residuals=gated,
        max_events=7,
        dropout=0.0,
        position_bias=True,
        time_bias=True,
    )
    with_random_weights(block)
    x, allowed = torch.randn(2, 6, 8), causal(6, torch.device("cpu"))
    buckets_BLL = torch.randint(NUM_TIME_BUCKETS, (2, 6, 6)).int()
    normed = functional.rms_norm(x, (8,), block.norm_attention.weight)
    bias_BLL = block.bias(6, View(allowed, buckets_BLL))
    pooled = attend(*block.project_qkv(normed).chunk(3, -1), 2, allowed, bias_BLL)
    first_gate = torch.sigmoid(block.gate_attention(x)) if block.gate_attention else 1
    y = x + first_gate * block.project_out(pooled)
    gate, value = block.feedforward_in(functional.rms_norm(y, (8,), block.norm_feedforward.weight)).chunk(2, -1)
    second_gate = torch.sigmoid(block.gate_feedforward(y)) if block.gate_feedforward else 1
    expected = y + second_gate * block.feedforward_out(functional.silu(gate) * value)
    torch.testing.assert_close(block(x, View(allowed, buckets_BLL)), expected, atol=1e-5, rtol=1e-5)


def test_a_sasrec_block_normalises_queries_alone_and_starts_its_residuals_after_the_norms() -> None:
    torch.manual_seed(0)
    block = SasrecBlock(8, heads=2, max_events=7, dropout=0.0, position_bias=False, time_bias=False)
    with_random_weights(block)
    x, allowed = torch.randn(2, 6, 8), causal(6, torch.device("cpu"))
    normed = functional.layer_norm(x, (8,), block.norm_attention.weight, block.norm_attention.bias)
    keys, values = block.project_key_value(x).chunk(2, -1)
    pooled = attend(block.project_query(normed), keys, values, 2, allowed, None)
    norm = block.norm_feedforward
    y = functional.layer_norm(normed + block.project_out(pooled), (8,), norm.weight, norm.bias)
    expected = y + block.feedforward_out(functional.relu(block.feedforward_in(y)))
    torch.testing.assert_close(block(x, View(allowed, None)), expected, atol=1e-5, rtol=1e-5)


def test_time_buckets_follow_the_published_formula_also_across_sixty_years() -> None:
    times = torch.tensor([[0, 5, 1_000_000_000, 1_000_000_007, 2_000_000_000]])
    queries = torch.tensor([[5, 1_000_000_000, 1_000_000_007, 2_000_000_000, 2_000_000_001]])
    found = time_buckets(queries, times)
    for i in range(5):
        for j in range(5):
            seconds = max(1, abs(int(queries[0, i] - times[0, j])))
            assert found[0, i, j] == min(128, int(np.log(np.float32(seconds)) / 0.301)), (i, j)


def test_the_gradient_of_the_bias_equals_that_of_plain_indexing() -> None:
    torch.manual_seed(0)
    bias = RelativeBias(6, position=True, time=True)
    buckets = torch.randint(NUM_TIME_BUCKETS, (3, 5, 5)).int()
    weight = torch.randn(3, 5, 5)
    found = bias(5, View(causal(5, buckets.device), buckets))
    assert found is not None
    (found * weight).sum().backward()
    assert bias.position_L is not None
    assert bias.time_K is not None
    distance = (torch.arange(5)[:, None] - torch.arange(5)).clamp(min=0)
    position = bias.position_L.detach().clone().requires_grad_()
    time = bias.time_K.detach().clone().requires_grad_()
    ((position[distance] + time[buckets.long()]) * weight).sum().backward()
    torch.testing.assert_close(bias.position_L.grad, position.grad)
    torch.testing.assert_close(bias.time_K.grad, time.grad)


def test_bf16_runs_forward_and_backward() -> None:
    settings = ModelSettings(width=8, max_events=6, encoder=HstuSettings(query_width=8, value_width=8))
    model = build_retriever(settings, num_rows=30, num_actions=0, train_counts=np.ones(30, np.int64)).bfloat16()
    batch = histories([6, 4])
    batch["targets_BL"] = batch["items_BL"].clone()
    loss = model(batch, torch.Generator().manual_seed(0))["loss"]
    loss.backward()
    assert torch.isfinite(loss)


def test_attention_with_a_sink_equals_attention_with_one_more_column_for_each_row() -> None:
    torch.manual_seed(0)
    queries_BRD, sink_key_BRD, sink_value_BRD = torch.randn(3, 2, 3, 8).unbind()
    keys_BLD, values_BLD = torch.randn(2, 2, 6, 8).unbind()
    bias_BRL = torch.randn(2, 3, 6)
    allowed_BRL = torch.rand(2, 3, 6) < 0.5
    allowed_BRL[0, 0] = False  # a row that sees nothing but its sink
    found = attend(queries_BRD, keys_BLD, values_BLD, 2, allowed_BRL, bias_BRL, (sink_key_BRD, sink_value_BRD))
    torch.testing.assert_close(found[0, 0], sink_value_BRD[0, 0])
    for row in range(3):  # its sink as an ordinary column
        expected = attend(
            queries_BRD[:, row, None],
            torch.cat([keys_BLD, sink_key_BRD[:, row, None]], 1),
            torch.cat([values_BLD, sink_value_BRD[:, row, None]], 1),
            2,
            functional.pad(allowed_BRL[:, row, None], (0, 1), value=True),
            functional.pad(bias_BRL[:, row, None], (0, 1)),
        )
        torch.testing.assert_close(found[:, row, None], expected)


@pytest.mark.parametrize("with_offset", [False, True])
@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_few_rows_attend_as_if_every_event_had_a_key_and_a_value(
    with_offset: bool, with_sink: bool, with_bias: bool
) -> None:
    torch.manual_seed(0)
    queries_BRD, sink_BRD = torch.randn(2, 2, 3, 8).unbind()
    events_BLD = torch.randn(2, 6, 8)
    layer = torch.nn.Linear(8, 16, bias=with_offset)
    bias_BRL = torch.randn(2, 3, 6) if with_bias else None
    allowed_BRL = torch.rand(2, 3, 6) < 0.5
    allowed_BRL[..., 0] = True
    if with_sink:
        allowed_BRL[0, 0] = False  # a row that sees nothing but its sink
    places = (2, allowed_BRL, bias_BRL)
    found = attend_from_few(queries_BRD, events_BLD, layer.weight, layer.bias, *places, sink_BRD if with_sink else None)
    sink = layer(sink_BRD).chunk(2, -1) if with_sink else None
    expected = attend(queries_BRD, *layer(events_BLD).chunk(2, -1), *places, sink)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("encoder", [encoder for encoder in ENCODERS if encoder.blocks == 2])
def test_rows_that_look_alone_equal_the_rows_of_all_events(encoder: HstuSettings) -> None:
    block = retriever(encoder).branches[0]
    x_BLD, places_BR = torch.randn(2, 6, 8), torch.tensor([[5, 1], [3, 3]])
    buckets_BLL = torch.randint(NUM_TIME_BUCKETS, (2, 6, 6)).int() if encoder.time_bias else None
    view = View(causal(6, x_BLD.device), buckets_BLL)
    rows_BRD = x_BLD[torch.arange(2)[:, None], places_BR]
    found = block(x_BLD, view.at(places_BR), rows_BRD)
    torch.testing.assert_close(found, block(x_BLD, view)[torch.arange(2)[:, None], places_BR], atol=1e-5, rtol=1e-5)


def test_the_sink_of_an_hstu_row_counts_as_one_more_event() -> None:
    torch.manual_seed(0)
    block = HstuBlock(
        8, heads=2, query_width=3, value_width=5, max_events=7, dropout=0.0, position_bias=False, time_bias=False
    )
    for parameter in block.parameters():
        parameter.data.normal_()
    x_BLD, rows_BRD, sink_BRD = torch.randn(2, 6, 8), torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    allowed = torch.tensor([[[True, False, True, True, False, True]]])
    found = block(x_BLD, View(allowed, None), rows_BRD, sink_BRD)
    longer = View(functional.pad(allowed, (0, 1), value=True), None)
    expected = block(torch.cat([x_BLD, sink_BRD], 1), longer, rows_BRD)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
