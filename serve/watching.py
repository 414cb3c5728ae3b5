"""What Prometheus sees of an endpoint, and its access log.

Ray exports the metrics of every process on a node (`ray metrics` port, names with the prefix `ray_`), with the
deployment and the replica as tags; `serve.metrics` and docs/monitoring.md list them.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray.serve.metrics
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data.metrics import Recorder
from serve.answer import Answer, EncodedQuery, own_top_scores
from serve.metrics import (
    ANSWERS,
    BATCH_SIZE,
    DEADLINE_SECONDS,
    FALLBACKS,
    HISTORY_EVENTS,
    ITEMS_ANSWERED,
    ITEMS_WANTED,
    OF_A_REPLICA,
    OF_REQUESTS,
    QUERY_CACHE,
    RELEASE,
    RELEASE_BUILT,
    RELEASE_UNKNOWN,
    REQUEST_SECONDS,
    REQUESTS,
    STAGE_SECONDS,
    TOP_SCORES,
    UNKNOWN_ITEMS,
    UPDATED_ITEMS,
    UPDATES_VERSION,
)
from serve.release import Release
from serve.updates.overlay import Overlay

# Serve gives this logger a file per replica, and its records the request id, the deployment and the replica.
access_logger = logging.getLogger("ray.serve")

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
        self._recorder = Recorder(OF_REQUESTS, ray.serve.metrics)

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
            self._recorder.add(REQUESTS, 1, path=path, status=str(status))
            self._recorder.observe(REQUEST_SECONDS, seconds, path=path)
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

    def __init__(self, release: Release, deadline_seconds: float) -> None:
        """Start counting.

        Args:
            release: what the replica answers with.
            deadline_seconds: of a request that states none.
        """
        self._deciles = release.top_score_deciles
        self._recorder = Recorder(OF_A_REPLICA, ray.serve.metrics)
        self._recorder.set(DEADLINE_SECONDS, deadline_seconds)
        self._recorder.set(RELEASE, 1, release=release.release_id)
        if release.built_at is not None:
            self._recorder.set(RELEASE_BUILT, release.built_at, release=release.release_id)
        if release.unknown_share is not None:
            self._recorder.set(RELEASE_UNKNOWN, release.unknown_share, release=release.release_id)

    def shown(self, overlay: Overlay) -> None:
        """Other updates of items stand."""
        num_left_out = len(overlay.left_out)
        self._recorder.set(UPDATES_VERSION, overlay.updates.version)
        self._recorder.set(UPDATED_ITEMS, len(overlay.updates.added) - num_left_out, state="added")
        self._recorder.set(UPDATED_ITEMS, num_left_out, state="left_out")
        self._recorder.set(UPDATED_ITEMS, len(overlay.updates.removed), state="removed")

    def waited(self, waits: Sequence[float]) -> None:
        """Requests left the queue after so many seconds each."""
        for seconds in waits:
            self._recorder.observe(STAGE_SECONDS, seconds, stage=QUEUE)

    def looked_up(self, asked: int, missing: int) -> None:
        """The cache of query vectors was asked for some, and lacked some."""
        self._recorder.add(QUERY_CACHE, asked - missing, result="hit")
        self._recorder.add(QUERY_CACHE, missing, result="miss")

    def answered(
        self, queries: Sequence[EncodedQuery], answers: Sequence[Answer], stage_seconds: Mapping[str, float]
    ) -> None:
        """A batch is done."""
        recorder = self._recorder
        for stage, seconds in stage_seconds.items():
            recorder.observe(STAGE_SECONDS, seconds, stage=stage)
        recorder.observe(BATCH_SIZE, len(queries))
        recorder.add(HISTORY_EVENTS, sum(len(query.items_L) + query.unknown_items for query in queries))
        recorder.add(UNKNOWN_ITEMS, sum(query.unknown_items for query in queries))
        recorder.add(ITEMS_WANTED, sum(query.k for query in queries))
        recorder.add(ITEMS_ANSWERED, sum(len(answer.item_ids) for answer in answers))
        recorder.add(ANSWERS, len(answers))
        for answer in answers:
            if answer.fallback is not None:
                recorder.add(FALLBACKS, 1, fallback=answer.fallback)
        if self._deciles is not None:
            # Scores under other weights than the release's own are of another scale.
            plain = [answer for query, answer in zip(queries, answers, strict=True) if not query.weighted]
            tenths = np.searchsorted(self._deciles, own_top_scores(plain))
            for tenth, count in zip(*np.unique(tenths, return_counts=True), strict=True):
                recorder.add(TOP_SCORES, int(count), tenth=str(tenth))
