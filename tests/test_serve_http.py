"""One real Serve application over real HTTP."""

import asyncio
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray.serve
from prometheus_client.parser import text_string_to_metric_families

from cluster.dashboards.check import plain
from cluster.dashboards.rules import all_alerts
from cluster.dashboards.settings import AlertSettings
from cluster.dashboards.write import DASHBOARDS
from data.errors import ArtifactMismatch, EndpointError
from data.storage import file_hash, write_json
from data.tracking.contract import AXES, NOT_FINITE, RunFacts
from data.tracking.on_prometheus import FAILURES, TRAINING, Prometheus
from data.tracking.on_prometheus import FIGURES as TRACKED
from modeling.settings import ConditionSettings
from serve import client
from serve.answer import Query
from serve.app import run
from serve.build import run as build_release
from serve.deploy import run as deploy
from serve.engine import Engine
from serve.instructions import Wish
from serve.metrics import SERVING
from serve.registry import Registry
from tests.ports import free_port
from tests.promql import selected_by_all
from tests.small_world import ACTIONS, NUM_ITEMS, START, item_id, write_artifact, write_dataset

pytestmark = pytest.mark.ray

SETTINGS = {
    "batching": {"max_batch_size": 4},
    "queueing": {"max_in_flight": 16, "retry_after_seconds": 2},
    "limits": {"max_body_bytes": 100_000, "max_k": 40},
    "deadline_ms": 10_000,
    "access_log": True,
}
QUERIES = [query for dashboard in DASHBOARDS for panel in dashboard.panels for query in panel.queries]
ALERTS = all_alerts(AlertSettings())
RAYS = ("ray_serve_", "ray_node_", "ray_object_store_", "ray_component_")
# What needs a GPU, HAProxy or a number of replicas that is not fixed.
NOT_HERE = {
    "ray_node_gpus_utilization",
    "ray_node_gram_used",
    "ray_serve_haproxy_process_count",
    "ray_serve_haproxy_target_mismatch",
    "ray_serve_autoscaling_desired_replicas",
    "ray_serve_autoscaling_target_ongoing_requests",
    "ray_serve_autoscaling_target_replicas",
    "ray_serve_autoscaling_total_requests",
}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("serve")
    dataset = write_dataset(place / "dataset", num_users=120)  # enough to know the tenths of their scores
    artifact = write_artifact(place / "artifact", dataset, condition=ConditionSettings())
    build_release(str(artifact.directory), str(place / "release"), {}, dataset=str(dataset.directory))
    registry = Registry(place / "registry")
    registry.add(place / "release")
    return registry.resolve("latest")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("stores")
    stores = {name: {"kind": "sqlite", "path": str(place / f"{name}.sqlite")} for name in ("histories", "updates")}
    return {"serve": {**SETTINGS, "port": free_port(), **stores}}


@pytest.fixture(scope="module")
def served(release: Path, recipe: dict[str, Any], ray_session: None) -> Iterator[dict[str, Any]]:
    ready: list[dict[str, Any]] = []
    result = run(str(release.parent), recipe, blocking=False, on_ready=ready.append)
    assert ready == [result]
    assert result["release"] == str(release)
    yield result
    ray.serve.shutdown()


@pytest.fixture(scope="module")
def url(served: dict[str, Any]) -> str:
    address: str = served["url"]
    return address


def history(seed: int) -> list[dict[str, Any]]:
    """Events in no order of time; ids as strings, actions now and then."""
    return [
        {
            "item_id": item_id((7 * seed + 3 * event) % NUM_ITEMS + 1),
            "timestamp": START + (event * 7919) % 1000,
            **({"action": ACTIONS[event % 2]} if event % 3 else {}),
        }
        for event in range(1 + seed)
    ]


