"""What Prometheus sees of an endpoint, and its access log.

Ray exports the metrics of every process on a node (`ray metrics` port, names with the prefix `ray_`), with the
deployment and the replica as tags; docs/serving.md lists them.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.serve.metrics import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.answer import Answer, EncodedQuery, own_top_scores
from serve.updates.overlay import Overlay

# Serve gives this logger a file per replica, and its records the request id, the deployment and the replica.
access_logger = logging.getLogger("ray.serve")

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
BATCH_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
QUEUE = "queue"  # of a request, until its batch begins
STAGES = ("encode", "search", "merge")  # of a batch
# Status, in nobody's standard but in common use, of a request that nobody waits for any more.
CLIENT_LEFT = 499
# Path of what no route answers, so that a scan of paths makes no series of its own.
NO_ROUTE = "other"


class RequestWatch:
    """ASGI middleware around everything: counts and times requests, and writes the access log.

    What the application puts under `state` of a request's scope goes into its line.
    """

    def __init__(self, app: ASGIApp, access_log: bool) -> None:
        self._app = app
        self._access_log = access_log
        by: Any = ("path", "status")  # Ray's type allows one tag, its code any number
        self._requests = Counter("farsight_requests", "requests answered", by)
        self._seconds = Histogram("farsight_request_seconds", "from the first byte to the last", SECONDS, ("path",))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()
        state = scope.setdefault("state", {})

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            status = CLIENT_LEFT
            raise
        finally:
            seconds = time.perf_counter() - started
            path = getattr(scope.get("route"), "path", NO_ROUTE)
            self._requests.inc(tags={"path": path, "status": str(status)})
            self._seconds.observe(seconds, {"path": path})
            if self._access_log:
                line = {"method": scope["method"], "path": path, "status": status, "ms": round(1e3 * seconds, 2)}
                access_logger.info("access", extra={**line, **state, "log_to_stderr": False})


def noted(answer: Answer) -> dict[str, Any]:
    """What the access log says of an answer."""
    return {
        "release": answer.release,
        "items": len(answer.item_ids),
        "fallback": answer.fallback,
        "history_events_used": answer.history_events_used,
        "unknown_items": answer.unknown_items,
        "stage_ms": {stage: round(1e3 * seconds, 2) for stage, seconds in answer.stage_seconds.items()},
    }


def server_timing(stage_seconds: Mapping[str, float]) -> str:
    """The header `Server-Timing` (W3C), in milliseconds: browsers show it."""
    return ", ".join(f"{stage};dur={1e3 * seconds:.2f}" for stage, seconds in stage_seconds.items())


class RetrieverWatch:
    """Metrics of one replica of the retriever."""

    def __init__(self, release_id: str, top_score_deciles: Sequence[float] | None) -> None:
        """Start counting.

        Args:
            top_score_deciles: the nine scores that cut the best scores of the release's own requests into tenths.
        """
        self._deciles = top_score_deciles
        release = Gauge("farsight_release", "1 for the release that this replica answers with", ("release",))
        release.set(1, {"release": release_id})
        self._stage_seconds = Histogram(
            "farsight_stage_seconds", "queue: of a request; encode, search, merge: of a batch", SECONDS, ("stage",)
        )
        self._batch_size = Histogram("farsight_batch_size", "requests of one forward pass", BATCH_SIZES)
        self._cache = Counter("farsight_query_cache", "histories by whether their query vectors were kept", ("result",))
        self._history_events = Counter("farsight_history_events", "events of the histories that were sent")
        self._unknown_items = Counter("farsight_unknown_items", "of these, events whose item the release lacks")
        self._wanted = Counter("farsight_items_wanted", "items asked for")
        self._answered = Counter("farsight_items_answered", "of these, items answered")
        self._fallbacks = Counter("farsight_fallbacks", "answers that are not the model's", ("fallback",))
        self._version = Gauge("farsight_updates_version", "of the updates of items that this replica answers from")
        self._items = Gauge("farsight_updated_items", "items that stand added, left_out, or removed", ("state",))
        self._top_scores = Counter(
            "farsight_top_scores", "best scores by the tenth of the release's own that they fall in", ("tenth",)
        )

    def shown(self, overlay: Overlay) -> None:
        """Other updates of items stand."""
        self._version.set(overlay.updates.version)
        num_left_out = len(overlay.left_out)
        self._items.set(len(overlay.updates.added) - num_left_out, {"state": "added"})
        self._items.set(num_left_out, {"state": "left_out"})
        self._items.set(len(overlay.updates.removed), {"state": "removed"})

    def waited(self, waits: Sequence[float]) -> None:
        """Requests left the queue after so many seconds each."""
        for seconds in waits:
            self._stage_seconds.observe(seconds, {"stage": QUEUE})

    def looked_up(self, asked: int, missing: int) -> None:
        """The cache of query vectors was asked for some, and lacked some."""
        for result, count in (("hit", asked - missing), ("miss", missing)):
            _add(self._cache, count, {"result": result})

    def answered(
        self, queries: Sequence[EncodedQuery], answers: Sequence[Answer], stage_seconds: Mapping[str, float]
    ) -> None:
        """A batch is done."""
        for stage, seconds in stage_seconds.items():
            self._stage_seconds.observe(seconds, {"stage": stage})
        self._batch_size.observe(len(queries))
        _add(self._history_events, sum(len(query.items_L) + query.unknown_items for query in queries))
        _add(self._unknown_items, sum(query.unknown_items for query in queries))
        _add(self._wanted, sum(query.k for query in queries))
        _add(self._answered, sum(len(answer.item_ids) for answer in answers))
        for answer in answers:
            if answer.fallback is not None:
                self._fallbacks.inc(tags={"fallback": answer.fallback})
        if self._deciles is not None:
            tenths = np.searchsorted(self._deciles, own_top_scores(answers))
            for tenth, count in zip(*np.unique(tenths, return_counts=True), strict=True):
                _add(self._top_scores, int(count), {"tenth": str(tenth)})


def _add(counter: Counter, count: int, tags: dict[str, str] | None = None) -> None:
    if count:  # Ray refuses to add nothing
        counter.inc(count, tags or {})
