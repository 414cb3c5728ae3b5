"""A dataset extended day by day is the one that a single ingest of all days gives."""

import logging
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data.log_files
from data.catalogue import merged_catalogue
from data.dataset import FORMAT_VERSION, KIND, PreparedDataset
from data.errors import DatasetError, LogError, RecipeError
from data.extend import Earlier
from data.ingest import run
from data.log_files import LogFile
from data.schema import HISTORY_SCHEMA
from data.spill import bucket_of
from data.storage import MANIFEST, directory_hashes, write_json

NUM_BUCKETS = 13  # the second day fills two that the first leaves empty, two more stay so
START = 1_700_006_400  # a midnight
DAY = 86_400
BAD = {"user_id": "u1", "item_id": None, "timestamp": 5, "action": None, "weight": 1.0}
DAYS_SPLIT = {"kind": "time", "validation_days": 0.5, "test_days": 1.0}


def day_of_log(day: int) -> list[dict[str, Any]]:
    """Events with ties, repeats of the day before, late ones, new users, items and actions; one bad row."""
    draw = random.Random(day)
    users = ["u1", "late comer"] if day == 2 else [f"u{number}" for number in range(12 + 6 * day)]
    events = [
        {
            "user_id": draw.choice(users),
            "item_id": f"i{draw.randrange(20) + (0 if day == 0 else -5)}",  # negative names are new, and sort first
            "timestamp": START + (day - (draw.random() < 0.2)) * DAY + draw.randrange(20) * 4000,
            "action": draw.choice(["like", "buy", None] if day == 0 else ["browse", "buy", None]),
            "weight": draw.choice([1.0, 2.5]),
        }
        for _ in range(200 if day < 2 else 15)
    ]
    return [*events, *(day_of_log(day - 1)[:10] if day else []), BAD]


