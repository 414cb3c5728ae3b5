"""The catalogue of a dataset: text of any size, written and read again."""

import lzma
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data.catalogue import CatalogueFormat, aligned_catalogue, named_catalogue, read_catalogue
from data.log_files import TextFormat
from data.schema import FIRST_SEEN, TRAIN_EVENTS
from data.vocabulary import Vocabulary
from tests.scale import scale

NUM_ITEMS = 2100
TEXT_BYTES = scale(2**10, 2**20)  # at full scale a column is more than the 2 GiB that 32-bit offsets reach


@pytest.mark.parametrize("column", ["title", "categories"])
def test_a_column_of_text_may_be_larger_than_32_bit_offsets_reach(tmp_path: Path, column: str) -> None:
    ids = [f"{number:06d}" for number in range(NUM_ITEMS)]
    text = pa.array([item + "x" * (TEXT_BYTES - 6) for item in ids], pa.large_string())
    lists = pa.LargeListArray.from_arrays(pa.array(np.arange(NUM_ITEMS + 1)), text)
    given = pa.table({"item_id": ids[::-1], column: (lists if column == "categories" else text)[::-1]})
    # Cells of lists become Python objects on the way in, which is slow at this size.
    catalogue = given if column == "categories" else named_catalogue(given, "items.parquet", CatalogueFormat({}))
    facts = pl.DataFrame({TRAIN_EVENTS: np.zeros(NUM_ITEMS, np.int64), FIRST_SEEN: np.zeros(NUM_ITEMS, np.int64)})
    pq.write_table(aligned_catalogue(catalogue, Vocabulary(ids), facts), tmp_path / "catalogue.parquet")
    del given, catalogue
    read = pq.read_table(tmp_path / "catalogue.parquet", columns=["item_id", column])
    assert read.column("item_id").to_pylist() == ids
    found = read.column(column)
    values = pc.list_flatten(found) if column == "categories" else found
    assert values.type == pa.large_string()
    assert pc.sum(pc.binary_length(values)).as_py() == NUM_ITEMS * TEXT_BYTES
    assert pc.all(pc.equal(values, pa.chunked_array([text]))).as_py()


def test_titles_may_come_as_a_dictionary() -> None:
    titles = pa.array(["a", None, "a"]).dictionary_encode()
    read = named_catalogue(pa.table({"item_id": [1, 2, 3], "title": titles}), "items.parquet", CatalogueFormat({}))
    assert read.column("title").to_pylist() == ["a", None, "a"]
    assert read.column("categories").to_pylist() == [[], [], []]


def test_the_items_of_recbole_are_a_catalogue_with_a_typed_header(tmp_path: Path) -> None:
    file = tmp_path / "small.item.xz"
    file.write_bytes(
        lzma.compress(b"item_id:token\ttitle:token_seq\tclass:token_seq\n1\tToy Story\tComedy Drama\n2\tHeat\t\n")
    )
    columns = {"item_id": "item_id:token", "title": "title:token_seq", "categories": "class:token_seq"}
    found = read_catalogue(str(file), CatalogueFormat(columns, " ", TextFormat("\t")))
    assert found.to_pylist() == [
        {"item_id": "1", "categories": ["Comedy", "Drama"], "title": "Toy Story"},
        {"item_id": "2", "categories": [], "title": "Heat"},
    ]
