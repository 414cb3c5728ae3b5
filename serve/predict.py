"""Answers for every user of a prepared dataset at once, on Ray Data actors: what an endpoint would have said.

A shard of the dataset becomes a file of the same number. Until the last one stands they lie in a hidden folder
beside their place, so a run that was stopped goes on with the shards that are left, and nothing half done looks
finished.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data.dataset import PreparedDataset
from data.errors import DatasetError, FarsightError
from data.settings import Recipe, read_section
from data.storage import MANIFEST, directory_hashes, file_hash, write_json
from data.tasks import Actors, over_items
from serve.answer import Query
from serve.engine import Engine
from serve.index.on_faiss import set_search_threads
from serve.instructions import Unanswerable, Wish
from serve.predict_settings import PredictSettings
from serve.registry import find_release
from serve.release import Release

logger = logging.getLogger(__name__)

KIND = "predictions"
FORMAT_VERSION = 1
PLAN = "plan.json"
SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_ids", pa.list_(pa.string()), nullable=False),  # best first
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("fallback", pa.string()),  # popularity, where the model had nothing to go by
    ]
)
_COLUMNS = ["user_id", "items", "times", "actions"]


def run(release: str, dataset: str, out: str, recipe: Recipe) -> dict[str, Any]:
    """Write the answers of a release for all users of a prepared dataset.

    Args:
        release: a release, as `serve.registry.find_release` finds it; items that it lacks count as unknown.
        dataset: directory of a prepared dataset; whole histories are read, test events too.
        out: directory to write: `part-*.parquet` with the columns of `SCHEMA`, one row per user, and a manifest.
        recipe: section `predict` is read.

    Returns:
        `directory`, `release_id`, `request_time` and `counts` (users, of them `popularity` answered so).

    Raises:
        ArtifactError: the release is damaged, or unknown to the registry.
        DatasetError: the dataset is damaged, or lacks times or conditions that the release needs.
        FarsightError: something stands at `out`.
    """
    settings = read_section(recipe, "predict", PredictSettings)
    final = Path(out).absolute()
    if final.exists():
        raise FarsightError(f"{final}: already exists; choose another place or remove it")
    found, prepared = find_release(release), PreparedDataset.open(dataset)
    release_id = Release.open(found).release_id
    # By default the newest event's: the same dataset then gets the same answers on every day.
    request_time = prepared.newest_time() if settings.request_time is None else settings.request_time
    plan = {
        "release_id": release_id,
        "dataset": file_hash(prepared.directory / MANIFEST),
        "settings": settings.model_dump(mode="json", exclude={"workers"}),
        "request_time": request_time,
    }
    aside = _unfinished(final, plan)
    parts = [
        {"shard": str(shard.absolute()), "part": f"part-{number:05d}.parquet"}
        for number, shard in enumerate(prepared.shards)
    ]
    left = [part for part in parts if not (aside / part["part"]).exists()]
    if len(left) < len(parts):
        logger.info("%d of %d shards were answered before", len(parts) - len(left), len(parts))
    workers = settings.workers
    over_items(
        _Shard,
        left,
        "answering users",
        actors=Actors(workers.at_least, workers.at_most, workers.num_cpus, workers.num_gpus),
        release=str(found.absolute()),
        dataset=str(prepared.directory.absolute()),
        out=str(aside),
        settings=settings,
        request_time=request_time,
    )
    counts = _counts(aside, [part["part"] for part in parts])
    (aside / PLAN).unlink()
    manifest = {"kind": KIND, "format_version": FORMAT_VERSION, **plan, "counts": counts}
    write_json(aside / MANIFEST, {**manifest, "files": directory_hashes(aside)})
    aside.rename(final)
    return {"directory": out, "release_id": release_id, "request_time": request_time, "counts": counts}


def _unfinished(final: Path, plan: dict[str, Any]) -> Path:
    """The folder in which answers gather; what an earlier run left there stays if it had the same plan."""
    aside = final.parent / f".{final.name}.unfinished"
    try:
        if json.loads((aside / PLAN).read_text(encoding="utf-8")) == plan:
            return aside
        logger.warning("%s: an unfinished run with another release, dataset or settings; it is begun again", final)
    except (OSError, ValueError):
        pass
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write_json(aside / PLAN, plan)
    return aside


def _counts(directory: Path, parts: list[str]) -> dict[str, int]:
    columns = [pq.read_table(directory / part, columns=["fallback"])["fallback"] for part in parts]
    users = sum(map(len, columns))
    return {"users": users, "popularity": users - sum(column.null_count for column in columns)}


class _Shard:
    """Answers for one shard after the other, with one release in memory."""

    def __init__(self, release: str, dataset: str, out: str, settings: PredictSettings, request_time: int) -> None:
        torch.set_num_threads(settings.workers.torch_threads)
        set_search_threads(settings.workers.torch_threads)
        device = "cuda" if settings.workers.num_gpus else "cpu"
        self._engine = Engine.open(release, device, encoding=settings.workers)
        self._engine.prepare()
        self._out, self._settings, self._request_time = Path(out), settings, request_time
        prepared = PreparedDataset.open(dataset)
        self._has_times, self._vocabulary = prepared.has_times, prepared.vocabulary()
        self._actions = [None, *prepared.manifest["actions"]]

    def __call__(self, number: int, item: dict[str, str]) -> int:
        """Write one part whole or not at all; how many users it has."""
        aside = self._out / f".{item['part']}"
        users = 0
        with pq.ParquetWriter(aside, SCHEMA) as writer:
            for batch in pq.ParquetFile(item["shard"]).iter_batches(self._settings.batch_size, columns=_COLUMNS):
                writer.write_table(self._answered(batch))
                users += len(batch)
        os.replace(aside, self._out / item["part"])
        return users

    def _answered(self, batch: pa.RecordBatch) -> pa.Table:
        try:
            answers = self._engine.answer(list(self._queries(batch)))
        except Unanswerable as error:
            raise DatasetError(f"{error.field}: {error.message}") from None
        return pa.table(
            {
                "user_id": batch["user_id"],
                "item_ids": [answer.item_ids for answer in answers],
                "scores": [answer.scores for answer in answers],
                "fallback": [answer.fallback for answer in answers],
            },
            SCHEMA,
        )

    def _queries(self, batch: pa.RecordBatch) -> Iterator[Query]:
        asked = self._settings
        columns = (batch[name].to_pylist() for name in ("items", "times", "actions"))
        wishes = [Wish(tuple(one.any_of), one.own_top or 0, one.weight, one.hard) for one in asked.conditions]
        for items, times, codes in zip(*columns, strict=True):
            until = sum(time <= self._request_time for time in times)  # histories stand in the order of time
            yield Query(
                item_ids=self._vocabulary.external(items[:until]),
                k=asked.k,
                request_time=self._request_time,
                timestamps=times[:until] if self._has_times else None,
                actions=[self._actions[code] for code in codes[:until]],
                exclude_seen=asked.exclude_seen,
                wishes=wishes,
            )