def query_of(events: list[dict[str, Any]], k: int, wishes: Sequence[Wish] = ()) -> Query:
    return Query(
        item_ids=[event["item_id"] for event in events],
        timestamps=[event["timestamp"] for event in events],
        actions=[event.get("action") for event in events],
        k=k,
        request_time=START + 5_000,
        wishes=wishes,
    )


def in_process(engine: Engine, events: list[dict[str, Any]], k: int) -> list[str]:
    return engine.answer([query_of(events, k)])[0].item_ids


def post_all(url: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    async def send() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=len(bodies))
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
            return await asyncio.gather(*(http.post("/v1/retrieve", json=body) for body in bodies))

    return asyncio.run(send())


def test_concurrent_answers_equal_those_of_the_release_in_process(url: str, release: Path) -> None:
    engine = Engine.open(release)
    histories = [history(seed) for seed in range(14)]
    bodies = [{"history": events, "k": 5 + len(events), "request_time": START + 5_000} for events in histories]
    responses = post_all(url, bodies)
    assert [response.status_code for response in responses] == [200] * len(bodies)
    for events, body, response in zip(histories, bodies, responses, strict=True):
        content = response.json()
        assert content["release"] == engine.release_id
        assert content["fallback"] is None
        assert [item["item_id"] for item in content["items"]] == in_process(engine, events, body["k"])
        assert content["items"][0]["title"] == f"Title {int(content['items'][0]['item_id'][1:])}"


def test_a_user_of_whom_events_were_sent_is_answered_as_with_that_history(url: str) -> None:
    events = history(9)
    asked = {"k": 9, "request_time": START + 5_000}
    sent = httpx.post(f"{url}/v1/events", json={"events": [{**event, "user_id": "me"} for event in events]})
    assert sent.json() == {"accepted": 10, "known": 0, "too_old": 0}
    by_user, by_history = post_all(url, [{**asked, "user_id": "me"}, {**asked, "history": events}])
    assert by_user.json()["fallback"] is None
    found = [answer.json() for answer in (by_user, by_history)] + [client.run(url, user="me", **asked)]
    items = [[item["item_id"] for item in answer["items"]] for answer in found]
    assert items[0] == items[1] == items[2]
    assert {answer["history_events_used"] for answer in found} == {8}


def test_conditions_over_http_equal_those_in_process_beside_requests_without(url: str, release: Path) -> None:
    engine = Engine.open(release)
    asked: list[list[dict[str, Any]]] = [
        [{"any_of": ["even"], "hard": True}],
        [],
        [{"any_of": ["odd", "tenth"], "weight": 3}, {"own_top": 1, "hard": True}],
        [{"any_of": ["tenth"], "hard": True}],
    ]
    bodies = [
        {"history": history(9), "k": 8, "request_time": START + 5_000, "conditions": conditions} for conditions in asked
    ]
    for conditions, response in zip(asked, post_all(url, bodies), strict=True):
        wishes = [Wish(**condition) for condition in conditions]
        [expected] = engine.answer([query_of(history(9), 8, wishes)])
        items = response.json()["items"]
        assert [item["item_id"] for item in items] == expected.item_ids
        assert [item["condition"] for item in items] == expected.conditions
    with pytest.raises(EndpointError, match=r"422, expected 200; conditions\.0\.any_of\.0: no category or pool"):
        client.run(url, [], conditions=[{"any_of": ["western"]}])


def test_fallback_and_unknown_items_are_marked(url: str) -> None:
    answer = client.run(url, [], k=3)
    assert answer["fallback"] == "popularity"
    assert [item["item_id"] for item in answer["items"]] == [item_id(6), item_id(13), item_id(20)]
    [response] = post_all(url, [{"history": [{"item_id": 404, "timestamp": 1}, *history(2)]}])
    assert response.json()["unknown_items"] == 1
    assert response.json()["history_events_used"] == 3


