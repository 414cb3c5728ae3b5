"""Batches without a clock, and the cache of query vectors."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.answer import EncodedQuery
from serve.batching import Batches
from serve.instructions import Instruction
from serve.query_cache import QueryCache
from tests.catalogues import with_added

CATALOGUE = with_added(["a"], [])


class Squares:
    """Answers squares, and remembers what it was asked for at a time."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = asyncio.Event()
        self.free.set()

    async def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        await self.free.wait()
        if 13 in numbers:
            raise ValueError("13")
        return [number**2 for number in numbers]


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 5))
def test_every_call_gets_its_own_answer_in_batches_of_at_most_the_size(numbers: list[int], max_size: int) -> None:
    async def ask() -> None:
        squares = Squares()
        batches = Batches(squares, max_size)
        assert await asyncio.gather(*map(batches.ask, numbers)) == [number**2 for number in numbers]
        assert [number for batch in squares.batches for number in batch] == numbers
        assert all(len(batch) <= max_size for batch in squares.batches)

    asyncio.run(ask())


def test_a_lone_call_starts_at_once_and_those_that_come_meanwhile_are_the_next_batch() -> None:
    async def ask() -> None:
        squares = Squares()
        squares.free.clear()
        batches = Batches(squares, 8)
        first = asyncio.create_task(batches.ask(1))
        await asyncio.sleep(0.01)
        assert squares.batches == [[1]]
        later = [asyncio.create_task(batches.ask(number)) for number in (2, 3, 4)]
        await asyncio.sleep(0.01)
        later[1].cancel()
        squares.free.set()
        assert await first == 1
        assert await asyncio.gather(later[0], later[2]) == [4, 16]
        assert squares.batches == [[1], [2, 4]], "a call that nobody waits for any more is left out"

    asyncio.run(ask())


def test_an_error_reaches_the_calls_of_its_batch_and_no_others() -> None:
    async def ask() -> None:
        batches = Batches(Squares(), 2)
        found = await asyncio.gather(*map(batches.ask, (1, 13, 2, 3)), return_exceptions=True)
        assert [str(one) for one in found] == ["13", "13", "4", "9"]
        assert await batches.ask(5) == 25

    asyncio.run(ask())


def query(items: Sequence[int], *, at: int = 10, code: int = 0, hard: bool = False, action: int = 0) -> EncodedQuery:
    rows = np.array(items, np.int64)
    return EncodedQuery(
        items_L=rows,
        times_L=np.zeros(len(rows), np.int64),
        actions_L=np.full(len(rows), action),
        query_time=at,
        k=5,
        barred=frozenset(),
        unknown_items=0,
        unknown_actions=0,
        catalogue=CATALOGUE,
        instructions=(Instruction(code, None, 1.0, hard),),
    )


@pytest.mark.parametrize("reads_times", [True, False])
def test_what_the_model_would_see_differently_has_another_key_and_nothing_else_has(reads_times: bool) -> None:
    cache = QueryCache(10, max_events=3, reads_times=reads_times)
    base = cache.key(query([1, 2, 3]))
    others = [query([1, 2]), query([2, 1, 3]), query([1, 2, 3], code=1), query([1, 2, 3], action=1)]
    assert len({base, *map(cache.key, others)}) == 5
    assert cache.key(query([1, 2, 3], hard=True)) == base, "a filter changes the search, not the vector"
    assert cache.key(query([9, 1, 2, 3])) == base, "the model sees the newest three"
    assert (cache.key(query([1, 2, 3], at=11)) == base) is not reads_times


def test_the_cache_keeps_what_was_asked_for_last() -> None:
    cache = QueryCache(2, max_events=3, reads_times=False)
    keys = [cache.key(query([item])) for item in (1, 2, 3)]
    for key in keys[:2]:
        cache.put(key, np.zeros((1, 4), np.float32))
    assert cache.get(keys[0]) is not None
    cache.put(keys[2], np.ones((1, 4), np.float32))
    assert cache.get(keys[1]) is None
    assert [cache.get(key) is None for key in (keys[0], keys[2])] == [False, False]
    nothing = QueryCache(0, max_events=3, reads_times=False)
    nothing.put(keys[0], np.zeros((1, 4), np.float32))
    assert nothing.get(keys[0]) is None
