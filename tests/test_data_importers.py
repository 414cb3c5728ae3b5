"""Importers: the published files of each source become the same log form."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import FarsightError, LogError, RecipeError
from data.importers import run
from data.schema import LOG_SCHEMA
from data.storage import read_manifest


def events_of(log: Path) -> list[dict[str, Any]]:
    for path in sorted((log / "events").iterdir()):
        for field in pq.read_schema(path):
            assert field.type == LOG_SCHEMA.field(field.name).type
    return pl.read_parquet(log / "events" / "*.parquet").to_dicts()


def catalogue_of(log: Path) -> dict[str, tuple[list[str], str]]:
    rows = pl.read_parquet(log / "catalogue.parquet").to_dicts()
    return {row["item_id"]: (row["categories"], row["title"]) for row in rows}


def rating(user: str, item: str, weight: float, timestamp: int) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "timestamp": timestamp, "weight": weight}


RATINGS = [rating("1", "1193", 5.0, 978300760), rating("2", "661", 3.0, 978302109)]


def write_1m(folder: Path) -> None:
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::1193::5::978300760\n2::661::3::978302109\n")
    text = "1193::Café (1975)::Drama\n661::James (1996)::Animation|Children's\n"
    (folder / "movies.dat").write_text(text, encoding="iso-8859-1")


def write_100k(folder: Path) -> None:
    folder.mkdir()
    (folder / "u.data").write_text("1\t1193\t5\t978300760\n2\t661\t3\t978302109\n")
    drama = "|".join("1" if place == 8 else "0" for place in range(19))
    animation = "|".join("1" if place in (3, 4) else "0" for place in range(19))
    text = f"1193|Café (1975)|01-Jan-1975||http://x|{drama}\n661|James (1996)|01-Jan-1996||http://y|{animation}\n"
    (folder / "u.item").write_text(text, encoding="iso-8859-1")


def write_20m(folder: Path) -> None:
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1193,5.0,978300760\n2,661,3.0,978302109\n")
    text = 'movieId,title,genres\n1193,"Café (1975)",Drama\n661,"James (1996)",Animation|Children\'s\n'
    (folder / "movies.csv").write_text(text + "7,Empty,(no genres listed)\n")


@pytest.mark.parametrize(
    ("name", "write"), [("movielens-1m", write_1m), ("movielens-100k", write_100k), ("movielens-20m", write_20m)]
)
def test_every_movielens_gives_the_same_log_from_its_own_files(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / "in")
    result = run(name, str(tmp_path / "in"), str(tmp_path / "out"))
    assert events_of(tmp_path / "out") == RATINGS
    catalogue = catalogue_of(tmp_path / "out")
    assert catalogue.pop("7", ([], "Empty")) == ([], "Empty")
    assert catalogue == {
        "1193": (["Drama"], "Café (1975)"),
        "661": (["Animation", "Children's"], "James (1996)"),
    }
    assert (result["counts"]["users"], result["counts"]["items"], result["counts"]["events"]) == (2, 2, 2)
    manifest = read_manifest(tmp_path / "out", "log", 1, LogError)
    assert manifest["source"] == name
    assert "catalogue.parquet" in manifest["hashes"]


def test_another_form_of_movielens_is_told_to_come_as_a_table(tmp_path: Path) -> None:
    (tmp_path / "ratings.parquet").write_bytes(b"")
    with pytest.raises(LogError, match=r"ratings\.dat: no such file; found ratings\.parquet\. .*use import table"):
        run("movielens-1m", str(tmp_path), str(tmp_path / "out"))


def test_a_line_of_genre_flags_that_is_too_short_is_named(tmp_path: Path) -> None:
    write_100k(tmp_path / "in")
    (tmp_path / "in" / "u.item").write_text("1|Toy Story\n")
    with pytest.raises(LogError, match=r"u\.item line 1: found 2 fields, expected 24"):
        run("movielens-100k", str(tmp_path / "in"), str(tmp_path / "out"))


USER, ITEM = "A2IBPI20UZIR0U", "1384719342"
OLD = {"reviewerID": USER, "asin": ITEM, "overall": 5.0, "unixReviewTime": 1393545600, "reviewText": "good, {really}"}
NEW = {"user_id": USER, "asin": "B000000000", "parent_asin": ITEM, "rating": 5.0, "timestamp": 1393545600123}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("reviews_X_5.json.gz", gzip.compress(json.dumps(OLD).encode())),
        ("X.json", json.dumps(OLD).encode()),
        ("X.jsonl", json.dumps(NEW).encode()),
        ("X.jsonl.gz", gzip.compress(json.dumps(NEW).encode())),
        (
            "X.csv.gz",
            gzip.compress(f"user_id,parent_asin,rating,timestamp\n{USER},{ITEM},5.0,1393545600123\n".encode()),
        ),
        ("ratings_X.csv", f"{USER},{ITEM},5.0,1393545600\n".encode()),
        ("X.csv", f"{ITEM},{USER},5.0,1393545600\n".encode()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_amazon_reviews_of_every_year_and_form_give_the_same_event(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    run("amazon", str(tmp_path), str(tmp_path / "out"))
    [event] = events_of(tmp_path / "out")
    # Milliseconds are kept as the order inside a second.
    assert event.pop("order", None) == (123_000_000 if name in ("X.jsonl", "X.jsonl.gz", "X.csv.gz") else None)
    assert event == rating(USER, ITEM, 5.0, 1393545600)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("meta_X.json.gz", ["{'asin': '1384719342', 'title': \"It's\", 'categories': [['Music', 'Mics'], ['Music']]}"]),
        ("meta_X.json", ['{"asin": "1384719342", "title": "It\'s", "category": ["Music", "Mics"]}'] * 2),
        (
            "meta_X.jsonl",
            ['{"parent_asin": "1384719342", "title": "It\'s", "categories": ["Music", "Mics"], "store": 1}'],
        ),
    ],
)
def test_amazon_metadata_beside_the_reviews_is_the_catalogue(tmp_path: Path, name: str, lines: list[str]) -> None:
    (tmp_path / "X.jsonl").write_text(json.dumps(NEW))
    content = "\n".join(lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    run("amazon", str(tmp_path), str(tmp_path / "out"))
    assert catalogue_of(tmp_path / "out") == {ITEM: (["Music", "Mics"], "It's")}


def test_amazon_fields_that_cannot_be_told_apart_are_stated(tmp_path: Path) -> None:
    (tmp_path / "X.csv").write_text("0123456789,1384719342,5.0,1393545600\n")
    with pytest.raises(LogError, match="cannot tell users from items; state the field order: user-first"):
        run("amazon", str(tmp_path / "X.csv"), str(tmp_path / "out"))
    run("amazon", str(tmp_path / "X.csv"), str(tmp_path / "out"), field_order="user-first")
    assert events_of(tmp_path / "out")[0]["user_id"] == "0123456789"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.json": "{}", "b.json": "{}"}, "expected one review file and at most one meta. file, found a.json, b.json"),
        ({"a.json": '{"x": 1}'}, r"a\.json: found x; expected reviewerID and asin"),
        ({"a.json": json.dumps(NEW), "meta.json": "no"}, r"meta\.json line 1: not a JSON object; found 'no'"),
        ({"a.json": json.dumps(NEW), "meta.json": '{"x": 1}'}, r"meta\.json line 1: no parent_asin or asin; found x"),
    ],
)
def test_an_amazon_folder_that_cannot_be_read_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(LogError, match=message):
        run("amazon", str(tmp_path), str(tmp_path / "out"))


def test_a_table_of_any_names_is_imported_with_a_catalogue_of_its_own(tmp_path: Path) -> None:
    table = pa.table(
        {
            "who": pa.array([1, 2], pa.int16()),
            "what": pa.array([7, 8], pa.int64()),
            "when": pa.array([1_500, 2_500], pa.timestamp("ms")),
            "stars": pa.array([1, 2], pa.int8()),
            "kind": pa.array(["view", None]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    rows = [
        {"id": 7, "tags": ["x", "y"], "name": "seven", "price": 1.5},
        {"id": 8, "tags": None, "name": None, "price": 2.5},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(
        "table",
        str(tmp_path / "log.parquet"),
        str(tmp_path / "out"),
        {"user_id": "who", "item_id": "what", "timestamp": "when", "weight": "stars", "action": "kind"},
        str(tmp_path / "items.jsonl"),
        {"item_id": "id", "categories": "tags", "title": "name"},
    )
    half = 500_000_000
    assert events_of(tmp_path / "out") == [
        {"user_id": "1", "item_id": "7", "timestamp": 1, "action": "view", "weight": 1.0, "order": half},
        {"user_id": "2", "item_id": "8", "timestamp": 2, "action": None, "weight": 2.0, "order": half},
    ]
    assert catalogue_of(tmp_path / "out") == {"7": (["x", "y"], "seven"), "8": ([], None)}
    assert pl.read_parquet(tmp_path / "out" / "catalogue.parquet")["price"].to_list() == [1.5, 2.5]


def test_a_packed_text_table_with_typed_names_and_tabs_is_imported(tmp_path: Path) -> None:
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n"
    (tmp_path / "x.inter.xz").write_bytes(lzma.compress(text.encode()))
    items = "item_id:token\tmovie_title:token_seq\tclass:token_seq\n242\tKolya\tComedy Drama\n"
    (tmp_path / "x.item.xz").write_bytes(lzma.compress(items.encode()))
    names = {"user_id": "user_id:token", "item_id": "item_id:token", "weight": "rating:float"}
    run(
        "table",
        str(tmp_path / "x.inter.xz"),
        str(tmp_path / "out"),
        {**names, "timestamp": "timestamp:float"},
        str(tmp_path / "x.item.xz"),
        {"item_id": "item_id:token", "title": "movie_title:token_seq", "categories": "class:token_seq"},
        category_separator=" ",
        separator="\t",
    )
    assert events_of(tmp_path / "out") == [rating("196", "242", 3.0, 881250949)]
    assert catalogue_of(tmp_path / "out") == {"242": (["Comedy", "Drama"], "Kolya")}


def test_refused_rows_are_set_apart_and_too_many_stop_the_import(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("user_id,item_id,timestamp\nu,i,1\nu,,1\n")
    with pytest.raises(LogError, match=r"1 of 2 rows are bad, more than max_bad_share 0\.01 allows:\n  1 x item_id is"):
        run("table", str(tmp_path / "x.csv"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    result = run("table", str(tmp_path / "x.csv"), str(tmp_path / "out"), max_bad_share=0.5)
    assert result["quarantined_by_reason"] == {"item_id is empty": 1}
    assert pl.read_parquet(tmp_path / "out" / "quarantine" / "*.parquet")["row"].to_list() == [1]
    with pytest.raises(FarsightError, match="already exists"):
        run("table", str(tmp_path / "x.csv"), str(tmp_path / "out"), max_bad_share=0.5)


CATALOGUES = [
    ("items.csv", "id,categories\n1,a\n", "no column 'item_id' for item_id; found id, categories"),
    ("items.csv", "item_id,categories\n1,a\n1,b\n", "item '1' stands in more than one row"),
    ("items.csv", "item_id,categories\n1,a\n,b\n", "column 'item_id' is empty in 1 rows"),
    ("items.csv", "item_id,categories\n1,a,b,c\n", "cannot be read as a CSV catalogue"),
    ("movies.dat", "1::Toy\n", "cannot be read as a CSV catalogue"),
    ("items.jsonl", "{", "not valid JSON lines"),
    ("items.jsonl", '{"item_id": 1.5}', "column 'item_id' holds something else, expected a string or an integer"),
    ("items.jsonl", '{"item_id": 1, "x": 1}\n{"item_id": 2, "x": "y"}', "column 'x' mixes types"),
    ("items.jsonl", '{"item_id": true}', "column 'item_id' holds something else, expected a string or an integer"),
]


@pytest.mark.parametrize(("name", "content", "message"), CATALOGUES)
def test_a_catalogue_that_cannot_be_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(LogError, match=message):
        run("table", str(tmp_path), str(tmp_path / "out"), catalogue=str(tmp_path / name))


def test_a_catalogue_with_float_ids_or_an_unknown_column_map_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": [1.0]}), tmp_path / "items.parquet")
    with pytest.raises(LogError, match="column 'item_id' for item_id is double, expected a string or an integer"):
        run("table", "x", str(tmp_path / "out"), catalogue=str(tmp_path / "items.parquet"))
    pq.write_table(pa.table({"item_id": [1]}), tmp_path / "items.parquet")
    with pytest.raises(LogError, match="catalogue_columns: 'price' is not one of item_id, categories, title"):
        run(
            "table",
            "x",
            str(tmp_path / "out"),
            catalogue=str(tmp_path / "items.parquet"),
            catalogue_columns={"price": "p"},
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "netflix"}, "import netflix: no such source; there are movielens-1m, .*amazon, table"),
        ({"name": "table", "timestamp_unit": "hours"}, "timestamp unit 'hours': expected one of s, ms, us, ns, iso"),
        ({"name": "amazon", "field_order": "down"}, "field order 'down': expected one of user-first, item-first"),
        ({"name": "amazon", "columns": {"user_id": "u"}}, "a column map is for import table"),
    ],
)
def test_an_import_that_is_not_known_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run(**{"source": "x", "out": str(tmp_path / "out"), **arguments})


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(LogError, match=r"x\.csv: holds no rows"):
        run("table", str(tmp_path / "x.csv"), str(tmp_path / "out"))


@pytest.mark.real_data
def test_real_reviews_and_movielens_100k_have_their_published_counts(farsight_data: Path, tmp_path: Path) -> None:
    reviews = farsight_data / "amazon14-musical-instruments-5core" / "reviews.parquet"
    counts = run("amazon", str(reviews), str(tmp_path / "music"))["counts"]
    assert (counts["users"], counts["items"], counts["events"]) == (1_429, 900, 10_261)
    names = {"user_id": "user_id:token", "item_id": "item_id:token", "weight": "rating:float"}
    movies = str(farsight_data / "ml-100k" / "ml-100k.inter.xz")
    columns: dict[str, str | None] = {**names, "timestamp": "timestamp:float"}
    counts = run("table", movies, str(tmp_path / "movies"), columns, separator="\t")["counts"]
    assert (counts["users"], counts["items"], counts["events"]) == (943, 1_682, 100_000)
