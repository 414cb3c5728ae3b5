"""An application that a Serve config declares: started, followed by another release, and declared again."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray.serve
import yaml
from ray.serve.schema import ServeDeploySchema

from data.errors import RecipeError
from serve.app import APPLICATION, AppArguments, app
from serve.build import run as build_release
from serve.declared import declare, declared_config
from serve.deploy import run as deploy
from serve.registry import Registry
from tests.ports import free_port
from tests.small_world import write_artifact, write_dataset

TOKEN = "0123456789abcdef"
# As a RayService of KubeRay has it (cluster/kubernetes).
CONFIG = """
applications:
  - name: farsight
    import_path: serve.app:app
    route_prefix: /
    args:
      release: {registry}
      serve:
        access: {{tokens_file: {place}/tokens}}
        replicas: {{num_cpus: 1}}
        histories: {{kind: sqlite, path: {place}/histories.sqlite}}
        updates: {{kind: sqlite, path: {place}/updates.sqlite}}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    dataset = write_dataset(tmp_path / "dataset")
    registry = Registry(tmp_path / "registry")
    for seed in (0, 1):
        artifact = write_artifact(tmp_path / f"artifact{seed}", dataset, seed=seed)
        build_release(str(artifact.directory), str(tmp_path / f"release{seed}"), {})
    registry.add(tmp_path / "release0")
    return registry


@pytest.fixture
def url(ray_session: None) -> Iterator[str]:
    port = free_port()
    ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    ray.serve.shutdown()


@pytest.mark.ray
def test_a_declared_application_stays_declared_when_a_release_follows_another(
    url: str, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text(f"web {TOKEN}\n")
    declared = yaml.safe_load(CONFIG.format(registry=registry.directory, place=tmp_path))
    config = ServeDeploySchema.model_validate(declared)
    declare(config)
    first = registry.resolve("latest").name
    headers = {"authorization": f"Bearer {TOKEN}"}
    answers: list[httpx.Response] = []
    done = threading.Event()

    def asked() -> httpx.Response:
        return httpx.post(f"{url}/v1/retrieve", json={"history": [], "k": 3}, headers=headers, timeout=60)

    def ask_until_done() -> None:
        while not done.is_set():
            answers.append(asked())

    assert httpx.post(f"{url}/v1/retrieve", json={"history": []}, timeout=60).status_code == 401
    assert asked().json()["release"] == first
    second = registry.add(tmp_path / "release1")
    client = threading.Thread(target=ask_until_done)
    client.start()
    try:
        found = deploy(str(registry.directory / "latest"), {})
        assert found["before"] == str(registry.directory / first)
        assert asked().json()["release"] == second
        assert registry.resolve("current").name == second
        assert registry.resolve("previous").name == first
        # KubeRay looks at nothing else, and would put its own back if there were none.
        kept = declared_config()
        assert kept is not None
        assert kept.applications[0].args == {**declared["applications"][0]["args"], "release": found["release"]}

        # What KubeRay's own config builds when its operator was restarted, or in a new cluster.
        again = app(AppArguments.model_validate(declared["applications"][0]["args"]))
        assert again._bound_deployment.init_args[0] == found["release"]

        with pytest.raises(RecipeError, match=r"change them in args\.serve of that file"):
            deploy(str(registry.directory / "previous"), {"serve": {"deadline_ms": 100}})
    finally:
        done.set()
        client.join()
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["release"] for answer in answers} == {first, second}


@pytest.mark.parametrize(
    ("serve", "problem"),
    [
        (
            {"access": {"anyone": True}, "host": "0.0.0.0"},
            r"args\.serve\.host: is said elsewhere in a Serve config",
        ),
        ({"access": {"anyone": True}, "haproxy": True}, r"args\.serve\.haproxy: is said elsewhere"),
        ({}, r"args\.serve\.access: whoever reaches the port could ask; set serve\.access\.tokens_file=FILE"),
    ],
)
def test_a_config_that_says_things_in_the_wrong_place_or_not_who_may_ask_is_refused(
    serve: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem):
        app(AppArguments.model_validate({"release": "runs/release", "serve": serve}))


def test_the_name_in_configs_is_the_one_that_deploy_looks_for() -> None:
    assert yaml.safe_load(CONFIG.format(registry="r", place="p"))["applications"][0]["name"] == APPLICATION
