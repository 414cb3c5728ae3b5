"""What a person needs to ask a release by hand: what it can be asked for, and histories to begin with."""

from typing import Any

from pydantic import Field

from serve.engine import Engine
from serve.golden import query_of
from serve.schemas import Body, Event

# Names of conditions that are told; more would make the page's list slow.
MAX_NAMES = 2_000


class TitledEvent(Event):
    """An event, with what a person would call its item."""

    title: str | None = None


class Example(Body):
    """The history of a golden request, and when it was asked."""

    history: list[TitledEvent]
    request_time: int


class Description(Body):
    """What can be asked of a release."""

    release: str
    num_items: int
    reads_times: bool = Field(description="every event of a history needs its timestamp")
    takes_conditions: bool = Field(
        description="the model prefers what is asked for; otherwise conditions can only filter"
    )
    objectives: list[str] = Field(description="names that objective_weights can weigh; none if there is one objective")
    item_numbers: list[str] = Field(description="columns by which an added item may bring numbers")
    item_contents: dict[str, int] = Field(description="and vectors, of so many numbers")
    conditions: list[str] = Field(description=f"names of categories and pools, at most {MAX_NAMES}")
    examples: list[Example]


def describe(engine: Engine) -> Description:
    """The description of an engine's release."""
    codes = engine.feature_codes
    return Description(
        release=engine.release_id,
        num_items=engine.num_items,
        reads_times=engine.needs_times,
        takes_conditions=engine.takes_conditions,
        objectives=list(engine.objectives),
        item_numbers=[*codes.edges],
        item_contents=dict(codes.widths),
        conditions=list(engine.conditions[:MAX_NAMES]),
        examples=[_example(engine, golden) for golden in engine.golden],
    )


def _example(engine: Engine, golden: dict[str, Any]) -> Example:
    query = query_of(golden)
    nothing = [None] * len(query.item_ids)
    rows = zip(
        query.item_ids,
        query.timestamps or nothing,
        query.actions or nothing,
        engine.titles(query.item_ids),
        strict=True,
    )
    return Example(
        history=[
            TitledEvent(item_id=item_id, timestamp=time, action=action, title=title)
            for item_id, time, action, title in rows
        ],
        request_time=query.request_time,
    )
