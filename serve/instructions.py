"""Conditions of a request: from names to the branch queries they become, and from their lists to one answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.conditions import Conditions

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class Unanswerable(ValueError):
    """A request that this release cannot answer: the caller's error, found where the release is known."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


@dataclass(frozen=True)
class Wish:
    """A condition as it was asked for: one of some names, or the user's own most frequent categories."""

    any_of: Sequence[str] = ()
    own_top: int = 0  # categories; used where `any_of` is empty
    weight: float = 1.0
    hard: bool = False  # whether everything it brings must satisfy it


@dataclass(frozen=True)
class Instruction:
    """One branch query: a condition, its share of the answer, and whether it filters."""

    code: int  # of `data.conditions.Conditions`; 0 asks for nothing
    name: str | None
    weight: float
    hard: bool


NOTHING_ASKED = (Instruction(0, None, 1.0, False),)


def instructions(
    wishes: Sequence[Wish], items_L: IntArray, conditions: Conditions, *, takes_conditions: bool
) -> tuple[Instruction, ...]:
    """The branch queries of a request; a wish of several names gives each an equal part of its weight.

    A user without events of any category who asks for their own is asked for nothing.

    Args:
        items_L: item rows of the history, by which a user's own categories are counted.
        takes_conditions: whether the model was trained with conditions; one that was not can only filter.

    Raises:
        Unanswerable: a name is unknown, or the model cannot follow without a filter.
    """
    found = []
    for number, wish in enumerate(wishes):
        if not takes_conditions and not wish.hard:
            raise Unanswerable(
                f"conditions.{number}.hard",
                "this release's model takes no conditions; set hard to true to filter its answer, or train with "
                "model.condition",
            )
        codes = _own(items_L, conditions, wish.own_top) if not wish.any_of else []
        for place, name in enumerate(wish.any_of):
            code = conditions.code(name)
            if code is None:
                raise Unanswerable(
                    f"conditions.{number}.any_of.{place}",
                    "no category or pool of this release has this name" + _examples(conditions),
                )
            codes.append(code)
        for code in codes:
            weight = wish.weight / len(codes)
            found.append(Instruction(code, conditions.names[code - 1] if code else None, weight, wish.hard))
    return tuple(found) or NOTHING_ASKED


def _own(items_L: IntArray, conditions: Conditions, count: int) -> list[int]:
    """The user's most frequent categories, the alphabetically first of equals."""
    counts = conditions.category_counts(items_L)
    order = np.argsort(-counts, kind="stable")[:count]
    return [int(place) + 1 for place in order if counts[place]] or [0]


def _examples(conditions: Conditions) -> str:
    some = ", ".join(sorted(conditions.names)[:5])
    return f"; there are {len(conditions.names)}, such as {some}" if some else "; its catalogue names none"


def quotas(weights: Sequence[float], k: int) -> list[int]:
    """Places of an answer of k for each weight: its share rounded down, the rest to the largest remainders."""
    total = sum(weights)
    shares = [k * weight / total for weight in weights]
    places = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda number: (places[number] - shares[number], number))
    for number in by_remainder[: k - sum(places)]:
        places[number] += 1
    return places


def merge(
    lists: Sequence[tuple[IntArray, FloatArray]], weights: Sequence[float], k: int
) -> tuple[IntArray, FloatArray, IntArray]:
    """One answer from a ranked list per branch query.

    Each list fills its quota with its best items that no list before it has brought; places that a
    list cannot fill go to the best scores left in any. The answer is then ordered by score, equal
    scores by row.

    Args:
        lists: rows and scores, best first.

    Returns:
        rows, scores, and for each item the number of the list that brought it.
    """
    taken: dict[int, tuple[float, int]] = {}
    for number, ((rows, scores), places) in enumerate(zip(lists, quotas(weights, k), strict=True)):
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            if places and row not in taken:
                taken[row] = score, number
                places -= 1
    left = sorted(
        (-score, row, number)
        for number, (rows, scores) in enumerate(lists)
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        if row not in taken
    )
    for negative, row, number in left:
        if len(taken) == k:
            break
        taken.setdefault(row, (-negative, number))
    ordered = sorted((-score, row, number) for row, (score, number) in taken.items())
    rows = np.array([row for _, row, _ in ordered], np.int64)
    scores = np.array([-negative for negative, _, _ in ordered], np.float32)
    return rows, scores, np.array([number for _, _, number in ordered], np.int64)
