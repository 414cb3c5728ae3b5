"""The page at `/`, by which a person asks the endpoint, and what it asks first."""

import html
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from serve.description import Description
from serve.problems import RESPONSES

PAGE = Path(__file__).parent / "page"
# Nothing but the page's own files runs or is loaded, whatever a title of the catalogue holds.
POLICY = "default-src 'self'; base-uri 'self'; frame-ancestors 'none'"


def add_page(api: FastAPI, describe: Callable[[], Awaitable[Description]]) -> None:
    """Serve the page.

    Args:
        describe: asks a replica what can be asked.
    """
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    routes = APIRouter()

    @routes.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """The page, whose addresses are relative to where the application is."""
        root = html.escape(request.scope.get("root_path", "").rstrip("/"))
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(index.replace("<head>", f'<head><base href="{root}/">', 1), headers=headers)

    @routes.get("/v1/release", response_model=Description, responses=RESPONSES)
    async def release() -> Response:
        """What can be asked of the release that answers."""
        return Response((await describe()).model_dump_json(), media_type="application/json")

    api.include_router(routes)
    api.mount("/page", StaticFiles(directory=PAGE))
