"""Who may ask: bearer tokens from a file, and how often each may."""

import hashlib
import hmac
import logging
import math
import time
from pathlib import Path

from limits import RateLimitItem
from limits import parse as parse_rate
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.types import ASGIApp, Receive, Scope, Send

from data.errors import RecipeError
from serve.problems import problem

logger = logging.getLogger(__name__)

# Shorter ones can be guessed.
MIN_TOKEN_LENGTH = 16
# What anyone may see: nothing there is of a user or of the catalogue.
OPEN = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json"})
OPEN_FILES = "/page/"
# Name of a request's token in its state, for the access log.
TOKEN_NAME = "token"


class Tokens:
    """The tokens of a file with a `NAME TOKEN` per line; `#` starts a comment line.

    The file is read again when it changes, so a token is replaced without a restart: write the new one beside
    the old, give it out, remove the old. A file that cannot be read then leaves the tokens as they were.
    """

    def __init__(self, file: str | Path) -> None:
        """Read the file.

        Raises:
            RecipeError: missing, without a token, or with a line that is not one.
        """
        self._file = Path(file)
        self._read_at = self._changed_at()
        self._digests = self._read()

    def name_of(self, token: bytes) -> str | None:
        """The name of a token, None if there is none like it. Takes as long whichever it is."""
        self._refresh()
        asked, found = hashlib.sha256(token).digest(), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(asked, digest):
                found = name
        return found

    def _refresh(self) -> None:
        try:
            changed_at = self._changed_at()
            if changed_at != self._read_at:
                self._read_at = changed_at
                self._digests = self._read()
        except RecipeError as error:
            logger.error("%s; the tokens stay as they were", error)

    def _changed_at(self) -> tuple[int, int, int]:
        try:
            found = self._file.stat()
        except OSError as error:
            raise RecipeError(f"serve.access.tokens_file {self._file}: {error.strerror}") from None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> dict[str, bytes]:
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"serve.access.tokens_file {self._file}: cannot read it: {error}") from None
        digests: dict[str, bytes] = {}
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            # The line itself is a secret: it is not shown.
            if len(words) != 2 or len(words[1]) < MIN_TOKEN_LENGTH or words[0] in digests:
                raise RecipeError(
                    f"serve.access.tokens_file {self._file}, line {number}: expected a name that no line before has, a "
                    f"space, and a token of at least {MIN_TOKEN_LENGTH} characters (openssl rand -hex 32 makes one)"
                )
            digests[words[0]] = hashlib.sha256(words[1].encode()).digest()
        if not digests:
            raise RecipeError(
                f"serve.access.tokens_file {self._file}: found no token, expected a `NAME TOKEN` per line"
            )
        return digests


class AccessGuard:
    """ASGI middleware in front of everything that reads a body: 401 without a token, 429 past its rate."""

    def __init__(self, app: ASGIApp, tokens: Tokens | None, rate: str | None) -> None:
        self._app = app
        self._tokens = tokens
        self._rate: RateLimitItem | None = None if rate is None else parse_rate(rate)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope):
            name = "anyone" if self._tokens is None else self._tokens.name_of(_bearer_token(scope))
            if name is None:
                refusal = problem(
                    401, "", "expected a token of this endpoint in the header Authorization: Bearer TOKEN"
                )
                refusal.headers["WWW-Authenticate"] = "Bearer"
                await refusal(scope, receive, send)
                return
            scope.setdefault("state", {})[TOKEN_NAME] = name
            if self._rate is not None and not self._limiter.hit(self._rate, name):
                resets_at, _ = self._limiter.get_window_stats(self._rate, name)
                seconds = max(1, math.ceil(resets_at - time.time()))
                refusal = problem(429, "", f"past the rate of {self._rate}; ask again after the seconds in Retry-After")
                refusal.headers["Retry-After"] = str(seconds)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
    return path in OPEN or path.startswith(OPEN_FILES)


def _bearer_token(scope: Scope) -> bytes:
    header: bytes = dict(scope["headers"]).get(b"authorization", b"")
    kind, _, token = header.partition(b" ")
    return token.strip() if kind.lower() == b"bearer" else b""
