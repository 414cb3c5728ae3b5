from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Event(_message.Message):
    __slots__ = ("item_id", "timestamp", "action")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    timestamp: int
    action: str
    def __init__(self, item_id: _Optional[str] = ..., timestamp: _Optional[int] = ..., action: _Optional[str] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("any_of", "own_top", "weight", "hard")
    ANY_OF_FIELD_NUMBER: _ClassVar[int]
    OWN_TOP_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    HARD_FIELD_NUMBER: _ClassVar[int]
    any_of: _containers.RepeatedScalarFieldContainer[str]
    own_top: int
    weight: float
    hard: bool
    def __init__(self, any_of: _Optional[_Iterable[str]] = ..., own_top: _Optional[int] = ..., weight: _Optional[float] = ..., hard: bool = ...) -> None: ...

class RetrieveRequest(_message.Message):
    __slots__ = ("history", "user_id", "k", "request_time", "exclude_seen", "exclude_item_ids", "only_item_ids", "conditions", "objective_weights", "deadline_ms")
    class ObjectiveWeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TIME_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_SEEN_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    ONLY_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    history: _containers.RepeatedCompositeFieldContainer[Event]
    user_id: str
    k: int
    request_time: int
    exclude_seen: bool
    exclude_item_ids: _containers.RepeatedScalarFieldContainer[str]
    only_item_ids: _containers.RepeatedScalarFieldContainer[str]
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    objective_weights: _containers.ScalarMap[str, float]
    deadline_ms: int
    def __init__(self, history: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., user_id: _Optional[str] = ..., k: _Optional[int] = ..., request_time: _Optional[int] = ..., exclude_seen: bool = ..., exclude_item_ids: _Optional[_Iterable[str]] = ..., only_item_ids: _Optional[_Iterable[str]] = ..., conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ..., objective_weights: _Optional[_Mapping[str, float]] = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("item_id", "score", "title", "condition")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    score: float
    title: str
    condition: str
    def __init__(self, item_id: _Optional[str] = ..., score: _Optional[float] = ..., title: _Optional[str] = ..., condition: _Optional[str] = ...) -> None: ...

class RetrieveResponse(_message.Message):
    __slots__ = ("release", "items", "fallback", "unknown_items", "unknown_actions", "history_events_used")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEMS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_EVENTS_USED_FIELD_NUMBER: _ClassVar[int]
    release: str
    items: _containers.RepeatedCompositeFieldContainer[Item]
    fallback: str
    unknown_items: int
    unknown_actions: int
    history_events_used: int
    def __init__(self, release: _Optional[str] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., fallback: _Optional[str] = ..., unknown_items: _Optional[int] = ..., unknown_actions: _Optional[int] = ..., history_events_used: _Optional[int] = ...) -> None: ...

class UserEvent(_message.Message):
    __slots__ = ("user_id", "item_id", "timestamp", "action", "event_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    item_id: str
    timestamp: int
    action: str
    event_id: str
    def __init__(self, user_id: _Optional[str] = ..., item_id: _Optional[str] = ..., timestamp: _Optional[int] = ..., action: _Optional[str] = ..., event_id: _Optional[str] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[UserEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[UserEvent, _Mapping]]] = ...) -> None: ...

class EventsResponse(_message.Message):
    __slots__ = ("accepted", "known", "too_old")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    TOO_OLD_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    known: int
    too_old: int
    def __init__(self, accepted: _Optional[int] = ..., known: _Optional[int] = ..., too_old: _Optional[int] = ...) -> None: ...
