"""Run one function, or one object that is dear to make, for many items on the cluster, through Ray Data."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.data

from data import errors, session
from data.errors import FarsightError
from data.progress import progress

# Of one execution; more only lengthen its lists.
MAX_TASKS = 1024


@dataclass(frozen=True)
class Actors:
    """Processes that each make the task once and keep it; Ray Data has as many as the items keep busy."""

    at_least: int
    at_most: int
    num_cpus: float
    num_gpus: float


def over_items(
    task: Callable[..., Any], items: Sequence[Any], doing: str, *, actors: Actors | None = None, **arguments: Any
) -> list[Any]:
    """Run `task(number, item, **arguments)` on the cluster for every item, in any order.

    Args:
        task: a function of a module, since tasks find it by its name; its results are JSON values. With `actors` a
            class: `task(**arguments)` is made once per process and called with number and item.
        items: JSON values.
        doing: what the progress bar says.

    Returns:
        The results, in the order of the items.

    Raises:
        FarsightError: what a task raised.
    """
    rows = [{"number": number, "item": json.dumps(item)} for number, item in enumerate(items)]
    if not rows:
        return []
    results: dict[int, Any] = {}
    session.connect()
    with _quiet_ray_data():
        inputs = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_TASKS))
        if actors is None:
            outputs = inputs.map(partial(_run, partial(task, **arguments)))
        else:
            outputs = inputs.map(
                _Kept,  # type: ignore[arg-type]  # Ray Data takes a class too, and makes it in each actor
                fn_constructor_args=[task, arguments],
                compute=ray.data.ActorPoolStrategy(min_size=actors.at_least, max_size=actors.at_most),
                num_cpus=actors.num_cpus,
                num_gpus=actors.num_gpus,
            )
        # Our own bar, on stderr alone: Ray's goes to stdout, where a machine may read the answer.
        for row in progress(outputs.iter_rows(), doing=doing, total=len(rows), unit="part"):
            if row["error"]:
                kind: type[FarsightError] = getattr(errors, row["error"])
                raise kind(row["result"])
            results[int(row["number"])] = json.loads(row["result"])
    return [results[number] for number in range(len(rows))]


class _Kept:
    """A task in an actor. What making it raised is told with the first item, since it too travels as a value."""

    def __init__(self, kind: Callable[..., Callable[[int, Any], Any]], arguments: dict[str, Any]) -> None:
        self._make = partial(kind, **arguments)
        self._task: Callable[[int, Any], Any] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _run(self._call, row)

    def _call(self, number: int, item: Any) -> Any:
        if self._task is None:
            self._task = self._make()
        return self._task(number, item)


def _run(task: Callable[[int, Any], Any], row: dict[str, Any]) -> dict[str, Any]:
    """An error of ours travels as a value: an exception would reach the driver as text inside one of Ray's."""
    number = int(row["number"])
    try:
        result = json.dumps(task(number, json.loads(row["item"])))
    except FarsightError as error:
        return {"number": number, "result": str(error), "error": type(error).__name__}
    return {"number": number, "result": result, "error": ""}


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """No bars and no notes of Ray Data; its own log files keep them."""
    context = ray.data.DataContext.get_current()
    notes = logging.getLogger("ray.data")
    before = context.enable_progress_bars, notes.level
    context.enable_progress_bars = False
    notes.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        notes.setLevel(before[1])
