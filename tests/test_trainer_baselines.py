"""Classical baselines against dense oracles; what they may learn from; who falls back to popularity."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy.sparse import csr_matrix

from data.cases import Cases, split_cases
from data.dataset import PreparedDataset
from data.errors import DatasetError, RecipeError
from data.schema import HISTORY_SCHEMA
from data.storage import MANIFEST
from tests.small_world import NUM_ITEMS, START, write_dataset
from trainer.baseline_settings import BaselineSettings, Ease, Ials, ItemKnn, MostPopular, RecentlyPopular
from trainer.baselines import RecentPopularity, baseline_name, build_baseline
from trainer.collaborative import ease_weights, ials, item_knn, knn_weights
from trainer.training_part import histories_matrix, training_matrix

DAY = 86_400
SMALL: list[BaselineSettings] = [
    MostPopular(),
    RecentlyPopular(days=3),
    ItemKnn(neighbours=5, weighting="cosine"),
    ItemKnn(neighbours=5, weighting="tfidf"),
    ItemKnn(neighbours=5, weighting="bm25"),
    Ials(factors=4, iterations=3),
    Ease(regularization=10),
]
PERSONAL = SMALL[2:]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_dataset(tmp_path_factory.mktemp("baselines") / "dataset", num_users=40)


def rewritten(dataset: PreparedDataset, copy: Path, change: Callable[[dict[str, Any]], None]) -> PreparedDataset:
    """A copy of a dataset with every history changed in place, and the counts of its catalogue kept."""
    rows = [row for table in dataset.history_tables() for row in table.to_pylist()]
    for row in rows:
        change(row)
    for file in ("catalogue.parquet", "vocabulary.parquet", MANIFEST):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_bytes((dataset.directory / file).read_bytes())
    (copy / "histories").mkdir()
    pq.write_table(
        pa.Table.from_pylist(rows, HISTORY_SCHEMA), copy / "histories" / "part-00000.parquet", row_group_size=7
    )
    return PreparedDataset.open(copy)


def visible(*histories: list[int]) -> Cases:
    """Cases with these histories and nothing else: a baseline reads no more."""
    nothing: dict[str, list[object]] = {field.name: [] for field in fields(Cases)}
    items = [np.array(history, np.int64) for history in histories]
    return Cases(**(nothing | {"user_ids": [str(user) for user in range(len(items))], "items": items}))  # type: ignore[arg-type]


def random_counts(num_users: int = 50, num_rows: int = 13, seed: int = 0) -> csr_matrix:
    """Counts of 0 to 3 events; column 0, padding, is empty."""
    random = np.random.default_rng(seed)
    counts_UV = random.integers(1, 4, (num_users, num_rows)) * (random.random((num_users, num_rows)) < 0.3)
    counts_UV[:, 0] = 0
    return csr_matrix(counts_UV.astype(np.float32))


def test_the_matrix_counts_the_training_events_of_every_user(dataset: PreparedDataset, tmp_path: Path) -> None:
    expected_UV = np.zeros((40, NUM_ITEMS + 1))
    rows = [row for table in dataset.history_tables() for row in table.to_pylist()]
    for user, row in enumerate(rows):
        for item in row["items"][: row["num_train"]]:
            expected_UV[user, item] += 1
    assert (expected_UV > 1).any()
    in_row_groups = rewritten(dataset, tmp_path / "copy", lambda row: None)
    for one in (dataset, in_row_groups):
        assert np.array_equal(training_matrix(one).toarray(), expected_UV)
    assert np.array_equal(histories_matrix([np.array([2, 1, 2]), np.array([], np.int64)], 4).toarray()[0], [0, 1, 2, 0])


def test_item_knn_cosine_equals_a_dense_cosine() -> None:
    counts_UV = random_counts()
    dense_UV = counts_UV.toarray().astype(np.float64)
    norms_V = np.linalg.norm(dense_UV, axis=0).clip(1e-9)
    cosine_VV = (dense_UV.T @ dense_UV) / norms_V[:, None] / norms_V
    np.fill_diagonal(cosine_VV, 0)
    for neighbours in (3, 50):
        nearest_VV = cosine_VV >= np.sort(cosine_VV, axis=1)[:, ::-1][:, [min(neighbours, 13) - 1]]
        weights_VV = knn_weights(ItemKnn(neighbours=neighbours, weighting="cosine"), counts_UV).toarray()
        assert np.allclose(weights_VV, cosine_VV * nearest_VV, atol=1e-6)  # float32 of values up to 1
        scorer = item_knn(ItemKnn(neighbours=neighbours, weighting="cosine"), counts_UV, torch.zeros(13))
        assert np.allclose(scorer(visible([3, 5, 3]))[0], 2 * weights_VV[3] + weights_VV[5], atol=1e-6)


@pytest.mark.parametrize("weighting", ["tfidf", "bm25"])
def test_a_user_of_the_whole_catalogue_spoils_no_similarity(weighting: str) -> None:
    counts_UV = np.zeros((3, 5), np.float32)
    counts_UV[0, 1:] = 1
    counts_UV[1, 1:3] = 1
    settings = ItemKnn.model_validate({"weighting": weighting})
    weights_VV = knn_weights(settings, csr_matrix(counts_UV)).toarray()
    assert np.isfinite(weights_VV).all()
    assert weights_VV[1, 2] > 0


def test_ease_is_the_ridge_regression_of_each_item_from_the_others() -> None:
    counts_UV, regularization = random_counts(), 3.0
    seen_UV = (counts_UV.toarray() > 0).astype(np.float64)
    weights_VV = ease_weights(counts_UV, regularization)
    for item in range(seen_UV.shape[1]):
        others = np.delete(np.arange(seen_UV.shape[1]), item)
        x_UV = seen_UV[:, others]
        solved = np.linalg.solve(x_UV.T @ x_UV + regularization * np.eye(len(others)), x_UV.T @ seen_UV[:, item])
        assert np.allclose(weights_VV[others, item], solved, atol=1e-5)  # float32 of values below 1
    assert (weights_VV.diagonal() == 0).all()


def test_ease_counts_a_repeated_item_once(dataset: PreparedDataset) -> None:
    scores_BV = build_baseline(Ease(), dataset)(visible([4, 9], [9, 4, 4, 4]))
    assert torch.equal(scores_BV[0], scores_BV[1])


def test_ials_solves_the_normal_equations_of_the_visible_history() -> None:
    counts_UV = random_counts()
    settings = Ials(factors=6, regularization=0.3, alpha=4.0, iterations=5)
    scorer = ials(settings, counts_UV, torch.zeros(13).double())
    items_VD = scorer._items_VD.double().numpy()
    history = [2, 7, 7, 11]
    weights_V, wanted_V = np.ones(13), np.zeros(13)
    for row, count in ((2, 1), (7, 2), (11, 1)):
        weights_V[row], wanted_V[row] = settings.alpha * count, 1
    normal_DD = items_VD.T @ (weights_V[:, None] * items_VD) + settings.regularization * np.eye(6)
    solved_D = np.linalg.solve(normal_DD, items_VD.T @ (weights_V * wanted_V))
    vector_D = scorer.user_vectors(visible(history))[0].double().numpy()
    assert np.allclose(vector_D, solved_D, rtol=1e-3, atol=1e-4)  # the library solves in float32
    assert np.allclose(scorer(visible(history))[0], items_VD @ solved_D, rtol=1e-3, atol=1e-4)


def test_ials_repeats_itself_with_the_same_seed_and_fits_what_users_have() -> None:
    counts_UV = random_counts()
    fitted = [ials(Ials(factors=12, iterations=20, seed=seed), counts_UV, torch.zeros(13)) for seed in (0, 0, 1)]
    histories = visible(*[list(counts_UV[user].indices) for user in range(50)])
    same, again, other = (scorer(histories) for scorer in fitted)
    assert torch.allclose(same, again, atol=1e-5)  # threads may add in another order
    assert not torch.allclose(same, other, atol=1e-5)
    has_BV = torch.from_numpy(counts_UV.toarray() > 0)
    assert same[has_BV].mean() > 0.5 > same[~has_BV].mean()


def test_recent_popularity_is_the_table_computed_by_hand(dataset: PreparedDataset, tmp_path: Path) -> None:
    newest = START + 30 * DAY

    def history(row: dict[str, Any]) -> None:
        user = int(row["user_id"][1:])
        # items 1..4 at 0, exactly 2, just under 2 and 5 days before the newest training event; targets are later
        times = [newest - 5 * DAY, newest - 2 * DAY, newest - 2 * DAY + 1, newest, newest + 9 * DAY, newest + 9 * DAY]
        items = [4, 3, 2, 1, 8, 8] if user == 0 else [4, 3, 2, 2, 8, 8]
        row.update({"items": items, "times": times, "num_train": 4 if user < 2 else 0, "weights": [1.0] * 6})
        row.update({"actions": [0] * 6, "requests": [-1] * 6})

    changed = rewritten(dataset, tmp_path / "copy", history)
    scores_V = RecentPopularity(changed, days=2)(visible([]))[0]
    assert scores_V.floor().tolist()[:6] == [0, 1, 3, 0, 0, 0]
    assert scores_V.floor().sum() == 4
    # train_events of the small world are row % 7: they order what was not popular recently
    assert scores_V[13] > scores_V[5] > scores_V[7] == 0
    assert RecentPopularity(changed, days=100)(visible([]))[0].floor().tolist()[:6] == [0, 1, 3, 2, 2, 0]


@pytest.mark.parametrize("settings", SMALL, ids=baseline_name)
def test_events_after_the_training_part_change_no_score(
    dataset: PreparedDataset, tmp_path: Path, settings: BaselineSettings
) -> None:
    def other_targets(row: dict[str, Any]) -> None:
        cut = row["num_train"]
        row["items"][cut:] = [1] * 2
        row["times"][cut:] = [START + 400 * DAY] * 2

    changed = rewritten(dataset, tmp_path / "copy", other_targets)
    asked = visible([3, 8], [1, 20, 20, 30], [])
    scores_BV = build_baseline(settings, dataset)(asked)
    assert torch.allclose(build_baseline(settings, changed)(asked), scores_BV, atol=1e-5)
    first = next(split_cases(dataset, "test", users_per_batch=64))
    assert build_baseline(settings, dataset)(first).shape == (len(first), NUM_ITEMS + 1)


@pytest.mark.parametrize("settings", PERSONAL, ids=baseline_name)
def test_the_visible_history_is_what_scores(dataset: PreparedDataset, settings: BaselineSettings) -> None:
    scorer = build_baseline(settings, dataset)
    together = scorer(visible([3, 8], [1, 20, 30]))
    assert not torch.equal(together[0], together[1])
    assert torch.allclose(scorer(visible([1, 20, 30]))[0], together[1], atol=1e-5)


@pytest.mark.parametrize("settings", PERSONAL, ids=baseline_name)
def test_a_history_that_says_nothing_gets_popularity(
    dataset: PreparedDataset, tmp_path: Path, settings: BaselineSettings
) -> None:
    def without_item_60(row: dict[str, Any]) -> None:
        row["items"] = [59 if item == 60 else item for item in row["items"]]

    changed = rewritten(dataset, tmp_path / "copy", without_item_60)
    scores_BV = build_baseline(settings, changed)(visible([], [60], [3, 8]))
    popularity_V = torch.from_numpy(dataset.train_counts()).to(scores_BV.dtype)
    assert torch.equal(scores_BV[0], popularity_V)
    assert torch.equal(scores_BV[1], popularity_V)
    assert not torch.equal(scores_BV[2], popularity_V)


def test_scores_may_be_changed_in_place(dataset: PreparedDataset) -> None:
    for settings in SMALL:
        scorer = build_baseline(settings, dataset)
        scores_BV = scorer(visible([3, 8], []))
        scores_BV[:] = float("-inf")
        assert scorer(visible([3, 8], [])).isfinite().all()


def test_names_tell_the_baselines_apart() -> None:
    assert [baseline_name(settings) for settings in SMALL] == [
        "popularity",
        "recent_popularity_3d",
        "item_knn_cosine",
        "item_knn_tfidf",
        "item_knn_bm25",
        "ials",
        "ease",
    ]
    assert baseline_name(RecentlyPopular(days=0.5)) == "recent_popularity_0.5d"
    adapter: TypeAdapter[BaselineSettings] = TypeAdapter(BaselineSettings)
    for settings in SMALL:
        assert adapter.validate_python(settings.model_dump()) == settings
    with pytest.raises(ValidationError, match="'popularity', 'recent_popularity', 'item_knn', 'ials', 'ease'"):
        adapter.validate_python({"kind": "slim"})


def test_what_cannot_be_fitted_is_refused_with_the_reason(dataset: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"ease for 60 items .*max_items allows 50; raise max_items"):
        build_baseline(Ease(max_items=50), dataset)
    timeless = rewritten(dataset, tmp_path / "timeless", lambda row: None)
    timeless.manifest["has_times"] = False
    with pytest.raises(DatasetError, match=r"no times, so nothing is recent; .*take the baseline popularity"):
        build_baseline(RecentlyPopular(), timeless)
    empty = rewritten(dataset, tmp_path / "empty", lambda row: row.update({"num_train": 0}))
    for settings in PERSONAL:
        with pytest.raises(DatasetError, match="no training events to fit on"):
            build_baseline(settings, empty)
