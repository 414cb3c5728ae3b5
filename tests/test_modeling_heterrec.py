"""HeterRec: items as tokens, a transformer over tokens, and one vector for several steps, against slow oracles."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from data.batch import Batch, collate
from data.catalogue import TEXTS
from data.encode import encode_histories
from data.item_features import ItemFacts
from modeling.build import build_retriever
from modeling.feature_table import FeatureTable, HeldFeatures
from modeling.foresight import Prediction, foresee
from modeling.item_table import ItemTable
from modeling.retriever import Retriever
from modeling.settings import ModelSettings
from modeling.token_level import attend_in_windows, gap_buckets, window_mask
from modeling.transformer import TransformerBlock
from modeling.view import View, causal

NUM_ROWS, MAX_EVENTS, WIDTH = 30, 7, 8
FEATURES = {"kind": "features", "numbers": ["price"], "number_buckets": 3, "contents": ["image"], "id_dropout": 0.3}
SASREC = {"kind": "sasrec", "blocks": 1}
UNSEEN = (5, 6, 7)  # rows without training events: 6 and 7 have the same features


def catalogue() -> pa.Table:
    random = np.random.default_rng(3)
    rows = range(1, NUM_ROWS)
    image = random.normal(size=(NUM_ROWS, 5)).astype(np.float32)
    image[7] = image[6]
    return pa.table(
        {
            "item_id": [str(row) for row in rows],
            "categories": pa.array(
                [[["x"], ["x", "y"], ["z"], []][row % 4] if row != 7 else ["z"] for row in rows], TEXTS
            ),
            "train_events": pa.array([0 if row in UNSEEN else row for row in rows], pa.int64()),
            "price": pa.array([None if row % 5 == 3 else float(row if row != 7 else 6) for row in rows]),
            "image": pa.array([None if row == 2 else image[row].tolist() for row in rows], pa.list_(pa.float32())),
        }
    )


def retriever(*, seed: int = 0, **settings: Any) -> Retriever:
    torch.manual_seed(seed)
    given = {"width": WIDTH, "max_events": MAX_EVENTS, "encoder": SASREC, **settings}
    built = build_retriever(
        ModelSettings.model_validate(given),
        num_rows=NUM_ROWS,
        num_actions=3,
        train_counts=np.ones(NUM_ROWS, np.int64),
        catalogue=catalogue(),
    )
    for parameter in built.parameters():  # larger than at the start, so that a difference would show
        parameter.data.mul_(2)
    return built


def histories(lengths: list[int], *, seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    items = [random.integers(1, NUM_ROWS, length) for length in lengths]
    times = [np.sort(random.integers(10**9, 10**9 + 10**6, length)) for length in lengths]
    actions = [random.integers(0, 4, length) for length in lengths]
    batch = collate(encode_histories(items, times, actions, [2 * 10**9] * len(lengths), max_events=MAX_EVENTS))
    batch["targets_BL"][:, :-1] = batch["items_BL"][:, 1:]
    return batch


def copied(batch: Batch) -> Batch:
    return Batch(**{name: value.clone() for name, value in batch.items()})  # type: ignore[typeddict-item, attr-defined]


def hidden_vectors(model: Retriever, batch: Batch) -> Tensor:
    hidden_BLD, *_ = model._asked(batch, foresee(batch, Prediction()), model.items, None)
    return hidden_BLD


def table_of(model: Retriever) -> FeatureTable:
    assert isinstance(model.items, FeatureTable)
    return model.items


def test_vectors_and_tokens_are_those_of_explicit_loops() -> None:
    table = table_of(retriever(items=FEATURES).eval())
    assert isinstance(table, ItemTable)
    values, rows = table.values, catalogue().to_pylist()
    assert values.ids is not None
    assert values.categories is not None
    assert values.numbers is not None
    for row in (2, 3, 4, 6, 29):
        item = rows[row - 1]
        codes = ["xyz".index(name) + 1 for name in item["categories"]] or [0]
        content_P = values.get_buffer("content_0")[row]
        assert (item["image"] is None) == bool(content_P[-1])
        if item["image"] is not None:
            torch.testing.assert_close(content_P[:-1], functional.normalize(torch.tensor(item["image"]), dim=0))
        found = [
            values.ids.weight[0 if row in UNSEEN else row],
            torch.stack([values.categories.weight[code] for code in codes]).mean(0),
            values.numbers.weight[int(values.buckets_VN[row, 0])],
            values.contents[0].weight @ content_P,
        ]
        tokens_FD = torch.stack([value + table.kinds.weight[kind] for kind, value in enumerate(found)])
        torch.testing.assert_close(table.tokens(torch.tensor([row]))[0], tokens_FD)
        pool = table.pool
        inner = functional.silu(pool.layer_in(functional.rms_norm(torch.cat(found), (4 * WIDTH,), pool.norm.weight)))
        torch.testing.assert_close(table(torch.tensor([row]))[0], sum(found) / 4 + pool.layer_out.weight @ inner)
    assert not table(torch.tensor([0])).any()


def test_unseen_items_differ_by_their_features_alone() -> None:
    model = retriever(items=FEATURES).eval()
    found_VD = model.catalogue_vectors()
    torch.testing.assert_close(found_VD[6], found_VD[7])
    assert not torch.allclose(found_VD[5], found_VD[6])
    without_ids = retriever(items={**FEATURES, "ids": False}).eval()
    assert set(dict(table_of(without_ids).values.named_children())) == {"categories", "numbers", "contents"}


def test_in_training_an_id_is_told_or_not_throughout_a_batch_and_always_told_when_answering() -> None:
    table = table_of(retriever(items={**FEATURES, "id_dropout": 0.5}))
    rows = torch.arange(8, NUM_ROWS).repeat(2)
    told = table(rows)
    table.train()
    held = table.hold(rows, torch.zeros(3, dtype=torch.long))
    assert isinstance(held, HeldFeatures)
    found = held(rows)
    assert torch.equal(found[:22], found[22:])
    hidden = table._pooled(table.values(rows, torch.zeros_like(rows, dtype=torch.bool)), rows)
    is_told, is_hidden = ((found - some).abs().amax(-1) < 1e-5 for some in (told, hidden))
    assert (is_told ^ is_hidden).all()
    assert 4 < int(is_told[:22].sum()) < 18
    assert not held(torch.tensor([0])).any()
    torch.testing.assert_close(held.tokens(rows)[is_told], table.tokens(rows)[is_told])
    table.eval()
    assert table.hold(rows) is table


TOKEN_LEVELS = [
    {"window": 2},
    {"window": 0, "summary": "last", "actions": False},
    {"window": 20, "blocks": 2, "heads": 2},
    {"window": 1, "gaps": False, "fused": True},
]


@pytest.mark.parametrize("tokens", TOKEN_LEVELS)
@pytest.mark.parametrize("items", [FEATURES, {"kind": "rows"}], ids=["features", "rows"])
def test_later_events_and_padding_change_no_earlier_vector(items: dict[str, Any], tokens: dict[str, Any]) -> None:
    model = retriever(items=items, tokens=tokens).eval()
    batch = histories([7])
    changed = copied(batch)
    changed["items_BL"][0, 4:] = 9
    changed["actions_BL"][0, 4:] = 1
    changed["times_BL"][0, 4:] += 5000
    before, after = hidden_vectors(model, batch), hidden_vectors(model, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4], atol=0, rtol=0)
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    together = histories([3, 7, 1])
    alone = {name: value[:1, :3] if value.ndim == 2 else value[:1] for name, value in together.items()}  # type: ignore[attr-defined]
    found_BD = model.query_vectors(together)
    # Other padding means other blocking of the matrix products: rounding only.
    torch.testing.assert_close(model.query_vectors(Batch(**alone))[0], found_BD[0], atol=1e-5, rtol=1e-5)  # type: ignore[typeddict-item]


@pytest.mark.parametrize("window", [0, 1, 3, 9])
@pytest.mark.parametrize("length", [1, 5])
def test_attention_in_windows_equals_a_dense_mask_over_all_tokens(window: int, length: int) -> None:
    torch.manual_seed(0)
    num_tokens, batch = 3, 2
    block = TransformerBlock(
        8,
        heads=2,
        feedforward_width=16,
        gated_residuals=False,
        max_events=9,
        dropout=0.0,
        position_bias=False,
        time_bias=False,
    )
    for parameter in block.parameters():
        parameter.data.normal_(std=0.5)
    allowed = causal(length, torch.device("cpu")) & (torch.rand(batch, length, length) < 0.6)
    dense = torch.zeros(batch, length * num_tokens, length * num_tokens, dtype=torch.bool)
    for row in range(batch):
        for i in range(length * num_tokens):
            for j in range(length * num_tokens):
                event, other = i // num_tokens, j // num_tokens
                own = event == other and j <= i
                earlier = 0 < event - other <= window and bool(allowed[row, event, other])
                dense[row, i, j] = own or earlier
    x_BLTD = torch.randn(batch, length, num_tokens, 8)
    found = attend_in_windows(block, x_BLTD, window_mask(allowed, window, num_tokens))
    expected = block(x_BLTD.flatten(1, 2), View(dense, None)).unflatten(1, (length, num_tokens))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_event_that_is_hidden_from_a_row_is_hidden_among_the_tokens_too() -> None:
    model = retriever(items=FEATURES, tokens={"window": 3}).eval()
    level = model.encoder.token_level
    assert level is not None
    batch = histories([7])
    allowed = causal(7, torch.device("cpu")).clone()
    allowed[0, 5, 3:] = False  # its own event too: that one stays visible
    before = level(model.items, batch, allowed)
    for place, seen in ((4, False), (3, False), (2, True), (5, True)):
        changed = copied(batch)
        changed["items_BL"][0, place] = 1 + changed["items_BL"][0, place] % (NUM_ROWS - 1)
        changed["times_BL"][0, place] += 3
        assert torch.equal(level(model.items, changed, allowed)[0, 5], before[0, 5]) != seen


def test_gaps_are_logarithmic_and_counted_from_the_newest_event_that_is_seen() -> None:
    times_BL = torch.tensor([[100, 100, 101, 200, 100_000, 50]])
    plain = gap_buckets(times_BL, causal(6, times_BL.device))
    assert plain.tolist() == [[0, 1, 1, 1 + int(np.log(99) / 0.301), 1 + int(np.log(99_800) / 0.301), 1]]
    allowed = causal(6, times_BL.device).clone()
    allowed[0, 3, 1:] = False
    allowed[0, 2, :] = False
    assert gap_buckets(times_BL, allowed)[0, 2:4].tolist() == [0, 1 + int(np.log(100) / 0.301)]


@pytest.mark.parametrize("tokens", [None, *TOKEN_LEVELS])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_parameter_receives_a_gradient(tokens: dict[str, Any] | None, precision: torch.dtype) -> None:
    model = retriever(items=FEATURES, tokens=tokens, dropout=0.0, negatives={"kind": "mixed"}).to(precision)
    batch = histories([7, 6, 5, 7])
    model.train()(batch, torch.Generator().manual_seed(0))["loss"].backward()
    for name, parameter in model.named_parameters():
        if name == "items.kinds.weight" and (tokens is None or tokens.get("fused")):
            continue  # the kinds tell tokens apart, and here there is one of each item
        if name == "encoder.token_level.actions.weight":
            assert parameter.grad is not None
            continue
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_batch_without_labels_goes_the_same_way_and_teaches_nothing() -> None:
    # Of a rank that has nothing left: under ZeRO-3 it must call every module that the others call.
    model = retriever(items=FEATURES, tokens={}, prediction={"heads": 2, "branch": "shared"}, use_actions=True)
    empty = Batch(**{name: torch.zeros_like(value) for name, value in histories([2]).items()})  # type: ignore[typeddict-item, attr-defined]
    losses = model.train()(empty, torch.Generator().manual_seed(0))
    losses["loss"].backward()
    assert losses["loss"] == 0
    assert losses["num_targets"] == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("items", [FEATURES, {"kind": "rows"}], ids=["features", "rows"])
def test_one_step_from_a_shared_vector_is_next_item_prediction_to_the_bit(items: dict[str, Any]) -> None:
    batch, gradients = histories([7, 5, 2]), []
    for branch in ("block", "shared"):
        model = retriever(items=items, prediction={"heads": 1, "branch": branch})
        torch.manual_seed(1)
        losses = model.train()(batch, torch.Generator().manual_seed(0))
        losses["loss"].backward()
        found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        gradients.append({"loss": losses["loss"].detach(), **found})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


def test_several_steps_from_a_shared_vector_are_the_sum_of_softmax_losses_pair_by_pair() -> None:
    settings = {"prediction": {"heads": 3, "branch": "shared"}, "negatives": {"kind": "all"}, "dropout": 0.0}
    model = retriever(**settings).eval()
    batch = histories([7, 4])
    items_VD, hidden_BLD = model.catalogue_vectors(), functional.normalize(hidden_vectors(model, batch), dim=-1)
    expected = torch.zeros(())
    for ahead in range(3):
        terms = []
        for row, length in enumerate([7, 4]):
            items = batch["items_BL"][row, :length].tolist()
            for t in range(length - 1 - ahead):
                window = set(items[t + 1 : t + 4])
                target = items[t + 1 + ahead]
                scores_V = items_VD @ hidden_BLD[row, t] / model.temperature
                kept = [v for v in range(1, NUM_ROWS) if v == target or v not in window]
                terms.append(scores_V[kept].logsumexp(0) - scores_V[target])
        expected = expected + torch.stack(terms).mean()
    torch.testing.assert_close(model(batch)["loss"], expected, atol=1e-4, rtol=1e-4)
    assert len(model.branches) == 1
    heads_BKD = model.head_query_vectors(batch)
    assert torch.equal(heads_BKD, model.query_vectors(batch)[:, None].expand(-1, 3, -1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"items": {"kind": "features", "ids": False, "categories": False}}, "nothing to make vectors from"),
        ({"items": {"kind": "features", "numbers": ["a", "a"]}}, "named twice in numbers or in contents"),
        ({"width": 8, "tokens": {"heads": 3}}, "width 8 is not a multiple of the 3 heads of tokens"),
        ({"prediction": {"branch": "shared"}, "condition": {}}, "a branch of its own for each head"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSettings.model_validate(settings)


def test_a_model_with_gaps_reads_times() -> None:
    plain = {"encoder": {"kind": "sasrec"}}
    assert ModelSettings.model_validate({**plain, "tokens": {}}).needs_times
    assert not ModelSettings.model_validate({**plain, "tokens": {"gaps": False}}).needs_times


CATEGORIES, PER_CATEGORY = 6, 8


def _category_world() -> tuple[pa.Table, Tensor]:
    """Items of which the first of each category is never seen, and histories that go from category to category."""
    count = CATEGORIES * PER_CATEGORY
    places = range(count)  # item i has row i + 1 and category i mod 6; items 0 to 5 are unseen
    table = pa.table(
        {
            "item_id": [str(place) for place in places],
            "categories": pa.array([[f"c{place % CATEGORIES}"] for place in places], TEXTS),
            "train_events": pa.array([0 if place < CATEGORIES else 9 for place in places], pa.int64()),
        }
    )
    random = np.random.default_rng(0)
    first_B1 = random.integers(0, CATEGORIES, (256, 1))
    categories_BL = (first_B1 + np.arange(MAX_EVENTS + 1)) % CATEGORIES
    return table, torch.from_numpy(
        1 + categories_BL + CATEGORIES * random.integers(1, PER_CATEGORY, categories_BL.shape)
    )


@pytest.mark.parametrize(("items", "tokens"), [(True, True), (True, False), (False, False)])
def test_unseen_items_of_the_right_category_are_found_by_features_and_not_by_rows(items: bool, tokens: bool) -> None:
    table, rows_BL = _category_world()
    torch.manual_seed(0)
    settings = {
        "width": 16,
        "max_events": MAX_EVENTS,
        "dropout": 0.0,
        "temperature": 0.1,
        "items": {"kind": "features", "id_dropout": 0.2} if items else {"kind": "rows"},
        "tokens": {"gaps": False, "feedforward_width": 16} if tokens else None,
        "encoder": {"kind": "sasrec", "blocks": 1},
        "negatives": {"kind": "uniform", "num_uniform": 24},
    }
    counts = np.array([0, *table.column("train_events").to_pylist()])
    model = build_retriever(
        ModelSettings.model_validate(settings),
        num_rows=len(counts),
        num_actions=0,
        train_counts=counts,
        catalogue=table,
    )
    zeros_BL = torch.zeros_like(rows_BL[:, :-1])
    batch = Batch(
        items_BL=rows_BL[:, :-1],
        times_BL=zeros_BL,
        query_times_BL=zeros_BL,
        actions_BL=zeros_BL,
        requests_BL=zeros_BL - 1,
        next_requests_BL=zeros_BL - 1,
        targets_BL=rows_BL[:, 1:],
        lengths_B=torch.full((len(rows_BL),), MAX_EVENTS),
        users_B=torch.arange(len(rows_BL)),
    )
    adam, generator = torch.optim.Adam(model.parameters(), lr=0.01), torch.Generator().manual_seed(0)
    for _ in range(60):
        adam.zero_grad()
        model.train()(batch, generator)["loss"].backward()
        adam.step()
    model.eval()
    with torch.no_grad():
        scores_BV = model.query_vectors(batch) @ model.catalogue_vectors()[1:].T
    wanted_B = (rows_BL[:, -1] - 1) % CATEGORIES  # the unseen item of the category that comes next
    better_B = (scores_BV > scores_BV.gather(1, wanted_B[:, None])).sum(1)
    hits = (better_B < PER_CATEGORY).double().mean()
    assert hits > 0.95 if items else hits < 0.3, hits


def test_an_item_that_the_catalogue_lacks_gets_the_vector_of_an_unseen_one_with_the_same_facts() -> None:
    table = retriever(items=FEATURES).eval().items
    assert isinstance(table, FeatureTable)
    row = catalogue().to_pylist()[4]  # of row 5, which training has not seen
    image = np.array(row["image"], np.float32)
    categories, whole = ItemFacts(row["categories"]), {"numbers": {"price": row["price"]}, "contents": {"image": image}}
    twin = ItemFacts([*row["categories"], "unheard of"], **whole)
    strange, silent = ItemFacts(["unheard of"], {"weight": 1.0}, {"sound": image}), ItemFacts()
    composed_ND = table.compose([twin, categories, strange, silent])
    torch.testing.assert_close(composed_ND[0], table(torch.tensor(5)))
    torch.testing.assert_close(composed_ND[2], composed_ND[3])
    table.values.buckets_VN[5] = 0
    table.values.get_buffer("content_0")[5] = torch.tensor([0.0] * 5 + [1.0])
    torch.testing.assert_close(composed_ND[1], table(torch.tensor(5)))  # what is not said is missing
    alone = [ItemFacts(**{part: said}) for part, said in whole.items()]
    assert [table.knows(facts) for facts in (twin, categories, *alone, strange, silent)] == [True] * 4 + [False] * 2
