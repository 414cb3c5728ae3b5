"""The HTTP face: checks requests, keeps deadlines, and asks the retriever replicas."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import ray.exceptions
import ray.serve
import ray.serve.exceptions
import ray.serve.handle
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from serve.access import AccessGuard, Tokens
from serve.answer import Answer, Query, Refusal
from serve.body_limit import BodyLimit
from serve.description import Description
from serve.histories.contract import HistoryStore
from serve.histories.store import open_histories
from serve.page_routes import add_page
from serve.problems import RESPONSES, explain_problems, problem, unavailable
from serve.retriever import Ready
from serve.schemas import RetrieveRequest, RetrieveResponse, to_query, to_response
from serve.settings import ServeSettings
from serve.user_routes import Histories, user_routes
from serve.watching import RequestWatch, noted, server_timing

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
        kept = self._settings.histories
        store = None if kept is None else open_histories(kept)
        return create_api(self._ask, self._settings, store, self.ready, self._describe)

    async def ready(self) -> Ready:
        """Ask a replica for a golden answer."""
        found: Ready = await self._retriever.ready.remote()
        return found

    async def _describe(self) -> Description:
        found: Description = await self._retriever.describe.remote()
        return found

    async def _ask(self, query: Query) -> Answer | Refusal:
        if self._in_flight >= self._settings.queueing.max_in_flight:
            raise Overloaded
        self._in_flight += 1
        try:
            answer: Answer | Refusal = await self._retriever.retrieve.remote(query)
        finally:
            self._in_flight -= 1
        return answer


def create_api(
    ask: Ask,
    settings: ServeSettings,
    store: HistoryStore | None = None,
    ready: Callable[[], Awaitable[Ready]] | None = None,
    describe: Callable[[], Awaitable[Description]] | None = None,
) -> FastAPI:
    """The API in front of anything that answers queries.

    Args:
        store: what users did; None for an endpoint that keeps no histories.
        ready: asks for a golden answer; None leaves out `/readyz`.
        describe: asks what can be asked; None leaves out the page.

    Raises:
        RecipeError: the file of tokens cannot be used.
    """
    tokens = None if settings.access.tokens_file is None else Tokens(settings.access.tokens_file)
    api = FastAPI(title="Farsight", summary="Retrieval of items for a user's history", version="1", redoc_url=None)
    # The last that is added is the first that a request meets.
    api.add_middleware(BodyLimit, max_bytes=settings.limits.max_body_bytes)
    api.add_middleware(AccessGuard, tokens=tokens, rate=settings.access.rate)
    api.add_middleware(RequestWatch, access_log=settings.access_log)
    explain_problems(api, settings.queueing.retry_after_seconds)
    histories = Histories(store)
    api.include_router(user_routes(histories, settings.limits))

    async def answered(request: RetrieveRequest) -> Answer | Refusal:
        stored = None
        if request.user_id is not None and request.history is None:
            stored = await histories.call(histories.store.history, str(request.user_id))
        return await ask(to_query(request, settings.limits, int(time.time()), stored))

    @api.post("/v1/retrieve", response_model=RetrieveResponse, responses=RESPONSES)
    async def retrieve(request: RetrieveRequest, http: Request) -> Response:
        """The best items for a history."""
        deadline_ms = request.deadline_ms or settings.deadline_ms
        try:
            answer = await asyncio.wait_for(answered(request), deadline_ms / 1000)
        except TimeoutError:
            return problem(504, "deadline_ms", f"no answer within {deadline_ms} ms; ask with a later deadline")
        except UNAVAILABLE as error:
            if not isinstance(error, Overloaded):  # the usual kind; a line for each would feed the overload
                logger.warning("no retriever for a request: %s", type(error).__name__)
            return unavailable("overloaded", settings.queueing.retry_after_seconds)
        if isinstance(answer, Refusal):
            return problem(422, answer.field, answer.message)
        http.scope["state"].update(noted(answer))
        headers = {"Server-Timing": server_timing(answer.stage_seconds)}
        return Response(to_response(answer).model_dump_json(), media_type="application/json", headers=headers)

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the gateway runs."""
        return {"status": "ok"}

    if ready is not None:
        api.include_router(_readiness(ready, settings))
    if describe is not None:
        add_page(api, describe)
    return api


def _readiness(ready: Callable[[], Awaitable[Ready]], settings: ServeSettings) -> APIRouter:
    routes = APIRouter()

    @routes.get("/readyz", responses=RESPONSES)
    async def readyz() -> Response:
        """Whether a golden request is answered as when the release was built, and by which release."""
        try:
            found = await asyncio.wait_for(ready(), settings.limits.max_deadline_ms / 1000)
        except Exception as error:  # whatever it is, no request should come here
            logger.warning("not ready: %s", error)
            return unavailable("not ready", settings.queueing.retry_after_seconds)
        return JSONResponse({"status": "ready", "release": found.release_id})

    return routes
