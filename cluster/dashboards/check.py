"""`farsight dashboards check`: which panels a running Prometheus has data for."""

import re
from collections.abc import Iterator
from typing import Any

import httpx

from cluster.dashboards.panels import Dashboard, Panel
from cluster.dashboards.write import DASHBOARDS
from data.errors import EndpointError

TIMEOUT_SECONDS = 30
# What Grafana would put in: everything, at a zoom at which a rate needs a few scrapes.
RATE_INTERVAL = "2m"


def check(prometheus: str) -> dict[str, Any]:
    """Ask for every panel's queries, as of now.

    Args:
        prometheus: its address.

    Returns:
        `panels` and `with_data`, counts; `empty`: panels without data, with the metrics that they read.

    Raises:
        EndpointError: Prometheus does not answer, or refuses a query.
    """
    empty = []
    with httpx.Client(base_url=prometheus, timeout=TIMEOUT_SECONDS) as client:
        panels = list(_panels())
        for dashboard, row, panel in panels:
            if not any(_series(client, plain(query.expr)) for query in panel.queries):
                empty.append(
                    {"dashboard": dashboard.uid, "row": row, "panel": panel.title, "metrics": list(panel.metrics)}
                )
    return {"panels": len(panels), "with_data": len(panels) - len(empty), "empty": empty}


def plain(expr: str) -> str:
    """A panel's expression with everything chosen at the head of its page."""
    return re.sub(r'=~"\$\w+"', '=~".*"', expr.replace("$__rate_interval", RATE_INTERVAL))


def _panels() -> Iterator[tuple[Dashboard, str, Panel]]:
    for dashboard in DASHBOARDS:
        for row in dashboard.rows:
            for panel in row.panels:
                yield dashboard, row.title, panel


def _series(client: httpx.Client, expr: str) -> int:
    """How many series an expression has now."""
    try:
        answer = client.post("/api/v1/query", data={"query": expr})
        body = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise EndpointError(
            f"{client.base_url}: no Prometheus answers there ({error}); start it, or give its address"
        ) from None
    if body.get("status") != "success":
        raise EndpointError(f"{client.base_url}: refused {expr}: {body.get('error')}")
    return len(body["data"]["result"])
