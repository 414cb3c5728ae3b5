"""Updates in Redis: for many machines."""

from collections.abc import Callable
from typing import Any

import redis

from serve.redis_server import redis_client
from serve.updates.contract import Change, Changed, Updates, UpdatesUnavailable
from serve.updates.states import ItemState, Room, changed_states, from_document, next_version, to_document


class RedisUpdates:
    """A store in a Redis server: a set of removed ids, a hash of added items, and a version that every writer changes
    and watches, so that one which comes between makes the other begin again.

    Args:
        url: `redis://…`, `rediss://…` with TLS, or `unix://…`; may hold a password, so it is never printed.
        prefix: of every key.
        max_added, max_removed: items that may stand at a time.
        password_file: file with the server's password; None for what the url says.
        timeout_seconds: how long a call waits for the server.

    Raises:
        UpdatesUnavailable: from every method, if the server does not answer.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        max_added: int,
        max_removed: int,
        password_file: str | None = None,
        timeout_seconds: float = 1,
    ) -> None:
        self._max_added, self._max_removed = max_added, max_removed
        # The braces put all three on one node of a Redis Cluster.
        self._version, self._removed, self._added = (
            f"{prefix}{{items}}:{part}" for part in ("version", "removed", "added")
        )
        self._client = redis_client(url, password_file, timeout_seconds)

    def version(self) -> int:
        """See `UpdateStore`."""
        return int(_answer(self._client.get, self._version) or 0)

    def updates(self) -> Updates:
        """See `UpdateStore`."""
        pipe = self._client.pipeline(transaction=True)
        pipe.get(self._version).smembers(self._removed).hgetall(self._added)
        version, removed, added = _answer(pipe.execute)
        return Updates(
            int(version or 0), frozenset(removed), tuple(from_document(added[item_id]) for item_id in sorted(added))
        )

    def apply(self, change: Change) -> Changed:
        """See `UpdateStore`."""
        found = Changed()

        def attempt(pipe: Any) -> None:
            nonlocal found
            version = int(pipe.get(self._version) or 0)
            room = Room(pipe.scard(self._removed), pipe.hlen(self._added), self._max_removed, self._max_added)
            differ, found = changed_states(self._states(pipe, change.item_ids), change, room)
            pipe.multi()
            for item_id, state in differ.items():
                (pipe.sadd if state.removed else pipe.srem)(self._removed, item_id)
                if state.added is None:
                    pipe.hdel(self._added, item_id)
                else:
                    pipe.hset(self._added, item_id, to_document(state.added))
            if differ:
                pipe.set(self._version, next_version(version))

        if change.item_ids:
            _answer(self._client.transaction, attempt, self._version)
        return found

    def close(self) -> None:
        """See `UpdateStore`."""
        self._client.close()

    def _states(self, pipe: Any, item_ids: list[str]) -> dict[str, ItemState]:
        removed, documents = pipe.smismember(self._removed, item_ids), pipe.hmget(self._added, item_ids)
        return {
            item_id: ItemState(bool(is_removed), None if document is None else from_document(document))
            for item_id, is_removed, document in zip(item_ids, removed, documents, strict=True)
        }


def _answer(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except redis.RedisError as error:
        # Its words name the server and what it said, and no password.
        raise UpdatesUnavailable(f"Redis: {error}; see that the server of serve.updates.url runs") from error
