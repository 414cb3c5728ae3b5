"""A release that answers in one process: what a replica wraps, and what tests compare HTTP answers with."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from data.encode import encode_histories
from data.item_features import FeatureCodes, ItemFacts
from data.schema import TRAIN_EVENTS
from modeling.feature_table import FeatureTable
from modeling.hashed_table import HashedTable, id_hashes
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
from serve.catalogue import Catalogue, Filter, Segment
from serve.index.contract import Hits, Index
from serve.instructions import Instruction, Unanswerable, instructions, merge
from serve.query_encoder import QueryEncoder
from serve.release import Release
from serve.settings import Encoding

logger = logging.getLogger(__name__)


class Engine:
    """Model and index of one release. Not safe for concurrent calls of the same method."""

    def __init__(self, release: Release, device: str = "cpu", encoding: Encoding | None = None) -> None:
        artifact = release.artifact
        facts = artifact.catalogue()
        self.release = release
        self.release_id = release.release_id
        self.golden = release.golden
        self.artifact_hash = artifact.content_hash
        self.needs_times = artifact.settings.reads_times
        self.max_events = artifact.max_events
        self._device = device
        self._objectives, self._width = artifact.settings.objectives, artifact.settings.width
        self._action_codes = {name: code for code, name in enumerate(artifact.actions, start=1)}
        train_events_V: IntArray = facts.column(TRAIN_EVENTS).to_numpy().astype(np.int64)
        segment = Segment(
            artifact.vocabulary(),
            release.index,
            artifact.conditions(),
            train_events_V,
            popularity_order(train_events_V),
            facts.column("title") if "title" in facts.column_names else None,
        )
        self.catalogue = Catalogue(segment)  # as released; a query may be answered from a later one
        self._conditions = segment.conditions
        self._retriever = artifact.load_retriever(device)
        self._encoder = QueryEncoder(self._retriever, encoding or Encoding(), device, artifact.max_events)
        self.takes_conditions = self._encoder.takes_conditions

    @classmethod
    def open(
        cls,
        directory: str | Path,
        device: str = "cpu",
        index: Index | None = None,
        encoding: Encoding | None = None,
    ) -> "Engine":
        """Open a release, checked; see `Release.open`.

        Raises:
            ArtifactError: missing, damaged or mismatched.
        """
        return cls(Release.open(directory, device, index), device, encoding)

    @property
    def num_items(self) -> int:
        """Items of the release."""
        return self.catalogue.num_items

    @property
    def objectives(self) -> Sequence[str]:
        """Names of the objectives that a request can weigh; none for a model of one objective."""
        return [] if self._objectives is None else self._objectives.learnt

    @property
    def conditions(self) -> Sequence[str]:
        """Names of the categories and pools that can be asked for."""
        return self._conditions.names

    def titles(self, item_ids: Sequence[str]) -> list[str | None]:
        """The titles of items; None for one that has none or is not known."""
        return self.catalogue.titles(self.catalogue.rows(item_ids).tolist())

    def item_vectors(self, rows_N: IntArray) -> FloatArray:
        """Vectors of the release's items, [N, D], of length 1."""
        rows = torch.from_numpy(rows_N).to(self._device)
        with torch.inference_mode():  # of the table itself: the encoder may be of another precision
            held_ND = self._retriever.items.hold(rows)(rows)
            vectors_ND: FloatArray = self._retriever.normalized(held_ND).float().cpu().numpy()
        return vectors_ND

    def normalized(self, vectors_ND: FloatArray) -> FloatArray:
        """Vectors of length 1 in the form of the release's own: where objectives have blocks, block by block."""
        if self._objectives is None:
            return vectors_ND
        normalized_ND: FloatArray = (
            self._retriever.normalized(torch.from_numpy(vectors_ND).to(self._device)).cpu().numpy()
        )
        return normalized_ND

    @property
    def feature_codes(self) -> FeatureCodes:
        """What the model makes vectors of items from; nothing where it is not features."""
        table = self._retriever.items
        return table.codes if isinstance(table, FeatureTable) else FeatureCodes([], {}, {})

    def composed_vectors(self, item_ids: Sequence[str], facts: Sequence[ItemFacts]) -> list[FloatArray | None] | None:
        """Vectors of length 1 that the model makes of items it has never seen; None if it makes none.

        From the id, or from what is said of an item: then None for one of which the release knows nothing.

        Args:
            facts: of each item; content vectors are as wide as `feature_codes` says.
        """
        table = self._retriever.items
        if not item_ids or not isinstance(table, HashedTable | FeatureTable):
            return None
        with torch.inference_mode():
            if isinstance(table, HashedTable):
                vectors_ND = table.compose(torch.from_numpy(id_hashes(item_ids)).to(self._device))
                told = [True] * len(item_ids)
            else:
                vectors_ND = table.compose(facts)
                told = [table.knows(item) for item in facts]
            composed_ND: FloatArray = functional.normalize(vectors_ND, dim=-1).float().cpu().numpy()
        return [vector if known else None for vector, known in zip(composed_ND, told, strict=True)]

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer queries in one batch; each gets what it would get alone, up to float rounding."""
        encoded = [self.encode(query) for query in queries]
        return self.answers(encoded, self.search(encoded, self.query_vectors(encoded)))

    def encode(self, query: Query, catalogue: Catalogue | None = None) -> EncodedQuery:
        """Ids to rows.

        Args:
            catalogue: what to answer from; the release's own if None.

        Raises:
            Unanswerable: the model reads times and the history has none, a condition is not known, or the weights of
                objectives are wrong.
        """
        if self.needs_times and query.timestamps is None and query.item_ids:
            raise Unanswerable(
                "history.0.timestamp",
                "missing, and this release's model reads times; give each event its time in seconds UTC",
            )
        encoded = encode_query(query, catalogue or self.catalogue, self._action_codes)
        asked = instructions(
            query.wishes,
            encoded.items_L,
            self._conditions,
            takes_conditions=self.takes_conditions,
        )
        stated = query.objective_weights
        return replace(encoded, instructions=asked, weighted=stated is not None, scales_D=self._scales(stated))

    def _scales(self, weights: Mapping[str, float] | None) -> FloatArray | None:
        """What each coordinate of a query vector is multiplied by."""
        if weights is not None:
            problem = "this release has one objective; leave the field out"
            if self._objectives is not None:
                problem = self._objectives.wrong_weights(weights) or ""
            if problem:
                raise Unanswerable("objective_weights", problem)
        if self._objectives is None:
            return None
        return np.array(self._objectives.scales(self._width, weights), np.float32)

    def query_vectors(self, queries: Sequence[EncodedQuery]) -> FloatArray:
        """One vector per branch query, [N, D], those of a query one after the other; see `QueryEncoder`.

        They are the same whatever the weights of the objectives, which `search` multiplies them by.
        """
        histories = encode_histories(
            [query.items_L for query in queries],
            [query.times_L for query in queries],
            [query.actions_L for query in queries],
            [query.query_time for query in queries],
            max_events=self.max_events,
        )
        return self._encoder(histories, [[one.code for one in query.instructions] for query in queries])

    def prepare(self) -> None:
        """Do before the first request what would slow it; to be called in the thread that will ask for vectors."""
        seconds = self._encoder.prepare()
        if seconds:
            logger.info("release %s: compiled the encoder in %.0f s", self.release_id, seconds)

    def search(self, queries: Sequence[EncodedQuery], query_ND: FloatArray) -> Hits:
        """Enough hits for every branch query of the batch. All without a filter are searched together."""
        query_ND = _weighted(queries, query_ND)
        depth = max((min(search_depth(query), query.catalogue.num_items) for query in queries), default=0)
        groups: dict[tuple[Catalogue, Filter], list[int]] = {}
        place = 0
        for query in queries:
            for one in query.instructions:
                # Whether an item belongs to a pool depends on when it is asked.
                in_pool = one.hard and one.code > self._conditions.num_categories
                wanted = Filter(one.code if one.hard else 0, query.query_time if in_pool else 0, query.only)
                groups.setdefault((query.catalogue, wanted), []).append(place)
                place += 1
        rows_NK, scores_NK = np.zeros((place, depth), np.int64), np.full((place, depth), -np.inf, np.float32)
        for (catalogue, wanted), places in groups.items():
            hits = catalogue.search(query_ND[places], depth, wanted)
            found = hits.rows_QK.shape[1]
            rows_NK[places, :found], scores_NK[places, :found] = hits.rows_QK, hits.scores_QK
        return Hits(rows_NK, scores_NK)

    def answers(self, queries: Sequence[EncodedQuery], hits: Hits) -> list[Answer]:
        """Drop what is barred, merge the conditions' lists, fall back to popularity where there is nothing to go by."""
        answers, first = [], 0
        for query in queries:
            stop = first + len(query.instructions)
            answers.append(self._answer(query, hits.rows_QK[first:stop], hits.scores_QK[first:stop]))
            first = stop
        return answers

    def _answer(self, query: EncodedQuery, rows_PK: IntArray, scores_PK: FloatArray) -> Answer:
        used = min(len(query.items_L), self.max_events)
        lists = [pick(rows_K, scores_K, query) for rows_K, scores_K in zip(rows_PK, scores_PK, strict=True)]
        # Only a query vector of NaN finds nothing where there is something to find.
        empty = [not rows_K.any() for rows_K, one in zip(rows_PK, query.instructions, strict=True) if not one.hard]
        broken = used > 0 and any(empty) and query.catalogue.has_any(Filter(only=query.only))
        if broken:
            logger.error("release %s: the model gave no finite query vector; answering popularity", self.release_id)
        fallback = not used or broken
        if fallback:
            lists = [self._popular(query, one) for one in query.instructions]
        (rows, scores), brought_by = lists[0], np.zeros(len(lists[0][0]), np.int64)
        if len(lists) > 1:
            rows, scores, brought_by = merge(lists, [one.weight for one in query.instructions], query.k)
        return Answer(
            release=self.release_id,
            item_ids=query.catalogue.item_ids(rows.tolist()),
            scores=scores.tolist(),
            titles=query.catalogue.titles(rows.tolist()),
            conditions=[query.instructions[number].name for number in brought_by.tolist()],
            fallback="popularity" if fallback else None,
            unknown_items=query.unknown_items,
            unknown_actions=query.unknown_actions,
            history_events_used=used,
        )

    @staticmethod
    def _popular(query: EncodedQuery, asked: Instruction) -> tuple[IntArray, FloatArray]:
        # The model cannot prefer what is asked for here, so even a soft condition filters. And the first k + barred of
        # the order hold k that are not barred, wherever the barred stand.
        wanted = Filter(asked.code, query.query_time, query.only)
        return pick(*query.catalogue.popular(search_depth(query), wanted), query)


def _weighted(queries: Sequence[EncodedQuery], query_ND: FloatArray) -> FloatArray:
    """The vectors of the branch queries, weighted by objectives where there are several."""
    scales = [query.scales_D for query in queries for _ in query.instructions if query.scales_D is not None]
    return query_ND * np.stack(scales) if scales else query_ND  # a release has objectives or not, for all queries
