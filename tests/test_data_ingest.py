"""Ingest as a whole: log files in every form -> a dataset that a plain program agrees with."""

import gzip
import json
import os
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.dataset import PreparedDataset
from data.encode import encode_windows
from data.errors import FarsightError, LogError, RecipeError
from data.ingest import run
from data.schema import HISTORY_SCHEMA
from data.storage import file_hash
from data.windows import WINDOW_COLUMNS, cut_windows, length_buckets

NUM_BAD = 6


def random_events(seed: int, num_users: int = 20, num_events: int = 900) -> list[dict[str, Any]]:
    """Few moments and few items, so that ties and exact duplicates are many."""
    draw = random.Random(seed)
    return [
        {
            "user_id": draw.randrange(num_users),
            "item_id": draw.randrange(30),
            "timestamp": 1_000_000_000 + draw.randrange(12) * 3000,
            "action": draw.choice(["like", "buy", None]),
        }
        for _ in range(num_events)
    ]


def write_log(directory: Path, events: list[dict[str, Any]]) -> None:
    """A third each as Parquet, CSV and packed JSON lines, with bad rows in the last two."""
    directory.mkdir()
    third = len(events) // 3
    first = pl.DataFrame(events[:third]).cast({"user_id": pl.Int32})
    pq.write_table(first.to_arrow(), directory / "a.parquet", row_group_size=100)
    bad = "1,,1000000000,\n,2,1000000000,\n1,2,later,\n"
    (directory / "b.csv").write_text(pl.DataFrame(events[third : 2 * third]).write_csv() + bad)
    lines = [
        json.dumps({name: value for name, value in row.items() if value is not None}) for row in events[2 * third :]
    ]
    lines += ['{"user_id": 1.5, "item_id": 2, "timestamp": 1000000000}', "{", '{"user_id": 1, "timestamp": 1000000000}']
    (directory / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


def recipe(log: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return {"ingest": {"log": str(log), "out": str(out), "num_buckets": 4, **settings}}


def histories(dataset: PreparedDataset) -> dict[str, dict[str, Any]]:
    rows = [row for table in dataset.history_tables() for row in table.to_pylist()]
    return {row["user_id"]: row for row in rows}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ingest") / "log"
    write_log(directory, random_events(0))
    return directory


@pytest.fixture(scope="module")
def prepared(ray_session: None, log: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Items 0 to 19 have a catalogue entry, items 20 to 29 have none, and items 90 and 91 no event."""
    folder = tmp_path_factory.mktemp("prepared")
    catalogue = pl.DataFrame({"item_id": [*range(20), 90, 91], "categories": ["x|y"] * 21 + [None], "price": 1.5})
    catalogue.write_csv(folder / "items.csv")
    settings = {"catalogue": str(folder / "items.csv"), "category_separator": "|", "users_per_row_group": 3}
    run(recipe(log, folder / "out", **settings))
    return PreparedDataset.open(folder / "out")


@pytest.mark.ray
def test_histories_are_those_of_a_plain_program(prepared: PreparedDataset) -> None:
    users: dict[str, list[dict[str, Any]]] = defaultdict(list)
    seen: set[tuple[Any, ...]] = set()
    for row in random_events(0):
        if tuple(row.values()) not in seen:
            users[str(row["user_id"])].append(row)
        seen.add(tuple(row.values()))
    vocabulary = prepared.vocabulary()
    codes = {None: 0, "buy": 1, "like": 2}
    found = histories(prepared)
    assert set(found) == set(users)
    for user, events in users.items():
        events.sort(key=lambda row: row["timestamp"])  # stable: ties stay in log order
        history = found[user]
        assert vocabulary.external(history["items"]) == [str(row["item_id"]) for row in events]
        assert history["times"] == [row["timestamp"] for row in events]
        assert history["actions"] == [codes[row["action"]] for row in events]
        assert history["weights"] == [1.0] * len(events)
        assert history["requests"] == [-1] * len(events)
        held = int(len(events) >= 3)
        assert (history["num_validation"], history["num_test"]) == (held, held)
        assert history["num_train"] == len(events) - 2 * held


@pytest.mark.ray
def test_every_row_read_is_accounted_for(prepared: PreparedDataset) -> None:
    counts = prepared.manifest["counts"]
    assert counts["events_read"] == 900 + NUM_BAD
    assert counts["quarantined"] == NUM_BAD
    assert counts["duplicates"] == 900 - len({tuple(row.values()) for row in random_events(0)}) > 0
    assert counts["events_read"] == (
        counts["events"] + counts["quarantined"] + counts["duplicates"] + counts["dropped_by_filter"]
    )
    assert counts["users"] == prepared.num_users == sum(shard["users"] for shard in prepared.manifest["shards"])
    assert counts["events"] == sum(shard["events"] for shard in prepared.manifest["shards"])
    refused = pl.read_parquet(prepared.directory / "quarantine" / "*.parquet")
    assert Counter(refused["reason"]) == prepared.manifest["quarantined_by_reason"]
    assert prepared.manifest["quarantined_by_reason"] == {
        "item_id is empty": 2,
        "line is not valid JSON": 1,
        "timestamp cannot be read": 1,
        "user_id has a wrong type": 1,
        "user_id is empty": 1,
    }


@pytest.mark.ray
def test_items_of_an_earlier_dataset_keep_their_rows(prepared: PreparedDataset, log: Path, tmp_path: Path) -> None:
    (tmp_path / "day.csv").write_text("user_id,item_id,timestamp\n1,7,1100000000\n1,0new,1100000001\n1,91,1100000002\n")
    run(recipe(tmp_path / "day.csv", tmp_path / "out", items_from=str(prepared.directory)))
    grown = PreparedDataset.open(tmp_path / "out")
    before, after = prepared.vocabulary(), grown.vocabulary()
    assert after.item_ids == [*before.item_ids, "0new"]  # sorted, it would stand first
    [history] = histories(grown).values()
    assert after.external(history["items"]) == ["7", "0new", "91"]
    assert history["items"][0] == before.rows(["7"])[0]


def test_catalogue_and_vocabulary_hold_every_item_in_one_order(prepared: PreparedDataset) -> None:
    items = sorted({str(item) for item in (*range(30), 90, 91)})
    assert prepared.vocabulary().item_ids == items
    assert prepared.manifest["vocabulary_hash"] == prepared.vocabulary().content_hash
    rows = prepared.catalogue().to_pylist()
    assert [row["item_id"] for row in rows] == items
    assert {row["item_id"]: row["categories"] for row in rows} == {
        item: ["x", "y"] if int(item) < 20 or item == "90" else [] for item in items
    }
    assert {row["price"] for row in rows} == {1.5, None}
    assert prepared.manifest["counts"]["items_without_catalogue"] == 10
    trained = Counter(item for row in histories(prepared).values() for item in row["items"][: row["num_train"]])
    counts = prepared.train_counts()
    assert counts[0] == 0
    assert counts.tolist() == [trained[row] for row in range(len(items) + 1)]


@pytest.mark.ray
def test_the_dataset_reads_through_its_own_interface(prepared: PreparedDataset) -> None:
    assert prepared.has_times
    assert prepared.num_actions == 2
    for path in prepared.shards:
        file = pq.ParquetFile(path)
        assert file.schema_arrow.remove_metadata().equals(HISTORY_SCHEMA)
        assert max(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)) <= 3
    keys = [key for table in prepared.history_tables(["user_key"]) for key in table.column(0).to_pylist()]
    parts = [
        key
        for rank in range(2)
        for table in prepared.history_tables(["user_key"], rank=rank, world=2)
        for key in table.column(0).to_pylist()
    ]
    assert sorted(parts) == sorted(keys)
    assert len(set(keys)) == prepared.num_users
    files = prepared.manifest["files"]
    found = [path for path in prepared.directory.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert {path.relative_to(prepared.directory).as_posix(): file_hash(path) for path in found} == files


@pytest.mark.ray
@pytest.mark.parametrize(
    "split",
    [
        {"kind": "time", "validation_share": 0.2, "test_share": 0.1},
        {"kind": "time", "validation_start": 1_000_020_000, "test_start": 1_000_030_000},
        {"kind": "time", "validation_days": 0.05, "test_days": 0.1},
    ],
)
def test_a_time_split_cuts_all_users_at_the_same_moments(
    ray_session: None, log: Path, tmp_path: Path, split: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(recipe(log, tmp_path / "out", split=split, duplicates="keep"))
    assert capfd.readouterr().out == ""  # a machine may read the standard output
    dataset = PreparedDataset.open(tmp_path / "out")
    cuts = dataset.manifest["split"]
    times = sorted(row["timestamp"] for row in random_events(0))
    if "test_share" in split:
        assert (cuts["validation_start"], cuts["test_start"]) == (times[630], times[810])
    elif "test_days" in split:
        assert cuts["test_start"] == times[-1] + 1 - 8640
        assert cuts["validation_start"] == cuts["test_start"] - 4320
    else:
        assert (cuts["validation_start"], cuts["test_start"]) == (split["validation_start"], split["test_start"])
    for row in histories(dataset).values():
        assert row["num_train"] == sum(time < cuts["validation_start"] for time in row["times"])
        assert row["num_test"] == sum(time >= cuts["test_start"] for time in row["times"])
        assert row["num_train"] + row["num_validation"] + row["num_test"] == len(row["times"])
    assert result["counts"]["test_events"] == sum(time >= cuts["test_start"] for time in times)


@pytest.mark.ray
def test_order_alone_gives_the_order_and_times_are_then_zero(ray_session: None, tmp_path: Path) -> None:
    rows = [("u", "a", 2), ("u", "b", 1), ("u", "c", 1), ("v", "a", 0), ("v", "b", 1)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "order"], orient="row").write_csv(tmp_path / "log.csv")
    run(recipe(tmp_path / "log.csv", tmp_path / "out", min_user_events=3, split={"test_events": 2}))
    dataset = PreparedDataset.open(tmp_path / "out")
    assert dataset.manifest["split"] == {
        "kind": "last_out",
        "test_events": 2,
        "validation_start": None,
        "test_start": None,
    }
    assert dataset.manifest["counts"]["users_with_test"] == 0  # three events are too few to hold out two and one
    assert not dataset.has_times
    assert dataset.manifest["time_range"] is None
    [(user, history)] = histories(dataset).items()
    assert (user, dataset.vocabulary().external(history["items"])) == ("u", ["b", "c", "a"])
    assert history["times"] == [0, 0, 0]
    assert dataset.manifest["counts"]["dropped_by_filter"] == 2


@pytest.mark.ray
def test_what_a_task_refuses_reaches_the_caller_as_it_is_and_nothing_is_left(ray_session: None, tmp_path: Path) -> None:
    table = pa.table({"user_id": [1.0], "item_id": [1], "timestamp": [1]})
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(LogError) as caught:
        run(recipe(tmp_path / "log.parquet", tmp_path / "out"))
    assert type(caught.value) is LogError
    assert str(caught.value).startswith(f"{tmp_path}/log.parquet: column 'user_id' for user_id is double, expected")
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


@pytest.mark.ray
def test_too_many_bad_rows_stop_the_run_with_reasons_counts_and_an_example(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "u,i,5\n" * 97 + "u,,5\nu,i,-5\nu,i,-6\n")
    with pytest.raises(LogError, match=r"3 of 100 rows are bad, more than max_bad_share 0\.01 allows") as caught:
        run(recipe(tmp_path / "log.csv", tmp_path / "out"))
    message = str(caught.value)
    assert f"2 x timestamp is negative, for example {tmp_path}/log.csv row 98: " in message
    assert "1 x item_id is empty" in message
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    run(recipe(tmp_path / "log.csv", tmp_path / "out", max_bad_share=0.03))
    assert PreparedDataset.open(tmp_path / "out").manifest["counts"]["duplicates"] == 96


@pytest.mark.ray
@pytest.mark.parametrize(
    "split",
    [
        {},
        {"kind": "time", "validation_share": 0.2, "test_share": 0.1},
        {"kind": "time", "validation_days": 1, "test_days": 1},
    ],
)
def test_a_log_of_which_nothing_is_left_is_refused(ray_session: None, tmp_path: Path, split: dict[str, Any]) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,,5\n")
    with pytest.raises(LogError, match="no events are left of the 1 rows that were read"):
        run(recipe(tmp_path / "log.csv", tmp_path / "out", max_bad_share=1, split=split))


@pytest.mark.parametrize(
    ("header", "settings", "message"),
    [
        ("user_id,item_id", {}, "neither timestamp nor order, so events have no order; map one of them in columns"),
        ("user_id,item_id,order", {"require_times": True}, "no timestamp column, but require_times needs times"),
        (
            "user_id,item_id,order",
            {"split": {"kind": "time", "test_share": 0.1, "validation_share": 0.1}},
            "no timestamp column, but split.kind: time needs times",
        ),
        ("user_id,item_id,timestamp", {"sort": "order"}, "no order column, but sort: order needs one"),
        (
            "user_id,item_id,timestamp",
            {"columns": {"action": "act"}},
            "no column 'act' for action; found user_id, item",
        ),
    ],
)
def test_a_log_without_what_the_recipe_needs_is_refused_before_it_is_read(
    tmp_path: Path, header: str, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "log.csv").write_text(header + "\n")
    with pytest.raises(LogError, match=message):
        run(recipe(tmp_path / "log.csv", tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_a_place_and_a_place_that_is_taken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"ingest\.log: Field required"):
        run({})
    with pytest.raises(RecipeError, match=r"ingest\.out: no directory to write"):
        run({"ingest": {"log": "x"}})
    with pytest.raises(FarsightError, match="already exists"):
        run({"ingest": {"log": "x"}}, out=str(tmp_path))
    empty = tmp_path / "log.csv"
    empty.write_text("")
    with pytest.raises(LogError, match="the log holds no rows"):
        run(recipe(empty, tmp_path / "out"))


@pytest.mark.ray
def test_the_same_log_gives_the_same_files_again(prepared: PreparedDataset, tmp_path: Path) -> None:
    settings = dict(prepared.manifest["settings"]) | {"out": str(tmp_path / "again")}
    run({"ingest": settings})
    again = PreparedDataset.open(tmp_path / "again")
    kept = [name for name in prepared.manifest["files"] if not name.startswith("quarantine/")]
    assert {name: again.manifest["files"][name] for name in kept} == {
        name: prepared.manifest["files"][name] for name in kept
    }


@pytest.mark.ray
@pytest.mark.real_data
def test_movielens_1m_and_beauty_have_their_published_counts(
    ray_session: None, farsight_data: Path, tmp_path: Path
) -> None:
    from data.importers import run as import_data

    movies, beauty = farsight_data / "ml-1m", farsight_data / "amazon-beauty"
    columns: dict[str, str | None] = {"item_id": "movie_id", "weight": "rating", "order": "chrono_rank"}
    import_data("table", str(movies / "ratings.parquet"), str(tmp_path / "m"), columns, str(movies / "movies.dat"))
    import_data(
        "table",
        str(beauty / "interactions.parquet"),
        str(tmp_path / "b"),
        {"user_id": "user", "item_id": "item", "order": "position"},
        str(beauty / "items.parquet"),
        {"item_id": "item", "categories": "attributes", "title": "text_id"},
    )
    expected = {"m": (6_040, 3_883, 1_000_209), "b": (22_363, 12_101, 198_502)}
    for name, facts in expected.items():
        run({"ingest": {"log": str(tmp_path / name), "out": str(tmp_path / f"{name}-out")}})
        dataset = PreparedDataset.open(tmp_path / f"{name}-out")
        counts = dataset.manifest["counts"]
        assert (counts["users"], counts["items"], counts["events"]) == facts
        assert counts["users_with_test"] == counts["users"]
    items = pl.read_parquet(tmp_path / "m-out" / "histories" / "*.parquet").explode("items")["items"]
    assert items.n_unique() == 3_706
    # The order of each history is the published one.
    ratings = pl.read_parquet(movies / "ratings.parquet").filter(pl.col("user_id") == 1).sort("chrono_rank")
    dataset = PreparedDataset.open(tmp_path / "m-out")
    first = histories(dataset)["1"]
    assert dataset.vocabulary().external(first["items"]) == [str(movie) for movie in ratings["movie_id"]]
    assert os.listdir(tmp_path / "m-out" / "quarantine") == []
    assert _padding_share(dataset, max_events=200, events_per_batch=4096) < 0.05


def _padding_share(dataset: PreparedDataset, *, max_events: int, events_per_batch: int) -> float:
    """Share of computed positions that hold no event, over one epoch."""
    tables = dataset.history_tables([*WINDOW_COLUMNS, "num_train"])
    windows = pa.concat_tables(cut_windows(table, max_events=max_events, rule="all") for table in tables)
    lengths_B = encode_windows(windows).lengths_B
    batches = length_buckets(lengths_B, events_per_batch=events_per_batch, random=np.random.default_rng(0))
    computed = sum(len(rows) * int(lengths_B[rows].max()) for rows in batches)
    return 1 - int(lengths_B.sum()) / computed
