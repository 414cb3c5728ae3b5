"""Another release in the place of the one that a running application serves, without a pause.

Serve starts replicas with the new release beside the old ones. A replica answers the release's golden requests before
it counts as started, so a release that answers otherwise here than where it was built never takes a request.
"""

import logging
import os
import socket
from typing import Any

import ray
import ray.serve
import ray.serve.exceptions

from data.errors import ArtifactError, EndpointError
from data.settings import Recipe
from serve.app import APPLICATION, serve_settings, start
from serve.declared import check_no_settings, declare, declared_config
from serve.engine import Engine
from serve.golden import check_golden
from serve.registry import find_release, record_deployment
from serve.retriever import Ready

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10


def run(release: str, recipe: Recipe, address: str | None = None) -> dict[str, Any]:
    """Serve another release with a running application; the earlier one again is a rollback.

    Args:
        release: a release, as `serve.registry.find_release` finds it, readable under this path by every node.
        recipe: section `serve`, as the application is served with; what differs is changed too, but for host and port.
            Without it for an application that a Serve config file declares, of which only the release is changed.
        address: of the Ray that serves; the one in `RAY_ADDRESS`, or found on this machine, if None.

    Returns:
        `release` and `release_id`, and `before`, the directory of the release that it follows.

    Raises:
        ArtifactError: the release is damaged, unknown to the registry, or did not start; the one before goes on.
        ArtifactMismatch: it answers its golden requests otherwise than when it was built.
        EndpointError: nothing is served there.
        RecipeError: wrong settings, or any for an application that a config file declares.
    """
    settings, before = serve_settings(recipe), _served(address)
    declared = declared_config()
    if declared is not None:
        check_no_settings(recipe)

    def put(release: str, release_id: str) -> None:
        if declared is None:
            start(release, release_id, settings)
        else:
            declare(declared, release)

    # A deployment that was cut off before it was recorded is made good for, so that `previous` goes by what answers.
    record_deployment(before.release)
    found = find_release(release)
    place = str(found.resolve())
    engine = Engine.open(place)
    check_golden(engine, engine.golden)
    logger.info("deploying release %s after %s", engine.release_id, before.release_id)
    try:
        put(place, engine.release_id)
    except RuntimeError as error:
        put(before.release, before.release_id)  # or Serve would try the new one again whenever a replica is lost
        raise ArtifactError(
            f"{place}: did not start, and {before.release_id} goes on answering; the log of the new replicas (in Ray's "
            f"folder of logs, under serve/) says why: {error}"
        ) from None
    record_deployment(place)
    return {"release": str(found), "release_id": engine.release_id, "before": before.release}


def _served(address: str | None) -> Ready:
    """What the running application answers with."""
    place = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if not ray.is_initialized():
            _check_listens(place)
            ray.init(place, logging_level=logging.WARNING)
        endpoint = ray.serve.get_app_handle(APPLICATION)
        found: Ready = endpoint.ready.remote().result(timeout_s=60)
    except (OSError, ray.serve.exceptions.RayServeException) as error:
        raise EndpointError(
            f"no application {APPLICATION!r} answers there ({error}); start it with farsight serve, or give the "
            "ray_address that it printed with --address"
        ) from None
    return found


def _check_listens(address: str) -> None:
    """Whether somebody is at HOST:PORT. Ray itself would ask a dead address again for minutes.

    Raises:
        OSError: nobody is.
    """
    host, mark, port = address.removeprefix("ray://").rpartition(":")
    if mark and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
