"""The HTTP face: checks requests, keeps deadlines, forms answers."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from serve.access import AccessGuard, Tokens
from serve.answer import Answer, Query, Refusal
from serve.body_limit import BodyLimit
from serve.description import Description
from serve.histories.contract import HistoryStore
from serve.item_routes import item_routes
from serve.json_route import JsonRoute
from serve.page_routes import add_page
from serve.problems import RESPONSES, explain_problems, problem, unavailable
from serve.retriever import Overloaded, Ready
from serve.schemas import RetrieveRequest, RetrieveResponse, to_json, to_query
from serve.searchers import SearchersLost
from serve.settings import ServeSettings
from serve.updates.following import Follower
from serve.user_routes import Histories, user_routes
from serve.watching import RequestWatch, noted, server_timing

logger = logging.getLogger(__name__)

Ask = Callable[[Query], Awaitable[Answer | Refusal]]


def create_api(
    ask: Ask,
    settings: ServeSettings,
    store: HistoryStore | None = None,
    ready: Callable[[], Awaitable[Ready]] | None = None,
    describe: Callable[[], Awaitable[Description]] | None = None,
    follower: Follower | None = None,
) -> FastAPI:
    """The API in front of anything that answers queries.

    Args:
        store: what users did; None for an endpoint that keeps no histories.
        ready: asks for a golden answer; None leaves out `/readyz`.
        describe: asks what can be asked; None leaves out the page.
        follower: of updates of items; None for an endpoint that keeps none.

    Raises:
        RecipeError: the file of tokens cannot be used.
    """
    api = FastAPI(title="Farsight", summary="Retrieval of items for a user's history", version="1", redoc_url=None)
    _guard(api, settings)
    explain_problems(api, settings.queueing.retry_after_seconds)
    histories = Histories(store)
    api.include_router(user_routes(histories, settings.limits))
    api.include_router(item_routes(follower, settings.limits))
    api.include_router(_retrieval(ask, settings, histories))
    api.include_router(_health(ready, settings))
    if describe is not None:
        add_page(api, describe)
    return api


def _guard(api: FastAPI, settings: ServeSettings) -> None:
    """What a request passes before it is read; the last that is added is the first that it meets."""
    access = settings.access
    api.add_middleware(BodyLimit, max_bytes=settings.limits.max_body_bytes)
    tokens = None if access.tokens_file is None else Tokens(access.tokens_file)
    api.add_middleware(AccessGuard, tokens=tokens, rate=access.rate)
    api.add_middleware(RequestWatch, access_log=settings.access_log)


def _retrieval(ask: Ask, settings: ServeSettings, histories: Histories) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute)

    async def answered(request: RetrieveRequest) -> Answer | Refusal:
        stored = None
        if request.user_id is not None and request.history is None:
            stored = await histories.call(histories.store.history, str(request.user_id))
        return await ask(to_query(request, settings.limits, int(time.time()), stored))

    @routes.post("/v1/retrieve", response_model=RetrieveResponse, responses=RESPONSES)
    async def retrieve(request: RetrieveRequest, http: Request) -> Response:
        """The best items for a history."""
        deadline_ms = request.deadline_ms or settings.deadline_ms
        try:
            answer = await asyncio.wait_for(answered(request), deadline_ms / 1000)
        except TimeoutError:
            return problem(504, "deadline_ms", f"no answer within {deadline_ms} ms; ask with a later deadline")
        except Overloaded:
            return unavailable("overloaded", settings.queueing.retry_after_seconds)
        except SearchersLost:
            return unavailable("a part of the catalogue has no searcher", settings.queueing.retry_after_seconds)
        if isinstance(answer, Refusal):
            return problem(422, answer.field, answer.message)
        if settings.access_log:
            http.scope["state"].update(noted(answer))
        headers = {"Server-Timing": server_timing(answer.stage_seconds)}
        return Response(to_json(answer), media_type="application/json", headers=headers)

    return routes


def _health(ready: Callable[[], Awaitable[Ready]] | None, settings: ServeSettings) -> APIRouter:
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the replica runs."""
        return {"status": "ok"}

    if ready is None:
        return routes

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
