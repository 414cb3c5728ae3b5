"""Clusters of the items: planted ones are found, none is too small, and training goes on while new ones are made."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

import trainer.train
from data.errors import RecipeError, TrainingError
from modeling.artifact import Artifact
from modeling.esans import Clusters, EsansSampler
from modeling.esans_settings import ClusterSettings, EsansNegatives
from modeling.settings import ModelSettings
from tests.small_world import write_dataset
from tests.training_runs import recipe
from trainer.cluster_refresh import ClusterRefresh
from trainer.clusters import FloatArray, check_clusters, cluster_items, content_vectors, near_to_near
from trainer.ranks import Ranks
from trainer.settings import TrainSettings
from trainer.telemetry import read_figures

NEGATIVES: dict[str, Any] = {
    "kind": "esans",
    "per_cluster": 3,
    "clusters": {"num_clusters": 6, "num_subclusters": 3, "refresh_every_steps": 4},
}


def planted(seed: int = 0) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Vectors of 120 items around 4 far centres, of 3 nearer ones each, behind a row of padding; and their numbers."""
    random = np.random.default_rng(seed)
    codes_I2 = np.stack([random.permutation(120) % 4, random.permutation(120) % 3], 1)
    centres_CD = np.eye(4, 8) * 10
    fine_CSD = centres_CD[:, None] + np.pad(np.eye(3, 4), ((0, 0), (4, 0))) * 2
    vectors_ID = fine_CSD[codes_I2[:, 0], codes_I2[:, 1]] + 0.05 * random.standard_normal((120, 8))
    return np.concatenate([np.zeros((1, 8)), vectors_ID]).astype(np.float32), codes_I2


