"""Calls over gRPC as requests of the HTTP face, in the same process.

A call passes the same tokens, rate, limits, checks, deadline and counts as a request over HTTP because it is one: its
message becomes a body, the body of the answer a message, and a status the code that `google.rpc.Code` maps to it.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc import StatusCode
from ray.serve.grpc_util import RayServegRPCContext
from starlette.types import ASGIApp, Scope
from starlette.types import Message as Part

from serve.grpc.farsight_pb2 import EventsRequest, EventsResponse, RetrieveRequest, RetrieveResponse

Answer = TypeVar("Answer", RetrieveResponse, EventsResponse)

CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    413: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
# Headers of an answer that come back as trailing metadata.
TRAILERS = (b"retry-after", b"server-timing")


async def retrieve(api: ASGIApp, request: RetrieveRequest, context: RayServegRPCContext) -> RetrieveResponse:
    """What `/v1/retrieve` answers; on a failure the context has its code and problems, and the message is empty."""

    def body() -> dict[str, Any]:
        found = plain(request)
        # An empty list and none are one in a message.
        return found if "user_id" in found else {"history": [], **found}

    return await _call(api, "/v1/retrieve", body, RetrieveResponse, context)


async def add_events(api: ASGIApp, request: EventsRequest, context: RayServegRPCContext) -> EventsResponse:
    """What `/v1/events` answers, in the same way."""
    return await _call(api, "/v1/events", lambda: {"events": [], **plain(request)}, EventsResponse, context)


def plain(value: Any) -> Any:
    """A message as JSON's objects, lists and values, of the fields that are set."""
    if isinstance(value, Message):
        return {field.name: plain(held) for field, held in value.ListFields()}
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {name: plain(held) for name, held in value.items()}
    return [plain(one) for one in value]


async def _call(
    api: ASGIApp, path: str, body: Callable[[], dict[str, Any]], answer: type[Answer], context: RayServegRPCContext
) -> Answer:
    status, content = 500, b""

    async def receive() -> Part:  # whoever is refused before this costs no conversion
        return {"type": "http.request", "body": json.dumps(body()).encode()}

    async def send(part: Part) -> None:
        nonlocal status, content
        if part["type"] == "http.response.start":
            status = part["status"]
            trailers = [(name.decode(), value.decode()) for name, value in part["headers"] if name in TRAILERS]
            context.set_trailing_metadata(trailers)
        content += part.get("body", b"")

    try:
        await api(_scope(path, context), receive, send)
    finally:  # a defect is raised after it was answered
        if status != 200:
            context.set_code(CODES.get(status, StatusCode.INTERNAL))
            context.set_details(_text_of(content))
    return answer(**json.loads(content)) if status == 200 else answer()


def _scope(path: str, context: RayServegRPCContext) -> Scope:
    headers = [(b"content-type", b"application/json")]
    sent = context.invocation_metadata()
    headers += [(b"authorization", value.encode()) for name, value in sent if name == "authorization"]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "2",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "state": {"protocol": "grpc"},  # for the access log
    }


def _text_of(content: bytes) -> str:
    """The problems of an answer in a line, as `farsight retrieve` shows them."""
    problems = json.loads(content)["problems"] if content else []
    return "; ".join(": ".join(filter(None, [found["field"], found["message"]])) for found in problems)