def recipe(log: Path | list[str], out: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a first ingest; those that extend name no number of buckets."""
    first = {} if settings.get("extends") else {"num_buckets": NUM_BUCKETS}
    places = log if isinstance(log, list) else str(log)
    return {"ingest": {"log": places, "out": str(out), "max_bad_share": 0.2, **first, **settings}}


@dataclass(frozen=True)
class Chain:
    """Three days of log, `ingested` day by day and `at_once`."""

    folder: Path
    ingested: list[PreparedDataset]
    at_once: PreparedDataset

    def log(self, day: int) -> Path:
        return self.folder / "log" / f"day={day}" / "part-0.csv"


@pytest.fixture(scope="module")
def chain(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("extend")
    for day in range(3):
        (folder / "log" / f"day={day}").mkdir(parents=True)
        pl.DataFrame(day_of_log(day)).write_csv(folder / "log" / f"day={day}" / "part-0.csv")
    catalogues = [
        {"item_id": [f"i{n}" for n in range(12)], "categories": ["x|y"] * 12, "price": [1.5] * 12},
        {"item_id": ["i0", "i-1", "i15"], "categories": ["z"] * 3, "maker": ["m"] * 3},
    ]
    for day, rows in enumerate(catalogues):
        pl.DataFrame(rows).write_csv(folder / f"items-{day}.csv")
    both = pl.concat([pl.read_csv(folder / f"items-{day}.csv") for day in (1, 0)], how="diagonal")
    both.unique("item_id", keep="first").write_csv(folder / "items.csv")
    common = {"category_separator": "|"}
    ingested = []
    for day in range(3):
        items = {"catalogue": str(folder / f"items-{day}.csv")} if day < len(catalogues) else {}
        before = {"extends": str(folder / f"{day - 1}")} if day else {}
        run(recipe(folder / "log" / f"day={day}", folder / str(day), **common, **items, **before))
        ingested.append(PreparedDataset.open(folder / str(day)))
    run(recipe([str(folder / "log" / "*" / "*.csv")], folder / "all", **common, catalogue=str(folder / "items.csv")))
    return Chain(folder, ingested, PreparedDataset.open(folder / "all"))


def content(dataset: PreparedDataset) -> dict[str, Any]:
    """All that a dataset says, with external ids and names in place of rows and codes."""
    vocabulary, actions = dataset.vocabulary(), ["", *dataset.manifest["actions"]]
    users = {}
    for table in dataset.history_tables():
        for row in table.to_pylist():
            named = {"items": vocabulary.external(row["items"]), "actions": [actions[code] for code in row["actions"]]}
            users[row["user_id"]] = row | named
    catalogue = {row["item_id"]: row for row in dataset.catalogue().to_pylist()}
    told = ("counts", "quarantined_by_reason", "has_times", "time_range", "split", "num_buckets")
    refused = pl.read_parquet(dataset.directory / "quarantine" / "*.parquet").sort(pl.all()).to_dicts()
    return {"users": users, "items": catalogue, "refused": refused} | {name: dataset.manifest[name] for name in told}


@pytest.mark.ray
def test_days_one_after_another_give_what_all_days_give_at_once(chain: Chain) -> None:
    found, expected = content(chain.ingested[2]), content(chain.at_once)
    assert list(found["items"]) != list(expected["items"])  # the rows differ, and nothing else
    assert found == expected
    assert list(found["users"]) == list(expected["users"])
    assert found["counts"]["duplicates"] >= 20
    assert found["counts"]["quarantined"] == 3
    assert [file["name"] for file in chain.ingested[2].manifest["log_files"]] == [str(chain.log(d)) for d in range(3)]
    assert chain.ingested[2].manifest["log_files"] == chain.at_once.manifest["log_files"]
    assert chain.ingested[2].manifest["shards"] == chain.at_once.manifest["shards"]
    for shard in chain.ingested[2].shards:
        assert pq.read_schema(shard).remove_metadata().equals(HISTORY_SCHEMA)


@pytest.mark.ray
def test_items_and_actions_keep_their_numbers(chain: Chain) -> None:
    for before, after in zip(chain.ingested, chain.ingested[1:], strict=False):
        assert before.vocabulary().begins(after.vocabulary())
    assert chain.ingested[2].manifest["actions"] == ["buy", "like", "browse"]
    assert chain.at_once.manifest["actions"] == ["browse", "buy", "like"]


@pytest.mark.ray
def test_only_the_shards_of_users_with_new_events_are_written(chain: Chain) -> None:
    before, after = chain.ingested[1], chain.ingested[2]
    users = {row["user_id"] for row in day_of_log(2)}
    touched = {f"part-{bucket_of(user, NUM_BUCKETS):05d}.parquet" for user in users}
    linked = {
        shard.name for shard in after.shards if shard.stat().st_ino in {old.stat().st_ino for old in before.shards}
    }
    assert linked == {shard.name for shard in after.shards} - touched
    assert 0 < len(linked) < len(after.shards)
    assert [len(dataset.shards) for dataset in chain.ingested] == [9, 11, 11]


@pytest.mark.ray
def test_a_day_that_went_in_already_changes_nothing(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Under whatever name: the whole log, moved to another place."""
    shutil.copytree(chain.folder / "log", tmp_path / "log")
    shutil.copytree(chain.ingested[2].directory, tmp_path / "out")
    before = PreparedDataset.open(tmp_path / "out")
    with caplog.at_level(logging.INFO):
        run(recipe([str(tmp_path / "log" / "*" / "*")], tmp_path / "out", extends=str(tmp_path / "out"), replace=True))
    after = PreparedDataset.open(tmp_path / "out")
    ours = ("settings", "max_time")
    assert {name: value for name, value in after.manifest.items() if name not in ours} == {
        name: value for name, value in before.manifest.items() if name not in ours
    }
    assert "3 of 3 log files are left out: they went in before" in caplog.text
    assert "history shards are kept as they were" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]


