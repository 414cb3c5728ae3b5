"""The part of the API that remembers what users did."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from starlette.convertors import PathConvertor, register_url_convertor

from serve.histories.contract import HistoryStore
from serve.json_route import JsonRoute
from serve.problems import RESPONSES
from serve.schemas import (
    BadRequest,
    EventsRequest,
    EventsResponse,
    HistoryResponse,
    Problem,
    to_history,
    to_stored,
)
from serve.settings import Limits

Result = TypeVar("Result")


class Histories:
    """A store whose calls run in a thread of their own, so that the event loop never waits for a disk."""

    def __init__(self, store: HistoryStore | None) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "histories")

    async def call(self, method: Callable[..., Result], *arguments: Any) -> Result:
        """What a method of the store answers."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, method, *arguments)

    @property
    def store(self) -> HistoryStore:
        """The store.

        Raises:
            BadRequest: this endpoint has none.
        """
        if self._store is None:
            raise BadRequest([Problem(field="user_id", message="this endpoint keeps no histories; send the history")])
        return self._store


class AnyPath(PathConvertor):
    """The rest of a path, line feeds too. Starlette's own stops there: `ann%0A` would be ann."""

    regex = "(?s:.*)"


def user_routes(histories: Histories, limits: Limits) -> APIRouter:
    """Routes that write, show and remove what is stored of users."""
    # In the place of Starlette's own, because Serve's proxy reads the routes as well and knows no other name.
    register_url_convertor("path", AnyPath())
    routes = APIRouter(prefix="/v1", responses=RESPONSES, route_class=JsonRoute)

    @routes.post("/events", response_model=EventsResponse)
    async def events(request: EventsRequest, http: Request) -> Response:
        """Remember what users did. Sending the same events again changes nothing."""
        by_user = to_stored(request, limits, int(time.time()))
        found = await histories.call(histories.store.append, by_user)
        return Response(EventsResponse(**asdict(found)).model_dump_json(), media_type="application/json")

    @routes.get("/users/{user_id:path}", response_model=HistoryResponse)
    async def history(user_id: str) -> Response:
        """What is stored of a user; an unknown user has no events."""
        stored = await histories.call(histories.store.history, user_id)
        return Response(to_history(user_id, stored).model_dump_json(), media_type="application/json")

    @routes.delete("/users/{user_id:path}", status_code=204)
    async def forget(user_id: str) -> Response:
        """Forget all of a user, known or not."""
        await histories.call(histories.store.forget, user_id)
        return Response(status_code=204)

    return routes
