"""Full-catalogue evaluation against a brute-force oracle; baselines; ranks share the users."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import trainer.evaluate
from data.cases import Cases, split_cases
from data.dataset import PreparedDataset, Split
from data.errors import ArtifactMismatch, DatasetError, FarsightError, RecipeError
from data.storage import MANIFEST, write_json
from modeling.artifact import Artifact
from modeling.beyond_accuracy import BUCKETS
from modeling.metrics import top_rows
from tests.small_world import NUM_ITEMS, item_id, write_artifact, write_dataset
from tests.test_modeling_metrics import brute_force
from trainer.baselines import ExternalRanking, Popularity
from trainer.evaluation import RetrieverScorer, evaluate_cases
from trainer.examples import COLUMNS, ExampleRetrievals
from trainer.observers import UserMetrics

KS = (1, 5, 20)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedDataset, Artifact]:
    directory = tmp_path_factory.mktemp("evaluation")
    dataset = write_dataset(directory / "dataset", num_users=40)
    return dataset, write_artifact(directory / "artifact", dataset, num_twins=20)


def cases(dataset: PreparedDataset, split: Split = "test", users: int = 7) -> list[Cases]:
    return list(split_cases(dataset, split, users_per_batch=users))


def retriever_scorer(world: tuple[PreparedDataset, Artifact]) -> RetrieverScorer:
    dataset, artifact = world
    return RetrieverScorer(
        artifact.load_retriever(), max_events=artifact.max_events, train_events_V=dataset.train_counts()
    )


@pytest.mark.parametrize("remove_seen", [True, False])
def test_metrics_of_a_retriever_with_tied_items_equal_brute_force(
    world: tuple[PreparedDataset, Artifact], remove_seen: bool
) -> None:
    dataset, _ = world
    scorer = retriever_scorer(world)
    totals = evaluate_cases(scorer, cases(dataset), num_rows=NUM_ITEMS + 1, ks=KS, remove_seen=remove_seen)
    sums: dict[str, float] = {}
    shown: set[int] = set()
    for batch in cases(dataset):
        scores_BV = scorer(batch)
        for user in range(len(batch)):
            hidden = set(batch.items[user].tolist()) if remove_seen else set()
            rows = [row for row in range(1, NUM_ITEMS + 1) if row not in hidden]
            scores = scores_BV[user].tolist()
            shown.update(sorted(rows, key=lambda row, scores=scores: (-scores[row], row))[:5])  # type: ignore[misc]
            for k in KS:
                for name, value in brute_force(scores, hidden, batch.targets[user].tolist(), k).items():
                    sums[name] = sums.get(name, 0.0) + value
    means = totals.means()
    assert means["users"] == 40
    for name, value in sums.items():
        assert means[name] == pytest.approx(value / 40, abs=1e-9), name
    assert means["coverage@5"] == len(shown) / NUM_ITEMS


def test_an_interval_is_the_normal_one_and_adds_up_over_parts(world: tuple[PreparedDataset, Artifact]) -> None:
    dataset, _ = world
    scorer, batches, users = retriever_scorer(world), cases(dataset), UserMetrics()
    totals = evaluate_cases(scorer, batches, num_rows=NUM_ITEMS + 1, ks=(10,), remove_seen=True, observers=[users])
    values = users.table().column("ndcg@10").to_numpy()
    reach = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert totals.intervals()["ndcg@10_low"] == pytest.approx(max(0, values.mean() - reach))
    assert totals.intervals()["ndcg@10_high"] == pytest.approx(values.mean() + reach)
    resampled = [np.random.default_rng(n).choice(values, len(values)).mean() for n in range(400)]
    assert totals.intervals()["ndcg@10_high"] == pytest.approx(np.quantile(resampled, 0.975), abs=0.2 * reach)
    assert evaluate_cases(scorer, [], num_rows=NUM_ITEMS + 1, ks=(10,), remove_seen=True).intervals() == {}


def test_example_retrievals_show_titles_ranks_and_hits(world: tuple[PreparedDataset, Artifact]) -> None:
    dataset, _ = world
    examples, users = ExampleRetrievals(3), UserMetrics()
    evaluate_cases(
        retriever_scorer(world),
        cases(dataset),
        num_rows=NUM_ITEMS + 1,
        ks=(10,),
        remove_seen=True,
        observers=[examples, users],
    )
    first, measured = cases(dataset)[0], users.table().slice(0, 3).to_pylist()
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in examples.rows(dataset)]
    assert [row["user"] for row in rows] == first.user_ids[:3]
    for row, user, items, targets in zip(rows, measured, first.items, first.targets, strict=False):
        assert row["history"] == " > ".join(f"Title {item}" for item in items[-5:])
        assert row["targets"] == f"Title {targets[0]}"
        assert row["hit"] == bool(user["hr@10"]) == ("(hit)" in row["answer"])
        assert row["answer"].startswith("1. Title ")
        if row["hit"]:
            assert user["mrr@10"] == pytest.approx(1 / row["best_rank"])
            assert f"{row['best_rank']}. {row['targets']} (hit)" in row["answer"]
    assert any(row["best_rank"] for row in rows)


def test_the_history_of_a_split_ends_where_its_targets_begin(world: tuple[PreparedDataset, Artifact]) -> None:
    dataset, _ = world
    whole = {row["user_id"]: row for table in dataset.history_tables() for row in table.to_pylist()}
    for split, tail in (("validation", 2), ("test", 1)):
        for batch in cases(dataset, split):  # type: ignore[arg-type]
            for user, items, targets, asked in zip(
                batch.user_ids, batch.items, batch.targets, batch.query_times, strict=True
            ):
                row = whole[user]
                assert items.tolist() == row["items"][:-tail]
                assert targets.tolist() == [row["items"][-tail]]
                assert asked == row["times"][-tail]


def test_ranks_share_the_users_and_none_is_dropped(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", num_users=23)
    table = pq.read_table(dataset.shards[0])
    pq.write_table(table, dataset.shards[0], row_group_size=4)
    users = []
    for rank in range(3):
        for batch in split_cases(dataset, "test", users_per_batch=3, rank=rank, world=3):
            users += batch.user_ids
    assert sorted(users) == sorted(table.column("user_id").to_pylist())


def test_popularity_ranks_by_training_events_then_row(world: tuple[PreparedDataset, Artifact]) -> None:
    dataset, _ = world
    scores = Popularity(dataset)(cases(dataset)[0])
    assert torch.equal(scores[0], torch.from_numpy(dataset.train_counts()).double())


def test_an_external_ranking_is_scored_as_listed(world: tuple[PreparedDataset, Artifact], tmp_path: Path) -> None:
    dataset, _ = world
    users = [user for batch in cases(dataset) for user in batch.user_ids]
    targets = [int(target[0]) for batch in cases(dataset) for target in batch.targets]
    unseen = [int(np.isin(t, i).sum() == 0) for b in cases(dataset) for t, i in zip(b.targets, b.items, strict=True)]
    lists = [[item_id(target), "no such item", item_id(target)] for target in targets]
    decoys = [["no such item"]] * len(users)
    table = {
        "user_id": users * 2,
        "split": ["test"] * len(users) + ["validation"] * len(users),
        "item_ids": pa.array(lists + decoys),
    }
    pq.write_table(pa.table(table), tmp_path / "ranking.parquet")
    scorer = ExternalRanking(tmp_path / "ranking.parquet", dataset.vocabulary(), "test")
    means = evaluate_cases(scorer, cases(dataset), num_rows=NUM_ITEMS + 1, ks=(1, 10), remove_seen=True).means()
    assert means["hr@1"] == pytest.approx(sum(unseen) / len(users))
    kept = evaluate_cases(scorer, cases(dataset), num_rows=NUM_ITEMS + 1, ks=(1,), remove_seen=False).means()
    assert kept["hr@1"] == 1


def test_a_user_without_visible_history_is_answered_from_popularity(world: tuple[PreparedDataset, Artifact]) -> None:
    dataset, _ = world
    scorer = retriever_scorer(world)
    gap = 600_000  # of the 1,000,000 seconds that histories span
    gapped = list(split_cases(dataset, "test", users_per_batch=40, gap_seconds=gap))
    [batch] = gapped
    empty = [not len(items) for items in batch.items]
    assert 0 < sum(empty) < len(batch)
    tops = top_rows(scorer(batch), NUM_ITEMS + 1)[0]
    by_popularity = top_rows(Popularity(dataset)(batch), NUM_ITEMS + 1)[0]
    assert [torch.equal(top, other) for top, other in zip(tops, by_popularity, strict=True)] == empty
    known = [place for place, nothing in enumerate(empty) if not nothing]
    alone = Cases(**{name: [column[place] for place in known] for name, column in vars(batch).items()})
    torch.testing.assert_close(scorer(batch)[known], scorer(alone), rtol=0, atol=1e-5)


def test_a_model_that_reads_times_is_told_the_time_that_the_protocol_states(
    world: tuple[PreparedDataset, Artifact],
) -> None:
    dataset, _ = world
    scorer = retriever_scorer(world)
    [asked_then] = split_cases(dataset, "test", users_per_batch=40)
    [asked_before] = split_cases(dataset, "test", users_per_batch=40, request_time="last_event")
    assert asked_before.query_times == [int(times[-1]) for times in asked_then.times]
    assert not torch.allclose(scorer(asked_then), scorer(asked_before))
    expected = scorer(Cases(**{**vars(asked_then), "query_times": asked_before.query_times}))
    assert torch.equal(scorer(asked_before), expected)


def test_the_command_prints_popularity_and_other_rankings_beside_the_model(
    world: tuple[PreparedDataset, Artifact], tmp_path: Path
) -> None:
    dataset, artifact = world
    pq.write_table(pa.table({"user_id": ["u0"], "item_ids": [[item_id(1)]]}), tmp_path / "mine.parquet")
    report = trainer.evaluate.run(
        str(artifact.directory),
        str(dataset.directory),
        rankings={"mine": str(tmp_path / "mine.parquet")},
        recipe={"evaluate": {"ks": [5], "seen": "kept"}},
    )
    assert [row["model"] for row in report["rows"]] == ["popularity", "mine", "model"]
    assert report["protocol"]["seen"] == "kept"
    assert report["artifact"] == artifact.content_hash
    assert {"hr@5", "recall@5", "ndcg@5", "mrr@5", "coverage@5"} <= report["rows"][-1].keys()


def test_baselines_are_measured_without_an_artifact_and_every_user_is_written(
    world: tuple[PreparedDataset, Artifact], tmp_path: Path
) -> None:
    dataset, _ = world
    baselines = [
        {"kind": "item_knn", "neighbours": 5, "weighting": "cosine"},
        {"kind": "recent_popularity", "days": 2},
        {"kind": "popularity"},
    ]
    out = tmp_path / "users"
    report = trainer.evaluate.run(
        None,
        str(dataset.directory),
        split="validation",
        recipe={"evaluate": {"ks": [5, 20], "baselines": baselines}},
        users_out=str(out),
    )
    names = ["item_knn_cosine", "recent_popularity_2d", "popularity"]
    assert [row["model"] for row in report["rows"]] == names
    assert "artifact" not in report
    assert sorted(path.name for path in out.iterdir()) == sorted([MANIFEST, *(f"{name}.parquet" for name in names)])
    tables = [pq.read_table(out / f"{name}.parquet") for name in names]
    assert all(table.column("user_id").equals(tables[0].column("user_id")) for table in tables)
    for row, table in zip(report["rows"], tables, strict=True):
        for name in table.column_names[1:]:
            assert np.mean(table.column(name).to_numpy()) == pytest.approx(row[name], abs=1e-12)
    assert json.loads((out / MANIFEST).read_text())["rows"] == report["rows"]
    with pytest.raises(FarsightError, match="already exists"):
        trainer.evaluate.run(None, str(dataset.directory), users_out=str(out))


def test_the_protocol_states_what_the_figures_depend_on(
    world: tuple[PreparedDataset, Artifact], tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "dataset", num_users=40, test_events=3)
    artifact = write_artifact(tmp_path / "artifact", dataset)
    report = trainer.evaluate.run(
        str(artifact.directory),
        str(dataset.directory),
        recipe={"evaluate": {"ks": [5], "gap_seconds": 400_000, "request_time": "last_event", "horizon": 9}},
    )
    protocol = report["protocol"]
    [batch] = split_cases(dataset, "test", users_per_batch=40, gap_seconds=400_000)
    empty = sum(not len(items) for items in batch.items)
    events = dataset.train_counts()
    targets = [(row, items) for rows, items in zip(batch.targets, batch.items, strict=True) for row in rows]
    assert protocol == {
        "split": "test",
        "split_rule": {"kind": "last_out", "test_events": 3},
        "gap_seconds": 400_000,
        "seen": "removed",
        "catalogue_items": NUM_ITEMS,
        "history": "stable sort by (time, order, log order); visible: all events before the first target and not later "
        "than 400000 s before its time",
        "request_time": "time of the newest visible event",
        "ties": "equal scores by item row",
        "without_history": "the model answers popularity",
        "share_without_history": pytest.approx(empty / len(batch)),
        "share_warm_users": 1,
        "share_warm_targets": pytest.approx(np.mean([events[row] > 0 for row, _ in targets])),
        "share_repeated_targets": pytest.approx(np.mean([row in items for row, items in targets])),
    }
    row = report["rows"][-1]
    assert row["users[t+3]"] == row["users"] == len(batch)
    assert "hit@5[t+4]" not in row
    assert sum(row[f"targets[{bucket}]"] for bucket in BUCKETS) == len(targets)


def test_rows_need_names_of_their_own_that_can_be_files(
    world: tuple[PreparedDataset, Artifact], tmp_path: Path
) -> None:
    dataset, artifact = world
    pq.write_table(pa.table({"user_id": ["u0"], "item_ids": [[item_id(1)]]}), tmp_path / "mine.parquet")
    place, mine = str(dataset.directory), str(tmp_path / "mine.parquet")
    twice = {"evaluate": {"baselines": [{"kind": "ease", "regularization": 1}, {"kind": "ease"}]}}
    with pytest.raises(RecipeError, match="2 rows are called 'ease'; give each another name or kind"):
        trainer.evaluate.run(None, place, recipe=twice)
    with pytest.raises(RecipeError, match="2 rows are called 'model'"):
        trainer.evaluate.run(str(artifact.directory), place, rankings={"model": mine})
    with pytest.raises(RecipeError, match="'a/b' cannot be the name of a file"):
        trainer.evaluate.run(None, place, rankings={"a/b": mine})
    with pytest.raises(RecipeError, match=r"nothing to measure; give an artifact, rankings, or evaluate\.baselines"):
        trainer.evaluate.run(None, place, recipe={"evaluate": {"baselines": []}})


def test_what_cannot_be_evaluated_is_refused_with_the_reason(
    world: tuple[PreparedDataset, Artifact], tmp_path: Path
) -> None:
    dataset, artifact = world
    other = write_dataset(tmp_path / "other", num_items=NUM_ITEMS + 1)
    with pytest.raises(ArtifactMismatch, match="was trained on"):
        trainer.evaluate.run(str(artifact.directory), str(other.directory))
    with pytest.raises(DatasetError, match="not a finished dataset"):
        trainer.evaluate.run(str(artifact.directory), str(tmp_path))
    with pytest.raises(RecipeError, match=r"evaluate: .*ks \(0,\): expected one or more cut-offs of at least 1"):
        trainer.evaluate.run(str(artifact.directory), str(dataset.directory), recipe={"evaluate": {"ks": [0]}})
    with pytest.raises(DatasetError, match="no such file"):
        ExternalRanking(tmp_path / "none.parquet", dataset.vocabulary(), "test")
    pq.write_table(pa.table({"user": ["u0"]}), tmp_path / "wrong.parquet")
    with pytest.raises(DatasetError, match="no column 'user_id'; found user"):
        ExternalRanking(tmp_path / "wrong.parquet", dataset.vocabulary(), "test")
    no_test = PreparedDataset.open(dataset.directory)
    no_test.manifest["counts"]["users_with_test"] = 0
    write_json(tmp_path / "keep.json", no_test.manifest)
    (tmp_path / "copy").mkdir()
    for file in dataset.directory.glob("*.parquet"):
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    write_json(tmp_path / "copy" / MANIFEST, no_test.manifest)
    with pytest.raises(DatasetError, match="no user has test targets"):
        trainer.evaluate.run(str(artifact.directory), str(tmp_path / "copy"))


def test_a_limit_takes_users_of_all_lengths_and_no_more_than_asked(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", num_users=40)
    limited = [
        user for batch in split_cases(dataset, "test", users_per_batch=4, max_users=10) for user in batch.user_ids
    ]
    assert sorted(limited) == sorted(f"u{user}" for user in range(10))  # the first ones, not the shortest ones
    long = list(split_cases(dataset, "test", users_per_batch=4, min_events=9))
    assert min(len(items) for batch in long for items in batch.items) >= 9
