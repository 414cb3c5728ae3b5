"""ESANS: what is drawn and how likely it was, virtual negatives, and the loss against an explicit softmax."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from data.batch import Batch, collate
from data.encode import encode_histories
from modeling.build import build_retriever
from modeling.esans import Clusters, EsansSampler, distinct_places, simple_blends, simple_weights
from modeling.losses import own_softmax, sampled_softmax
from modeling.negatives import NegativeSampler
from modeling.retriever import Retriever
from modeling.settings import ModelSettings

NUM_ROWS = 41
PLAIN = {
    "other_clusters": 2,
    "per_cluster": 3,
    "distance_temperature": 1.0,
    "hard": True,
    "simple_virtual": True,
    "hard_virtual": True,
    "hard_range": (0.0, 0.5),
    "num_uniform": 0,
    "log_q": True,
}


def clusters(seed: int = 0) -> Clusters:
    """Four clusters of 10 items and fewer, of three subclusters that are not of one size."""
    draw = torch.Generator().manual_seed(seed)
    codes_V2 = torch.stack([torch.arange(NUM_ROWS - 1) % 4, torch.randint(3, (NUM_ROWS - 1,), generator=draw)], 1)
    codes_V2 = torch.cat([torch.full((1, 2), -1), codes_V2[torch.randperm(NUM_ROWS - 1, generator=draw)]])
    centres_CD = torch.randn(4, 2, generator=draw)
    return Clusters(codes_V2, torch.cdist(centres_CD, centres_CD))


def sampler(found: Clusters | None = None, **changes: object) -> EsansSampler:
    built = EsansSampler(NUM_ROWS, **{**PLAIN, **changes})  # type: ignore[arg-type]
    built.use(found or clusters())
    return built


def unit(*shape: int, seed: int) -> Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("num_uniform", [0, 4])
def test_every_item_is_drawn_as_often_as_its_stated_probability(num_uniform: int) -> None:
    built, generator, repeats = sampler(num_uniform=num_uniform), torch.Generator().manual_seed(1), 4000
    for target in (1, 7):
        targets_E = torch.full((repeats,), target)
        rows = built.own(targets_E, torch.arange(0), generator).rows_EM.flatten()
        uniform = torch.randint(1, NUM_ROWS, (repeats * num_uniform,), generator=generator)
        drawn = torch.bincount(torch.cat([rows, uniform]), minlength=NUM_ROWS).double()
        everything = torch.arange(1, NUM_ROWS)
        stated = built.own(targets_E[:1], everything, generator).shared_log_q_EN[0].exp()
        np.testing.assert_allclose(stated.sum().item(), 1, atol=1e-5)
        # 36,000 draws and more: a share of 0.1 has a standard error of 0.0016.
        np.testing.assert_allclose((drawn / drawn.sum())[1:].numpy(), stated.numpy(), atol=0.006)
        codes_V2 = clusters().codes_V2
        twins = (codes_V2[1:] == codes_V2[target]).all(1)
        assert twins.any()
        assert (drawn[1:][twins] == 0).all() == (num_uniform == 0)
        assert ((stated == 0) == (twins & (num_uniform == 0))).all()


def test_the_probability_of_each_drawn_item_is_that_of_the_whole_table() -> None:
    built, targets_E = sampler(num_uniform=5), torch.arange(1, NUM_ROWS)
    found = built.own(targets_E, torch.arange(1, NUM_ROWS), torch.Generator().manual_seed(0))
    expected = found.shared_log_q_EN.gather(1, found.rows_EM.clamp(min=1) - 1)
    torch.testing.assert_close(found.log_q_EM, expected.where(found.rows_EM > 0, 0.0))


def test_easy_ones_are_of_other_clusters_and_hard_ones_of_another_subcluster_of_the_same() -> None:
    found, codes_V2 = sampler(), clusters().codes_V2
    targets_E = torch.arange(1, NUM_ROWS).repeat(50)
    rows_EM = found.own(targets_E, torch.arange(0), torch.Generator().manual_seed(0)).rows_EM
    easy_EGO, hard_EO = rows_EM[:, :6].unflatten(1, (2, 3)), rows_EM[:, 6:]
    assert (easy_EGO > 0).all()
    of_target_E2 = codes_V2[targets_E]
    assert (codes_V2[easy_EGO][..., 0] != of_target_E2[:, 0, None, None]).all()
    assert (codes_V2[easy_EGO][..., 0] == codes_V2[easy_EGO][..., :1, 0]).all()  # of one cluster each
    assert all(len(set(row)) == 3 for row in easy_EGO.flatten(0, 1).tolist())
    assert all(len(set(row)) == 3 for row in hard_EO.tolist())
    hard_EO2 = codes_V2[hard_EO]
    assert (hard_EO2[..., 0] == of_target_E2[:, :1]).all()
    assert (hard_EO2[..., 1] != of_target_E2[:, 1:]).all()


def test_near_clusters_are_drawn_more_often_the_lower_the_temperature() -> None:
    found = clusters()
    order = found.distances_CC[0].argsort()
    target = int((found.codes_V2[:, 0] == 0).nonzero()[0])
    shares = []
    for temperature in (10.0, 1.0, 0.1):
        built = sampler(distance_temperature=temperature)
        rows_EM = built.own(torch.full((3000,), target), torch.arange(0), torch.Generator().manual_seed(0)).rows_EM
        shares.append((found.codes_V2[rows_EM[:, :6]][..., 0] == order[1]).float().mean().item())
        expected = (-found.distances_CC[0, order[1:]] / temperature).softmax(0)[0].item()
        assert shares[-1] == pytest.approx(expected, abs=0.03)
    assert shares == sorted(shares)


def test_places_are_distinct_uniform_and_missing_where_there_are_too_few() -> None:
    sizes_E = torch.tensor([0, 1, 3, 5]).repeat(20_000)
    places_EO = distinct_places(sizes_E, 3, torch.Generator().manual_seed(0))
    assert (places_EO[0::4] == -1).all()
    assert torch.equal(places_EO[1::4], torch.tensor([[0, -1, -1]]).expand(20_000, -1))
    assert torch.equal(places_EO[2::4].sort(1).values, torch.arange(3).expand(20_000, -1))
    for nth in range(3):  # every place is as likely at every turn
        share = torch.bincount(places_EO[3::4, nth], minlength=5) / 20_000
        np.testing.assert_allclose(share.numpy(), 0.2, atol=0.012)
    ordered = places_EO[3::4].sort(1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all()


@pytest.mark.parametrize("per_cluster", [2, 3, 5, 6])
def test_simple_blends_are_convex_and_as_many_as_the_authors_say(per_cluster: int) -> None:
    weights_EBO = simple_weights(300, per_cluster, torch.Generator().manual_seed(0))
    assert weights_EBO.shape[1] == simple_blends(per_cluster) == (per_cluster + 2) * (per_cluster - 1) // 2
    torch.testing.assert_close(weights_EBO.sum(-1), torch.ones(300, weights_EBO.shape[1]))
    assert (weights_EBO >= 0).all()
    of = (weights_EBO > 0).sum(-1)
    expected = [k for k in range(2, per_cluster + 1) for _ in range(k)]  # k blends of k items
    assert of.tolist() == [expected] * 300
    assert len({tuple(row) for row in (weights_EBO[:, 0] > 0).tolist()}) == per_cluster * (per_cluster - 1) // 2


def test_virtual_negatives_are_blends_of_unit_length_and_lack_what_does_not_count() -> None:
    built, targets_E = sampler(), torch.arange(1, NUM_ROWS)
    own = built.own(targets_E, torch.arange(0), torch.Generator().manual_seed(0))
    table_VD = unit(NUM_ROWS, 8, seed=0).requires_grad_()
    positives_EK = torch.stack([targets_E, own.rows_EM[:, 0], own.rows_EM[:, 6]], 1)  # an easy and a hard one, besides
    query_ED = unit(len(targets_E), 8, seed=1).requires_grad_()
    score_EX, kept_EX = own.scores(query_ED, table_VD[targets_E], table_VD[own.rows_EM], positives_EK)
    assert score_EX.shape[1] + built.num_uniform == built.scored_per_target == 2 * (3 + 5) + 3 + 3
    assert not kept_EX[:, [0, 6]].any()
    counts_EM = (own.rows_EM[:, :, None] != positives_EK[:, None]).all(-1)  # a cluster may be drawn twice
    assert torch.equal(kept_EX[:, :9], counts_EM)
    item_EMD = table_VD[own.rows_EM]
    torch.testing.assert_close(score_EX[:, :9], torch.einsum("emd,ed->em", item_EMD, query_ED))
    assert not kept_EX[:, 19].any()  # between the target and the hard one that is a positive
    assert kept_EX[:, 20:].all()
    # Of other clusters, without the items that are positives; of the target and a hard one.
    vectors = [own.weights_EWM[:, :10, :6] * counts_EM[:, None, :6] @ item_EMD[:, :6]]
    share_EO1 = own.target_weights_EW[:, 11:, None]
    assert ((share_EO1 >= 0) & (share_EO1 <= 0.5)).all()
    vectors.append(share_EO1 * table_VD[targets_E][:, None] + (1 - share_EO1) * item_EMD[:, 7:])
    explicit_EWD = functional.normalize(torch.cat(vectors, 1), dim=-1)
    expected_EW = torch.einsum("ewd,ed->ew", explicit_EWD, query_ED)
    found_EW = torch.cat([score_EX[:, 9:19], score_EX[:, 20:]], 1)
    torch.testing.assert_close(found_EW, expected_EW)
    told = [
        torch.autograd.grad(score.sum(), (table_VD, query_ED), retain_graph=True) for score in (found_EW, expected_EW)
    ]
    for one, other in zip(*told, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert (told[0][0][1:].abs().sum(1) > 0).all()


def _explicit(
    score_EX: Tensor, query_ED: Tensor, target_ED: Tensor, shared_ND: Tensor, case: dict[str, Tensor]
) -> Tensor:
    """One target after the other, one candidate after the other."""
    losses = []
    for row in range(len(query_ED)):
        logits = [query_ED[row] @ target_ED[row] / 0.1 - case["target_log_q_E"][row]]
        for place in range(score_EX.shape[1]):
            if case["kept_EX"][row, place]:
                logits.append(score_EX[row, place] / 0.1 - case["own_log_q_EX"][row, place])
        for place in range(len(shared_ND)):
            if case["shared_rows_N"][place] not in case["positive_rows_EK"][row]:
                logits.append(query_ED[row] @ shared_ND[place] / 0.1 - case["shared_log_q_EN"][row, place])
        losses.append(-torch.stack(logits).log_softmax(0)[0])
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("num_own", "num_shared"), [(7, 6), (7, 0), (0, 6)])
def test_the_loss_and_its_gradients_are_those_of_an_explicit_softmax(num_own: int, num_shared: int) -> None:
    draw = torch.Generator().manual_seed(0)
    vectors = [
        0.5 * torch.randn(11, num_own, generator=draw),
        unit(11, 8, seed=2),
        unit(11, 8, seed=3),
        unit(num_shared, 8, seed=4),
    ]
    vectors = [value.requires_grad_() for value in vectors]
    case = {
        "kept_EX": torch.rand(11, num_own, generator=draw) < 0.7,
        "positive_rows_EK": torch.randint(0, 9, (11, 2), generator=draw),
        "shared_rows_N": torch.randint(1, 9, (num_shared,), generator=draw),
        "target_log_q_E": torch.randn(11, generator=draw),
        "own_log_q_EX": torch.randn(11, num_own, generator=draw),
        "shared_log_q_EN": torch.randn(11, num_shared, generator=draw),
    }
    score_EX, query_ED, target_ED, shared_ND = vectors
    found = own_softmax(query_ED, target_ED, score_EX, shared_ND, **case, temperature=0.1)
    expected = _explicit(score_EX, query_ED, target_ED, shared_ND, case)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, vectors, materialize_grads=True) for loss in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_without_own_negatives_it_is_the_loss_over_shared_ones() -> None:
    targets_E, shared_N = torch.arange(1, 9), torch.randint(1, 20, (30,), generator=torch.Generator().manual_seed(0))
    table_VD, query_ED = unit(20, 8, seed=0), unit(8, 8, seed=1)
    uniform = NegativeSampler(torch.ones(20, dtype=torch.long), num_uniform=30, num_in_batch=0)
    log_q_N = uniform.log_q(shared_N)
    found = own_softmax(
        query_ED,
        table_VD[targets_E],
        torch.zeros(8, 0),
        table_VD[shared_N],
        kept_EX=torch.zeros(8, 0, dtype=torch.bool),
        positive_rows_EK=targets_E[:, None],
        shared_rows_N=shared_N,
        target_log_q_E=uniform.log_q(targets_E),
        own_log_q_EX=torch.zeros(8, 0),
        shared_log_q_EN=log_q_N.expand(8, -1),
        temperature=0.1,
    )
    expected = sampled_softmax(
        query_ED,
        table_VD[targets_E],
        table_VD[shared_N],
        positive_rows_EK=targets_E[:, None],
        negative_rows_N=shared_N,
        target_log_q_E=uniform.log_q(targets_E),
        negative_log_q_N=log_q_N,
        temperature=0.1,
    )
    torch.testing.assert_close(found, expected)


def _retriever(heads: int = 1, found: Clusters | None = None, **esans: object) -> Retriever:
    torch.manual_seed(0)
    settings = ModelSettings.model_validate(
        {
            "width": 8,
            "max_events": 6,
            "dropout": 0,
            "encoder": {"kind": "sasrec", "blocks": 1},
            "prediction": {"heads": heads},
            "negatives": {"kind": "esans", "per_cluster": 3, **esans},
        }
    )
    counts = np.ones(NUM_ROWS, np.int64)
    retriever = build_retriever(settings, num_rows=NUM_ROWS, num_actions=0, train_counts=counts)
    assert isinstance(retriever.sampler, EsansSampler)
    retriever.sampler.use(found or clusters())
    return retriever


def _batch(*lengths: int) -> Batch:
    random = np.random.default_rng(0)
    items = [random.integers(1, NUM_ROWS, length) for length in lengths]
    zeros = [np.zeros(length, np.int64) for length in lengths]
    batch = collate(encode_histories(items, zeros, zeros, [0] * len(lengths), max_events=6))
    batch["targets_BL"] = functional.pad(batch["items_BL"][:, 1:], (0, 1))
    return batch


def _learn(retriever: Retriever, batch: Batch, seed: int = 0) -> tuple[float, dict[str, Tensor]]:
    retriever.zero_grad()
    loss = retriever(batch, torch.Generator().manual_seed(seed))["loss"]
    loss.backward()
    return loss.item(), {name: value.grad.clone() for name, value in retriever.named_parameters()}


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("num_uniform", [0, 4])
def test_a_retriever_learns_from_them_and_draws_the_same_from_the_same_seed(heads: int, num_uniform: int) -> None:
    retriever = _retriever(heads, num_uniform=num_uniform)
    loss, gradients = _learn(retriever, _batch(6, 4, 5))
    again, same = _learn(retriever, _batch(6, 4, 5))
    other, _ = _learn(retriever, _batch(6, 4, 5), seed=1)
    assert loss == again != other
    for name, value in gradients.items():
        assert torch.equal(value, same[name])
        assert value.isfinite().all()
    touched = (gradients["items.weight"].abs().sum(1) > 0).sum()
    assert touched > 30  # targets, and negatives far beyond the 15 items of the batch


def test_a_batch_without_targets_goes_the_same_way_and_teaches_nothing() -> None:
    loss, gradients = _learn(_retriever(2, num_uniform=3), _batch(1))
    assert loss == 0
    assert all((value == 0).all() for value in gradients.values())


@pytest.mark.parametrize("log_q", [False, True])
def test_one_cluster_alone_and_subclusters_of_one_item_leave_the_loss_finite(log_q: bool) -> None:
    alone = Clusters(torch.tensor([[-1, -1], *[[0, 0]] * (NUM_ROWS - 1)]), torch.zeros(1, 1))
    loss, gradients = _learn(_retriever(found=alone, log_q=log_q), _batch(6))
    assert loss == 0  # nothing to tell a target from
    loss, gradients = _learn(_retriever(found=alone, log_q=log_q, num_uniform=5), _batch(6))
    assert loss > 0
    codes_V2 = torch.tensor([[-1, -1], *[[row % 2, row // 2 % 3] for row in range(NUM_ROWS - 1)]])
    codes_V2[1:4] = torch.tensor([[2, 0], [2, 0], [2, 1]])  # a cluster where one or two hard ones are to be had
    few = Clusters(codes_V2, torch.ones(3, 3))
    loss, gradients = _learn(_retriever(found=few, log_q=log_q), _batch(6, 6, 6))
    assert loss > 0
    assert all(value.isfinite().all() for value in gradients.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hard": False}, "hard_virtual lies between the target and its hard negatives; set hard, or switch both off"),
        ({"hard_range": (0.5, 1.0)}, "expected a least and a largest weight below 1"),
        ({"hard_range": (0.5, 0.1)}, "expected a least and a largest weight below 1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSettings.model_validate({"negatives": {"kind": "esans", **changes}})


@pytest.mark.parametrize(
    ("settings", "scored"),
    [
        ({"kind": "uniform", "num_uniform": 7}, 7),
        ({"kind": "mixed", "num_uniform": 7, "num_in_batch": 5}, 12),
        ({"kind": "all"}, NUM_ROWS - 1),
        ({"kind": "esans"}, 2 * (5 + 14) + 5 + 5),
        ({"kind": "esans", "hard_virtual": False, "num_uniform": 9}, 2 * (5 + 14) + 5 + 9),
        ({"kind": "esans", "hard_virtual": False, "hard": False, "simple_virtual": False, "other_clusters": 3}, 15),
    ],
)
def test_every_sampler_says_how_many_candidates_a_target_is_scored_against(
    settings: dict[str, object], scored: int
) -> None:
    model = ModelSettings.model_validate({"negatives": settings})
    counts = np.ones(NUM_ROWS, np.int64)
    built = build_retriever(model, num_rows=NUM_ROWS, num_actions=0, train_counts=counts)
    assert built.sampler is not None
    assert built.sampler.scored_per_target == scored
