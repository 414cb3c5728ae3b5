"""gRPC beside HTTP: the messages in process, then one real Serve application asked over both."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import grpc
import httpx
import pytest
import ray.serve
from google.protobuf import descriptor_pb2
from pydantic import BaseModel
from ray.serve.grpc_util import RayServegRPCContext

from modeling.settings import ConditionSettings
from serve import schemas
from serve.answer import Answer, Query
from serve.api import create_api
from serve.app import run
from serve.build import run as build_release
from serve.grpc import farsight_pb2 as messages
from serve.grpc.calls import plain, retrieve
from serve.grpc.farsight_pb2_grpc import RetrieverStub
from serve.retriever import Overloaded
from serve.settings import Access, ServeSettings
from serve.watching import access_logger
from tests.ports import free_port
from tests.small_world import ACTIONS, NUM_ITEMS, START, item_id, write_artifact, write_dataset

PROTO = "serve/grpc/farsight.proto"
TOKEN = "a" * 32
AUTHORIZED = (("authorization", f"Bearer {TOKEN}"),)
HISTORY = [
    {"item_id": item_id(3 * event % NUM_ITEMS + 1), "timestamp": START + event, "action": ACTIONS[event % 2]}
    for event in range(9)
]


def test_messages_have_the_fields_of_the_bodies() -> None:
    assert messages.DESCRIPTOR.message_types_by_name
    for name, message in messages.DESCRIPTOR.message_types_by_name.items():
        body: type[BaseModel] = getattr(schemas, name)
        assert list(body.model_fields) == [field.name for field in message.fields], name


def test_the_generated_code_is_what_the_proto_says(tmp_path: Path) -> None:
    protoc: ModuleType = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    root = Path(__file__).resolve().parents[1]
    assert protoc.main(["protoc", f"-I{root}", f"--descriptor_set_out={tmp_path / 'set'}", str(root / PROTO)]) == 0
    [said] = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    for field in (field for message in said.message_type for field in message.field):
        field.ClearField("json_name")  # protoc adds it here and not there
    assert said.SerializeToString() == messages.DESCRIPTOR.serialized_pb


def test_a_field_that_is_not_set_is_left_to_the_api() -> None:
    assert plain(messages.RetrieveRequest()) == {}
    request = messages.RetrieveRequest(
        history=[messages.Event(item_id="a", timestamp=0), messages.Event()],
        k=0,
        exclude_seen=False,
        exclude_item_ids=["b"],
        conditions=[messages.Condition(any_of=["c"], weight=0.5)],
    )
    assert plain(request) == {
        "history": [{"item_id": "a", "timestamp": 0}, {}],
        "k": 0,
        "exclude_seen": False,
        "exclude_item_ids": ["b"],
        "conditions": [{"any_of": ["c"], "weight": 0.5}],
    }


def context_of(*metadata: tuple[str, str]) -> RayServegRPCContext:
    """What Serve hands to a replica with a call."""
    given = Mock(**{"invocation_metadata.return_value": metadata, "trailing_metadata.return_value": []})
    given.code.return_value = given.details.return_value = None
    return RayServegRPCContext(given)


def test_overload_and_rate_have_codes_of_their_own_and_say_when_to_ask_again() -> None:
    async def full(query: Query) -> Answer:
        raise Overloaded

    settings = ServeSettings(histories=None, access=Access(rate="1/hour"))
    api, request = create_api(full, settings), messages.RetrieveRequest()
    for code, words in (
        (grpc.StatusCode.UNAVAILABLE, "overloaded; ask again"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "past the rate of 1 per 1 hour"),
    ):
        context = context_of()
        assert asyncio.run(retrieve(api, request, context)) == messages.RetrieveResponse()
        assert context.code() == code
        assert context.details().startswith(words)
        assert int(dict(context.trailing_metadata())["retry-after"]) >= 1


def test_a_defect_is_internal_without_its_message_and_reaches_the_log() -> None:
    async def broken(query: Query) -> Answer:
        raise RuntimeError("secret")

    context = context_of()
    with pytest.raises(RuntimeError, match="secret"):  # Serve logs it, and answers with what the context has
        asyncio.run(retrieve(create_api(broken, ServeSettings(histories=None)), messages.RetrieveRequest(), context))
    assert (context.code(), context.details()) == (
        grpc.StatusCode.INTERNAL,
        "internal error; the server's log has the details",
    )


def test_a_call_that_nobody_waits_for_stops_and_is_no_error_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """Serve cancels a replica's task when the deadline of a call has passed, or its client has left."""
    stopped = []

    async def slow(query: Query) -> Answer:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped.append(True)
            raise
        raise AssertionError

    async def leave() -> None:
        api = create_api(slow, ServeSettings(histories=None, access_log=True, deadline_ms=10_000))
        call = asyncio.create_task(retrieve(api, messages.RetrieveRequest(), context_of()))
        await asyncio.sleep(0.2)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()

    access_logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, access_logger.name):
        asyncio.run(leave())
    access_logger.removeHandler(caplog.handler)
    assert stopped == [True]
    [line] = [vars(record) for record in caplog.records if record.getMessage() == "access"]
    assert (line["status"], line["protocol"], line["path"]) == (499, "grpc", "/v1/retrieve")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[tuple[httpx.Client, Any]]:
    """Both faces of one endpoint, which wants tokens."""
    place = tmp_path_factory.mktemp("serve")
    dataset = write_dataset(place / "dataset")
    artifact = write_artifact(place / "artifact", dataset, condition=ConditionSettings())
    build_release(str(artifact.directory), str(place / "release"), {}, dataset=str(dataset.directory))
    (place / "tokens").write_text(f"ann {TOKEN}\n")
    settings = {
        "port": free_port(),
        "grpc_port": free_port(),
        "access": {"tokens_file": str(place / "tokens")},
        "limits": {"max_k": 40, "max_body_bytes": 80_000},
        "histories": {"kind": "sqlite", "path": str(place / "h.sqlite")},
    }
    url = run(str(place / "release"), {"serve": settings}, blocking=False)["url"]
    with (
        httpx.Client(base_url=url, headers=dict(AUTHORIZED), timeout=60) as http,
        grpc.insecure_channel(f"127.0.0.1:{settings['grpc_port']}") as channel,
    ):
        yield http, RetrieverStub(channel)
    ray.serve.shutdown()


