"""Every failure of the API as one clear status, and a body that says what is wrong.

| status | when |
| --- | --- |
| 200 | answered; `fallback` says if the model had nothing to go by |
| 400 | the body is not JSON |
| 401 | no token of this endpoint; see `serve.access` |
| 404, 405 | there is no such path; the path has other methods, which `Allow` names |
| 413 | the body is larger than `limits.max_body_bytes` |
| 422 | a field is missing, malformed or past a limit; the answer names it |
| 429 | more requests of this token than its rate; see `Retry-After` |
| 503 | overloaded, a replica was lost, or the store of histories or of updates does not answer; see `Retry-After` |
| 504 | the deadline passed |
"""

import logging
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from serve.histories.contract import HistoriesUnavailable
from serve.schemas import BadRequest, Problem, Problems
from serve.updates.contract import UpdatesUnavailable

logger = logging.getLogger(__name__)

ASK_AGAIN = "ask again after the seconds in Retry-After"
# Named in an answer; a body can have as many misspelt names as it has room for.
MAX_PROBLEMS = 100
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
STATUSES = (400, 401, 413, 422, 429, 500, 503, 504)
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problems, "description": HTTPStatus(status).phrase} for status in STATUSES
}


def explain_problems(api: FastAPI, retry_after_seconds: int) -> None:
    """Turn what the routes of an API raise into statuses; `unavailable` and `problem` are for those they return."""
    api.add_exception_handler(RequestValidationError, _on_invalid)
    api.add_exception_handler(BadRequest, _on_bad_request)
    api.add_exception_handler(HTTPException, _on_http)
    for kept, lost in (("histories", HistoriesUnavailable), ("updates", UpdatesUnavailable)):
        api.add_exception_handler(lost, partial(_on_lost_store, kept, retry_after_seconds))
    api.add_exception_handler(Exception, _on_defect)


def refusal(field: str, message: str) -> str:
    """The body that names the one thing that is wrong."""
    return Problems(problems=[Problem(field=field, message=message)]).model_dump_json()


def problem(status: int, field: str, message: str) -> Response:
    """An answer that names the one thing that is wrong."""
    return Response(refusal(field, message), status, media_type="application/json")


def unavailable(what: str, retry_after_seconds: int) -> Response:
    """503: the same request may succeed soon."""
    response = problem(503, "", f"{what}; {ASK_AGAIN}")
    response.headers["Retry-After"] = str(retry_after_seconds)
    return response


def _body(status: int, problems: list[Problem]) -> Response:
    return Response(Problems(problems=problems).model_dump_json(), status, media_type="application/json")


async def _on_invalid(request: Request, error: Exception) -> Response:
    """422 with the fields; what was found is not echoed, because it may be huge or not valid JSON (NaN)."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(problem["type"] == "json_invalid" for problem in found):
        return problem(400, "", "the body is not valid JSON")
    return _body(
        422, [Problem(field=_field(problem["loc"]), message=problem["msg"]) for problem in found[:MAX_PROBLEMS]]
    )


async def _on_bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequest)
    return _body(422, error.problems)


async def _on_lost_store(kept: str, retry_after_seconds: int, request: Request, error: Exception) -> Response:
    logger.warning("no %s for a request: %s", kept, error)
    return unavailable(f"the store of {kept} does not answer", retry_after_seconds)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = problem(error.status_code, "", str(error.detail))
    response.headers.update(error.headers or {})
    if "allow" in response.headers:  # Starlette knows one route of a path here, and a path may have several
        response.headers["Allow"] = ", ".join(method for method in METHODS if _is_allowed(request, method))
    return response


def _is_allowed(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] == Match.FULL for route in request.app.routes)


async def _on_defect(request: Request, error: Exception) -> Response:
    """No stack trace in an answer. Starlette raises the error again, so that the log has it."""
    return problem(500, "", "internal error; the server's log has the details")


def _field(location: tuple[str | int, ...]) -> str:
    """`history.3.item_id`. Half a surrogate pair in a misspelt name must not break the answer."""
    parts = [str(part) for part in location if part not in ("body", "constrained-str", "constrained-int")]
    return ".".join(parts).encode("ascii", "backslashreplace").decode()[:200]
