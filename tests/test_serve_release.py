"""Releases: built from real artifacts, refused when their pieces do not belong together, and answering in process."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batch import collate
from data.cases import split_cases
from data.dataset import PreparedDataset
from data.encode import encode_histories
from data.errors import ArtifactError, ArtifactMismatch
from data.storage import file_hash, write_json
from modeling.artifact import Artifact
from modeling.metrics import hide, top_rows
from serve.answer import Answer, Query, own_top_scores
from serve.build import run
from serve.engine import Engine
from serve.golden import check_golden, history_queries, is_golden, query_of
from serve.instructions import Unanswerable
from serve.rehearsal import overlap
from serve.rehearsal import run as rehearse
from serve.release import Release
from tests.small_world import ACTIONS, MAX_EVENTS, NUM_ITEMS, START, item_id, write_artifact, write_dataset
from trainer.evaluation import RetrieverScorer

FLAT: dict[str, object] = {}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_dataset(tmp_path_factory.mktemp("dataset") / "dataset")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, dataset: PreparedDataset) -> Artifact:
    return write_artifact(tmp_path_factory.mktemp("artifact") / "artifact", dataset, num_twins=12)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, artifact: Artifact, dataset: PreparedDataset) -> Path:
    out = tmp_path_factory.mktemp("release") / "release"
    run(str(artifact.directory), str(out), {"index": {"chunk_rows": 7}}, dataset=str(dataset.directory))
    return out


@pytest.fixture(scope="module")
def engine(release: Path) -> Engine:
    return Engine.open(release)


def random_query(seed: int, **changes: object) -> Query:
    random = np.random.default_rng(seed)
    length = int(random.integers(1, 3 * MAX_EVENTS))
    fields: dict[str, object] = {
        "item_ids": [item_id(row) for row in random.integers(1, NUM_ITEMS + 1, length)],
        "k": 10,
        "request_time": START + 10**6,
        "timestamps": np.sort(START + random.integers(0, 10**6, length)).tolist(),
        "actions": [ACTIONS[code] for code in random.integers(0, 2, length)],
    }
    return Query(**{**fields, **changes})  # type: ignore[arg-type]


def exact_answer(artifact: Artifact, query: Query) -> tuple[list[str], list[float]]:
    """What offline evaluation does: score every item, mask the seen, sort; equal scores by smaller row."""
    vocabulary = artifact.vocabulary()
    retriever = artifact.load_retriever()
    rows = vocabulary.rows(query.item_ids)
    codes = [artifact.actions.index(name) + 1 for name in query.actions or [] if name]
    assert query.timestamps is not None
    encoded = encode_histories([rows], [query.timestamps], [codes], [query.request_time], max_events=MAX_EVENTS)
    with torch.no_grad():
        query_1D = retriever.query_vectors(collate(encoded))
        score_V = (query_1D @ retriever.item_vectors(torch.arange(vocabulary.num_rows)).T)[0]
    score_V[0] = -torch.inf
    score_V[torch.from_numpy(rows)] = -torch.inf
    ordered = torch.sort(score_V, descending=True, stable=True)
    kept = [row for row, score in zip(ordered.indices.tolist(), ordered.values.tolist(), strict=True) if score > -2]
    return vocabulary.external(kept[: query.k]), score_V[kept[: query.k]].tolist()


def test_a_release_holds_artifact_and_index_and_is_the_same_when_built_again(
    release: Path, artifact: Artifact, dataset: PreparedDataset, tmp_path: Path
) -> None:
    opened = Release.open(release)
    assert opened.artifact.content_hash == artifact.content_hash
    assert opened.index.num_items == NUM_ITEMS
    result = run(str(artifact.directory), str(tmp_path / "again"), FLAT)
    assert result["release_id"] == opened.release_id
    assert result["recall"] == {"value": 1.0, "k": NUM_ITEMS, "queries": NUM_ITEMS, "query_source": "items"}
    recall = json.loads((release / "manifest.json").read_text())["recall"]
    assert recall["query_source"] == "histories"
    assert recall["queries"] == dataset.num_users
    # An earlier release is replaced; anything else is left alone.
    run(str(artifact.directory), str(tmp_path / "again"), FLAT)
    (tmp_path / "other").mkdir()
    with pytest.raises(ArtifactError, match="exists and is not a release"):
        run(str(artifact.directory), str(tmp_path / "other"), FLAT)


def test_an_index_of_another_artifact_is_refused(release: Path, dataset: PreparedDataset, tmp_path: Path) -> None:
    other = write_artifact(tmp_path / "artifact", dataset, seed=1)
    run(str(other.directory), str(tmp_path / "release"), FLAT)
    shutil.rmtree(tmp_path / "release" / "index")
    shutil.copytree(release / "index", tmp_path / "release" / "index")
    with pytest.raises(ArtifactMismatch, match=r"the index was built from artifact .* build the release again"):
        Release.open(tmp_path / "release")


def test_a_release_whose_manifest_names_other_pieces_is_refused(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path / "release")
    path = tmp_path / "release" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "release_id": "0" * 12}))
    with pytest.raises(ArtifactMismatch, match="names release 000000000000, but its pieces make"):
        Release.open(tmp_path / "release")


def test_damage_anywhere_in_a_release_is_refused(release: Path, tmp_path: Path) -> None:
    for name in ("artifact/model.safetensors", "index/index.faiss", "artifact/vocabulary.parquet", "golden.json"):
        copy = tmp_path / name.replace("/", "_")
        shutil.copytree(release, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(ArtifactError):
            Release.open(copy)
    with pytest.raises(ArtifactError, match="not a finished release"):
        Release.open(tmp_path)


def test_a_release_knows_requests_and_refuses_to_answer_them_otherwise(
    release: Path, artifact: Artifact, dataset: PreparedDataset, tmp_path: Path
) -> None:
    engine = Engine.open(release)
    rows = [row for table in dataset.history_tables() for row in table.to_pylist() if row["num_test"]]
    asked = [query_of(golden) for golden in engine.golden]
    assert [query.request_time for query in asked] == [row["times"][-1] for row in rows[:8]]
    assert [query.timestamps for query in asked] == [row["times"][:-1] for row in rows[:8]]
    check_golden(engine, engine.golden)
    run(str(artifact.directory), str(tmp_path / "made_up"), FLAT)
    made_up = Engine.open(tmp_path / "made_up")
    assert len(made_up.golden) == 8
    check_golden(made_up, made_up.golden)
    other = write_artifact(tmp_path / "artifact", dataset, seed=1)
    run(str(other.directory), str(tmp_path / "release"), FLAT)
    with pytest.raises(ArtifactMismatch, match=r"golden request 0: found i\d+ .* expected i\d+ .* build it here"):
        check_golden(Engine.open(tmp_path / "release"), engine.golden)


def test_a_rehearsal_asks_a_release_as_it_is_on_disk_and_says_how_much_of_anothers_answers_stays(
    release: Path, dataset: PreparedDataset, tmp_path: Path
) -> None:
    golden = Engine.open(release).golden
    assert rehearse(str(release)) == {"golden": None, "requests": 8, "overlap": None}
    assert rehearse(str(release), str(release))["overlap"] == 1
    other = write_artifact(tmp_path / "artifact", dataset, seed=1)
    run(str(other.directory), str(tmp_path / "release"), FLAT)
    engine = Engine.open(tmp_path / "release")
    answers = [engine.answer([query_of(expected)])[0].item_ids for expected in golden]
    kept = [len({*answer} & {*expected["item_ids"]}) / 10 for answer, expected in zip(answers, golden, strict=True)]
    found = rehearse(str(tmp_path / "release"), str(release))
    assert found["overlap"] == pytest.approx(np.mean(kept))
    assert 0 < found["overlap"] < 1
    # A request that this release cannot be asked is left out; with none left there is nothing to say.
    timeless = [{**expected, "query": {**expected["query"], "timestamps": None}} for expected in golden]
    assert overlap(engine, [timeless[0], *golden[1:]]) == pytest.approx(np.mean(kept[1:]))
    assert overlap(engine, timeless) is None
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    golden[3]["scores"][0] += 0.5
    write_json(copy / "golden.json", golden)
    manifest = json.loads((copy / "manifest.json").read_text())
    write_json(copy / "manifest.json", {**manifest, "golden_hash": file_hash(copy / "golden.json")})
    assert "golden request 3: found" in rehearse(str(copy))["golden"]


def test_an_answer_is_golden_whatever_the_order_of_equal_scores_and_not_if_an_item_is_lost() -> None:
    expected = {"item_ids": ["a", "b", "c"], "scores": [0.9, 0.51, 0.5]}

    def answer(item_ids: list[str], scores: list[float]) -> Answer:
        return Answer("r", item_ids, scores, [None] * 3, [None] * 3, None, 0, 0, 1)

    assert is_golden(answer(["a", "b", "c"], [0.9, 0.51, 0.5]), expected)
    assert is_golden(answer(["a", "c", "d"], [0.905, 0.505, 0.5]), expected)  # d is as good as b
    assert not is_golden(answer(["x", "b", "c"], [0.9, 0.51, 0.5]), expected)
    assert not is_golden(answer(["a", "b", "c"], [0.9, 0.6, 0.5]), expected)
    assert not is_golden(answer(["a", "b"], [0.9, 0.51]), expected)


def test_recall_on_another_dataset_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "dataset", num_items=NUM_ITEMS - 1)
    with pytest.raises(ArtifactMismatch, match="vocabulary"):
        run(str(artifact.directory), str(tmp_path / "release"), FLAT, dataset=str(other.directory))
    assert not (tmp_path / "release").exists()


def test_answers_equal_the_exact_top_k_of_the_same_history(engine: Engine, artifact: Artifact) -> None:
    for seed in range(20):
        query = random_query(seed, k=NUM_ITEMS if seed % 2 else 10)
        [answer] = engine.answer([query])
        expected_ids, expected_scores = exact_answer(artifact, query)
        assert answer.item_ids == expected_ids
        np.testing.assert_allclose(answer.scores, expected_scores, rtol=0, atol=1e-6)
        assert answer.fallback is None
        assert answer.history_events_used == min(len(query.item_ids), MAX_EVENTS)
        assert answer.titles == [f"Title {int(name[1:])}" for name in answer.item_ids]


def test_answers_equal_the_top_k_that_offline_evaluation_ranks(
    engine: Engine, artifact: Artifact, dataset: PreparedDataset
) -> None:
    vocabulary = artifact.vocabulary()
    counts = dataset.train_counts()
    scorer = RetrieverScorer(artifact.load_retriever(), max_events=MAX_EVENTS, train_events_V=counts)
    for cases in split_cases(dataset, "test", users_per_batch=8):
        seen = [torch.from_numpy(rows) for rows in cases.items]
        with torch.inference_mode():
            top_Bk = top_rows(hide(scorer(cases), seen), 10)[0]
        names = [None, *ACTIONS]
        queries = [
            Query(
                item_ids=vocabulary.external(items.tolist()),
                timestamps=times.tolist(),
                actions=[names[code] for code in actions],
                k=10,
                request_time=query_time,
            )
            for items, times, actions, query_time in zip(
                cases.items, cases.times, cases.actions, cases.query_times, strict=True
            )
        ]
        answers = engine.answer(queries)
        assert [answer.item_ids for answer in answers] == [vocabulary.external(rows) for rows in top_Bk.tolist()]


def test_a_batch_answers_each_query_as_if_it_were_alone(engine: Engine) -> None:
    queries = [random_query(seed, k=5 + seed, exclude_seen=bool(seed % 2)) for seed in range(12)]
    queries.append(Query(item_ids=[], k=4, request_time=START))
    for together, query in zip(engine.answer(queries), queries, strict=True):
        [alone] = engine.answer([query])
        assert together.item_ids == alone.item_ids
        # Sums over another padding and another batch size are rounded in another order.
        np.testing.assert_allclose(together.scores, alone.scores, rtol=0, atol=1e-6)


def test_exactly_k_items_come_back_whatever_is_seen_and_excluded(engine: Engine) -> None:
    everything = [item_id(row) for row in range(1, NUM_ITEMS + 1)]
    times = list(range(START, START + NUM_ITEMS))
    for num_seen, num_excluded in ((0, 55), (50, 0), (30, 25), (NUM_ITEMS, 0), (58, 0)):
        query = Query(
            item_ids=everything[:num_seen],
            timestamps=times[:num_seen],
            k=5,
            request_time=START * 2,
            exclude_item_ids=everything[num_seen : num_seen + num_excluded],
        )
        [answer] = engine.answer([query])
        left = set(everything[num_seen + num_excluded :])
        assert len(answer.item_ids) == len(set(answer.item_ids)) == min(5, len(left))
        assert set(answer.item_ids) <= left
        assert (answer.fallback is None) == (num_seen > 0)


def test_nothing_to_go_by_gives_popularity_and_says_so(engine: Engine) -> None:
    empty, unknown = engine.answer(
        [
            Query(item_ids=[], k=3, request_time=START, exclude_item_ids=[item_id(6)]),
            Query(item_ids=["never", "seen"], timestamps=[1, 2], k=3, request_time=START),
        ]
    )
    # `train_events` is row % 7: rows 6, 13, 20, ... have most.
    assert empty.item_ids == [item_id(13), item_id(20), item_id(27)]
    assert unknown.item_ids == [item_id(6), item_id(13), item_id(20)]
    assert empty.scores == [6.0, 6.0, 6.0]
    assert (empty.fallback, empty.unknown_items, empty.history_events_used) == ("popularity", 0, 0)
    assert (unknown.fallback, unknown.unknown_items, unknown.history_events_used) == ("popularity", 2, 0)


def test_a_model_that_reads_times_refuses_a_history_without(
    engine: Engine, dataset: PreparedDataset, tmp_path: Path
) -> None:
    query = random_query(0, timestamps=None)
    with pytest.raises(Unanswerable, match="reads times"):
        engine.answer([query])
    timeless = write_artifact(tmp_path / "artifact", dataset, needs_times=False)
    run(str(timeless.directory), str(tmp_path / "release"), FLAT)
    other = Engine.open(tmp_path / "release")
    assert other.answer([query])[0].item_ids == other.answer([random_query(0)])[0].item_ids


def test_a_query_vector_of_nan_gives_popularity_and_is_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    encoded = [engine.encode(random_query(0)), engine.encode(random_query(1))]
    query_QD = engine.query_vectors(encoded)
    query_QD[0] = np.nan
    broken, whole = engine.answers(encoded, engine.search(encoded, query_QD))
    assert (broken.fallback, whole.fallback) == ("popularity", None)
    assert np.isfinite(broken.scores).all()
    assert "no finite query vector" in caplog.text


def test_a_release_knows_the_best_scores_of_its_own_requests(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", num_users=120)
    artifact = write_artifact(tmp_path / "artifact", dataset)
    run(str(artifact.directory), str(tmp_path / "release"), {}, dataset=str(dataset.directory))
    engine = Engine.open(tmp_path / "release")
    deciles = engine.release.top_score_deciles
    assert deciles is not None
    scores = own_top_scores([engine.answer([query])[0] for query in history_queries(dataset, at_most=500)])
    assert len(scores) > 100
    shares = np.bincount(np.searchsorted(deciles, scores), minlength=10) / len(scores)
    assert np.abs(shares - 0.1).max() < 0.02
    run(str(artifact.directory), str(tmp_path / "other"), {})
    other = Release.open(tmp_path / "other")
    assert (other.top_score_deciles, other.unknown_share) == (None, None)  # nothing real was asked


def test_a_release_knows_when_it_was_built_and_what_share_of_held_out_events_training_did_not_know(
    tmp_path: Path,
) -> None:
    dataset = write_dataset(tmp_path / "dataset", num_users=120, test_events=3)
    artifact, began = write_artifact(tmp_path / "artifact", dataset), int(time.time())
    run(str(artifact.directory), str(tmp_path / "release"), FLAT, dataset=str(dataset.directory))
    counts = dataset.train_counts()
    held_out = [
        row
        for table in dataset.history_tables()
        for user in table.to_pylist()
        for row in user["items"][user["num_train"] :]
    ]
    release = Release.open(tmp_path / "release")
    assert release.unknown_share == sum(counts[row] == 0 for row in held_out) / len(held_out)
    assert release.built_at is not None
    assert began <= release.built_at <= time.time()