def refused(call: Any, request: Any, **keywords: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, **{"metadata": AUTHORIZED, "timeout": 60, **keywords})
    return caught.value


@pytest.mark.ray
def test_an_answer_over_grpc_is_that_over_http(endpoint: tuple[httpx.Client, Any]) -> None:
    http, retriever = endpoint
    asked: list[dict[str, Any]] = [
        {"history": HISTORY, "k": 7},
        {"history": [{"item_id": "nowhere", "timestamp": START}], "k": 3},
        {"history": []},
        {"history": HISTORY, "exclude_seen": False, "exclude_item_ids": [item_id(5)], "deadline_ms": 5_000},
        {"history": HISTORY, "conditions": [{"any_of": ["odd"], "weight": 3, "hard": True}, {"own_top": 1}]},
        {"user_id": "me", "k": 4},
    ]
    events = [{**event, "user_id": "me"} for event in HISTORY]
    request = messages.EventsRequest(events=[messages.UserEvent(**event) for event in events])
    added = [retriever.AddEvents(request, metadata=AUTHORIZED) for _ in range(2)]
    assert [(answer.accepted, answer.known) for answer in added] == [(9, 0), (0, 9)]
    assert http.get("/v1/users/me").json()["events"] == [{**event, "event_id": None} for event in events]
    for body in asked:
        body = {**body, "request_time": START + 100}
        expected = http.post("/v1/retrieve", json=body)
        assert expected.status_code == 200, expected.text
        answer, call = retriever.Retrieve.with_call(messages.RetrieveRequest(**body), metadata=AUTHORIZED)
        assert answer.items
        assert answer == messages.RetrieveResponse(**expected.json())
        trailers = dict(call.trailing_metadata())
        assert trailers["server-timing"].startswith("queue;dur=")
        assert trailers["request_id"]


@pytest.mark.ray
def test_what_http_refuses_grpc_refuses_with_a_code_and_the_same_words(endpoint: tuple[httpx.Client, Any]) -> None:
    http, retriever = endpoint
    for body in ({"history": [], "k": 41}, {"history": [{}]}, {"user_id": "", "history": HISTORY}):
        words = [": ".join(found.values()) for found in http.post("/v1/retrieve", json=body).json()["problems"]]
        error = refused(retriever.Retrieve, messages.RetrieveRequest(**body))
        assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "; ".join(words))
    error = refused(retriever.Retrieve, messages.RetrieveRequest(exclude_item_ids=["x" * 80_000]))
    assert (error.code(), error.details()[:26]) == (grpc.StatusCode.INVALID_ARGUMENT, "the body is larger than 80")
    for metadata in ((), (("authorization", "Bearer " + "b" * 32),)):
        error = refused(retriever.AddEvents, messages.EventsRequest(), metadata=metadata)
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED
        assert "Authorization: Bearer TOKEN" in error.details()


@pytest.mark.ray
def test_a_deadline_of_the_message_or_of_the_call_holds(endpoint: tuple[httpx.Client, Any]) -> None:
    _, retriever = endpoint
    long = [messages.Event(item_id=item_id(row % NUM_ITEMS + 1), timestamp=START + row) for row in range(1_000)]
    error = refused(retriever.Retrieve, messages.RetrieveRequest(history=long, deadline_ms=1))
    words = "deadline_ms: no answer within 1 ms; ask with a later deadline"
    assert (error.code(), error.details()) == (grpc.StatusCode.DEADLINE_EXCEEDED, words)
    error = refused(retriever.Retrieve, messages.RetrieveRequest(history=long), timeout=0.001)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
