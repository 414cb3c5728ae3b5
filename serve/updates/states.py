"""What a change does to the items that it names: the part that all stores share."""

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from serve.updates.contract import AddedItem, Change, Changed, TooManyUpdates


@dataclass(frozen=True)
class ItemState:
    """What stands of one item."""

    removed: bool = False
    added: AddedItem | None = None


@dataclass(frozen=True)
class Room:
    """How many items stand, and how many may."""

    removed: int
    added: int
    max_removed: int
    max_added: int


def changed_states(states: Mapping[str, ItemState], change: Change, room: Room) -> tuple[dict[str, ItemState], Changed]:
    """The states that a change leaves otherwise than they were, and how many of which kind.

    Args:
        states: of each item that the change names.

    Raises:
        TooManyUpdates: there is no room for what would stand in addition.
    """
    after = dict(states)
    for item_id in change.remove:
        after[item_id] = ItemState(removed=True)
    for item_id in change.restore:
        after[item_id] = replace(after[item_id], removed=False)
    for item in change.add:
        before = after[item.item_id].added
        kept = item if before is None else replace(item, added_at=before.added_at)
        after[item.item_id] = replace(after[item.item_id], added=kept)
    pairs = [(states[item_id], state) for item_id, state in after.items()]
    found = Changed(
        removed=sum(new.removed and not old.removed for old, new in pairs),
        restored=sum(old.removed and not new.removed for old, new in pairs),
        added=sum(new.added is not None and new.added != old.added for old, new in pairs),
        forgotten=sum(old.added is not None and new.added is None for old, new in pairs),
    )
    _check("remove", room.removed, found.removed - found.restored, room.max_removed)
    newly_added = sum(new.added is not None and old.added is None for old, new in pairs)
    _check("add", room.added, newly_added - found.forgotten, room.max_added)
    return {item_id: state for item_id, state in after.items() if state != states[item_id]}, found


def _check(part: str, standing: int, more: int, limit: int) -> None:
    if more > 0 and standing + more > limit:
        raise TooManyUpdates(part, standing + more, limit)


def next_version(last: int) -> int:
    """A version after another: the time in milliseconds, so that a store which has lost everything does not count up
    to what replicas have seen.
    """
    return max(last + 1, time.time_ns() // 1_000_000)


def to_document(item: AddedItem) -> str:
    """An added item as JSON."""
    vector = None if item.vector is None else base64.b64encode(item.vector).decode()
    contents = {name: base64.b64encode(content).decode() for name, content in item.contents.items()}
    return json.dumps({**asdict(item), "vector": vector, "contents": contents})


def from_document(document: str) -> AddedItem:
    """The added item of a document; older ones have no numbers and contents."""
    fields = json.loads(document)
    vector = None if fields["vector"] is None else base64.b64decode(fields["vector"])
    contents = {name: base64.b64decode(content) for name, content in fields.get("contents", {}).items()}
    lists = {name: tuple(fields[name]) for name in ("like", "categories")}
    return AddedItem(**{**fields, **lists, "vector": vector, "contents": contents})