def test_bad_requests_are_named_over_http(url: str) -> None:
    with pytest.raises(EndpointError, match=r"422, expected 200; history\.0\.timestamp: .*reads times"):
        client.run(url, [item_id(1)])
    with pytest.raises(EndpointError, match=r"422, expected 200; k: found 41 items, expected at most 40"):
        client.run(url, [], k=41)
    with pytest.raises(EndpointError, match="413, expected 200; the body is larger"):
        client.run(url, [item_id(1)] * 10_000)
    assert httpx.get(f"{url}/nowhere").status_code == 404


def test_a_deadline_shorter_than_an_answer_takes_is_504(url: str) -> None:
    long = [{"item_id": item_id(row % NUM_ITEMS + 1), "timestamp": START + row} for row in range(1_000)]
    response = httpx.post(f"{url}/v1/retrieve", json={"history": long, "deadline_ms": 1}, timeout=30)
    assert response.status_code == 504
    assert response.json()["problems"] == [
        {"field": "deadline_ms", "message": "no answer within 1 ms; ask with a later deadline"}
    ]


def test_overload_is_503_with_retry_after_and_passes(url: str) -> None:
    bodies = [{"history": history(13), "request_time": START + number} for number in range(5_000, 5_128)]
    responses = post_all(url, bodies)
    refused = [response for response in responses if response.status_code == 503]
    answered = [response for response in responses if response.status_code == 200]
    assert refused
    assert answered
    assert len(refused) + len(answered) == len(responses)
    assert {response.headers.get("retry-after") for response in refused} == {"2"}
    assert client.run(url, [])["items"]


def test_health_and_documentation(url: str) -> None:
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{url}/readyz", timeout=30).json()["status"] == "ready"
    assert "swagger" in httpx.get(f"{url}/docs").text.lower()
    assert "/v1/retrieve" in httpx.get(f"{url}/openapi.json").json()["paths"]


def test_a_request_is_seen_in_its_answer_the_access_log_and_the_metrics(url: str) -> None:
    body = {"history": [{"item_id": 404, "timestamp": START}, *history(4)], "request_time": START + 5_000, "k": 7}
    response = httpx.post(f"{url}/v1/retrieve", json=body, headers={"X-Request-ID": "seen-1"}, timeout=30)
    assert response.headers["x-request-id"] == "seen-1"
    stages = re.fullmatch(
        r"queue;dur=(.+), encode;dur=(.+), search;dur=(.+), merge;dur=(.+)", response.headers["server-timing"]
    )
    assert stages is not None
    assert all(float(milliseconds) >= 0 for milliseconds in stages.groups())
    logs = Path(os.environ["RAY_TMPDIR"], "ray", "session_latest", "logs", "serve")
    written = [json.loads(line) for file in logs.glob("*endpoint*.log") for line in file.read_text().splitlines()]
    [line] = [line for line in written if line.get("request_id") == "seen-1"]
    assert {
        name: line[name] for name in ("path", "status", "items", "token", "unknown_items", "history_events_used")
    } == {
        "path": "/v1/retrieve",
        "status": 200,
        "items": 7,
        "token": "anyone",
        "unknown_items": 1,
        "history_events_used": 5,
    }
    assert line["ms"] >= line["stage_ms"]["queue"]
    assert client.run(url, [])["fallback"] == "popularity"  # or there is nothing to count


