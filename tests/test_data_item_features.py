"""Features of a catalogue as numbers, against hand-computed ones; columns that cannot be read are refused by name."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.catalogue import TEXTS
from data.errors import RecipeError
from data.item_features import ItemFacts, ItemFeatures


def catalogue(num_items: int = 4, **columns: Any) -> pa.Table:
    return pa.table(
        {
            "item_id": [f"i{number}" for number in range(num_items)],
            "categories": pa.array([["b", "a"], [], ["a"], ["c"]][:num_items], TEXTS),
            "train_events": pa.array([3, 0, 1, 2][:num_items], pa.int64()),
            "first_seen": pa.array([0] * num_items, pa.int64()),
            **columns,
        }
    )


def test_categories_and_whether_an_item_was_seen_stand_by_row() -> None:
    found = ItemFeatures.of(catalogue())
    assert found.codes.category_names == ["a", "b", "c"]
    assert found.categories_VG.tolist() == [[0, 0], [2, 1], [0, 0], [1, 0], [3, 0]]
    assert found.seen_V.tolist() == [False, True, False, True, True]
    assert found.buckets_VN.shape == (5, 0)


def test_numbers_fall_into_equal_buckets_and_missing_ones_into_bucket_0() -> None:
    price = [40.0, None, 10.0, 20.0]
    found = ItemFeatures.of(catalogue(price=price, year=[5, 5, 5, 7]), numbers=["price", "year"], num_buckets=3)
    assert found.buckets_VN[:, 0].tolist() == [0, 3, 0, 1, 2]
    assert found.buckets_VN[1:, 1].tolist() == [1, 1, 1, 3]  # equal numbers are never parted
    values = np.random.default_rng(0).permutation(100)
    many = pa.table({"item_id": list(map(str, values)), "categories": pa.array([[]] * 100, TEXTS), "n": values})
    many = many.append_column("train_events", pa.array([1] * 100, pa.int64()))
    buckets_V = ItemFeatures.of(many, numbers=["n"], num_buckets=4).buckets_VN[1:, 0]
    assert np.bincount(buckets_V).tolist() in ([0, 25, 25, 25, 25], [0, 25, 25, 24, 26])
    assert (np.diff(buckets_V[np.argsort(values)]) >= 0).all()


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 2), pa.large_list(pa.int64())])
def test_content_vectors_have_length_1_and_say_where_they_are_missing(kind: pa.DataType) -> None:
    image = pa.array([[3, 4], None, [0, 0], [0, 2]], kind)
    [found] = ItemFeatures.of(catalogue(image=image), contents=["image"]).contents
    expected = [[0, 0, 0], [0.6, 0.8, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_an_item_that_the_catalogue_lacks_is_read_as_one_that_it_has() -> None:
    columns = {
        "price": [40.0, None, 10.0, 20.0],
        "image": pa.array([[3, 4], None, [0, 0], [0, 2]], pa.list_(pa.float32())),
    }
    known = catalogue(**columns)
    found = ItemFeatures.of(known, numbers=["price"], num_buckets=3, contents=["image"])
    twins = [
        ItemFacts(
            row["categories"],
            {} if row["price"] is None else {"price": row["price"]},
            {} if row["image"] is None else {"image": np.array(row["image"], np.float32)},
        )
        for row in known.to_pylist()
    ]
    others = found.codes.of_others(twins)
    assert others.categories_VG.tolist() == found.categories_VG.tolist()
    assert others.buckets_VN.tolist() == found.buckets_VN.tolist()
    np.testing.assert_array_equal(others.contents[0], found.contents[0])
    assert not others.seen_V.any()
    [between, strange] = [ItemFacts(numbers={"price": 39.0}), ItemFacts(["z"], {"weight": 1.0})]
    assert found.codes.of_others([between, strange]).buckets_VN[1:, 0].tolist() == [3, 0]
    nothing = ItemFeatures.of(catalogue(price=pa.array([None] * 4, pa.float64())), numbers=["price"], num_buckets=3)
    assert not nothing.buckets_VN.any()
    assert not nothing.codes.of_others([between]).buckets_VN.any()


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"price": [1.0] * 4},
            {"numbers": ["cost"]},
            r"numbers: the catalogue has no side column 'cost'; it has price",
        ),
        ({}, {"numbers": ["train_events"]}, r"no side column 'train_events'; it has none"),
        ({"color": list("abcd")}, {"numbers": ["color"]}, r"numbers: column 'color' .* is string, expected numbers"),
        ({}, {"contents": ["image"]}, r"contents: the catalogue has no side column 'image'; it has none"),
        (
            {"image": [1.0] * 4},
            {"contents": ["image"]},
            r"'image' of the catalogue is double, expected lists of numbers",
        ),
        (
            {"image": [[1.0, 2.0], [1.0, 2.0], [1.0], None]},
            {"contents": ["image"]},
            r"'image' holds vectors of 1, 2 numbers \('i2' has 1\); expected the same number in every row",
        ),
        ({"image": pa.array([None] * 4, pa.list_(pa.float32()))}, {"contents": ["image"]}, r"vectors of no numbers;"),
        ({"image": [[1.0], [None], [1.0], [2.0]]}, {"contents": ["image"]}, r"numbers that are missing, NaN or infin"),
    ],
)
def test_a_column_that_cannot_be_read_is_refused_by_name(
    columns: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        ItemFeatures.of(catalogue(**columns), **settings)
