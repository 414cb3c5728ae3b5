"""ASGI middleware that refuses large bodies before they are parsed."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import problem


class BodyLimit:
    """Answers 413 when a request's body is larger than `max_bytes`.

    A stated Content-Length is believed where it is too large; otherwise the bytes are counted as
    they come, so a body sent in chunks is stopped too.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"")
        if stated.isdigit() and int(stated) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        body = b""
        # Read whole here: a JSON body is of no use in parts, and inside the application an
        # exception from `receive` would be taken for a broken body.
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                await self._refuse(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        await self._app(scope, _replay(body, receive), send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"the body is larger than {self._max_bytes} bytes; send a shorter history"
        await problem(413, "", message)(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then what comes after it (a disconnect)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
