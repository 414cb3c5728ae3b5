"""Metrics as they are recorded: names, gauges that stand, threads that end."""

import gc
import threading
import time
from typing import Any, ClassVar

import pytest

import data.metrics
from data.metrics import Metric, Recorder

COUNTED = Metric("counted", "counter", "things", ("kind",))
HELD = Metric("held", "gauge", "a state", ("kind",))
MEASURED = Metric("measured", "histogram", "a size", (), (1.0, 2.0))


class Kinds:
    """Ray's classes, as far as a recorder calls them; they note what they are told."""

    calls: ClassVar[list[tuple[Any, ...]]] = []

    class Gauge:
        def __init__(self, name: str, *declared: Any) -> None:
            self.name, self.declared = name, declared

        def set(self, value: float, tags: dict[str, str]) -> None:
            Kinds.calls.append((self.name, value, tags))

        inc = observe = set

    Counter = Gauge

    class Histogram(Gauge):
        pass


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    monkeypatch.setattr(data.metrics, "SET_AGAIN_SECONDS", 0.01)
    Kinds.calls.clear()
    return Kinds.calls


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gauges"]


def test_prometheus_finds_a_metric_under_the_names_that_its_kind_has() -> None:
    assert COUNTED.exported == ("ray_counted_total",)
    assert HELD.exported == ("ray_held",)
    assert MEASURED.exported == ("ray_measured_bucket", "ray_measured_sum", "ray_measured_count")


def test_what_is_recorded_reaches_ray_once_and_nothing_is_no_count(calls: list[tuple[Any, ...]]) -> None:
    recorder = Recorder((COUNTED, MEASURED), Kinds)
    recorder.add(COUNTED, 2, kind="a")
    recorder.add(COUNTED, 0, kind="a")  # Ray would raise
    recorder.observe(MEASURED, 1.5)
    assert calls == [("counted", 2, {"kind": "a"}), ("measured", 1.5, {})]
    assert not _threads()  # nothing stands


def test_a_gauge_is_set_again_with_its_newest_value_until_its_recorder_is_closed(calls: list[tuple[Any, ...]]) -> None:
    recorder = Recorder((COUNTED, HELD), Kinds)
    recorder.add(COUNTED, 1, kind="a")
    for value in (1, 2):
        recorder.set(HELD, value, kind="a")
    recorder.set(HELD, 7, kind="b")
    del calls[:]
    deadline = time.monotonic() + 10
    while len(calls) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert calls[:4] == [("held", 2, {"kind": "a"}), ("held", 7, {"kind": "b"})] * 2
    recorder.close()
    for thread in _threads():
        thread.join(timeout=10)
    assert not _threads()


def test_gauges_go_with_the_recorder_that_set_them(calls: list[tuple[Any, ...]]) -> None:
    recorder = Recorder((HELD,), Kinds)
    recorder.set(HELD, 1, kind="a")
    [thread] = _threads()
    del recorder
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()