@pytest.mark.ray
def test_a_split_by_days_moves_with_the_newest_event_for_all_users(chain: Chain, tmp_path: Path) -> None:
    common = {"split": DAYS_SPLIT, "category_separator": "|"}
    run(recipe(chain.folder / "log" / "day=2", tmp_path / "out", extends=str(chain.folder / "1"), **common))
    whole = {"catalogue": str(chain.folder / "items.csv"), **common}
    run(recipe([str(chain.folder / "log" / "*" / "*.csv")], tmp_path / "all", **whole))
    extended, expected = (PreparedDataset.open(tmp_path / name) for name in ("out", "all"))
    assert content(extended) == content(expected)
    assert extended.manifest["counts"]["test_events"] > 0


@pytest.mark.ray
def test_untouched_shards_are_not_read_and_a_refused_log_leaves_the_dataset_as_it_was(
    chain: Chain, tmp_path: Path
) -> None:
    shutil.copytree(chain.ingested[1].directory, tmp_path / "old")
    old = PreparedDataset.open(tmp_path / "old")
    touched = next(shard for shard in old.shards if shard.name == f"part-{bucket_of('u1', NUM_BUCKETS):05d}.parquet")
    untouched = next(shard for shard in old.shards if shard != touched)
    untouched.write_bytes(b"no table")
    before = directory_hashes(tmp_path / "old")
    (tmp_path / "day.csv").write_text(f"user_id,item_id,timestamp\nu1,i1,{START}\nu1,,5\n")
    in_place = {"extends": str(tmp_path / "old"), "replace": True}
    with pytest.raises(LogError, match="1 of 2 rows are bad"):
        run(recipe(tmp_path / "day.csv", tmp_path / "old", **in_place))
    assert directory_hashes(tmp_path / "old") == before
    run(recipe(tmp_path / "day.csv", tmp_path / "new", extends=str(tmp_path / "old"), max_bad_share=0.5))
    assert (tmp_path / "new" / "histories" / untouched.name).read_bytes() == b"no table"
    touched.write_bytes(b"no table")
    with pytest.raises(DatasetError, match=f"{touched.name}: its hash is .*; the dataset is damaged and cannot be ext"):
        run(recipe(tmp_path / "day.csv", tmp_path / "old", max_bad_share=0.5, **in_place))
    untouched.unlink()
    with pytest.raises(DatasetError, match=f"{untouched.name}: missing, so the dataset cannot be extended; ingest its"):
        run(recipe(tmp_path / "day.csv", tmp_path / "old", **in_place))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["day.csv", "new", "old"]


def test_a_log_file_goes_in_once_and_may_not_change_afterwards() -> None:
    earlier = Earlier(log_files=[{"name": "/log/a.csv", "size": 10, "sha256": "aa"}])
    same, longer, moved = (
        LogFile(0, f"/log/{name}.csv", "csv", size) for name, size in [("a", 10), ("a", 11), ("b", 10)]
    )
    assert earlier.perhaps_read([same, longer, moved]) == [same, moved]
    assert earlier.unread([same, moved], {"/log/a.csv": "aa", "/log/b.csv": "aa"}) == []
    assert earlier.unread([moved], {"/log/b.csv": "bb"}) == [moved]
    message = r"/log/a\.csv: {} bytes, but other content of 10 bytes went into the dataset under this name"
    with pytest.raises(LogError, match=message.format(11)):
        earlier.unread([longer], {})
    with pytest.raises(LogError, match=message.format(10)):
        earlier.unread([same], {"/log/a.csv": "bb"})


