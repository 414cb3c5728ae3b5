"""A catalogue in shards: in one process, and in searchers of their own under a running endpoint."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import ray.serve
from hypothesis import given, settings
from hypothesis import strategies as st

from data.dataset import PreparedDataset
from data.errors import ArtifactError, RecipeError
from serve.app import run
from serve.build import run as build_release
from serve.deploy import run as deploy
from serve.index.settings import FlatSettings, HnswSettings, IndexSettings, IvfSettings, MatrixSettings
from serve.index.sharded import ShardedIndex
from serve.index.store import build_index, open_index, open_shard, write_index_directory
from serve.searchers import PREFIX
from tests.ports import free_port
from tests.small_world import NUM_ITEMS, START, item_id, write_artifact, write_dataset

SHARDS = 2


def whole_vectors(seed: int, count: int, width: int = 4) -> Any:
    """Of small whole numbers: sums are exact in float32, and ties are many."""
    return np.random.default_rng(seed).integers(-2, 3, (count, width)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 7), st.integers(1, 100), st.integers(0, 10**6), st.sampled_from([1, 0.5, 0.05])
)
def test_shards_find_what_one_index_finds(items: int, shards: int, k: int, seed: int, selectivity: float) -> None:
    item_VD, query_QD = whole_vectors(seed, items), whole_vectors(seed + 1, 5)
    allowed_V = None if selectivity == 1 else np.random.default_rng(seed).random(items) < selectivity
    for kind in (FlatSettings(), MatrixSettings()):
        parts = np.array_split(item_VD, min(shards, items))
        found = ShardedIndex([build_index(part, kind) for part in parts]).search(query_QD, k, allowed_V)
        expected = build_index(item_VD, kind).search(query_QD, k, allowed_V)
        np.testing.assert_array_equal(found.rows_QK, expected.rows_QK)
        np.testing.assert_array_equal(found.scores_QK, expected.scores_QK)


@pytest.mark.parametrize("kind", [FlatSettings(), IvfSettings(), HnswSettings(), MatrixSettings()])
def test_shards_are_written_apart_and_one_can_be_read_alone(kind: Any, tmp_path: Path) -> None:
    item_VD, query_QD = whole_vectors(0, 200), whole_vectors(1, 5)
    recipe = IndexSettings(search=kind, shards=3, min_recall=0)
    manifest = write_index_directory(
        tmp_path, item_VD, query_QD, query_source="items", artifact_hash="a", settings=recipe
    )
    assert {name.split("/")[0] for name in manifest["hashes"]} == {"shard-0", "shard-1", "shard-2"}
    index, _ = open_index(tmp_path)
    assert (index.num_items, index.width) == (200, 4)
    damaged = tmp_path / next(name for name in manifest["hashes"] if name.startswith("shard-1/"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert open_shard(tmp_path, 2).num_items == 67
    with pytest.raises(ArtifactError, match="shard-1"):
        open_index(tmp_path)


def test_more_shards_than_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"index.shards: found 3 with 2 items"):
        write_index_directory(
            tmp_path,
            whole_vectors(0, 2),
            whole_vectors(1, 2),
            query_source="items",
            artifact_hash="a",
            settings=IndexSettings(shards=3),
        )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_dataset(tmp_path_factory.mktemp("searchers") / "dataset")


@pytest.fixture(scope="module")
def releases(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("releases")
    for seed in (0, 1):
        artifact = write_artifact(place / f"artifact-{seed}", dataset, seed=seed)
        recipe = {"index": {"shards": SHARDS}}
        build_release(str(artifact.directory), str(place / f"release-{seed}"), recipe, dataset=str(dataset.directory))
    return [place / f"release-{seed}" for seed in (0, 1)]


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    own = {"replicas": 1, "num_cpus": 0.1}
    return {"serve": {"port": free_port(), "histories": None, "searchers": own, "replicas": {"num_cpus": 0.1}}}


@pytest.fixture(scope="module")
def url(releases: list[Path], recipe: dict[str, Any], ray_session: None) -> Iterator[str]:
    yield run(str(releases[0]), recipe, blocking=False)["url"]
    ray.serve.shutdown()


def bodies() -> list[dict[str, Any]]:
    return [
        {
            "history": [
                {"item_id": item_id((7 * seed + event) % NUM_ITEMS + 1), "timestamp": START + event}
                for event in range(1 + seed)
            ],
            "k": 12,
            "request_time": START + 5_000,
            "conditions": [] if seed % 2 else [{"any_of": ["even"], "hard": True}],
        }
        for seed in range(8)
    ]


def asked(url: str) -> list[list[str]]:
    """The items of all answers."""
    return [ids(httpx.post(f"{url}/v1/retrieve", json=body, timeout=60)) for body in bodies()]


def ids(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [item["item_id"] for item in response.json()["items"]]


def searchers() -> list[psutil.Process]:
    return [one for one in psutil.process_iter() if PREFIX in " ".join(one.cmdline())]


def applications() -> list[str]:
    return [name for name in ray.serve.status().applications if name.startswith(PREFIX)]


@pytest.mark.ray
def test_searchers_answer_like_an_index_beside_the_model_survive_a_loss_and_follow_a_release(
    url: str, releases: list[Path], recipe: dict[str, Any]
) -> None:
    first = asked(url)
    assert len(searchers()) == SHARDS
    os.kill(searchers()[0].pid, signal.SIGKILL)
    statuses = []
    while not statuses or statuses[-1] != 200:
        response = httpx.post(f"{url}/v1/retrieve", json=bodies()[0], timeout=60)
        statuses.append(response.status_code)
        assert response.status_code in (200, 503, 504), response.text
        time.sleep(0.1)
    assert asked(url) == first, "whole again by itself"
    deployed = deploy(str(releases[1]), recipe)
    assert asked(url) != first
    assert len(applications()) == SHARDS
    assert all(deployed["release_id"] in name for name in applications()), "those of the release before are gone"
    deploy(str(releases[0]), {"serve": {**recipe["serve"], "searchers": None}})
    assert applications() == []
    assert asked(url) == first, "an index beside the model answers the same"
