"""Query vectors of a replica, so that a history that is asked about again is not encoded again."""

import hashlib
from collections import OrderedDict

from serve.answer import EncodedQuery, FloatArray


class QueryCache:
    """The query vectors asked for last. A cache belongs to one release, because its replica does.

    Args:
        max_entries: histories kept; 0 keeps none.
        max_events: events of a history that the model sees, the newest.
        reads_times: whether the model looks at times; where it does, the time of the request is part of the question.
    """

    def __init__(self, max_entries: int, max_events: int, reads_times: bool) -> None:
        self._max_entries, self._max_events, self._reads_times = max_entries, max_events, reads_times
        self._vectors: OrderedDict[bytes, FloatArray] = OrderedDict()

    def key(self, query: EncodedQuery) -> bytes:
        """All that query vectors depend on: what the model sees of the history, and the conditions' codes.

        Not the weights of objectives: they are laid on afterwards, so one vector serves them all.
        """
        seen = slice(max(0, len(query.items_L) - self._max_events), None)
        found = hashlib.blake2b(query.items_L[seen].tobytes(), digest_size=16)
        found.update(b"actions" + query.actions_L[seen].tobytes())
        if self._reads_times:
            found.update(b"times" + query.times_L[seen].tobytes() + query.query_time.to_bytes(8, signed=True))
        found.update(b"codes" + ",".join(str(one.code) for one in query.instructions).encode())
        return found.digest()

    def get(self, key: bytes) -> FloatArray | None:
        """The vectors, [P, D], one per condition; None if they are not kept."""
        vectors = self._vectors.get(key)
        if vectors is not None:
            self._vectors.move_to_end(key)
        return vectors

    def put(self, key: bytes, vectors_PD: FloatArray) -> None:
        """Keep them; the ones that were not asked for the longest make room."""
        if self._max_entries:
            self._vectors[key] = vectors_PD
            self._vectors.move_to_end(key)
            if len(self._vectors) > self._max_entries:
                self._vectors.popitem(last=False)