def same_partition(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> bool:
    return bool(((one[:, None] == one) == (other[:, None] == other)).all())


def test_planted_clusters_of_both_levels_are_found() -> None:
    behaviour_VD, codes_I2 = planted()
    settings = ClusterSettings(num_clusters=4, num_subclusters=3, iterations=20)
    found = cluster_items(behaviour_VD, [], settings, at_least=5, seed=0)
    assert found.codes_V2[0].tolist() == [-1, -1]
    codes = found.codes_V2[1:].numpy()
    assert same_partition(codes[:, 0], codes_I2[:, 0])
    assert same_partition(codes[:, 0] * 3 + codes[:, 1], codes_I2[:, 0] * 3 + codes_I2[:, 1])
    assert found.distances_CC.shape == (4, 4)
    assert (found.distances_CC.diagonal() < 1e-3).all()
    again = cluster_items(behaviour_VD, [], settings, at_least=5, seed=0)
    assert torch.equal(found.codes_V2, again.codes_V2)


def test_what_items_mean_decides_where_behaviour_says_nothing() -> None:
    names = ["drama", "comedy", "western", "war"]
    kinds = np.arange(80) % 4
    catalogue = pa.table({"categories": [[names[kind]] for kind in kinds]})
    settings = ClusterSettings(num_clusters=4, num_subclusters=2, iterations=20)
    content = content_vectors(catalogue, settings, width=16)
    nothing_VD = np.zeros((81, 16), np.float32)
    found = cluster_items(nothing_VD, content, settings, at_least=2, seed=0)
    assert same_partition(found.codes_V2[1:, 0].numpy(), kinds)
    noise_VD = np.random.default_rng(0).standard_normal((81, 16), dtype=np.float32)
    alone = settings.model_copy(update={"categories": False})
    assert content_vectors(catalogue, alone, width=16) == []
    by_behaviour = cluster_items(noise_VD, [], alone, at_least=2, seed=0)
    assert not same_partition(by_behaviour.codes_V2[1:, 0].numpy(), kinds)


def test_categories_and_columns_of_any_width_become_unit_vectors_that_keep_their_angles() -> None:
    random = np.random.default_rng(0)
    wide_IX = random.standard_normal((30, 300)).astype(np.float32)
    wide_IX[1] = 2 * wide_IX[0]
    cells = [None if row == 5 else wide_IX[row].tolist() for row in range(30)]
    narrow = [[float(row), 1.0] + [0.0] * 62 for row in range(30)]
    catalogue = pa.table(
        {"categories": [["a"], ["a"], ["a", "b"], [], None, *[["c"]] * 25], "text": cells, "image": narrow}
    )
    settings = ClusterSettings(vector_columns=("text", "image"))
    by_category, by_text, by_image = content_vectors(catalogue, settings, width=64)
    for vectors, empty in ((by_category, [3, 4]), (by_text, [5]), (by_image, [])):
        lengths = np.linalg.norm(vectors, axis=1)
        np.testing.assert_allclose(lengths, [float(row not in empty) for row in range(30)], atol=1e-5)
    np.testing.assert_allclose(by_category[0], by_category[1])
    assert by_category[0] @ by_category[2] > 0.4 > by_category[0] @ by_category[7]
    np.testing.assert_allclose(by_text[0], by_text[1], atol=1e-6)
    np.testing.assert_allclose(by_image[0], np.eye(64)[1])  # of the model's width: as it is


@pytest.mark.parametrize("at_least", [1, 5, 9])
def test_no_cluster_has_fewer_items_than_are_drawn_from_it(at_least: int) -> None:
    random = np.random.default_rng(0)
    lone_VD = np.concatenate([np.ones((90, 8)), random.standard_normal((31, 8)) * 50]).astype(np.float32)
    settings = ClusterSettings(num_clusters=12, num_subclusters=4)
    found = cluster_items(lone_VD, [], settings, at_least=at_least, seed=0)
    sizes_C = found.sizes()
    assert sizes_C.sum() == 120
    assert 1 < found.num_clusters <= 12
    assert sizes_C.min() >= at_least
    assert found.distances_CC.isfinite().all()


def test_items_that_are_all_alike_are_clustered_all_the_same() -> None:
    settings = ClusterSettings(num_clusters=8, num_subclusters=3)
    found = cluster_items(np.ones((50, 4), np.float32), [], settings, at_least=5, seed=0)
    assert found.sizes().sum() == 49
    assert found.num_clusters == 1 or found.sizes().min() >= 5
    few = cluster_items(np.eye(6, 4, dtype=np.float32), [], settings, at_least=5, seed=0)
    assert few.num_clusters == 1


def test_vectors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(TrainingError, match="item vectors are not finite, so that they cannot be clustered"):
        cluster_items(np.full((20, 4), np.nan, np.float32), [], ClusterSettings(), at_least=2, seed=0)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (None, r"vector_columns of the clusters: the catalogue has no side column 'text'; it has none"),
        ([[1.0], [1.0, 2.0]], r"holds vectors of 1, 2 numbers \('x' has 1\); expected the same number in every row"),
        ([[1.0], [float("nan")]], r"column 'text' holds numbers that are missing, NaN or infinite"),
        (["a", "b"], r"column 'text' of the catalogue is string, expected lists of numbers"),
        ([["a"], ["b"]], r"column 'text' of the catalogue is list.*string.*, expected lists of numbers"),
    ],
)
def test_a_column_without_vectors_is_refused(column: list[Any] | None, message: str) -> None:
    known = {"item_id": ["x", "y"], "categories": [["a"], []]}
    catalogue = pa.table({**known, **({} if column is None else {"text": column})})
    with pytest.raises(RecipeError, match=message):
        content_vectors(catalogue, ClusterSettings(vector_columns=("text",)), width=4)


def test_a_sharded_table_and_too_few_items_are_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    model = ModelSettings.model_validate({"negatives": NEGATIVES})
    plain = {"dataset": "-", "run_dir": "-"}
    check_clusters(TrainSettings.model_validate(plain), model, dataset)
    sharded = TrainSettings.model_validate({**plain, "item_table": {"kind": "sharded"}})
    with pytest.raises(
        RecipeError, match=r"clusters the vectors of all items in one place, .* keep the table replicated"
    ):
        check_clusters(sharded, model, dataset)
    many = ModelSettings.model_validate({"negatives": {**NEGATIVES, "clusters": {"num_clusters": 21}}})
    with pytest.raises(
        RecipeError, match=r"21 clusters of at least 3 items need 63, and .* has 60; lower num_clusters"
    ):
        check_clusters(TrainSettings.model_validate(plain), many, dataset)
    both = TrainSettings.model_validate({**plain, "clustered_batches": {}})
    with pytest.raises(
        RecipeError, match=r"and train.clustered_batches makes those in the batch hard; take one of them"
    ):
        check_clusters(both, model, dataset)


