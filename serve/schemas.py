"""Bodies of the API, and the checks that need the application's limits."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from serve.answer import Answer, Query
from serve.histories.contract import StoredEvent
from serve.instructions import Wish
from serve.settings import Limits

# The year 3000. Beyond it a time is surely in milliseconds.
MAX_TIME = 32_503_680_000
# Objectives that a request can weigh; a model has a handful.
MAX_OBJECTIVES = 64

Name = Annotated[StrictStr, Field(min_length=1, max_length=256)]
Id = Name | Annotated[StrictInt, Field(ge=-(2**63), le=2**63 - 1)]
Seconds = Annotated[StrictInt, Field(ge=0, le=MAX_TIME, description="seconds since 1970, UTC")]


Element = TypeVar("Element")
# Checked up to the first element that is wrong: a body of a mebibyte can hold 300,000, and to name each takes seconds.
Many = Annotated[list[Element], Field(fail_fast=True)]


class Body(BaseModel):
    """Base of all bodies: a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Event(Body):
    """One event of the history."""

    item_id: Id = Field(description="the item's id in the catalogue; 12 and '12' are the same item")
    timestamp: Seconds | None = Field(None, description="when it happened; give it for all events or for none")
    action: Name | None = Field(None, description="what the user did, in the log's words")


class Condition(Body):
    """What a part of the answer should be: of one of these categories or pools, or like what the user has had most."""

    any_of: Many[Name] = Field(
        default_factory=list, description="names of categories or pools; each gets an equal part of the weight"
    )
    own_top: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="instead of names: this many of the categories that the history has most of"
    )
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(1.0, description="share of the answer, relative")
    hard: StrictBool = Field(False, description="bring only what satisfies it; otherwise the model prefers it")


def _few(weights: Any) -> Any:
    """Before each is looked at, since a body can hold many."""
    if isinstance(weights, dict) and len(weights) > MAX_OBJECTIVES:
        raise ValueError(f"found {len(weights)} weights, expected at most {MAX_OBJECTIVES}")
    return weights


ObjectiveWeights = Annotated[
    dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1), BeforeValidator(_few)
]


class RetrieveRequest(Body):
    """What is asked for."""

    history: Many[Event] | None = Field(
        None, description="the user's events; sorted by time, and without times they stand oldest first"
    )
    user_id: Id | None = Field(
        None,
        description="instead of a history: the user whose stored events are meant (/v1/events); 12 and '12' are one",
    )
    k: Annotated[StrictInt, Field(ge=1)] = Field(10, description="items wanted")
    request_time: Seconds | None = Field(None, description="when the answer will be shown; now if left out")
    exclude_seen: StrictBool = Field(True, description="leave out every item of the whole history")
    exclude_item_ids: Many[Id] = Field(default_factory=list, description="further items to leave out")
    only_item_ids: Many[Id] | None = Field(
        None, description="items to choose among, for example those in stock; unknown ones are ignored"
    )
    conditions: Many[Condition] = Field(
        default_factory=list, description="what the answer should satisfy; their lists are merged by weight"
    )
    objective_weights: ObjectiveWeights | None = Field(
        None,
        description="objective -> weight of its score, of the objectives that the release has learnt; those not named "
        "have 0. The release's own weights if left out",
    )
    deadline_ms: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="milliseconds after which the answer is worth nothing"
    )


class Item(Body):
    """One item of the answer."""

    item_id: str
    score: float = Field(description="the model's inner product; training events in a popularity fallback")
    title: str | None = Field(None, description="from the catalogue; null if it has none")
    condition: str | None = Field(None, description="the condition that brought it; null without one")


class RetrieveResponse(Body):
    """The answer, best first."""

    release: str = Field(description="id of the release that answered")
    items: list[Item]
    fallback: Literal["popularity"] | None = Field(description="set where the model had nothing to go by")
    unknown_items: int = Field(description="events dropped because the release lacks their item")
    unknown_actions: int = Field(description="events whose action the model does not know; the event is kept")
    history_events_used: int = Field(description="events the model saw")


class UserEvent(Body):
    """Something that a user did."""

    user_id: Id
    item_id: Id = Field(description="the item's id, whether the catalogue has it or not")
    timestamp: Seconds | None = Field(None, description="when it happened; now if left out")
    action: Name | None = Field(None, description="what the user did, in the log's words")
    event_id: Name | None = Field(
        None, description="a name of this event, so that sending it twice counts once whatever else differs"
    )


class EventsRequest(Body):
    """What happened."""

    events: Many[UserEvent]


class EventsResponse(Body):
    """What became of the events."""

    accepted: int
    known: int = Field(description="stored before: the same event_id, or the same item, time and action of the user")
    too_old: int = Field(description="not after the oldest of a history that is full")


class HistoryResponse(Body):
    """What is stored of a user, oldest first."""

    events: list[UserEvent]


class Problem(Body):
    """One thing wrong with a request."""

    field: str = Field(description="path of the field, such as history.3.item_id")
    message: str


class Problems(Body):
    """Body of every answer that is not 200."""

    problems: list[Problem]


