"""A client of a Redis server, for the stores that are kept in one."""

from pathlib import Path
from typing import Any

import redis


def redis_client(url: str, password_file: str | None, timeout_seconds: float) -> Any:
    """A `redis.Redis` that connects when it is first asked.

    Its types promise answers that may be awaited, which those of this client never are, so it has none here.
    """
    credentials = {} if password_file is None else {"credential_provider": PasswordFile(Path(password_file))}
    timeouts = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    return redis.Redis.from_url(url, decode_responses=True, **timeouts, **credentials)


class PasswordFile(redis.CredentialProvider):
    """Asked for every new connection, so that a changed password needs no restart."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def get_credentials(self) -> tuple[str]:
        """The password alone: the server's default user."""
        try:
            return (self._file.read_text(encoding="utf-8").strip(),)
        except (OSError, UnicodeDecodeError) as error:
            raise redis.AuthenticationError(f"cannot read password_file {self._file}: {error}") from None
