"""ASGI middleware that refuses requests while the replica is full, before they are read or parsed."""

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.problems import unavailable


class RefuseWhileFull:
    """Answers 503 to what would be refused anyway. Parsing it first would take the time of what is being answered, and
    under overload most requests are of that kind.
    """

    def __init__(self, app: ASGIApp, path: str, is_full: Callable[[], bool], retry_after_seconds: int) -> None:
        self._app = app
        self._path = path
        self._is_full = is_full
        self._retry_after_seconds = retry_after_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and str(scope["path"]).endswith(self._path) and self._is_full():
            await unavailable("overloaded", self._retry_after_seconds)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
