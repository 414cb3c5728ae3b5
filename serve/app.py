"""The Serve application, for `farsight serve` and for Serve config files (`import_path: serve.app:app`)."""

import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.serve
from pydantic import Field

from data.errors import MachineError, RecipeError
from data.session import connect
from data.settings import Recipe, Settings, SettingsT, read_section
from serve.access import Tokens
from serve.endpoint import Endpoint
from serve.haproxy import haproxy_environment
from serve.histories.contract import HistoriesUnavailable
from serve.histories.store import open_histories
from serve.registry import find_release, record_deployment
from serve.release import Release
from serve.searchers import start_searchers, stop_searchers
from serve.settings import Replicas, ServeSettings, SqliteSettings
from serve.updates.contract import UpdatesUnavailable
from serve.updates.settings import SqliteUpdatesSettings
from serve.updates.store import open_updates

logger = logging.getLogger(__name__)

APPLICATION = "farsight"
# Requests that a replica may hold, per request that it works on.
REFUSING_ROOM = 8
# How often a replica that is told to stop looks whether its requests are done; Serve's own 2 s only delays the end.
DRAIN_POLL_SECONDS = 0.2
GRPC_SERVICER = "serve.grpc.farsight_pb2_grpc.add_RetrieverServicer_to_server"
GRPC_MESSAGE_BYTES = 4 * 2**20  # gRPC's own default
_SAY_WHO = "set serve.access.tokens_file=FILE, or serve.access.anyone=true where something in front asks who they are"
# Where Serve's gRPC proxy listens; it cannot be told otherwise.
ANYWHERE = "0.0.0.0"
# Serve's own lines cost throughput; the API writes one per request (`serve.watching`).
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
ACCESS_LOGGING = {"log_level": "INFO", "enable_access_log": False, "encoding": "JSON"}


# What a Serve config file says in fields of its own, or in the environment of the nodes.
SERVES_OWN = ("host", "port", "route_prefix", "grpc_port", "haproxy")


class AppArguments(Settings):
    """`args` of the application in a Serve config file."""

    release: str = Field(
        description="a release, or a registry and what is wanted of it, readable under this path by every node; of a "
        "registry alone the release that was deployed last"
    )
    serve: ServeSettings = Field(default_factory=ServeSettings, description="section `serve` of a recipe")


def app(args: AppArguments) -> ray.serve.Application:
    """The application that a Serve config file declares (`serve.declared` changes its release).

    Raises:
        RecipeError: settings that belong elsewhere in the file, or no word of who may ask: the file's proxy may listen
            anywhere.
        ArtifactError: the registry has no such release.
    """
    for name in SERVES_OWN:
        if name in args.serve.model_fields_set:
            raise RecipeError(
                f"args.serve.{name}: is said elsewhere in a Serve config file: http_options and grpc_options, the "
                "application's route_prefix, or the environment of the nodes (docs/kubernetes.md)"
            )
    if args.serve.access.tokens_file is None and not args.serve.access.anyone:
        raise RecipeError(f"args.serve.access: whoever reaches the port could ask; {_SAY_WHO}")
    return endpoint_application(str(find_release(args.release).resolve()), args.serve)


def endpoint_application(release: str, settings: ServeSettings) -> ray.serve.Application:
    """The endpoint's replicas.

    When the application is deployed again, all new replicas start beside the old ones, and those stop once these
    answer (`max_surge_percent`).

    Args:
        release: directory of a release, readable under this path by every node.
    """
    queueing, replicas = settings.queueing, settings.replicas
    endpoint = ray.serve.deployment(
        name="endpoint",
        # Room beyond what a replica works on, so that it can refuse; the proxy refuses what is past that.
        max_ongoing_requests=REFUSING_ROOM * queueing.max_in_flight,
        max_queued_requests=queueing.max_in_flight * replicas.max_replicas,
        backpressure_config={"status_code": 503, "retry_after_s": queueing.retry_after_seconds},
        ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        logging_config=ACCESS_LOGGING if settings.access_log else LOGGING,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_SECONDS,
        max_surge_percent=100,
        **_scaling(replicas),
    )(Endpoint)
    application: ray.serve.Application = endpoint.bind(release, settings)
    return application


