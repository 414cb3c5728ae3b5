"""Item vectors from hashes: the hash is fixed for ever, the sums and gradients are those of explicit loops."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from modeling.build import build_retriever
from modeling.hashed_table import HashedTable, id_hashes, row_hashes
from modeling.item_table import INITIAL_DEVIATION, ItemTable
from modeling.settings import HashedItems, ModelSettings

WIDTH, QUOTIENTS, REMAINDERS = 6, 5, 7
ITEM_IDS = [f"item {number}" for number in range(300)]


def _table(
    item_ids: list[str] = ITEM_IDS, *, quotients: int = QUOTIENTS, remainders: int = REMAINDERS, width: int = WIDTH
) -> HashedTable:
    torch.manual_seed(0)
    hashes_V = torch.from_numpy(row_hashes(item_ids))
    return HashedTable(hashes_V, width, quotient_rows=quotients, remainder_rows=remainders)


def _places(item_id: str, quotients: int = QUOTIENTS, remainders: int = REMAINDERS) -> list[tuple[int, int]]:
    """Place in the quotient and in the remainder table of each pair, from the bytes of the hash."""
    low, high = np.frombuffer(id_hashes([item_id]).astype("<i8").tobytes(), "<u4").tolist()
    numbers = (low % (quotients * remainders), high % (quotients * remainders))
    return [divmod(number, remainders) for number in numbers]


def _by_loops(table: HashedTable, item_ids: list[str]) -> Tensor:
    """Vectors of padding and of these items, number by number."""
    vectors_VD = torch.zeros(len(item_ids) + 1, WIDTH)
    for row, item_id in enumerate(item_ids, start=1):
        for pair, (quotient, remainder) in enumerate(_places(item_id)):
            for column in range(WIDTH):
                vectors_VD[row, column] += table.quotients[pair * QUOTIENTS + quotient, column].item()
                vectors_VD[row, column] += table.remainders[pair * REMAINDERS + remainder, column].item()
    return vectors_VD


def test_the_hash_is_what_b2sum_says() -> None:
    # printf ID | b2sum --length 64
    expected = {
        "": "e4a6a0577479b2b4",
        "i001": "15fccea4e932aeb1",
        "B000123456": "d3740f2ed71adb23",
        "höhe": "13704dce4a3e30e7",
    }
    found = id_hashes(expected)
    assert found.dtype == np.int64
    assert [number.tobytes().hex() for number in found.astype("<i8")] == list(expected.values())
    assert found.tolist()[:2] == [-5426141060434712860, -5643517303974855659]


def test_vectors_are_those_of_explicit_loops() -> None:
    table = _table()
    assert isinstance(table, ItemTable)
    assert table.num_rows == 301
    rows = torch.tensor([[0, 1, 299], [300, 17, 17]])
    expected_VD = _by_loops(table, ITEM_IDS)
    # fp32; the four numbers are added in another order.
    torch.testing.assert_close(table.hold(rows)(rows), expected_VD[rows], atol=1e-7, rtol=0)
    assert not table(torch.tensor([0])).any()


def test_gradients_are_those_of_explicit_loops() -> None:
    table = _table()
    rows = torch.randint(0, 301, (40,), generator=torch.Generator().manual_seed(1))
    rows[:3] = 0  # padding, which teaches nothing
    upstream_ND = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(2))
    (table.hold(rows)(rows) * upstream_ND).sum().backward()
    quotients, remainders = torch.zeros(2 * QUOTIENTS, WIDTH), torch.zeros(2 * REMAINDERS, WIDTH)
    for row, gradient_D in zip(rows.tolist(), upstream_ND, strict=True):
        for pair, (quotient, remainder) in enumerate(_places(ITEM_IDS[row - 1]) if row else []):
            quotients[pair * QUOTIENTS + quotient] += gradient_D
            remainders[pair * REMAINDERS + remainder] += gradient_D
    # fp32 sums of up to a few dozen numbers, in another order.
    torch.testing.assert_close(table.quotients.grad, quotients, atol=1e-5, rtol=0)
    torch.testing.assert_close(table.remainders.grad, remainders, atol=1e-5, rtol=0)


def test_the_weights_do_not_grow_with_the_catalogue() -> None:
    few, many = _table(ITEM_IDS[:3]), _table([str(number) for number in range(10_000)])
    shapes = [{name: value.shape for name, value in table.state_dict().items()} for table in (few, many)]
    assert shapes[0] == shapes[1] == {"quotients": (2 * QUOTIENTS, WIDTH), "remainders": (2 * REMAINDERS, WIDTH)}
    assert many.hashes_V.nbytes == 8 * 10_001


def test_an_item_that_was_never_seen_has_the_vector_that_it_gets_once_it_is() -> None:
    old, grown = _table(), _table([*ITEM_IDS, "a new item"])
    unseen_D = old.compose(torch.from_numpy(id_hashes(["a new item"])))[0]
    assert unseen_D.abs().min() > 0
    rows = torch.arange(301)
    torch.testing.assert_close(grown(rows), old(rows), atol=0, rtol=0)
    torch.testing.assert_close(grown(torch.tensor([301]))[0], unseen_D, atol=0, rtol=0)


def test_items_rarely_share_both_numbers_and_no_row_is_left_out() -> None:
    num_items = 100_000
    ids = [f"item-{number}" for number in range(num_items)]
    assert len(np.unique(id_hashes(ids))) == num_items
    places_N22 = np.array([_places(item_id, 100, 100) for item_id in ids])
    distinct = len(np.unique(places_N22.reshape(num_items, 4), axis=0))
    # Of 10^8 vectors: 10^5 items make N^2 / 2 / 10^8 = 50 pairs that share one, with a deviation of 7.
    assert 50 - 5 * 7 <= num_items - distinct <= 50 + 5 * 7
    for table_N in places_N22.reshape(num_items, 4).T:
        counts = np.bincount(table_N, minlength=100)
        # 1,000 each, with a deviation of 31.
        assert counts.min() > 1000 - 5 * 32
        assert counts.max() < 1000 + 5 * 32


def test_vectors_begin_as_rows_of_their_own_would() -> None:
    table = _table(quotients=500, remainders=500, width=64)
    vectors_VD = table(torch.arange(1, 301)).detach()
    assert float(vectors_VD.mean()) == pytest.approx(0, abs=5e-4)
    assert float(vectors_VD.std()) == pytest.approx(INITIAL_DEVIATION, rel=0.03)


def test_a_retriever_with_hashed_items_learns_in_half_precision_too() -> None:
    settings = ModelSettings(width=8, items=HashedItems(kind="hashed", quotient_rows=40, remainder_rows=50))
    retriever = build_retriever(
        settings, num_rows=301, num_actions=0, train_counts=np.ones(301, np.int64), item_hashes=row_hashes(ITEM_IDS)
    ).bfloat16()
    vectors_VD = retriever.catalogue_vectors()
    assert vectors_VD.dtype == torch.bfloat16
    (vectors_VD * torch.arange(8)).sum().backward()
    assert retriever.get_parameter("items.quotients").grad is not None
    assert len(set(map(tuple, vectors_VD[1:].tolist()))) == 300


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"quotient_rows": 1}, "greater than or equal to 2"),
        ({"quotient_rows": 70_000, "remainder_rows": 70_000}, "some rows would never be used; lower one of them"),
    ],
)
def test_impossible_numbers_of_rows_are_refused(rows: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSettings.model_validate({"items": {"kind": "hashed", **rows}})