def test_numbers_of_items_are_near_where_their_clusters_are() -> None:
    codes_V2 = torch.tensor([[-1, -1], [0, 0], [1, 0], [2, 0], [3, 0], [1, 2], [2, 1]])
    centres_C1 = torch.tensor([[0.0], [9.0], [2.0], [5.0]])  # in a chain 0, 2, 3, 1
    numbers = near_to_near(Clusters(codes_V2, torch.cdist(centres_C1, centres_C1)))
    assert numbers.tolist() == [0, 0, 9, 3, 6, 11, 4]


class Given:
    """Item vectors that a test sets, and what was reported."""

    def __init__(self, vectors_VD: FloatArray) -> None:
        self.vectors_VD = vectors_VD
        self.reports: list[tuple[int, dict[str, Any]]] = []

    def vectors(self) -> FloatArray:
        return self.vectors_VD

    def report(self, step: int, figures: dict[str, Any]) -> None:
        self.reports.append((step, figures))


def test_clusters_are_taken_one_interval_after_they_were_asked_for_and_stay_where_a_task_fails(
    ray_session: None,
) -> None:
    negatives = EsansNegatives.model_validate(NEGATIVES)
    sampler = EsansSampler(121, **negatives.model_dump(exclude={"kind", "clusters"}))
    catalogue = pa.table({"categories": [["a"] if row % 2 else ["b"] for row in range(120)]})
    behaviour_VD, _ = planted()
    given = Given(behaviour_VD)
    refresh = ClusterRefresh(
        sampler.use,
        negatives.clusters,
        catalogue,
        Ranks(0, 1),
        at_least=negatives.per_cluster,
        item_vectors=given.vectors,
        seed=0,
        report=given.report,
    )
    refresh.first(0)

    def drawn() -> list[list[int]]:
        rows: list[list[int]] = sampler.own(torch.arange(1, 121), torch.arange(0), torch.Generator()).rows_EM.tolist()
        return rows

    by_first = drawn()
    given.vectors_VD = np.random.default_rng(1).standard_normal((121, 8), dtype=np.float32)
    for step in range(1, 8):
        refresh.tick(step)
        assert drawn() == by_first  # asked for at step 4
    given.vectors_VD = np.full((121, 8), np.nan, np.float32)
    refresh.tick(8)
    by_second = drawn()
    assert by_second != by_first
    given.vectors_VD = behaviour_VD
    refresh.tick(12)
    assert drawn() == by_second  # the task had vectors that are not finite
    refresh.tick(16)
    assert drawn() == by_first
    assert [step for step, _ in given.reports] == [0, 8, 12, 16]
    assert "not finite" in given.reports[2][1]["problem"]
    assert all(figures["waited_seconds"] >= 0 for _, figures in given.reports if "seconds" in figures)


def test_workers_train_with_clusters_that_are_made_anew(ray_session: None, tmp_path: Path) -> None:
    settings = recipe(tmp_path, epochs=1, engine={"zero_stage": 3})
    clusters = {**NEGATIVES["clusters"], "refresh_every_steps": 1}
    settings["model"]["negatives"] = {**NEGATIVES, "num_uniform": 4, "clusters": clusters}
    settings["model"]["prediction"] = {"heads": 2}
    summary = trainer.train.run(settings)
    rows = read_figures(tmp_path / "run")
    taken = [row for row in rows if row["kind"] == "clusters"]
    last = max(row["step"] for row in rows if row["kind"] == "step")
    assert [row["step"] for row in taken] == [0, *range(2, last + 1)]
    assert len(taken) > 2
    assert all(row["clusters"] > 1 and row["seconds"] > 0 for row in taken)
    losses = [row["loss"] for row in rows if row["kind"] == "step"]
    assert np.isfinite(losses).all()
    vectors = Artifact.open(summary["artifact"]).load_retriever().catalogue_vectors()
    assert vectors.isfinite().all()
