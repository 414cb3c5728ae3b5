"""Reading a log: every form gives the same rows, and a bad row is set apart with its reason."""

import gzip
import json
import lzma
from pathlib import Path

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import LogError
from data.log_files import TextFormat, list_files, plan_fragments
from data.log_rows import RowRules, check_rows, read_fragment
from data.log_time import nanoseconds, seconds_of

CSV = TextFormat()
RULES = RowRules("s", max_seconds=2_000_000_000, max_id_bytes=20, needs_order=False)


def read(
    location: str | Path, rules: RowRules = RULES, text: TextFormat = CSV, columns: dict[str, str | None] | None = None
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Good and refused rows of all files of a log."""
    good, refused = [], []
    for fragment in plan_fragments(list_files([str(location)]), columns or {}, text):
        for raw in read_fragment(fragment, text):
            parts = check_rows(raw, fragment, rules)
            good += parts[0].to_dicts()
            refused += parts[1].to_dicts()
    return good, refused


ROWS = [
    {"user_id": "7", "item_id": "ü,1", "timestamp": 5, "action": "like", "request_id": "r", "weight": 2.5, "order": 3},
    {"user_id": "u", "item_id": "9007199254740993", "timestamp": 1_999_999_999, "action": None, "request_id": None,
     "weight": 1.0, "order": 0},
]  # fmt: skip


def csv_text(rows: list[dict[str, object]]) -> str:
    return pl.DataFrame(rows).write_csv()


def test_every_format_and_compression_gives_the_same_rows(tmp_path: Path) -> None:
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "b.csv").write_text("\ufeff" + csv_text(ROWS))
    (tmp_path / "c.jsonl").write_text(lines)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "e.csv.xz").write_bytes(lzma.compress(csv_text(ROWS).encode()))
    (tmp_path / "f.tsv").write_text(pl.DataFrame(ROWS).write_csv(separator="\t"))
    for index, file in enumerate(sorted(tmp_path.iterdir())):
        good, refused = read(file, text=TextFormat("\t" if file.suffix == ".tsv" else ","))
        assert refused == [], file
        for number, (found, row) in enumerate(zip(good, ROWS, strict=True)):
            assert found == {**row, "timestamp": int(str(row["timestamp"])) * 10**9, "position": number}, (index, file)


def test_log_order_is_file_by_path_then_row_whatever_the_row_groups(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": range(10), "item_id": range(10), "timestamp": [1] * 10})
    pq.write_table(frame.to_arrow(), tmp_path / "b.parquet", row_group_size=3)
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,1,1\n\n2,2,2\n")
    (tmp_path / "_temporary.csv").write_text("not a log")
    (tmp_path / "catalogue.csv").write_text("item_id\n1\n")
    (tmp_path / "notes.txt").write_text("not a log")
    (tmp_path / "empty.csv").write_text("")
    good, _ = read(tmp_path)
    assert [row["position"] for row in good] == [0, 2, *(2**40 + row for row in range(10))]


def test_integer_ids_never_pass_through_floats(tmp_path: Path) -> None:
    large = 2**53 + 1
    table = pa.table(
        {"user_id": pa.array([large, None]), "item_id": pa.array([1, 2], pa.uint64()), "timestamp": [1, 1]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    good, refused = read(tmp_path)
    assert [row["user_id"] for row in good] == [str(large)]
    assert [row["reason"] for row in refused] == ["user_id is empty"]


def test_names_of_the_users_own_are_mapped_and_null_leaves_a_column_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"who","item_id",when,order\n1,2,3,not a number\n')
    good, refused = read(tmp_path, columns={"user_id": "who", "timestamp": "when", "order": None})
    assert refused == []
    assert (good[0]["user_id"], good[0]["timestamp"], good[0]["order"]) == ("1", 3 * 10**9, None)


def test_lines_without_a_header_and_with_a_long_separator_are_read(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_bytes("1::caf\xe9::5\n".encode("iso-8859-1"))
    text = TextFormat("::", "iso-8859-1", ("user_id", "item_id", "timestamp"))
    assert read(tmp_path, text=text)[0][0]["item_id"] == "café"


def test_places_that_fsspec_knows_are_listed_and_read() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/log/part-1.csv", b"user_id,item_id,timestamp\nu,i,1\n")
    memory.pipe("/log/part-2.csv", b"user_id,item_id,timestamp\nu,j,1\n")
    for place in ("memory://log", "memory://log/part-*.csv"):
        good, _ = read(place)
        assert [row["item_id"] for row in good] == ["i", "j"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"user_id": ""}, "user_id is empty"),
        ({"user_id": None, "timestamp": -1}, "user_id is empty"),
        ({"item_id": " "}, "item_id is empty"),
        ({"item_id": "x" * 21}, "item_id is longer than allowed"),
        ({"timestamp": None}, "timestamp is empty"),
        ({"timestamp": "soon"}, "timestamp cannot be read"),
        ({"timestamp": -1}, "timestamp is negative"),
        ({"timestamp": 2_000_000_001}, "timestamp is in the future"),
        ({"timestamp": 10**18}, "timestamp is in the future"),
        ({"weight": "much"}, "weight is not a number"),
        ({"weight": "inf"}, "weight is not finite"),
        ({"weight": "1e39"}, "weight is not finite"),
        ({"order": "1.5"}, "order is not an integer"),
        ({"action": "a" * 21}, "action is longer than allowed"),
    ],
)
def test_a_bad_row_is_set_apart_with_its_place_reason_and_content(
    tmp_path: Path, changed: dict[str, object], reason: str
) -> None:
    bad = {**ROWS[0], **changed}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (ROWS[0], bad, ROWS[1])))
    text = {name: [None if row[name] is None else str(row[name]) for row in (ROWS[0], bad, ROWS[1])] for name in bad}
    (tmp_path / "b.csv").write_text(pl.DataFrame(text).write_csv())
    for file in ("a.jsonl", "b.csv"):
        good, refused = read(tmp_path / file)
        assert [row["item_id"] for row in good] == [row["item_id"] for row in ROWS]
        assert [(row["file"], row["row"], row["reason"]) for row in refused] == [(str(tmp_path / file), 1, reason)]
        content = json.loads(str(refused[0]["content"]))
        assert set(content) == set(ROWS[0])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"user_id": 1', "line is not valid JSON"),
        ("[1, 2]", "line is not a JSON object"),
        ('{"user_id": 1.0, "item_id": 2, "timestamp": 3}', "user_id has a wrong type"),
        ('{"user_id": 1, "item_id": [2], "timestamp": 3}', "item_id has a wrong type"),
        ('{"user_id": true, "item_id": 2, "timestamp": 3}', "user_id has a wrong type"),
        ('{"user_id": 1, "item_id": 2, "timestamp": NaN}', "timestamp is not finite"),
    ],
)
def test_a_json_line_that_is_no_event_is_set_apart(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"user_id": 1, "item_id": 2, "timestamp": 3.7}\n' + line + "\n\n")
    good, refused = read(tmp_path)
    assert [row["timestamp"] for row in good] == [3 * 10**9]
    assert [(row["row"], row["reason"], row["content"]) for row in refused] == [(1, reason, line)]


def test_a_csv_line_with_other_fields_than_the_header_is_set_apart(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,2\n1,2,3\n1,2,3,4\n")
    good, refused = read(tmp_path)
    assert [row["position"] for row in good] == [1]
    assert [(row["row"], row["reason"], row["content"]) for row in refused] == [
        (0, "line has fewer fields than the header", "1,2"),
        (2, "line has more fields than the header", "1,2,3,4"),
    ]


def test_order_must_stand_in_every_row_where_it_gives_the_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,order\n1,2,\n1,2,5\n")
    good, refused = read(tmp_path, RowRules("s", 10, 20, needs_order=True))
    assert [row["order"] for row in good] == [5]
    assert [row["reason"] for row in refused] == ["order is empty"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"user_id": [1.0], "item_id": [1], "timestamp": [1]},
            "'user_id' for user_id is double.*ids must not pass through floats",
        ),
        (
            {"user_id": [1], "item_id": [b"x"], "timestamp": [1]},
            "'item_id' for item_id is binary, expected a string or",
        ),
        ({"user_id": [1], "item_id": [1], "timestamp": [True]}, "'timestamp' for timestamp is bool, expected a number"),
        ({"user_id": [1], "item_id": [1], "order": [1.0]}, "'order' for order is double, expected an integer"),
        ({"user_id": [1], "item_id": [1], "weight": [[1]]}, "'weight' for weight is list.*expected a number"),
        ({"user": [1], "item_id": [1]}, r"a\.parquet: no column 'user_id' for user_id; found user, item_id"),
    ],
)
def test_a_column_that_cannot_be_is_an_error(tmp_path: Path, table: dict[str, list[object]], message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(LogError, match=message):
        read(tmp_path)


def test_files_of_one_log_agree_on_times(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,2,3\n")
    (tmp_path / "b.csv").write_text("user_id,item_id\n1,2\n")
    with pytest.raises(LogError, match=r"b\.csv: no column for timestamp, but .*a\.csv has one"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"no parquet", r"a\.parquet: cannot be read as parquet"),
        ("a.csv", b"user_id,item_id,timestamp\n\xff,1,1\n", r"a\.csv: cannot be read as csv: .*utf-8"),
        ("a.csv.gz", b"no gzip", r"a\.csv\.gz: cannot be read as csv"),
        ("a.txt", b"", "no log files here; looked for .parquet, .csv"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LogError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "nowhere: no such file or directory"),
        ("nothing-*.csv", "no log files here"),
        ("abc://x", "abc://x: cannot reach this place"),
    ],
)
def test_a_place_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LogError, match=message):
        read(place)


def test_a_file_of_unknown_format_and_an_unknown_column_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("x")
    with pytest.raises(LogError, match=r"a\.log: the format of this file cannot be told from its name; set format"):
        read(tmp_path / "a.log")
    (tmp_path / "a.csv").write_text("user_id,item_id\n")
    with pytest.raises(LogError, match="'usr' is not a column of the log form; it has user_id, item_id, timestamp"):
        read(tmp_path / "a.csv", columns={"usr": "u"})


@given(st.integers(0, 2_000_000_000), st.sampled_from([("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)]))
def test_a_second_is_the_same_in_every_unit_and_form(second: int, unit: tuple[str, int]) -> None:
    name, per_second = unit
    count = second * per_second + per_second // 2
    expected = count * (10**9 // per_second)
    numbers = [pl.Series([count]), pl.Series([str(count)]), pl.Series([f" {count} "])]
    if name != "s":
        numbers.append(pl.Series([count]).cast(pl.Datetime(name)))  # type: ignore[arg-type]
    for values in numbers:
        parsed, reason = nanoseconds(values, name, max_seconds=2_000_000_001)  # type: ignore[arg-type]
        assert (parsed.to_list(), reason.to_list()) == ([expected], [None])


def test_iso_times_are_utc_unless_they_say_otherwise() -> None:
    texts = ["1970-01-02", "1970-01-01T00:00:01.5", "1970-01-01 02:00:00+01:00", "1970-01-01T00:00:00Z", "May", None]
    parsed, reason = nanoseconds(pl.Series(texts), "iso", max_seconds=10**6)
    assert parsed.to_list() == [86_400 * 10**9, 1_500_000_000, 3600 * 10**9, 0, None, None]
    assert reason.to_list() == [None] * 4 + ["timestamp cannot be read", "timestamp is empty"]
    assert seconds_of("2001-09-09T01:46:40") == 10**9
    dates, _ = nanoseconds(pl.Series(["1970-01-03"]).str.to_date(), "s", max_seconds=10**6)
    assert dates.to_list() == [2 * 86_400 * 10**9]