class BadRequest(Exception):
    """A request that is well formed but may not be asked."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems


def to_query(request: RetrieveRequest, limits: Limits, now: int, stored: Sequence[StoredEvent] | None = None) -> Query:
    """The query of a request.

    Args:
        now: seconds UTC; stands in for a missing `request_time`.
        stored: the events of `user_id`; those after a `request_time` that was stated have not happened yet.

    Raises:
        BadRequest: naming every field that is past a limit or does not fit the others.
    """
    problems = [Problem(field=field, message=message) for field, message in _problems(request, limits)]
    if problems:
        raise BadRequest(problems)
    events: Sequence[Event | StoredEvent] = request.history or []
    if stored is not None:
        until = MAX_TIME if request.request_time is None else request.request_time
        events = [event for event in stored if event.timestamp <= until]
    timestamps = [event.timestamp for event in events if event.timestamp is not None]
    has_actions = any(event.action is not None for event in events)
    return Query(
        item_ids=[str(event.item_id) for event in events],
        k=request.k,
        request_time=now if request.request_time is None else request.request_time,
        timestamps=timestamps if timestamps else None,
        actions=[event.action for event in events] if has_actions else None,
        exclude_seen=request.exclude_seen,
        exclude_item_ids=[str(item_id) for item_id in request.exclude_item_ids],
        only_item_ids=None if request.only_item_ids is None else [str(item_id) for item_id in request.only_item_ids],
        wishes=[
            Wish(tuple(asked.any_of), asked.own_top or 0, asked.weight, asked.hard) for asked in request.conditions
        ],
        objective_weights=request.objective_weights,
    )


def to_stored(request: EventsRequest, limits: Limits, now: int) -> dict[str, list[StoredEvent]]:
    """The events of a call, by user, in the order in which they came.

    Raises:
        BadRequest: too many events.
    """
    too_many = _too_many("events", "events", len(request.events), limits.max_events)
    if problems := [Problem(field=field, message=message) for field, message in too_many]:
        raise BadRequest(problems)
    found: dict[str, list[StoredEvent]] = {}
    for event in request.events:
        time = now if event.timestamp is None else event.timestamp
        stored = StoredEvent(str(event.item_id), time, event.action, event.event_id)
        found.setdefault(str(event.user_id), []).append(stored)
    return found


def to_history(user_id: str, stored: Sequence[StoredEvent]) -> HistoryResponse:
    """The body that shows what is stored of a user."""
    return HistoryResponse(
        events=[
            UserEvent(
                user_id=user_id,
                item_id=event.item_id,
                timestamp=event.timestamp,
                action=event.action,
                event_id=event.event_id,
            )
            for event in stored
        ]
    )


def to_json(answer: Answer) -> bytes:
    """The body of an answer, a `RetrieveResponse`; written without building one, which takes as long as the search."""
    rows = zip(answer.item_ids, answer.scores, answer.titles, answer.conditions, strict=True)
    body: bytes = pydantic_core.to_json(
        {
            "release": answer.release,
            "items": [
                {"item_id": item_id, "score": score, "title": title, "condition": condition}
                for item_id, score, title, condition in rows
            ],
            "fallback": answer.fallback,
            "unknown_items": answer.unknown_items,
            "unknown_actions": answer.unknown_actions,
            "history_events_used": answer.history_events_used,
        }
    )
    return body


def _problems(request: RetrieveRequest, limits: Limits) -> Iterator[tuple[str, str]]:
    history = request.history or []
    if (request.history is None) == (request.user_id is None):
        yield "history", "expected either a history, which may be empty, or a user_id"
    yield from _too_many("history", "events", len(history), limits.max_history_events)
    yield from _too_many("k", "items", request.k, limits.max_k)
    yield from _too_many("exclude_item_ids", "items", len(request.exclude_item_ids), limits.max_excluded_items)
    if request.only_item_ids is not None and not request.only_item_ids:
        yield "only_item_ids", "found no item, expected at least 1; leave the field out to choose among all"
    yield from _too_many("only_item_ids", "items", len(request.only_item_ids or ()), limits.max_only_items)
    yield from _too_many("deadline_ms", "milliseconds", request.deadline_ms or 0, limits.max_deadline_ms)
    queries = sum(len(asked.any_of) or asked.own_top or 0 for asked in request.conditions)
    yield from _too_many("conditions", "conditions", queries, limits.max_conditions)
    for number, asked in enumerate(request.conditions):
        if bool(asked.any_of) == (asked.own_top is not None):
            yield f"conditions.{number}", "expected either any_of with at least one name, or own_top"
    times = [event.timestamp for event in history]
    if None in times and any(time is not None for time in times):
        missing = times.index(None)
        yield f"history.{missing}.timestamp", "missing while other events have one; give it for all events or for none"
        return
    newest = max((time for time in times if time is not None), default=0)
    if request.request_time is not None and request.request_time < newest:
        yield "request_time", f"found {request.request_time}, which is before the newest event's {newest}"


def _too_many(field: str, unit: str, found: int, limit: int) -> Iterator[tuple[str, str]]:
    if found > limit:
        yield field, f"found {found} {unit}, expected at most {limit}"
