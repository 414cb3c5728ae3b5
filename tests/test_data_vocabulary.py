"""Vocabulary: rows follow from the items alone, and the hash from the rows."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DatasetError
from data.vocabulary import PAD_ROW, Vocabulary

ids = st.lists(st.text(min_size=1, max_size=6), max_size=20)


@given(ids, st.randoms())
def test_the_same_items_in_any_order_give_the_same_rows(items: list[str], random: object) -> None:
    shuffled = [*items, *items]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = Vocabulary.from_items(items), Vocabulary.from_items(shuffled)
    assert one.item_ids == other.item_ids == sorted(set(items))
    assert one.content_hash == other.content_hash


@given(ids)
def test_rows_and_ids_are_inverse_and_row_zero_is_no_item(items: list[str]) -> None:
    vocabulary = Vocabulary.from_items(items)
    rows = vocabulary.rows(vocabulary.item_ids)
    assert rows.tolist() == list(range(1, vocabulary.num_rows))
    assert vocabulary.external(rows.tolist()) == vocabulary.item_ids
    assert vocabulary.num_rows == vocabulary.num_items + 1


@given(st.lists(st.text(min_size=1), unique=True), st.lists(st.text(min_size=1)))
def test_a_grown_vocabulary_keeps_every_row_and_appends_what_is_new(old: list[str], logged: list[str]) -> None:
    first = Vocabulary(old)
    grown = first.grown(logged)
    assert first.begins(grown)
    assert grown.item_ids[: len(old)] == old
    assert grown.item_ids[len(old) :] == sorted(set(logged) - set(old))
    assert grown.begins(first) == (len(grown.item_ids) == len(old))
    assert grown.grown(logged).content_hash == grown.content_hash


def test_an_item_that_is_not_there_gets_the_padding_row() -> None:
    assert Vocabulary(["a"]).rows(["a", "b"]).tolist() == [1, PAD_ROW]


def test_the_hash_tells_apart_what_joins_to_the_same_text() -> None:
    hashes = {Vocabulary(items).content_hash for items in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], [])}
    assert len(hashes) == 5


def test_saving_and_loading_keeps_rows(tmp_path: Path) -> None:
    vocabulary = Vocabulary(["b", "a", "ü"])
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path).item_ids == ["b", "a", "ü"]
    assert Vocabulary.load(tmp_path).content_hash == vocabulary.content_hash


def test_an_item_that_stands_twice_is_refused() -> None:
    with pytest.raises(DatasetError, match="holds an item id twice"):
        Vocabulary(["a", "a"])


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"vocabulary\.parquet: no such file"):
        Vocabulary.load(tmp_path)
