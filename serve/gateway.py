"""The HTTP face: checks requests, keeps deadlines, turns every failure into one clear status.

| status | when |
| --- | --- |
| 200 | answered; `fallback` says if the model had nothing to go by |
| 400 | the body is not JSON |
| 413 | the body is larger than `limits.max_body_bytes` |
| 422 | a field is missing, malformed or past a limit; the answer names it |
| 503 | overloaded or a replica was lost; `Retry-After` says when to come back |
| 504 | the deadline passed |
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import ray.exceptions
import ray.serve
import ray.serve.exceptions
import ray.serve.handle
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serve.answer import Answer, Query, Refusal
from serve.body_limit import BodyLimit
from serve.schemas import BadRequest, Problem, Problems, RetrieveRequest, RetrieveResponse, to_query, to_response
from serve.settings import ServeSettings

logger = logging.getLogger(__name__)

Ask = Callable[[Query], Awaitable[Answer | Refusal]]


class Overloaded(Exception):
    """As many requests as allowed are in flight."""


# A replica that was lost or is not there yet: the same request may succeed elsewhere or soon.
UNAVAILABLE = (
    Overloaded,
    ray.serve.exceptions.BackPressureError,
    ray.serve.exceptions.DeploymentUnavailableError,
    ray.exceptions.RayActorError,
)


@ray.serve.ingress()
class Gateway:
    """Serve deployment of the API in front of the retriever replicas."""

    def __init__(self, retriever: ray.serve.handle.DeploymentHandle[Any], settings: ServeSettings) -> None:
        self._retriever = retriever
        self._settings = settings
        self._in_flight = 0

    def __serve_build_asgi_app__(self) -> FastAPI:  # the name that Serve looks for
        return create_api(self._ask, self._settings)

    async def _ask(self, query: Query) -> Answer | Refusal:
        if self._in_flight >= self._settings.queueing.max_in_flight:
            raise Overloaded
        self._in_flight += 1
        try:
            answer: Answer | Refusal = await self._retriever.retrieve.remote(query)
        finally:
            self._in_flight -= 1
        return answer


def create_api(ask: Ask, settings: ServeSettings) -> FastAPI:
    """The API in front of anything that answers queries."""
    api = FastAPI(title="Farsight", summary="Retrieval of items for a user's history", version="1")
    api.add_middleware(BodyLimit, max_bytes=settings.limits.max_body_bytes)
    api.add_exception_handler(RequestValidationError, _on_invalid)
    api.add_exception_handler(BadRequest, _on_bad_request)
    api.add_exception_handler(HTTPException, _on_http)
    api.add_exception_handler(Exception, _on_defect)
    statuses = (400, 413, 422, 500, 503, 504)

    @api.post(
        "/v1/retrieve",
        response_model=RetrieveResponse,
        responses={status: {"model": Problems, "description": HTTPStatus(status).phrase} for status in statuses},
    )
    async def retrieve(request: RetrieveRequest) -> Response:
        """The best items for a history."""
        query = to_query(request, settings.limits, now=int(time.time()))
        deadline_ms = request.deadline_ms or settings.deadline_ms
        try:
            answer = await asyncio.wait_for(ask(query), deadline_ms / 1000)
        except TimeoutError:
            return _problems(504, "deadline_ms", f"no answer within {deadline_ms} ms; ask with a later deadline")
        except UNAVAILABLE as error:
            if not isinstance(error, Overloaded):  # the usual kind; a line for each would feed the overload
                logger.warning("no retriever for a request: %s", type(error).__name__)
            response = _problems(503, "", "overloaded; ask again after the seconds in Retry-After")
            response.headers["Retry-After"] = str(settings.queueing.retry_after_seconds)
            return response
        if isinstance(answer, Refusal):
            return _problems(422, answer.field, answer.message)
        return Response(to_response(answer).model_dump_json(), media_type="application/json")

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the gateway runs."""
        return {"status": "ok"}

    return api


def _problems(status: int, field: str, message: str) -> Response:
    return _body(status, [Problem(field=field, message=message)])


def _body(status: int, problems: list[Problem]) -> Response:
    return Response(Problems(problems=problems).model_dump_json(), status, media_type="application/json")


async def _on_invalid(request: Request, error: Exception) -> Response:
    """422 with the fields; what was found is not echoed, because it may be huge or not valid JSON (NaN)."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(problem["type"] == "json_invalid" for problem in found):
        return _problems(400, "", "the body is not valid JSON")
    return _body(422, [Problem(field=_field(problem["loc"]), message=problem["msg"]) for problem in found])


async def _on_bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequest)
    return _body(422, error.problems)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _problems(error.status_code, "", str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _on_defect(request: Request, error: Exception) -> Response:
    """No stack trace in an answer. Starlette raises the error again, so that the log has it."""
    return _problems(500, "", "internal error; the server's log has the details")


def _field(location: tuple[str | int, ...]) -> str:
    """`history.3.item_id`. Half a surrogate pair in a misspelt name must not break the answer."""
    parts = [str(part) for part in location if part not in ("body", "constrained-str", "constrained-int")]
    return ".".join(parts).encode("ascii", "backslashreplace").decode()[:200]
