"""Which store an endpoint uses, and the histories that a prepared dataset gives it to begin with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.dataset import PreparedDataset
from data.errors import DatasetError, EndpointError, MachineError, RecipeError
from data.settings import Recipe, read_section
from data.vocabulary import Vocabulary
from serve.histories.contract import HistoriesUnavailable, HistoryStore, StoredEvent
from serve.histories.in_sqlite import SqliteHistories
from serve.settings import HistoriesKind, ServeSettings, SqliteSettings

# Users of one call of a store.
USERS_PER_CALL = 1_000


def open_histories(settings: HistoriesKind) -> HistoryStore:
    """The store of a section `serve.histories`.

    Raises:
        MachineError: the package that it needs is not installed.
        HistoriesUnavailable: the file cannot be made.
    """
    if isinstance(settings, SqliteSettings):
        return SqliteHistories(Path(settings.path).absolute(), settings.max_events)
    try:
        from serve.histories.in_redis import RedisHistories
    except ModuleNotFoundError as error:
        raise MachineError(f"serve.histories.kind=redis: {error}; install farsight with the extra redis") from None
    return RedisHistories(settings.url, settings.prefix, settings.max_events, settings.password_file)


def seed(dataset: str, recipe: Recipe) -> dict[str, Any]:
    """Put the histories of a prepared dataset into the store that endpoints of this recipe use.

    Up to the dataset's newest event its histories replace what the store has of their users; later events stay, and
    so do users that the dataset does not have. So it may be done again, and with each day's dataset.

    Args:
        dataset: directory of a prepared dataset with times.
        recipe: `serve.histories` is read.

    Returns:
        `users` and `events` of the dataset, of which the store keeps the newest of each user; `until`, its newest time.

    Raises:
        RecipeError: the recipe keeps no histories.
        DatasetError: the dataset is damaged, or its events have no times.
        EndpointError: the store cannot be reached.
    """
    settings = read_section(recipe, "serve", ServeSettings)
    if settings.histories is None:
        raise RecipeError("serve.histories is null, so endpoints of this recipe keep no histories; leave it out")
    prepared = PreparedDataset.open(dataset)
    if not prepared.has_times:
        raise DatasetError(f"{dataset}: its events have no times, which the stored histories are ordered by")
    vocabulary, actions = prepared.vocabulary(), [None, *prepared.manifest["actions"]]
    until = prepared.newest_time()
    users = events = 0
    try:
        store = open_histories(settings.histories)
        for table in prepared.history_tables(["user_id", "items", "times", "actions"]):
            for batch in table.to_batches(USERS_PER_CALL):
                histories = _histories(batch, vocabulary, actions)
                store.replace(histories, until)
                users += len(histories)
                events += sum(map(len, histories.values()))
        store.close()
    except HistoriesUnavailable as error:
        raise EndpointError(str(error)) from None
    return {"users": users, "events": events, "until": until}


def _histories(
    batch: pa.RecordBatch, vocabulary: Vocabulary, actions: Sequence[str | None]
) -> dict[str, list[StoredEvent]]:
    columns = (batch[name].to_pylist() for name in ("user_id", "items", "times", "actions"))
    return {
        user: [
            StoredEvent(item_id, time, actions[code])
            for item_id, time, code in zip(vocabulary.external(items), times, codes, strict=True)
        ]
        for user, items, times, codes in zip(*columns, strict=True)
    }