def test_what_dashboards_and_alerts_read_is_at_the_port_of_the_node(
    url: str, served: dict[str, Any], tmp_path: Path
) -> None:
    asked = {"history": [{"item_id": 404, "timestamp": START}, *history(6)], "request_time": START + 5_000, "k": 7}
    for _ in range(2):  # the second finds the query vector kept
        assert httpx.post(f"{url}/v1/retrieve", json=asked, timeout=30).status_code == 200
    assert client.run(url, [])["fallback"] == "popularity"
    tracker = Prometheus()  # a training run, as far as its tracker can tell
    tracker.start(RunFacts("1", "demo/train", "train", tmp_path))
    tracker.log({**dict.fromkeys(TRACKED, 0.5), "eval/ndcg_at_10": 0.2}, dict.fromkeys(AXES, 3))
    for title in (NOT_FINITE, "Something else"):
        tracker.alert(title, "what was found")
    ours = {name for metric in (*SERVING, *TRAINING) for name in metric.exported}
    ours -= set(FAILURES.exported)  # it has not failed
    read = selected_by_all([*(plain(query.expr) for query in QUERIES), *(alert.expr for alert in ALERTS)])
    wanted = ours | {name for name in read if name.startswith(RAYS)}
    deadline = time.monotonic() + 60
    while missing := wanted - NOT_HERE - (exported := _exported(served["metrics_url"])).keys():
        assert time.monotonic() < deadline, f"not exported: {sorted(missing)}"
        time.sleep(0.5)  # Ray reports every few seconds
    for name, labels in read.items():
        if name in exported:
            # What a scrape adds is not there yet.
            assert labels - {"cluster", "instance", "job"} <= exported[name], f"{name}: {labels} of {exported[name]}"
    tracker.finish(failed=False)


def _exported(address: str) -> dict[str, set[str]]:
    """The names at a metrics port, each with its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(httpx.get(address, timeout=30).text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_a_release_follows_another_under_load_and_no_request_fails_or_mixes_them(
    url: str, recipe: dict[str, Any], release: Path, tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    artifact = write_artifact(tmp_path / "artifact", dataset, seed=1, condition=ConditionSettings())
    build_release(str(artifact.directory), str(tmp_path / "release"), {})
    registry = Registry(release.parent)
    registry.add(tmp_path / "release")
    engines = {engine.release_id: engine for engine in map(Engine.open, (release, tmp_path / "release"))}
    before, after = engines
    expected = {name: in_process(engine, history(5), 5) for name, engine in engines.items()}
    body = {"history": history(5), "k": 5, "request_time": START + 5_000}
    answers: list[httpx.Response] = []
    done = threading.Event()

    def client_until_done() -> None:
        with httpx.Client(base_url=url, timeout=60) as http:
            while not done.is_set():
                answers.append(http.post("/v1/retrieve", json=body))

    clients = [threading.Thread(target=client_until_done) for _ in range(4)]
    for thread in clients:
        thread.start()
    try:
        found = deploy(str(registry.directory / "latest"), recipe)
        assert found == {"release": str(registry.directory / after), "release_id": after, "before": str(release)}
        assert httpx.get(f"{url}/readyz", timeout=60).json() == {"status": "ready", "release": after}
        *_, recorded = sorted((registry.directory / "journal").iterdir())
        assert registry.resolve("previous") == release
        shutil.rmtree(recorded)  # as if the command had been killed before it came to that
        assert deploy(str(registry.directory / "previous"), recipe)["release"] == str(release)
        assert registry.resolve("previous").name == after
    finally:
        done.set()
        for thread in clients:
            thread.join()
    assert {response.status_code for response in answers} == {200}
    named = [response.json() for response in answers]
    assert {answer["release"] for answer in named} == {before, after}
    assert all([item["item_id"] for item in answer["items"]] == expected[answer["release"]] for answer in named)
    assert httpx.post(f"{url}/v1/retrieve", json=body, timeout=60).json()["release"] == before


def test_a_release_that_answers_otherwise_than_it_did_is_not_deployed(
    url: str, recipe: dict[str, Any], release: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "release"
    shutil.copytree(release, copy)
    golden = json.loads((copy / "golden.json").read_text())
    golden[3]["scores"][0] += 0.5
    write_json(copy / "golden.json", golden)
    manifest = json.loads((copy / "manifest.json").read_text())
    write_json(copy / "manifest.json", {**manifest, "golden_hash": file_hash(copy / "golden.json")})
    with pytest.raises(ArtifactMismatch, match="golden request 3"):
        deploy(str(copy), recipe)
    assert httpx.get(f"{url}/readyz", timeout=60).json()["release"] == manifest["release_id"]
