"""From a request to rows and back: pure functions on numpy arrays, no model and no index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from data.vocabulary import PAD_ROW
from serve.catalogue import Catalogue
from serve.instructions import NOTHING_ASKED, Instruction, Wish

Fallback = Literal["popularity"]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Query:
    """A checked request. `timestamps` and `actions` are None or as long as `item_ids`."""

    item_ids: Sequence[str]
    k: int
    request_time: int  # seconds UTC
    timestamps: Sequence[int] | None = None  # seconds UTC; without them the events stand oldest first
    actions: Sequence[str | None] | None = None
    exclude_seen: bool = True
    exclude_item_ids: Sequence[str] = ()
    only_item_ids: Sequence[str] | None = None  # None: all items may be answered
    wishes: Sequence[Wish] = ()
    objective_weights: Mapping[str, float] | None = None  # by objective; None for the release's own


@dataclass(frozen=True)
class EncodedQuery:
    """A query in rows: the events that the model knows, oldest first, and the rows that may be answered and may not."""

    items_L: IntArray
    times_L: IntArray
    actions_L: IntArray
    query_time: int
    k: int
    barred: frozenset[int]
    unknown_items: int  # events of the history whose item the release does not have
    unknown_actions: int  # events whose action the model was not trained with
    catalogue: Catalogue  # as it stood when the query came; its rows are meant
    only: frozenset[int] | None = None
    instructions: tuple[Instruction, ...] = NOTHING_ASKED
    weighted: bool = False  # whether the request states the weights of the objectives
    scales_D: FloatArray | None = (
        None  # of the query vector's coordinates, by the weights of the objectives; None for 1
    )


@dataclass(frozen=True)
class Answer:
    """At most k items, best first. With a fallback the scores are training events, not the model's."""

    release: str
    item_ids: list[str]
    scores: list[float]
    titles: list[str | None]
    conditions: list[str | None]  # the condition that brought each item; None without one
    fallback: Fallback | None
    unknown_items: int
    unknown_actions: int
    history_events_used: int
    stage_seconds: Mapping[str, float] = field(default_factory=dict)  # where a replica spent its time


@dataclass(frozen=True)
class Refusal:
    """A query that this release cannot answer; a value and not an exception, because it is the caller's error."""

    field: str  # path in the request's body
    message: str


def encode_query(query: Query, catalogue: Catalogue, action_codes: Mapping[str, int]) -> EncodedQuery:
    """Sort the events as ingest does, map ids to rows and drop events of items that the release does not have.

    Events are sorted stably by time, so events of one time keep their order in the request. The
    whole history counts as seen, also what is older than the events the model sees, and items that
    were added since, of which the model knows nothing.
    """
    rows_L = catalogue.rows(query.item_ids)
    known_L = catalogue.released(rows_L)
    times_L = np.zeros(len(rows_L), np.int64) if query.timestamps is None else np.array(query.timestamps, np.int64)
    names = [None] * len(rows_L) if query.actions is None else query.actions
    actions_L = np.array([0 if name is None else action_codes.get(name, 0) for name in names], np.int64)
    order_L = np.argsort(times_L, kind="stable")
    kept_L = order_L[known_L[order_L] != PAD_ROW]
    barred = set(catalogue.rows(query.exclude_item_ids).tolist())
    if query.exclude_seen:
        barred.update(rows_L.tolist())
    only = None if query.only_item_ids is None else set(catalogue.rows(query.only_item_ids).tolist())
    return EncodedQuery(
        items_L=rows_L[kept_L],
        times_L=times_L[kept_L],
        actions_L=actions_L[kept_L],
        # A server's clock may stand behind a client's; time never runs backwards in training.
        query_time=max(query.request_time, int(times_L.max(initial=0))),
        k=query.k,
        barred=frozenset(barred - {PAD_ROW}),
        unknown_items=int((known_L == PAD_ROW).sum()),
        unknown_actions=sum(name is not None and name not in action_codes for name in names),
        catalogue=catalogue,
        only=None if only is None else frozenset(only - {PAD_ROW}),
    )


def search_depth(query: EncodedQuery) -> int:
    """Hits that leave k items whatever is barred."""
    return query.k + len(query.barred)


def pick(rows_K: IntArray, scores_K: FloatArray, query: EncodedQuery) -> tuple[IntArray, FloatArray]:
    """The first k rows that are items, scored finitely and not barred, with their scores."""
    allowed_K = (rows_K != PAD_ROW) & np.isfinite(scores_K)
    if query.barred:
        allowed_K &= np.array([row not in query.barred for row in rows_K.tolist()], bool)
    kept = np.flatnonzero(allowed_K)[: query.k]
    return rows_K[kept], scores_K[kept]


def popularity_order(train_events_V: IntArray) -> IntArray:
    """Rows by falling number of training events, then by row; entry v of the input is row v + 1."""
    return np.argsort(-train_events_V, kind="stable") + 1


def own_top_scores(answers: Sequence[Answer]) -> list[float]:
    """The best score of each answer that is the model's own, asked for nothing in particular."""
    return [
        answer.scores[0]
        for answer in answers
        if answer.scores and answer.fallback is None and not any(answer.conditions)
    ]
