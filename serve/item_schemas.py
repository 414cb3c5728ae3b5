"""Bodies of `/v1/items`."""

from typing import Annotated

import numpy as np
from pydantic import Field, StrictStr

from data.item_features import FeatureCodes
from serve.engine import Engine
from serve.schemas import BadRequest, Body, Id, Name, Problem
from serve.settings import Limits
from serve.updates.contract import AddedItem, Change, Changed
from serve.updates.overlay import Overlay

# Its square is finite in float32, too.
Number = Annotated[float, Field(strict=True, ge=-1e15, le=1e15, allow_inf_nan=False)]


class NewItem(Body):
    """An item that the release lacks, and where its vector comes from.

    With neither `like` nor `vector` it comes from the id, where the model composes item vectors from hashes of ids, or
    from the categories, numbers and contents, where it composes them from features; what is left out counts as missing.
    """

    item_id: Id
    like: list[Id] = Field(default_factory=list, max_length=100, description="the release's items whose mean it gets")
    vector: list[Number] | None = Field(None, description="of this release's artifact; its length does not matter")
    title: Annotated[StrictStr, Field(max_length=1_000)] | None = None
    categories: list[Name] = Field(default_factory=list, max_length=100, description="by which conditions find it")
    numbers: dict[Name, Number] = Field(
        default_factory=dict, description="by column: those of model.items.numbers; a boolean is 0 or 1"
    )
    contents: dict[Name, list[Number]] = Field(
        default_factory=dict, description="vectors by column: those of model.items.contents; the length does not matter"
    )


class ItemsRequest(Body):
    """What changes, done in this order, all or nothing. An item that is removed and restored is forgotten."""

    remove: list[Id] = Field(default_factory=list, description="ids that no answer may hold until they are restored")
    restore: list[Id] = Field(default_factory=list, description="ids of which the removal ends")
    add: list[NewItem] = Field(default_factory=list, description="items to answer with although the release lacks them")


class ItemsResponse(Body):
    """What the call changed, and the version that the replica which took it answers from now."""

    version: int
    removed: int
    restored: int
    added: int = Field(description="new, or with other facts than before")
    forgotten: int = Field(description="items that had been added and are no more")
    left_out: dict[str, str] = Field(description="items of the call that this release does not answer with, and why")


class StandingItem(Body):
    """An item that was added."""

    item_id: str
    added_at: int = Field(description="seconds UTC; from then on it is young")
    like: list[str]
    has_vector: bool = Field(description="whether a vector was given")
    title: str | None
    categories: list[str]
    numbers: dict[str, float]
    contents: list[str] = Field(description="columns of which a vector was given")
    left_out: str | None = Field(description="why this release does not answer with it; null if it does")


class StandingItems(Body):
    """What stands over the release that answers."""

    release: str
    version: int = Field(description="grows with every change; 0 where nothing ever changed")
    added: list[StandingItem]
    removed: list[str]


def to_change(request: ItemsRequest, limits: Limits, engine: Engine, now: int) -> Change:
    """The change of a call.

    Args:
        engine: of the release that vectors are taken to belong to, and that reads numbers and contents.
        now: seconds UTC.

    Raises:
        BadRequest: nothing to do, too much, or a vector that does not fit.
    """
    found = len(request.remove) + len(request.restore) + len(request.add)
    problems = []
    if not 0 < found <= limits.max_item_updates:
        problems.append(Problem(field="", message=f"found {found} items, expected 1 to {limits.max_item_updates}"))
    removed = set(map(str, request.remove))
    width = engine.catalogue.release.index.width
    for number, item in enumerate(request.add):
        if str(item.item_id) in removed:
            problems.append(Problem(field=f"add.{number}.item_id", message="the same call removes it; send two calls"))
        if [item.vector is not None, bool(item.like), bool(item.numbers or item.contents)].count(True) > 1:
            message = "expected like, a vector, or numbers and contents, and no two of them"
            problems.append(Problem(field=f"add.{number}", message=message))
            continue
        if item.vector is not None and len(item.vector) != width:
            problems.append(_wrong_width(f"add.{number}.vector", len(item.vector), width))
        problems += _unread(item, engine.feature_codes, f"add.{number}")
    if problems:
        raise BadRequest(problems)
    added = [
        AddedItem(
            str(item.item_id),
            now,
            like=tuple(map(str, item.like)),
            vector=None if item.vector is None else _bytes(item.vector),
            artifact=None if item.vector is None else engine.artifact_hash,
            title=item.title,
            categories=tuple(item.categories),
            numbers=item.numbers,
            contents={name: _bytes(content) for name, content in item.contents.items()},
        )
        for item in request.add
    ]
    return Change(tuple(map(str, request.remove)), tuple(map(str, request.restore)), tuple(added))


def _unread(item: NewItem, codes: FeatureCodes, place: str) -> list[Problem]:
    """What an item says that the release's model does not read."""
    problems = []
    for part, said, read in (("numbers", item.numbers, codes.edges), ("contents", item.contents, codes.widths)):
        for name in said:
            if name not in read:
                message = f"this release's model reads {', '.join(read) or 'none'} (model.items.{part})"
                problems.append(Problem(field=f"{place}.{part}.{name}", message=message))
    for name, content in item.contents.items():
        if len(content) != codes.widths.get(name, len(content)):
            problems.append(_wrong_width(f"{place}.contents.{name}", len(content), codes.widths[name]))
    return problems


def _wrong_width(field: str, found: int, expected: int) -> Problem:
    return Problem(
        field=field, message=f"found {found} numbers, expected {expected}, the width of this release's model"
    )


def _bytes(vector: list[float]) -> bytes:
    return np.array(vector, "<f4").tobytes()


def to_items_response(changed: Changed, overlay: Overlay, change: Change) -> ItemsResponse:
    """The body that says what a call changed."""
    return ItemsResponse(
        version=overlay.updates.version,
        removed=changed.removed,
        restored=changed.restored,
        added=changed.added,
        forgotten=changed.forgotten,
        left_out={
            item.item_id: overlay.left_out[item.item_id] for item in change.add if item.item_id in overlay.left_out
        },
    )


def to_standing(release_id: str, overlay: Overlay) -> StandingItems:
    """The body that shows what stands."""
    updates = overlay.updates
    return StandingItems(
        release=release_id,
        version=updates.version,
        added=[_standing(item, overlay.left_out.get(item.item_id)) for item in updates.added],
        removed=sorted(updates.removed),
    )


def _standing(item: AddedItem, left_out: str | None) -> StandingItem:
    return StandingItem(
        item_id=item.item_id,
        added_at=item.added_at,
        like=list(item.like),
        has_vector=item.vector is not None,
        title=item.title,
        categories=list(item.categories),
        numbers=dict(item.numbers),
        contents=[*item.contents],
        left_out=left_out,
    )