def test_side_features_of_types_that_do_not_go_together_are_refused() -> None:
    day = pa.table({"item_id": ["a"], "categories": [["x"]], "price": [[1.5]]})
    stored = pa.table({"item_id": ["b"], "categories": [["y"]], "price": [1], "train_events": [3], "first_seen": [7]})
    with pytest.raises(LogError, match=r"the catalogue and that of the dataset to extend hold other types: .*list"):
        merged_catalogue(day, stored)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"items_from": "x"}, "extends keeps the rows of all items already; leave out items_from"),
        ({"sort": "order"}, "extends needs sort: time; `order` is not stored"),
        ({"min_user_events": 5}, "extends needs min_user_events: 1; events of users that were left out are not stored"),
        (
            {"split": {"kind": "time", "validation_share": 0.1, "test_share": 0.1}},
            r"extends takes no shares, .*; state split\.test_days and validation_days, or the moments",
        ),
    ],
)
def test_settings_under_which_a_dataset_cannot_be_extended_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run({"ingest": {"log": "x", "out": "y", "extends": "z", **settings}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"has_times": False}, "has_times is False, extending it as stated needs True; leave out ingest.extends"),
        ({"sort": "order"}, "sort is order, extending it as stated needs time; leave out ingest.extends"),
        ({"min_user_events": 3}, "min_user_events is 3, extending it as stated needs 1; leave out ingest.extends"),
        ({"duplicates": "keep"}, "duplicates is keep, extending it as stated needs drop; set ingest.duplicates=keep"),
        ({"num_buckets": 4}, "num_buckets is 4, extending it as stated needs 8; set ingest.num_buckets=4, or ingest"),
        ({"log_files": None}, "does not say which log files went into it, since an earlier version of Farsight made"),
    ],
)
def test_a_dataset_that_lacks_what_later_days_need_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    made = {"sort": "time", "min_user_events": 1, "duplicates": "drop"}
    manifest = {"kind": KIND, "format_version": FORMAT_VERSION, "has_times": True, "num_buckets": 8, "log_files": []}
    for name, value in change.items():
        (made if name in made else manifest)[name] = value
    told = {name: value for name, value in manifest.items() if value is not None}
    write_json(tmp_path / MANIFEST, {**told, "settings": made})
    with pytest.raises(DatasetError, match=message):
        run({"ingest": {"log": "x", "out": str(tmp_path / "out"), "extends": str(tmp_path), "num_buckets": 8}})
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


@pytest.mark.ray
def test_a_later_log_without_times_is_refused(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,order\n")
    with pytest.raises(LogError, match="no timestamp column, but extends needs times; found user_id, item_id, order"):
        run(recipe(tmp_path / "log.csv", tmp_path / "out", extends=str(chain.folder / "0")))


@pytest.mark.ray
def test_a_damaged_file_is_left_out_whole_by_name_and_goes_in_once_it_is_mended(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.log_files, "_FRAGMENT_ROWS", 1)  # one fragment for each row group
    (log := tmp_path / "log").mkdir()
    files = [log / f"{name}.parquet" for name in ("damaged", "cut", "whole")]
    for number, file in enumerate(files):
        events = [{"user_id": f"u{n % 7}", "item_id": f"i{n % 5}", "timestamp": START + n + number} for n in range(40)]
        pq.write_table(pa.Table.from_pylist(events), file, row_group_size=20)
    mended = [file.read_bytes() for file in files]
    page = pq.ParquetFile(files[0]).metadata.row_group(1).column(0).dictionary_page_offset
    files[0].write_bytes(mended[0][:page] + b"\xff" * 40 + mended[0][page + 40 :])  # of its second row group
    files[1].write_bytes(mended[1][:-30])
    with pytest.raises(LogError, match=r"(?s)(?=.*damaged.parquet)(?=.*cut.parquet).*set max_bad_files=2 to go on"):
        run(recipe(log, tmp_path / "out"))
    run(recipe(log, tmp_path / "out", max_bad_files=2))
    run(recipe(files[2], tmp_path / "alone"))
    out, alone = PreparedDataset.open(tmp_path / "out"), PreparedDataset.open(tmp_path / "alone")
    assert out.manifest["unreadable_files"] == sorted(map(str, files[:2]))
    assert [file["name"] for file in out.manifest["log_files"]] == [str(files[2])]
    assert out.manifest["counts"] == alone.manifest["counts"]
    assert out.vocabulary().item_ids == alone.vocabulary().item_ids
    assert pa.concat_tables(out.history_tables()).equals(pa.concat_tables(alone.history_tables()))
    for file, content in zip(files, mended, strict=True):
        file.write_bytes(content)
    run(recipe(log, tmp_path / "all", extends=str(tmp_path / "out")))
    assert PreparedDataset.open(tmp_path / "all").manifest["counts"]["events_read"] == 120
