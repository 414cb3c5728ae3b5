"""A release that answers in one process: what a replica wraps, and what tests compare HTTP answers with."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data.batch import collate, to_device
from data.encode import encode_histories
from data.schema import TRAIN_EVENTS
from serve.answer import (
    Answer,
    EncodedQuery,
    FloatArray,
    IntArray,
    Query,
    encode_query,
    pick,
    popularity_order,
    search_depth,
)
from serve.index.contract import Hits
from serve.release import Release

logger = logging.getLogger(__name__)


class MissingTimes(ValueError):
    """A model that reads times was given a history without them."""


class Engine:
    """Model and index of one release. Not safe for concurrent calls of the same method."""

    def __init__(self, release: Release, device: str = "cpu") -> None:
        artifact = release.artifact
        catalogue = artifact.catalogue()
        self.release_id = release.release_id
        self.needs_times = artifact.settings.reads_times
        self._max_events = artifact.max_events
        self._device = device
        self._vocabulary = artifact.vocabulary()
        self._action_codes = {name: code for code, name in enumerate(artifact.actions, start=1)}
        self._titles = catalogue.column("title") if "title" in catalogue.column_names else None
        self._train_events_V: IntArray = catalogue.column(TRAIN_EVENTS).to_numpy().astype(np.int64)
        self._popular_V = popularity_order(self._train_events_V)
        self._index = release.index
        self._retriever = artifact.load_retriever(device)

    @classmethod
    def open(cls, directory: str | Path, device: str = "cpu") -> "Engine":
        """Open a release, checked.

        Raises:
            ArtifactError: missing, damaged or mismatched.
        """
        return cls(Release.open(directory), device)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer queries in one batch; each gets what it would get alone, up to float rounding."""
        encoded = [self.encode(query) for query in queries]
        return self.answers(encoded, self.search(encoded, self.query_vectors(encoded)))

    def encode(self, query: Query) -> EncodedQuery:
        """Ids to rows.

        Raises:
            MissingTimes: the model reads times and the history has none.
        """
        if self.needs_times and query.timestamps is None and query.item_ids:
            raise MissingTimes("missing, and this release's model reads times; give each event its time in seconds UTC")
        return encode_query(query, self._vocabulary, self._action_codes)

    def query_vectors(self, queries: Sequence[EncodedQuery]) -> FloatArray:
        """One vector per query, [Q, D]; that of a query without known events means nothing."""
        histories = encode_histories(
            [query.items_L for query in queries],
            [query.times_L for query in queries],
            [query.actions_L for query in queries],
            [query.query_time for query in queries],
            max_events=self._max_events,
        )
        batch = to_device(collate(histories), self._device)
        with torch.inference_mode():
            query_QD: FloatArray = self._retriever.query_vectors(batch).float().cpu().numpy()
        return query_QD

    def search(self, queries: Sequence[EncodedQuery], query_QD: FloatArray) -> Hits:
        """Enough hits for every query of the batch."""
        return self._index.search(query_QD, max(map(search_depth, queries), default=0))

    def answers(self, queries: Sequence[EncodedQuery], hits: Hits) -> list[Answer]:
        """Drop what is barred, cut to k, fall back to popularity where the model has nothing to go by."""
        return [
            self._answer(query, rows_K, scores_K)
            for query, rows_K, scores_K in zip(queries, hits.rows_QK, hits.scores_QK, strict=True)
        ]

    def warm_up(self) -> None:
        """Answer once, so that the first request does not pay for lazy initialisation."""
        item_ids = self._vocabulary.item_ids[: self._max_events]
        times = list(range(len(item_ids)))
        self.answer([Query(item_ids=item_ids, k=10, request_time=len(item_ids), timestamps=times)])

    def _answer(self, query: EncodedQuery, rows_K: IntArray, scores_K: FloatArray) -> Answer:
        used = min(len(query.items_L), self._max_events)
        rows, scores = pick(rows_K, scores_K, query)
        # Barred items never run out before k does, so no hit at all means a query vector of NaN.
        broken = used > 0 and not len(rows) and len(self._popular_V) > len(query.barred)
        if broken:
            logger.error("release %s: the model gave no finite query vector; answering popularity", self.release_id)
        fallback = not used or broken
        if fallback:
            rows, scores = self._popular(query)
        return Answer(
            release=self.release_id,
            item_ids=self._vocabulary.external(rows.tolist()),
            scores=scores.tolist(),
            titles=[None if self._titles is None else self._titles[row - 1].as_py() for row in rows.tolist()],
            fallback="popularity" if fallback else None,
            unknown_items=query.unknown_items,
            unknown_actions=query.unknown_actions,
            history_events_used=used,
        )

    def _popular(self, query: EncodedQuery) -> tuple[IntArray, FloatArray]:
        # The first k + barred of the order hold k that are not barred, wherever the barred stand.
        first_K = self._popular_V[: search_depth(query)]
        return pick(first_K, self._train_events_V[first_K - 1].astype(np.float32), query)
