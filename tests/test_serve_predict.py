"""`farsight predict`: what each user gets is what the release answers in process, also after a run that was stopped."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data.dataset import PreparedDataset
from data.errors import DatasetError, FarsightError
from data.storage import MANIFEST, directory_hashes, read_manifest, write_json
from modeling.settings import ConditionSettings
from serve.answer import Query
from serve.build import run as build_release
from serve.engine import Engine
from serve.instructions import Wish
from serve.predict import FORMAT_VERSION, KIND, SCHEMA, run
from tests.small_world import NUM_ITEMS, START, in_shards, write_artifact, write_dataset

pytestmark = pytest.mark.ray
AT = START + 100_000  # some histories have begun by then, and some have not
ASKED = {
    "k": 7,
    "request_time": AT,
    "conditions": [{"any_of": ["tenth"], "hard": True}, {"own_top": 1, "weight": 2.0}],
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return in_shards(tmp_path_factory.mktemp("predict") / "dataset", num_shards=3, num_users=40)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, dataset: PreparedDataset) -> Path:
    place = tmp_path_factory.mktemp("predict")
    artifact = write_artifact(place / "artifact", dataset, condition=ConditionSettings())
    build_release(str(artifact.directory), str(place / "release"), {})
    return place / "release"


def expected(release: Path, dataset: PreparedDataset) -> dict[str, list[str]]:
    """Each user's items, asked one by one."""
    engine, item_ids, actions = Engine.open(release), dataset.vocabulary().item_ids, dataset.manifest["actions"]
    answers = {}
    for row in (row for table in dataset.history_tables() for row in table.to_pylist()):
        events = [event for event in zip(row["items"], row["times"], row["actions"], strict=True) if event[1] <= AT]
        query = Query(
            item_ids=[item_ids[item - 1] for item, _, _ in events],
            timestamps=[time for _, time, _ in events],
            actions=[actions[code - 1] if code else None for _, _, code in events],
            k=7,
            request_time=AT,
            wishes=[Wish(("tenth",), hard=True), Wish(own_top=1, weight=2.0)],
        )
        answers[row["user_id"]] = engine.answer([query])[0].item_ids
    return answers


def test_all_users_are_answered_as_one_by_one_and_a_stopped_run_goes_on(
    ray_session: None, tmp_path: Path, release: Path, dataset: PreparedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "predictions"
    found = run(str(release), str(dataset.directory), str(out), {"predict": ASKED})
    parts = sorted(out.glob("*.parquet"))
    assert [part.name for part in parts] == [f"part-{number:05d}.parquet" for number in range(3)]
    rows = [row for part in parts for row in pq.read_table(part, schema=SCHEMA).to_pylist()]
    assert {row["user_id"]: row["item_ids"] for row in rows} == expected(release, dataset)
    assert len(rows) == found["counts"]["users"] == 40
    popular = sum(row["fallback"] == "popularity" for row in rows)
    assert 0 < popular == found["counts"]["popularity"] < 40
    manifest = read_manifest(out, KIND, FORMAT_VERSION, FarsightError)
    assert manifest["release_id"] == Engine.open(release).release_id
    assert manifest["files"] == directory_hashes(out, lambda name: name != MANIFEST)

    # As a run leaves it that was stopped after its second shard: those files stay as they are.
    stopped = tmp_path / ".again.unfinished"
    stopped.mkdir()
    plan = {name: manifest[name] for name in ("release_id", "dataset", "settings", "request_time")}
    write_json(stopped / "plan.json", plan)
    for part in parts[:2]:
        pq.write_table(pq.read_table(part).slice(0, 1), stopped / part.name)
    (stopped / ".part-00002.parquet").write_bytes(b"half")
    run(str(release), str(dataset.directory), str(tmp_path / "again"), {"predict": ASKED})
    lengths = [pq.read_metadata(tmp_path / "again" / part.name).num_rows for part in parts]
    assert lengths == [1, 1, pq.read_metadata(parts[2]).num_rows]
    assert not stopped.exists()
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [MANIFEST, *(part.name for part in parts)]


def test_an_unfinished_run_with_other_settings_is_begun_again_and_errors_of_actors_are_ours(
    ray_session: None, tmp_path: Path, release: Path, dataset: PreparedDataset
) -> None:
    unfinished = tmp_path / ".out.unfinished"
    unfinished.mkdir()
    (unfinished / "plan.json").write_text(json.dumps({"release_id": "another"}))
    (unfinished / "part-00000.parquet").write_bytes(b"of another release")
    wrong: dict[str, Any] = {"predict": {"conditions": [{"any_of": ["nosuch"]}]}}
    with pytest.raises(DatasetError, match=r"conditions\.0\.any_of\.0: no category or pool of this release"):
        run(str(release), str(dataset.directory), str(tmp_path / "out"), wrong)
    assert not (tmp_path / "out").exists()
    assert json.loads((unfinished / "plan.json").read_text())["settings"]["conditions"][0]["any_of"] == ["nosuch"]
    assert not (unfinished / "part-00000.parquet").exists()


def test_something_that_stands_is_not_written_over(tmp_path: Path, release: Path, dataset: PreparedDataset) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FarsightError, match="already exists"):
        run(str(release), str(dataset.directory), str(tmp_path / "out"), {})


def test_a_dataset_with_other_items_is_answered_from_those_that_are_known(
    ray_session: None, tmp_path: Path, release: Path
) -> None:
    grown = write_dataset(tmp_path / "grown", num_users=6, num_items=2 * NUM_ITEMS)
    found = run(str(release), str(grown.directory), str(tmp_path / "out"), {"predict": {"k": 3}})
    assert found["counts"]["users"] == 6
    [table] = [pq.read_table(part) for part in (tmp_path / "out").glob("*.parquet")]
    assert all(len(items) == 3 for items in table["item_ids"].to_pylist())
