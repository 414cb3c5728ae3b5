"""What Prometheus is told: metrics declared once, and recorded through Ray.

Every node's Ray agent exports the metrics of the processes there, under their names with the prefix `ray_`.
"""

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

PREFIX = "ray_"
# Ray's agent forgets a gauge that nobody has set for two of its reports, 20 seconds, so that what a dead process said
# does not stand for ever. What a living one said has to stand.
SET_AGAIN_SECONDS = 5.0

SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@dataclass(frozen=True)
class Metric:
    """One metric; its name says its unit, in the base units of Prometheus: seconds, bytes, ratios from 0 to 1."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: Sequence[float] = ()  # upper edges, of a histogram

    @property
    def exported(self) -> tuple[str, ...]:
        """The names that Prometheus finds."""
        return tuple(f"{PREFIX}{self.name}{suffix}" for suffix in SUFFIXES[self.kind])


class Recorder:
    """Records some metrics of this process. Any thread may call it."""

    def __init__(self, metrics: Sequence[Metric], kinds: Any) -> None:
        """Declare the metrics to Ray.

        Args:
            kinds: what has Ray's classes Counter, Gauge and Histogram: `ray.util.metrics`, or `ray.serve.metrics`,
                which adds the application, the deployment and the replica to each record.
        """
        self._instruments = {metric.name: _instrument(metric, kinds) for metric in metrics}
        self._standing: dict[tuple[str, tuple[tuple[str, str], ...]], int | float] = {}  # what gauges say
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        if any(metric.kind == "gauge" for metric in metrics):
            weakref.finalize(self, self._stopped.set)
            # Not a method of this object, which would then live as long as its thread.
            arguments = (self._instruments, self._standing, self._lock, self._stopped)
            threading.Thread(target=_set_again, args=arguments, name="gauges", daemon=True).start()

    def add(self, metric: Metric, count: int | float, /, **labels: str) -> None:
        """Count."""
        if count:  # Ray refuses to add nothing
            self._instruments[metric.name].inc(count, labels)

    def observe(self, metric: Metric, value: int | float, /, **labels: str) -> None:
        """Put a value into a histogram."""
        self._instruments[metric.name].observe(value, labels)

    def set(self, metric: Metric, value: int | float, /, **labels: str) -> None:
        """Set a gauge, until it is set again or this is closed."""
        with self._lock:
            self._standing[metric.name, tuple(labels.items())] = value
            self._instruments[metric.name].set(value, labels)

    def close(self) -> None:
        """Let go of the gauges; they go within half a minute."""
        self._stopped.set()


def _instrument(metric: Metric, kinds: Any) -> Any:
    if metric.kind == "histogram":
        return kinds.Histogram(metric.name, metric.text, list(metric.buckets), metric.labels)
    return (kinds.Counter if metric.kind == "counter" else kinds.Gauge)(metric.name, metric.text, metric.labels)


def _set_again(
    instruments: Mapping[str, Any],
    standing: Mapping[tuple[str, tuple[tuple[str, str], ...]], int | float],
    lock: threading.Lock,
    stopped: threading.Event,
) -> None:
    while not stopped.wait(SET_AGAIN_SECONDS):
        with lock:
            for (name, labels), value in standing.items():
                instruments[name].set(value, dict(labels))
