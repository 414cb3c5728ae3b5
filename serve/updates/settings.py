"""Settings of where updates of items are kept; free of torch, ray and redis."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from data.settings import Settings
from serve.redis_settings import RedisServer


class UpdatesSettings(Settings):
    """What every store of updates has. All of it is in each replica's memory."""

    max_added: int = Field(10_000, ge=0, description="items that stand added at a time; each answer compares them all")
    max_removed: int = Field(100_000, ge=0, description="items that stand removed at a time")


class SqliteUpdatesSettings(UpdatesSettings):
    """One file, for endpoints of one machine."""

    kind: Literal["sqlite"] = "sqlite"
    path: str = Field("runs/updates.sqlite", description="the file, made if it is not there")


class RedisUpdatesSettings(UpdatesSettings, RedisServer):
    """A Redis server, for endpoints of many machines; needs the extra `redis`."""

    kind: Literal["redis"] = "redis"
    prefix: str = Field("farsight:", description="of every key, so that one server can hold several endpoints' updates")


def sqlite_if_unsaid(settings: Any) -> Any:
    """So that `serve.updates.path=FILE` need not say which kind has a path."""
    return {"kind": "sqlite", **settings} if isinstance(settings, dict) else settings


UpdatesKind = Annotated[
    SqliteUpdatesSettings | RedisUpdatesSettings, Field(discriminator="kind"), BeforeValidator(sqlite_if_unsaid)
]
