"""Model and index of one release side by side, behind micro-batches."""

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import ray.serve
import torch

from data.errors import ArtifactMismatch
from serve.answer import Answer, EncodedQuery, Query, Refusal
from serve.description import Description, describe
from serve.engine import Engine
from serve.golden import check_golden, is_golden, query_of
from serve.index.on_faiss import set_search_threads
from serve.instructions import Unanswerable
from serve.settings import Batching, Replicas
from serve.watching import QUEUE, STAGES, RetrieverWatch

# How long a thread waits for Python's interpreter lock before it asks for it. The model needs the lock between any two
# operations, and under load the event loop always has it: with Python's 5 ms an answer takes a third more time.
SWITCH_SECONDS = 5e-4


@dataclass(frozen=True)
class Ready:
    """What a replica serves."""

    release: str  # directory
    release_id: str


@dataclass
class _Waiting:
    """A request in the batch queue."""

    query: EncodedQuery
    since: float  # seconds of the clock
    abandoned: bool = False  # its deadline passed or its client left


class Overloaded(Exception):
    """As many requests as allowed are in flight."""


class Retriever:
    """Answers concurrent queries of one event loop. The model runs in one thread and the search in another, so the
    loop stays free for what else it does, and one batch is searched while the next is encoded.
    """

    def __init__(self, release: str, batching: Batching, replicas: Replicas, max_in_flight: int) -> None:
        """Load a release and ask its golden requests.

        Args:
            release: directory.
            max_in_flight: queries at a time, waiting ones included.

        Raises:
            ArtifactError: missing, damaged or mismatched.
            ArtifactMismatch: it answers its golden requests otherwise than when it was built.
        """
        torch.set_num_threads(replicas.torch_threads)
        sys.setswitchinterval(SWITCH_SECONDS)
        self._release = release
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._engine = Engine.open(release, device="cuda" if replicas.num_gpus else "cpu")
        # Warms the engine up, too.
        check_golden(self._engine, self._engine.golden)
        self._description = describe(self._engine)
        self._watch = RetrieverWatch(self._engine.release_id, self._engine.top_score_deciles)
        self._model_thread = ThreadPoolExecutor(1, "model")
        self._search_thread = ThreadPoolExecutor(
            1, "search", initializer=set_search_threads, initargs=(replicas.torch_threads,)
        )
        # Two batches at a time: one in each thread.
        self._answer_batched = ray.serve.batch(
            max_batch_size=batching.max_batch_size,
            batch_wait_timeout_s=batching.wait_seconds,
            max_concurrent_batches=2,
        )(self._answer_batch)

    async def retrieve(self, query: Query) -> Answer | Refusal:
        """Answer one query together with whatever else is waiting.

        Raises:
            Overloaded: too many are in flight.
        """
        if self.is_full():
            raise Overloaded
        try:
            waiting = _Waiting(self._engine.encode(query), time.perf_counter())
        except Unanswerable as error:
            return Refusal(error.field, error.message)
        self._in_flight += 1
        try:
            answer = await self._answer_batched(waiting)
        except asyncio.CancelledError:
            # Under overload most of a queue may be past its deadline; computing it would starve the rest.
            waiting.abandoned = True
            raise
        finally:
            self._in_flight -= 1
        assert answer is not None  # only an abandoned request has no answer
        return answer

    def is_full(self) -> bool:
        """Whether a query would be refused."""
        return self._in_flight >= self._max_in_flight

    def describe(self) -> Description:
        """What can be asked."""
        return self._description

    async def ready(self) -> Ready:
        """Answer a golden request on the way that every request goes.

        Raises:
            ArtifactMismatch: the answer is not golden.
        """
        for expected in self._engine.golden[:1]:
            answer = await self.retrieve(query_of(expected))
            if isinstance(answer, Refusal) or not is_golden(answer, expected):
                raise ArtifactMismatch(f"release {self._engine.release_id}: a golden request got another answer")
        return Ready(self._release, self._engine.release_id)

    async def _answer_batch(self, batch: list[_Waiting]) -> list[Answer | None]:
        loop = asyncio.get_running_loop()
        wanted = [place for place, waiting in enumerate(batch) if not waiting.abandoned]
        results: list[Answer | None] = [None] * len(batch)
        if not wanted:
            return results
        queries = [batch[place].query for place in wanted]
        clock = [time.perf_counter()]
        query_ND = await loop.run_in_executor(self._model_thread, self._engine.query_vectors, queries)
        clock.append(time.perf_counter())
        hits = await loop.run_in_executor(self._search_thread, self._engine.search, queries, query_ND)
        clock.append(time.perf_counter())
        answers = self._engine.answers(queries, hits)
        clock.append(time.perf_counter())
        stage_seconds = dict(zip(STAGES, np.diff(clock).tolist(), strict=True))
        self._watch.answered(queries, answers, stage_seconds)
        for place, answer in zip(wanted, answers, strict=True):
            waited = clock[0] - batch[place].since
            self._watch.waited(waited)
            results[place] = replace(answer, stage_seconds={QUEUE: waited, **stage_seconds})
        return results
