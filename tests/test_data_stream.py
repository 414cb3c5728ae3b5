"""The training stream: every window of an epoch exactly once, also when the epoch is left and gone on with."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray.data
import torch

from data.stream import EpochSize, EqualParts, TrainingStream, epoch_size, window_dataset
from data.windows import WINDOW_COLUMNS, WINDOW_KEY, WindowRule, cut_windows, filler_windows
from tests.small_world import START, in_shards, write_dataset

Key = tuple[int, int]
GUARD_SECONDS = 2


class Part:
    """A rank's part of the windows, delivered as Ray Data delivers it."""

    def __init__(self, windows: pa.Table) -> None:
        self.windows = windows

    def iter_batches(self, *, batch_size: int, **_: object) -> Iterator[pa.Table]:
        for first in range(0, len(self.windows), batch_size):
            yield self.windows.slice(first, batch_size)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    dataset = write_dataset(tmp_path_factory.mktemp("stream") / "dataset", num_users=70)
    table = pa.concat_tables(dataset.history_tables(["user_key", "items", "times", "actions", "requests", "num_train"]))
    return cut_windows(table, max_events=4, rule="all")


def streams(windows: pa.Table, world: int, seed: int, cache_bytes: int = 0) -> list[TrainingStream]:
    """The windows dealt to ranks at random."""
    dealt = np.random.default_rng(seed).integers(0, world, len(windows))
    return [
        TrainingStream(
            Part(windows.filter(pa.array(dealt == rank))),
            events_per_batch=16,
            windows_per_buffer=20,
            cache_bytes=cache_bytes,
            device=torch.device("cpu"),
        )
        for rank in range(world)
    ]


def keys(position: pa.Table) -> list[Key]:
    return list(zip(*(position.column(name).to_pylist() for name in WINDOW_KEY), strict=True))


def take(stream: TrainingStream, batches: int, rank: int, consumed: pa.Table | None) -> int:
    """Train on some batches of an epoch; returns how many events they held."""
    source = stream.batches(seed=1, epoch=3, rank=rank, consumed=consumed)
    return sum(int((batch["targets_BL"] > 0).sum()) for _, batch in zip(range(batches), source, strict=False))


def test_an_epoch_that_is_left_twice_hands_out_every_window_once_on_any_number_of_ranks(windows: pa.Table) -> None:
    expected = Counter(keys(windows.select(WINDOW_KEY)))
    assert max(expected.values()) == 1
    targets = sum(len(row) - 1 for row in windows.column("items").to_pylist())
    consumed, events = None, 0
    for attempt, (world, batches) in enumerate([(2, 5), (3, 2), (1, 10**6)]):
        parts = streams(windows, world, seed=attempt)
        events += sum(take(stream, batches, rank, consumed) for rank, stream in enumerate(parts))
        seen = [stream.position() for stream in parts]
        consumed = pa.concat_tables([*([] if consumed is None else [consumed]), *seen])
    assert Counter(keys(consumed)) == expected
    assert events == targets


def test_windows_whose_last_targets_are_in_one_group_come_together(windows: pa.Table) -> None:
    groups_V = np.arange(61) % 5
    stream = TrainingStream(
        Part(windows),
        events_per_batch=16,
        windows_per_buffer=len(windows),
        cache_bytes=0,
        device=torch.device("cpu"),
    )

    def crossings() -> int:
        """Batches with more than one group in them."""
        found = []
        for batch in stream.batches(seed=1, epoch=0, rank=0):
            ends_B = batch["targets_BL"][torch.arange(len(batch["lengths_B"])), batch["lengths_B"] - 1]
            found.append(len(set(groups_V[ends_B].tolist())))
        assert Counter(keys(stream.position())) == Counter(keys(windows.select(WINDOW_KEY)))
        return sum(count > 1 for count in found)

    apart = crossings()
    stream.group_by(groups_V)
    assert crossings() <= 4 < apart  # at most where one group ends and the next begins


def test_the_next_epoch_is_whole_again_from_memory(windows: pa.Table) -> None:
    [stream] = streams(windows, 1, seed=0, cache_bytes=2**30)
    done = windows.select(WINDOW_KEY).slice(0, 30)
    take(stream, 10**6, 0, done)
    assert len(stream.position()) == len(windows) - 30
    assert stream.fits
    stream.keep()
    stream._shard = None  # not asked again
    take(stream, 10**6, 0, None)
    assert Counter(keys(stream.position())) == Counter(keys(windows.select(WINDOW_KEY)))


def test_a_part_that_is_too_large_is_not_kept(windows: pa.Table) -> None:
    [stream] = streams(windows, 1, seed=0, cache_bytes=windows.nbytes // 2)
    take(stream, 10**6, 0, None)
    assert not stream.fits
    assert len(stream.position()) == len(windows)


def test_the_size_of_an_epoch_is_that_of_its_windows(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", num_users=70)
    table = pa.concat_tables(dataset.history_tables([*WINDOW_COLUMNS, "num_train"]))
    rules: list[tuple[WindowRule, int, int | None]] = [("all", 4, None), ("last", 4, None), ("all", 7, None)]
    rules += [("all", 4, START + 500_000), ("last", 4, START + 900_000), ("all", 4, 0), ("all", 4, START + 10**7)]
    for rule, max_events, since in rules:
        cut = cut_windows(table, max_events=max_events, rule=rule, since=since)
        targets = sum(len(row) - 1 for row in cut.column("items").to_pylist())
        assert epoch_size(dataset, max_events=max_events, rule=rule, since=since) == EpochSize(len(cut), targets)


def test_a_window_of_padding_has_nothing_to_learn_from(windows: pa.Table) -> None:
    filler = filler_windows(3)
    [stream] = streams(pa.concat_tables([windows, filler]), 1, seed=0)
    events = take(stream, 10**6, 0, None)
    assert events == sum(len(row) - 1 for row in windows.column("items").to_pylist())
    assert sum(key < 0 for key, _ in keys(stream.position())) == 3


def test_an_idle_batch_has_nothing_to_learn_from(windows: pa.Table) -> None:
    [stream] = streams(windows, 1, seed=0)
    batch, real = stream.idle_batch(), next(stream.batches(seed=0, epoch=0, rank=0))
    assert batch.keys() == real.keys()
    assert all(batch[name].dtype == real[name].dtype for name in real)  # type: ignore[literal-required]
    assert not batch["targets_BL"].any()


@pytest.mark.long
@pytest.mark.ray
def test_a_worker_may_pause_for_longer_than_ray_waits_for_progress(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", GUARD_SECONDS)
    dataset = in_shards(tmp_path / "dataset", num_shards=14)
    size = epoch_size(dataset, max_events=4, rule="all")
    windows = window_dataset(dataset, max_events=4, rule="all")
    [parts] = EqualParts(size.windows).configure({"train": windows}, 1, None, None)
    device = torch.device("cpu")
    stream = TrainingStream(parts["train"], events_per_batch=16, windows_per_buffer=5, cache_bytes=0, device=device)
    batches = stream.batches(seed=0, epoch=0, rank=0)
    next(batches)
    time.sleep(3 * GUARD_SECONDS)  # an evaluation, or a buffer of long histories
    assert sum(1 for _ in batches)
    handed_out = Counter(keys(stream.position()))
    assert len(handed_out) == handed_out.total() == size.windows
