"""Concurrent calls that share one: whatever waits when the worker is free is the next batch."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class Batches(Generic[Asked, Answered]):
    """Batches of one event loop, one at a time and without a clock: a lone call starts at once, and under load batches
    grow by themselves, because calls gather while the batch before is worked on.
    """

    def __init__(self, answer: Callable[[Sequence[Asked]], Awaitable[Sequence[Answered]]], max_size: int) -> None:
        """Nothing runs until something is asked.

        Args:
            answer: of a batch, in its order; what it raises, each call of the batch raises.
            max_size: calls of one batch.
        """
        self._answer = answer
        self._max_size = max_size
        self._waiting: deque[tuple[Asked, asyncio.Future[Answered]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Answered:
        """What the batch that this call falls into answers it. A call that is cancelled before its batch begins is left
        out: under overload most of a queue may be past its deadline, and computing it would starve the rest.
        """
        answered: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, answered))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await answered

    async def _work(self) -> None:
        while batch := self._next():
            try:
                results = await self._answer([asked for asked, _ in batch])
            except Exception as error:  # the calls' own to handle
                for _, answered in batch:
                    if not answered.done():
                        answered.set_exception(error)
                continue
            for (_, answered), result in zip(batch, results, strict=True):
                if not answered.done():
                    answered.set_result(result)
        self._worker = None

    def _next(self) -> list[tuple[Asked, "asyncio.Future[Answered]"]]:
        batch: list[tuple[Asked, asyncio.Future[Answered]]] = []
        while self._waiting and len(batch) < self._max_size:
            asked, answered = self._waiting.popleft()
            if not answered.done():
                batch.append((asked, answered))
        return batch
