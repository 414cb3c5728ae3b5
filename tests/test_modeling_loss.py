"""Negatives and losses: full softmax as the oracle, and the stated probabilities of the samplers."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from modeling.losses import LOGITS_PER_CHUNK, full_softmax, positives_among, sampled_softmax
from modeling.negatives import EveryItem, NegativeSampler


def unit_vectors(*shape: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_with_the_whole_catalogue_as_negatives_the_loss_is_full_softmax() -> None:
    catalogue_VD, query_ED = unit_vectors(20, 8, seed=0), unit_vectors(50, 8, seed=1)
    targets_E = torch.randint(1, 20, (50,), generator=torch.Generator().manual_seed(2))
    everything = torch.arange(1, 20)
    found = sampled_softmax(
        query_ED,
        catalogue_VD[targets_E],
        catalogue_VD[everything],
        positive_rows_EK=targets_E[:, None],
        negative_rows_N=everything,
        target_log_q_E=torch.full((50,), -3.0),
        negative_log_q_N=torch.full((19,), -3.0),
        temperature=0.05,
    )
    expected = full_softmax(query_ED, catalogue_VD, targets_E, temperature=0.05).mean()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("logits_per_chunk", [1, 7 * 31, 10**6])
def test_loss_and_gradients_equal_those_of_the_plain_formula_in_chunks_of_any_size(
    logits_per_chunk: int, num_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGITS_PER_CHUNK, "cpu", logits_per_chunk)
    vectors = [unit_vectors(rows, 8, seed=rows).requires_grad_() for rows in (50, 50, 31)]
    query_ED, target_ED, negative_ND = vectors
    draw = torch.Generator().manual_seed(0)
    positives_EK = torch.randint(0, 20, (50, num_heads), generator=draw)  # 0 = none
    positives_EK[:, 0] = torch.randint(1, 20, (50,), generator=draw)
    targets_E, negatives_N = positives_EK[:, 0], torch.randint(1, 20, (31,), generator=draw)
    log_q_V = torch.randn(20, generator=draw)
    found = sampled_softmax(
        *vectors,
        positive_rows_EK=positives_EK,
        negative_rows_N=negatives_N,
        target_log_q_E=log_q_V[targets_E],
        negative_log_q_N=log_q_V[negatives_N],
        temperature=0.05,
    )
    target_logit_E = (query_ED * target_ED).sum(-1) / 0.05 - log_q_V[targets_E]
    logits_EN = query_ED @ negative_ND.T / 0.05 - log_q_V[negatives_N]
    logits_EN = logits_EN.masked_fill((positives_EK[:, :, None] == negatives_N).any(1), float("-inf"))
    expected = functional.cross_entropy(torch.cat([target_logit_E[:, None], logits_EN], 1), torch.zeros(50).long())
    # Sums of 31 exponentials in float32, in another order.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    by_ours = torch.autograd.grad(3 * found, vectors)
    by_plain = torch.autograd.grad(3 * expected, vectors)
    for ours, plain in zip(by_ours, by_plain, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)


def test_bf16_vectors_get_bf16_gradients_of_a_float32_loss() -> None:
    vectors = [unit_vectors(rows, 8, seed=rows).bfloat16().requires_grad_() for rows in (6, 6, 5)]
    rows = {"positive_rows_EK": torch.full((6, 1), 3), "negative_rows_N": torch.arange(4, 9)}
    log_q = {"target_log_q_E": torch.zeros(6), "negative_log_q_N": torch.zeros(5)}
    loss = sampled_softmax(*vectors, **rows, **log_q, temperature=0.05)
    assert loss.dtype == torch.float32
    assert all(gradient.dtype == torch.bfloat16 for gradient in torch.autograd.grad(loss, vectors))


def test_a_negative_that_is_the_target_is_left_out() -> None:
    query_ED, item_ED = unit_vectors(1, 4, seed=0), unit_vectors(1, 4, seed=1)
    loss = sampled_softmax(
        query_ED,
        item_ED,
        item_ED.repeat(3, 1),
        positive_rows_EK=torch.tensor([[5]]),
        negative_rows_N=torch.tensor([5, 5, 5]),
        target_log_q_E=torch.zeros(1),
        negative_log_q_N=torch.zeros(3),
        temperature=0.1,
    )
    assert loss.item() == 0


@pytest.mark.parametrize(
    ("num_targets", "num_heads", "num_items"), [(1, 1, 2), (40, 1, 12), (40, 3, 12), (9, 2, 10**6)]
)
def test_positives_among_the_negatives_are_those_of_a_comparison_of_all_pairs(
    num_targets: int, num_heads: int, num_items: int
) -> None:
    draw = torch.Generator().manual_seed(num_targets + num_heads)
    positives_EK = torch.randint(0, num_items, (num_targets, num_heads), generator=draw)  # 0 = none
    negatives_N = torch.randint(1, num_items, (31,), generator=draw)  # with repetitions, where items are few
    row_M, column_M = positives_among(positives_EK, negatives_N)
    found = torch.zeros(num_targets, 31, dtype=torch.bool)
    found[row_M, column_M] = True
    assert torch.equal(found, (positives_EK[:, :, None] == negatives_N).any(1))
    assert torch.equal(row_M, row_M.sort().values)


@pytest.mark.parametrize(("num_uniform", "num_in_batch"), [(64, 0), (0, 64), (32, 32)])
def test_negatives_are_drawn_as_often_as_their_stated_probability(num_uniform: int, num_in_batch: int) -> None:
    counts_V = torch.tensor([0, 1, 2, 4, 8, 16])
    sampler = NegativeSampler(counts_V, num_uniform=num_uniform, num_in_batch=num_in_batch)
    generator = torch.Generator().manual_seed(0)
    # Batches whose targets follow the training counts, as those of a shuffled stream do.
    targets = torch.repeat_interleave(torch.arange(6), counts_V)
    drawn = torch.zeros(6)
    for _ in range(2000):
        batch = targets[torch.randint(len(targets), (40,), generator=generator)]
        drawn += torch.bincount(sampler(batch, generator), minlength=6)
    stated = sampler.log_q(torch.arange(6)).exp()
    assert drawn[0] == 0
    assert stated[0] == 0
    # 128,000 draws: a share of 0.03 has a standard error of 0.0005, and batches add to it.
    np.testing.assert_allclose((drawn / drawn.sum()).numpy(), stated.numpy(), atol=0.006)


@pytest.mark.parametrize("num_rows", [40, 5000])
def test_every_item_as_a_negative_gives_the_full_softmax_and_its_gradient(num_rows: int) -> None:
    torch.manual_seed(0)
    table_VD = functional.normalize(torch.randn(num_rows, 8), dim=-1)
    query_ED = functional.normalize(torch.randn(100, 8), dim=-1).requires_grad_()
    targets_E = torch.randint(1, num_rows, (100,))
    negatives = EveryItem(num_rows)
    rows_N = negatives(targets_E, None)
    loss = sampled_softmax(
        query_ED,
        table_VD[targets_E],
        table_VD[rows_N],
        positive_rows_EK=targets_E[:, None],
        negative_rows_N=rows_N,
        target_log_q_E=negatives.log_q(targets_E),
        negative_log_q_N=negatives.log_q(rows_N),
        temperature=0.05,
    )
    [found] = torch.autograd.grad(loss, query_ED)
    expected = full_softmax(query_ED, table_VD, targets_E, temperature=0.05).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, query_ED)[0])


@pytest.mark.parametrize(("num_uniform", "num_in_batch"), [(64, 0), (0, 64), (32, 32)])
def test_the_gradient_approaches_that_of_full_softmax_as_negatives_grow(num_uniform: int, num_in_batch: int) -> None:
    counts_V = torch.tensor([0, 1, 2, 4, 8, 16, 3, 3, 5, 9])
    catalogue_VD = unit_vectors(10, 6, seed=0)
    targets_E = torch.repeat_interleave(torch.arange(10), counts_V)
    exact = _query_gradient_full(catalogue_VD, targets_E)
    errors = []
    for scale in (1, 64):
        sampler = NegativeSampler(counts_V, num_uniform=num_uniform * scale, num_in_batch=num_in_batch * scale)
        mean = torch.stack(
            [_query_gradient_sampled(sampler, catalogue_VD, targets_E, seed) for seed in range(40)]
        ).mean(0)
        errors.append(float((mean - exact).norm() / exact.norm()))
    assert errors[1] < 0.12, errors
    assert errors[1] <= errors[0] + 0.02, errors


def _queries() -> torch.Tensor:
    return unit_vectors(51, 6, seed=1).requires_grad_()


def _query_gradient_full(catalogue_VD: torch.Tensor, targets_E: torch.Tensor) -> torch.Tensor:
    query_ED = _queries()
    # With every item drawn in proportion to q, and corrected for it, the candidates' sum estimates
    # N times the full sum, and the target's own term vanishes beside it as N grows.
    logits = query_ED @ catalogue_VD.T / 0.5
    logits[:, 0] = float("-inf")
    others = logits.masked_fill(functional.one_hot(targets_E, 10).bool(), float("-inf"))
    ((others.logsumexp(-1)) - logits.gather(1, targets_E[:, None])[:, 0]).sum().backward()
    assert query_ED.grad is not None
    return query_ED.grad


def _query_gradient_sampled(
    sampler: NegativeSampler, catalogue_VD: torch.Tensor, targets_E: torch.Tensor, seed: int
) -> torch.Tensor:
    query_ED = _queries()
    negatives_N = sampler(targets_E, torch.Generator().manual_seed(seed))
    sampled_softmax(
        query_ED,
        catalogue_VD[targets_E],
        catalogue_VD[negatives_N],
        positive_rows_EK=targets_E[:, None],
        negative_rows_N=negatives_N,
        # The scale of the sum: N draws stand for the catalogue once each.
        target_log_q_E=torch.zeros(len(targets_E)) + 40,
        negative_log_q_N=sampler.log_q(negatives_N),
        temperature=0.5,
    ).mul(len(targets_E)).backward()
    assert query_ED.grad is not None
    return query_ED.grad
