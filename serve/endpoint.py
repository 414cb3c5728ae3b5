"""A replica of the endpoint: the API and, one call away in the same process, the model and the index."""

import ray.serve
from fastapi import FastAPI

from serve.api import create_api
from serve.description import Description
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

    def __init__(self, release: str, settings: ServeSettings) -> None:
        self._settings = settings
        self._retriever = Retriever(release, settings)
        kept = settings.updates
        retriever = self._retriever
        self._follower = None if kept is None else Follower(open_updates(kept), retriever.engine, retriever.show)

    def __serve_build_asgi_app__(self) -> FastAPI:  # the name that Serve looks for
        kept = self._settings.histories
        store = None if kept is None else open_histories(kept)
        retriever = self._retriever
        return create_api(
            retriever.retrieve, self._settings, store, self.ready, self._describe, follower=self._follower
        )

    async def ready(self) -> Ready:
        """What is served, once a golden request is answered."""
        return await self._retriever.ready()

    async def _describe(self) -> Description:
        return self._retriever.describe()
