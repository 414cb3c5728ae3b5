"""Which store of updates an endpoint uses."""

from pathlib import Path

from data.errors import MachineError
from serve.updates.contract import UpdateStore
from serve.updates.in_sqlite import SqliteUpdates
from serve.updates.settings import SqliteUpdatesSettings, UpdatesKind


def open_updates(settings: UpdatesKind) -> UpdateStore:
    """The store of a section `serve.updates`.

    Raises:
        MachineError: the package that it needs is not installed.
        UpdatesUnavailable: the file cannot be made.
    """
    if isinstance(settings, SqliteUpdatesSettings):
        return SqliteUpdates(Path(settings.path).absolute(), settings.max_added, settings.max_removed)
    try:
        from serve.updates.in_redis import RedisUpdates
    except ModuleNotFoundError as error:
        raise MachineError(f"serve.updates.kind=redis: {error}; install farsight with the extra redis") from None
    return RedisUpdates(settings.url, settings.prefix, settings.max_added, settings.max_removed, settings.password_file)
