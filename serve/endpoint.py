"""A replica of the endpoint: the API and, one call away in the same process, the model and the index."""

import ray.serve
from fastapi import FastAPI
from ray.serve.grpc_util import RayServegRPCContext

from serve.api import create_api
from serve.description import Description
from serve.grpc.calls import add_events, retrieve
from serve.grpc.farsight_pb2 import EventsRequest, EventsResponse, RetrieveRequest, RetrieveResponse
from serve.histories.store import open_histories
from serve.retriever import Ready, Retriever
from serve.settings import ServeSettings
from serve.updates.following import Follower
from serve.updates.store import open_updates


@ray.serve.ingress()
class Endpoint:
    """Serve deployment. A replica that cannot answer its release's golden requests does not start, and is never asked;
    Serve then keeps those of the release before.
    """

    async def __init__(self, release: str, settings: ServeSettings) -> None:  # type: ignore[misc]  # Serve awaits it
        self._retriever = Retriever(release, settings)
        await self._retriever.warm_up()
        histories = None if settings.histories is None else open_histories(settings.histories)
        updates = None if settings.updates is None else open_updates(settings.updates)
        retriever = self._retriever
        follower = None if updates is None else Follower(updates, retriever.engine, retriever.show)
        self._api = create_api(retriever.retrieve, settings, histories, self.ready, self._describe, follower=follower)

    def __serve_build_asgi_app__(self) -> FastAPI:  # the name that Serve looks for
        return self._api

    # The names and the argument that Serve's gRPC proxy looks for (serve/grpc/farsight.proto).
    async def Retrieve(self, request: RetrieveRequest, grpc_context: RayServegRPCContext) -> RetrieveResponse:
        """The best items for a history."""
        return await retrieve(self._api, request, grpc_context)

    async def AddEvents(self, request: EventsRequest, grpc_context: RayServegRPCContext) -> EventsResponse:
        """Remember what users did."""
        return await add_events(self._api, request, grpc_context)

    async def ready(self) -> Ready:
        """What is served, once a golden request is answered."""
        return await self._retriever.ready()

    async def _describe(self) -> Description:
        return self._retriever.describe()
