"""Histories in Redis: for many machines and many writers."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis

from serve.histories.contract import Appended, HistoriesUnavailable, StoredEvent
from serve.redis_server import redis_client

_NUMBER_DIGITS = 16
# A user has a sorted set of events by time, members "number of arrival, [item, action, id, time]", so that equal times
# stand in the order of arrival; a set of what makes an event known; and the last number. The braces put all three on
# one node of a Redis Cluster.
_COMMON = """
local events, known, last = KEYS[1], KEYS[2], KEYS[3]
local function marks(event)
    local found = {cjson.encode({event[1], event[2], event[4]})}
    if event[3] ~= cjson.null then table.insert(found, "id:" .. event[3]) end
    return found
end
local function add(event)
    local number = redis.call("INCR", last)
    redis.call("ZADD", events, event[4], string.format("%016d", number) .. cjson.encode(event))
    redis.call("SADD", known, unpack(marks(event)))
end
local function remove(members)
    for _, member in ipairs(members) do
        redis.call("ZREM", events, member)
        redis.call("SREM", known, unpack(marks(cjson.decode(string.sub(member, 17)))))
    end
end
"""
_APPEND = (
    _COMMON
    + """
local accepted, there, too_old = 0, 0, 0
for _, event in ipairs(cjson.decode(ARGV[1])) do
    local is_known = false
    for _, mark in ipairs(marks(event)) do
        is_known = is_known or redis.call("SISMEMBER", known, mark) == 1
    end
    if is_known then
        there = there + 1
    else
        local oldest = nil
        if redis.call("ZCARD", events) >= tonumber(ARGV[2]) then
            oldest = redis.call("ZRANGE", events, 0, 0, "WITHSCORES")
        end
        if oldest and event[4] <= tonumber(oldest[2]) then
            too_old = too_old + 1
        else
            add(event)
            accepted = accepted + 1
            if oldest then remove({oldest[1]}) end
        end
    end
end
return {accepted, there, too_old}
"""
)
_REPLACE = (
    _COMMON
    + """
remove(redis.call("ZRANGEBYSCORE", events, "-inf", ARGV[2]))
local added = cjson.decode(ARGV[1])
local room = math.max(0, tonumber(ARGV[3]) - redis.call("ZCARD", events))
for place = math.max(1, #added - room + 1), #added do add(added[place]) end
"""
)


class RedisHistories:
    """A store in a Redis server or cluster; what a call does to one user is one script, so it happens whole or not.

    Args:
        url: `redis://…`, `rediss://…` with TLS, or `unix://…`; may hold a password, so it is never printed.
        prefix: of every key.
        max_events: longest history.
        password_file: file with the server's password; None for what the url says.
        timeout_seconds: how long a call waits for the server.

    Raises:
        HistoriesUnavailable: from every method, if the server does not answer.
    """

    def __init__(
        self, url: str, prefix: str, max_events: int, password_file: str | None = None, timeout_seconds: float = 1
    ) -> None:
        self._prefix, self._max_events = prefix, max_events
        self._client = redis_client(url, password_file, timeout_seconds)
        self._append = self._client.register_script(_APPEND)
        self._replace = self._client.register_script(_REPLACE)

    def append(self, events: Mapping[str, Sequence[StoredEvent]]) -> Appended:
        """See `HistoryStore`; one user after the other, so a lost server may leave out the last ones."""
        found = [
            _answer(self._append, self._keys(user), [_encoded(added), self._max_events])
            for user, added in events.items()
        ]
        return Appended(*(sum(column) for column in zip(*found, strict=True))) if found else Appended(0, 0, 0)

    def replace(self, histories: Mapping[str, Sequence[StoredEvent]], until: int) -> None:
        """See `HistoryStore`."""
        for user, events in histories.items():
            _answer(self._replace, self._keys(user), [_encoded(events), until, self._max_events])

    def history(self, user_id: str) -> list[StoredEvent]:
        """See `HistoryStore`."""
        members = _answer(self._client.zrange, self._keys(user_id)[0], 0, -1)
        return [
            StoredEvent(item_id, timestamp, action, event_id)
            for item_id, action, event_id, timestamp in (json.loads(member[_NUMBER_DIGITS:]) for member in members)
        ]

    def forget(self, user_id: str) -> bool:
        """See `HistoryStore`."""
        return bool(_answer(self._client.delete, *self._keys(user_id)))

    def close(self) -> None:
        """See `HistoryStore`."""
        self._client.close()

    def _keys(self, user_id: str) -> list[str]:
        return [f"{self._prefix}{{{user_id}}}:{part}" for part in ("events", "known", "last")]


def _encoded(events: Sequence[StoredEvent]) -> str:
    return json.dumps([[event.item_id, event.action, event.event_id, event.timestamp] for event in events])


def _answer(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except redis.RedisError as error:
        # Its words name the server and what it said, and no password.
        raise HistoriesUnavailable(f"Redis: {error}; see that the server of serve.histories.url runs") from error
