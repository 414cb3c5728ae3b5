"""Model and index of one release side by side, behind micro-batches."""

import asyncio
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from data.errors import ArtifactMismatch
from serve.answer import Answer, EncodedQuery, FloatArray, Query, Refusal
from serve.batching import Batches
from serve.catalogue import Catalogue
from serve.description import Description, describe
from serve.engine import Engine
from serve.golden import check_golden, is_golden, query_of
from serve.index.contract import Hits
from serve.index.on_faiss import set_search_threads
from serve.instructions import Unanswerable
from serve.query_cache import QueryCache
from serve.searchers import RemoteIndex
from serve.settings import ServeSettings
from serve.updates.overlay import Overlay
from serve.watching import QUEUE, STAGES, RetrieverWatch

# How long a thread waits for Python's interpreter lock before it asks for it. The model needs the lock between any two
# operations, and under load the event loop always has it: with Python's 5 ms an answer takes a third more time.
SWITCH_SECONDS = 5e-4


@dataclass(frozen=True)
class Ready:
    """What a replica serves."""

    release: str  # directory
    release_id: str


@dataclass(frozen=True)
class _Waiting:
    """A request in the batch queue."""

    query: EncodedQuery
    since: float  # seconds of the clock


class Overloaded(Exception):
    """As many requests as allowed are in flight."""


class Retriever:
    """Answers concurrent queries of one event loop. The model and the search run in a thread of their own, so the loop
    stays free for what else it does, and neither is called twice at a time.
    """

    def __init__(self, release: str, settings: ServeSettings) -> None:
        """Load a release; it answers once it has been warmed up.

        Args:
            release: directory.

        Raises:
            ArtifactError: missing, damaged or mismatched.
        """
        threads = settings.replicas.torch_threads
        torch.set_num_threads(threads)
        sys.setswitchinterval(SWITCH_SECONDS)
        self._release = release
        self._max_in_flight = settings.queueing.max_in_flight
        self._in_flight = 0
        device = "cuda" if settings.replicas.num_gpus else "cpu"
        index = None if settings.searchers is None else RemoteIndex(release)
        self._engine = Engine.open(release, device, index, settings.replicas)
        self._description = describe(self._engine)
        self._catalogue = self._engine.catalogue
        self._watch = RetrieverWatch(self._engine.release_id, self._engine.top_score_deciles)
        self._thread = ThreadPoolExecutor(1, "model", initializer=set_search_threads, initargs=(threads,))
        self._cache = QueryCache(settings.query_cache, self._engine.max_events, self._engine.needs_times)
        self._batches = Batches(self._answer_batch, settings.batching.max_batch_size)

    @property
    def engine(self) -> Engine:
        """The release that it answers with."""
        return self._engine

    async def warm_up(self) -> None:
        """Ask the release's golden requests.

        Raises:
            ArtifactMismatch: it answers them otherwise than when it was built.
        """
        engine, loop = self._engine, asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, engine.prepare)
        await loop.run_in_executor(self._thread, check_golden, engine, engine.golden)

    async def retrieve(self, query: Query, catalogue: Catalogue | None = None) -> Answer | Refusal:
        """Answer one query together with whatever else is waiting.

        Args:
            catalogue: what to answer from; the one that is shown if None.

        Raises:
            Overloaded: too many are in flight.
            SearchersLost: a part of the catalogue cannot be searched.
        """
        if self._in_flight >= self._max_in_flight:
            raise Overloaded
        try:
            waiting = _Waiting(self._engine.encode(query, catalogue or self._catalogue), time.perf_counter())
        except Unanswerable as error:
            return Refusal(error.field, error.message)
        self._in_flight += 1
        try:
            return await self._batches.ask(waiting)
        finally:
            self._in_flight -= 1

    def show(self, overlay: Overlay) -> None:
        """Answer queries that come from now on as updates have it. Any thread may call it."""
        self._catalogue = overlay.catalogue
        self._watch.shown(overlay)

    def describe(self) -> Description:
        """What can be asked."""
        return self._description

    async def ready(self) -> Ready:
        """Answer a golden request on the way that every request goes, from the release as it was built.

        Raises:
            ArtifactMismatch: the answer is not golden.
        """
        for expected in self._engine.golden[:1]:
            answer = await self.retrieve(query_of(expected), self._engine.catalogue)
            if isinstance(answer, Refusal) or not is_golden(answer, expected):
                raise ArtifactMismatch(f"release {self._engine.release_id}: a golden request got another answer")
        return Ready(self._release, self._engine.release_id)

    async def _answer_batch(self, batch: Sequence[_Waiting]) -> list[Answer]:
        queries = [waiting.query for waiting in batch]
        began = time.perf_counter()
        hits, clock = await asyncio.get_running_loop().run_in_executor(self._thread, self._found, queries)
        answers = self._engine.answers(queries, hits)
        clock.append(time.perf_counter())
        stage_seconds = dict(zip(STAGES, np.diff(clock).tolist(), strict=True))
        self._watch.answered(queries, answers, stage_seconds)
        waits = [began - waiting.since for waiting in batch]
        self._watch.waited(waits)
        return [
            replace(answer, stage_seconds={QUEUE: waited, **stage_seconds})
            for answer, waited in zip(answers, waits, strict=True)
        ]

    def _found(self, queries: Sequence[EncodedQuery]) -> tuple[Hits, list[float]]:
        """Hits of the branch queries, and the times at which encoding and searching began and ended."""
        clock = [time.perf_counter()]
        query_ND = self._vectors(queries)
        clock.append(time.perf_counter())
        hits = self._engine.search(queries, query_ND)
        clock.append(time.perf_counter())
        return hits, clock

    def _vectors(self, queries: Sequence[EncodedQuery]) -> FloatArray:
        """Query vectors, [N, D], of the cache where it has them."""
        keys = [self._cache.key(query) for query in queries]
        found = {key: vectors for key in keys if (vectors := self._cache.get(key)) is not None}
        missing = [place for place, key in enumerate(keys) if key not in found]
        self._watch.looked_up(len(queries), len(missing))
        if missing:
            encoded_ND = self._engine.query_vectors([queries[place] for place in missing])
            ends = np.cumsum([len(queries[place].instructions) for place in missing])
            for place, own_PD in zip(missing, np.split(encoded_ND, ends[:-1]), strict=True):
                found[keys[place]] = own_PD
                self._cache.put(keys[place], own_PD)
        return np.concatenate([found[key] for key in keys])
