"""HTTP clients for load tests, each over one connection kept open."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

# Before a client asks again, and twice, three times as long before the next time.
RETRY_SECONDS = 0.5
# No answer, or that of a proxy that knows no server behind it: not yet (404), or not now (502, 503).
RETRIED = (0, 404, 502, 503)


@dataclass
class Load:
    """What the clients saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)  # seconds, of answers with status 200
    refusals: list[float] = field(default_factory=list)  # seconds, of answers with status 503
    statuses: Counter[int] = field(default_factory=Counter)  # 0: no answer
    broken: int = 0  # connections that broke before an answer

    @property
    def answered_per_second(self) -> float:
        """Answers with status 200."""
        return len(self.latencies) / self.seconds

    @property
    def failed(self) -> int:
        """Requests that were not answered with status 200."""
        return self.statuses.total() - self.statuses[200]

    def add(self, status: int, seconds: float) -> None:
        """Count one answer, or with status 0 none."""
        self.statuses[status] += 1
        if status == 200:
            self.latencies.append(seconds)
        elif status == 503:
            self.refusals.append(seconds)

    def milliseconds(self, percentile: int) -> float:
        """A percentile of the latencies."""
        return 1e3 * percentile_of(self.latencies, percentile)


def percentile_of(values: Sequence[float], percentile: int) -> float:
    """Infinite where there is nothing."""
    if len(values) < 2:
        return values[0] if values else float("inf")
    return statistics.quantiles(values, n=100, method="inclusive")[percentile - 1]


def ask_for(
    url: str,
    bodies: Sequence[bytes],
    *,
    clients: int,
    seconds: float,
    period: float = 0,
    retries: int = 0,
    on_answer: Callable[[int, bytes], None] | None = None,
) -> Load:
    """Let clients ask for some time.

    Args:
        url: of the route.
        bodies: of the requests; the clients take them in turn.
        period: seconds from one question of a client to its next, at least; 0: as soon as it is answered.
        retries: of a request that nobody answered (`RETRIED`): searching changes nothing, so it may be sent again.
        on_answer: called with the number of a body and its answer, for status 200.
    """
    return asyncio.run(_ask_for(url, bodies, clients, seconds, period, retries, on_answer))


async def _ask_for(
    url: str,
    bodies: Sequence[bytes],
    clients: int,
    seconds: float,
    period: float,
    retries: int,
    on_answer: Callable[[int, bytes], None] | None,
) -> Load:
    place = urlsplit(url)
    head = f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\nContent-Length: "
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    found, began = Load(), time.perf_counter()
    address = place.hostname or "127.0.0.1", place.port or 80

    async def client(number: int) -> None:
        await asyncio.sleep(period * number / clients)  # evenly over a period
        connection = await _connected(address, began + seconds)
        asked = time.perf_counter()
        while asked < began + seconds:
            chosen = number % len(requests)
            for attempt in range(retries + 1):
                status, stays, content = await _asked(connection, requests[chosen])
                found.broken += status == 0
                again = status in RETRIED and attempt < retries
                if again or not stays:
                    # Also where it would stay: what is behind a proxy's old connections may be its old configuration.
                    connection[1].close()
                    await asyncio.sleep(RETRY_SECONDS * (attempt + 1) if again else 0)
                    try:
                        connection = await _connected(address, began + seconds)
                    except OSError:  # nothing listens any more
                        found.add(0, time.perf_counter() - asked)
                        return
                if not again:
                    break
            found.add(status, time.perf_counter() - asked)
            if on_answer is not None and status == 200:
                on_answer(chosen, content)
            number += 7  # prime to most numbers of bodies, so that clients do not all ask the same
            await asyncio.sleep(max(0.0, asked + period - time.perf_counter()))
            asked = time.perf_counter()
        connection[1].close()

    await asyncio.gather(*map(client, range(clients)))
    found.seconds = time.perf_counter() - began
    return found


async def _asked(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes
) -> tuple[int, bool, bytes]:
    """What is answered, as `_answer` has it; status 0 where the connection broke."""
    try:
        connection[1].write(request)
        return await asyncio.wait_for(_answer(connection[0]), 60)
    except (OSError, EOFError, ValueError, TimeoutError):
        return 0, False, b""


async def _connected(address: tuple[str, int], until: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A new connection; whoever listens may be gone for a moment."""
    while True:
        try:
            return await asyncio.open_connection(*address)
        except OSError:
            if time.perf_counter() > until + 30:
                raise
            await asyncio.sleep(0.05)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool, bytes]:
    """The status of the next answer, whether the connection stays open, and the answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status, content = int(head.split(b" ", 2)[1]), b""
    if b"transfer-encoding: chunked" in head:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            content += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        _, _, rest = head.partition(b"content-length:")
        content = await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
    return status, b"connection: close" not in head, content
