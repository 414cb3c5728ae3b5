"""The part of the API that adds and removes items between releases."""

import asyncio
import time

from fastapi import APIRouter, Response

from serve.item_schemas import (
    ItemsRequest,
    ItemsResponse,
    StandingItems,
    to_change,
    to_items_response,
    to_standing,
)
from serve.problems import RESPONSES
from serve.schemas import BadRequest, Problem
from serve.settings import Limits
from serve.updates.contract import TooManyUpdates
from serve.updates.following import Follower


def item_routes(follower: Follower | None, limits: Limits) -> APIRouter:
    """Routes that change and show what stands over the release; None for an endpoint that keeps no updates."""
    routes = APIRouter(prefix="/v1", responses=RESPONSES)

    @routes.post("/items", response_model=ItemsResponse)
    async def change(request: ItemsRequest) -> Response:
        """Add, remove and restore items. Sending the same call again changes nothing."""
        content = await asyncio.to_thread(_changed, _present(follower), request, limits)
        return Response(content, media_type="application/json")

    @routes.get("/items", response_model=StandingItems)
    async def items() -> Response:
        """What the replica that answers has heard of: all items that stand added or removed."""
        content = await asyncio.to_thread(_shown, _present(follower))
        return Response(content, media_type="application/json")

    return routes


def _present(follower: Follower | None) -> Follower:
    if follower is None:
        raise BadRequest([Problem(field="", message="this endpoint keeps no updates of items (serve.updates is null)")])
    return follower


def _changed(follower: Follower, request: ItemsRequest, limits: Limits) -> str:
    asked = to_change(request, limits, follower.engine, int(time.time()))
    try:
        changed, overlay = follower.apply(asked)
    except TooManyUpdates as error:
        advice = "remove some, or train a release that has them" if error.field == "add" else "restore some"
        message = f"{error.found} items would stand, expected at most {error.limit} (serve.updates); {advice}"
        raise BadRequest([Problem(field=error.field, message=message)]) from None
    return to_items_response(changed, overlay, asked).model_dump_json()


def _shown(follower: Follower) -> str:
    return to_standing(follower.engine.release_id, follower.overlay).model_dump_json()