def run(
    release: str, recipe: Recipe, blocking: bool = True, on_ready: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Serve a release over HTTP, and over gRPC if `serve.grpc_port` says where.

    Args:
        release: a release, as `serve.registry.find_release` finds it.
        recipe: section `serve` is read.
        blocking: stay until SIGINT or SIGTERM, then shut Serve down.
        on_ready: called with the result once requests are answered.

    Returns:
        `url`, `docs_url`, `release` (directory), `release_id`, `metrics_url` (of this node) and `ray_address`, for
        `farsight deploy`.

    Raises:
        ArtifactError: the release is missing, damaged or mismatched, or unknown to the registry.
        MachineError: a port is taken, or histories or updates cannot be kept where the recipe says.
        RecipeError: wrong settings, or an endpoint beyond this machine without tokens.
    """
    settings = serve_settings(recipe)
    _check_access(settings)
    # Opened here first: an error now is one line, an error in a replica is a stack of retries.
    found = find_release(release)
    release_id = Release.open(found).release_id
    _check_port("port", settings.host, settings.port)
    _check_histories(settings)
    _check_updates(settings)
    if settings.haproxy:
        os.environ.update(haproxy_environment(settings.queueing))
    http, grpc = {"host": settings.host, "port": settings.port}, None
    if settings.grpc_port is not None:
        _check_port("grpc_port", ANYWHERE, settings.grpc_port)
        grpc = {"port": settings.grpc_port, "grpc_servicer_functions": [GRPC_SERVICER]}
        # Serve's own limit of what its proxy reads, before anything of ours asks for a token, is 2 GiB.
        os.environ["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] = str(max(GRPC_MESSAGE_BYTES, settings.limits.max_body_bytes))
    connect()
    ray.serve.start(http_options=http, grpc_options=grpc, logging_config=LOGGING)
    start(str(found.resolve()), release_id, settings)
    record_deployment(found)
    url = f"http://{settings.host}:{settings.port}{settings.route_prefix.rstrip('/')}"
    result = {
        "url": url,
        "docs_url": f"{url}/docs",
        "release": str(found),
        "release_id": release_id,
        "metrics_url": _metrics_url(),
        "ray_address": ray.get_runtime_context().gcs_address,
    }
    logger.info("serving release %s at %s", release_id, url)
    if on_ready is not None:
        on_ready(result)
    if blocking:
        _wait_for_signal()
        ray.serve.shutdown()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    return result


def start(release: str, release_id: str, settings: ServeSettings) -> None:
    """Serve a release, also in the place of another; returns once it answers.

    Args:
        release: directory of a release, readable under this path by every node.
    """
    if settings.searchers is not None:
        start_searchers(release, release_id, settings.searchers)
    ray.serve.run(endpoint_application(release, settings), name=APPLICATION, route_prefix=settings.route_prefix)
    stop_searchers(but_of=[] if settings.searchers is None else [release_id])


def serve_settings(recipe: Recipe) -> ServeSettings:
    """Section `serve`; relative files lie where the command runs, and not where a replica does."""
    settings = read_section(recipe, "serve", ServeSettings)
    access, histories, updates = settings.access, settings.histories, settings.updates
    return settings.model_copy(
        update={
            "access": _placed(access, "tokens_file"),
            "histories": _placed(histories, "path" if isinstance(histories, SqliteSettings) else "password_file"),
            "updates": _placed(updates, "path" if isinstance(updates, SqliteUpdatesSettings) else "password_file"),
        }
    )


def _placed(settings: SettingsT | None, name: str) -> SettingsT | None:
    """Settings with the file that they name made absolute, if they name one."""
    file = getattr(settings, name, None)
    if settings is None or file is None:
        return settings
    return settings.model_copy(update={name: str(Path(file).absolute())})


def _scaling(replicas: Replicas) -> dict[str, Any]:
    """A fixed number of replicas, or Serve's autoscaler where there is something to scale."""
    if replicas.min_replicas == replicas.max_replicas:
        return {"num_replicas": replicas.min_replicas}
    names = {"min_replicas", "max_replicas", "target_ongoing_requests", "upscale_delay_s", "downscale_delay_s"}
    return {"autoscaling_config": replicas.model_dump(include=names)}


def _metrics_url() -> str | None:
    """Where Ray exports the metrics of this node, for Prometheus."""
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        if node["NodeID"] == here:
            return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return None


def _check_access(settings: ServeSettings) -> None:
    access = settings.access
    if access.tokens_file is not None:
        Tokens(access.tokens_file)
    elif not access.anyone and (what := _beyond_this_machine(settings)) is not None:
        raise RecipeError(f"serve.{what}: listens beyond this machine, and anyone there could ask; {_SAY_WHO}")


def _beyond_this_machine(settings: ServeSettings) -> str | None:
    """The setting by which others than this machine's own programs reach the endpoint."""
    if settings.haproxy:
        return "haproxy=true"  # a replica's own port is then open on every interface, for the HAProxy of other nodes
    if settings.grpc_port is not None:
        return f"grpc_port {settings.grpc_port}"
    return None if _is_loopback(settings.host) else f"host {settings.host}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_histories(settings: ServeSettings) -> None:
    if settings.histories is None:
        return
    try:
        open_histories(settings.histories).close()
    except HistoriesUnavailable as error:
        raise MachineError(f"serve.histories: {error}, or set serve.histories=null") from None


def _check_updates(settings: ServeSettings) -> None:
    if settings.updates is None:
        return
    try:
        store = open_updates(settings.updates)
        store.updates()  # as each replica does when it starts
        store.close()
    except UpdatesUnavailable as error:
        raise MachineError(f"serve.updates: {error}, or set serve.updates=null") from None


def _check_port(setting: str, host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise MachineError(
                f"address {host}, serve.{setting} {port}: {error.strerror}; stop what listens there, "
                f"or serve on another port with serve.{setting}=N"
            ) from None


def _wait_for_signal() -> None:
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in signals]
    try:
        # A wait without a limit would keep Python from running the handler on some systems.
        while not stop.wait(1):
            pass
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
