"""Retrieval under a condition: hits, compliance, and what a filter adds, beside answers that know of no condition.

Each user is asked under one condition, and of the user's targets those count that satisfy it; users
without one are left out. Rows:

popularity, filtered        the most popular items that satisfy the condition
plain                       the model without a condition
plain, post-filtered        the same list, what does not satisfy the condition struck out
plain, filtered             the model without a condition among the items that satisfy it
plain, own history filtered the same, the history cut to events that satisfy it and encoded again
conditioned                 the model that was told the condition
conditioned, filtered       the same among the items that satisfy it
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.batch import to_device
from data.cases import Cases, split_cases
from data.conditions import Conditions
from data.dataset import PreparedDataset, Split
from data.errors import ArtifactMismatch, DatasetError
from data.progress import progress
from data.ragged import IntArray
from data.settings import Recipe, read_section
from data.storage import MANIFEST, published_directory, write_json
from modeling.artifact import Artifact
from modeling.metrics import hide, top_rows
from modeling.retriever import Retriever
from trainer.baselines import Popularity
from trainer.evaluate import FORMAT_VERSION, KIND
from trainer.evaluation import Ranked, Scorer, evaluate_cases
from trainer.gaps import settled
from trainer.observers import Means, UserMetrics
from trainer.settings import EvaluateSettings

Choice = Literal["oracle", "favourite", "rare"]


@dataclass(frozen=True)
class ConditionedCases(Cases):
    """Users who are asked under a condition, and their targets that satisfy it."""

    codes: list[int]


def run(
    artifact: str,
    dataset: str,
    *,
    condition: Choice,
    split: Split = "test",
    recipe: Recipe | None = None,
    users_out: str | None = None,
    seed: int = 0,
    only: Collection[str] | None = None,
) -> dict[str, Any]:
    """Evaluate an artifact under conditions.

    Args:
        artifact: with or without conditions of its own; without, it has no conditioned rows.
        condition: oracle: one of the conditions of the user's first target, drawn; favourite: the category
            that most of the visible history has; rare: one of those that the least of it has.
        recipe: its `evaluate` section holds cut-offs and protocol.
        users_out: directory to write, with `NAME.parquet` per row: the metrics of every user.
        seed: of the conditions that are drawn.
        only: names of the rows to measure, as far as the artifact has them; all by default.

    Returns:
        `protocol` and `rows`: accuracy, `cc@k` (of the shown items, those that satisfy the condition),
        `fill@k` (share of the users with k items shown).

    Raises:
        ArtifactMismatch: the dataset has another vocabulary, or the catalogue names no condition.
        DatasetError: no user has a target that satisfies a condition.
    """
    stated = read_section(recipe or {}, "evaluate", EvaluateSettings)
    opened, prepared = Artifact.open(artifact), PreparedDataset.open(dataset)
    opened.check_dataset(prepared)
    settings, conditions = settled(stated, prepared), opened.conditions()
    if not conditions.names:
        raise ArtifactMismatch(f"{artifact}: its catalogue names no category, so there is no condition to ask under")
    everyone = split_cases(
        prepared,
        split,
        users_per_batch=settings.users_per_batch,
        gap_seconds=int(settings.gap_seconds),
        request_time=settings.request_time,
        min_events=1,
    )
    asked = [batch for batch in conditioned_cases(everyone, conditions, choice=condition, seed=seed) if len(batch)]
    if not asked:
        raise DatasetError(f"{dataset}: no user has a {split} target under such a condition")
    ways = Ways(opened.load_retriever(), conditions, prepared, settings, max_events=opened.max_events)
    scorers = {name: scorer for name, scorer in ways.scorers().items() if only is None or name in only}
    protocol = {
        "split": split,
        "condition": condition,
        "gap_seconds": settings.gap_seconds,
        "seen": settings.seen,
        "catalogue_items": prepared.num_rows - 1,
        "conditions": len(conditions.names),
        "targets": "those that satisfy the condition at the time of the request",
    }
    rows = _rows(scorers, asked, conditions, settings, users_out)
    return {"dataset": dataset, "artifact": opened.content_hash, "protocol": protocol, "rows": rows}


def _rows(
    scorers: dict[str, Scorer],
    asked: list[ConditionedCases],
    conditions: Conditions,
    settings: EvaluateSettings,
    users_out: str | None,
) -> list[dict[str, Any]]:
    rows = []
    with nullcontext() if users_out is None else published_directory(users_out) as directory:
        for name, scorer in scorers.items():
            compliance, metrics = Compliance(conditions, settings.ks), UserMetrics()
            totals = evaluate_cases(
                scorer,
                progress(asked, doing=name, unit="batch"),
                num_rows=len(conditions.first_seen_V),
                ks=settings.ks,
                remove_seen=settings.seen == "removed",
                observers=[compliance, metrics],
            )
            rows.append({"model": name, **totals.means(), **compliance.figures()})
            if directory is not None:
                pq.write_table(metrics.table(), directory / f"{name}.parquet")
        if directory is not None:
            write_json(directory / MANIFEST, {"kind": KIND, "format_version": FORMAT_VERSION, "rows": rows})
    return rows


def conditioned_cases(
    cases: Iterable[Cases], conditions: Conditions, *, choice: Choice, seed: int = 0
) -> Iterator[ConditionedCases]:
    """The users who have a target that satisfies the condition chosen for them, and those targets."""
    for batch in cases:
        kept, codes, targets, following = [], [], [], []
        for place in range(len(batch)):
            at_seconds = batch.query_times[place]
            random = np.random.default_rng([seed, batch.user_keys[place]])
            code = _chosen(batch, place, conditions, choice, random)
            if code is None:
                continue
            targets_T, following_F = batch.targets[place], batch.following[place]
            fitting = targets_T[conditions.satisfied(code, targets_T, at_seconds)]
            if len(fitting):
                kept.append(place)
                codes.append(code)
                targets.append(fitting)
                following.append(following_F[conditions.satisfied(code, following_F, at_seconds)])
        columns = {field.name: [getattr(batch, field.name)[place] for place in kept] for field in fields(Cases)}
        yield ConditionedCases(**{**columns, "targets": targets, "following": following, "codes": codes})


def _chosen(
    batch: Cases, place: int, conditions: Conditions, choice: Choice, random: np.random.Generator
) -> int | None:
    if choice == "oracle":
        item, at_seconds = batch.following[place][:1], batch.query_times[place]
        codes = range(1, len(conditions.names) + 1)
        possible = [code for code in codes if conditions.satisfied(code, item, at_seconds)[0]]
        return int(random.choice(possible)) if possible else None
    counts = conditions.category_counts(batch.items[place])
    if not len(counts):
        return None
    if choice == "favourite":
        return int(counts.argmax()) + 1
    return int(random.choice(np.flatnonzero(counts == counts.min()))) + 1


class Ways:
    """The ways to answer under a condition, as scorers by the name of their row."""

    def __init__(
        self,
        retriever: Retriever,
        conditions: Conditions,
        dataset: PreparedDataset,
        settings: EvaluateSettings,
        *,
        max_events: int,
    ) -> None:
        self._retriever = retriever
        self._conditions = conditions
        self._popularity = Popularity(dataset)
        self._max_events = max_events
        self._longest = max(settings.ks)
        self._remove_seen = settings.seen == "removed"
        with torch.inference_mode():
            self._items_VD = retriever.item_vectors(torch.arange(dataset.num_rows))

    def scorers(self) -> dict[str, Scorer]:
        """Those that the retriever can do."""
        plain: dict[str, Scorer] = {
            "popularity, filtered": lambda cases: self._filtered(cases, self._popularity(cases)),
            "plain": self._plain,
            "plain, post-filtered": self._post_filtered,
            "plain, filtered": lambda cases: self._filtered(cases, self._plain(cases)),
            "plain, own history filtered": lambda cases: self._filtered(cases, self._plain(self._cut(cases))),
        }
        if self._retriever.conditioning is None:
            return plain
        return plain | {
            "conditioned": self._conditioned,
            "conditioned, filtered": lambda cases: self._filtered(cases, self._conditioned(cases)),
        }

    def _plain(self, cases: Cases) -> Float[Tensor, "B V"]:
        with torch.inference_mode():
            return self._retriever.query_vectors(to_device(cases.batch(self._max_events), "cpu")) @ self._items_VD.T

    def _conditioned(self, cases: Cases) -> Float[Tensor, "B V"]:
        assert isinstance(cases, ConditionedCases)
        asked_B1 = torch.tensor(cases.codes)[:, None]
        with torch.inference_mode():
            query_B1D = self._retriever.conditioned_query_vectors(cases.batch(self._max_events), asked_B1)
            return query_B1D[:, 0] @ self._items_VD.T

    def _post_filtered(self, cases: Cases) -> Float[Tensor, "B V"]:
        scores_BV = self._plain(cases)
        hidden = scores_BV.clone()
        hide(hidden, [torch.from_numpy(rows) for rows in cases.items] if self._remove_seen else [])
        shown = torch.zeros_like(scores_BV, dtype=torch.bool)
        shown.scatter_(1, top_rows(hidden, self._longest)[0], True)
        return self._filtered(cases, scores_BV.masked_fill(~shown, float("-inf")))

    def _filtered(self, cases: Cases, scores_BV: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        assert isinstance(cases, ConditionedCases)
        return scores_BV.masked_fill(~satisfied(self._conditions, cases), float("-inf"))

    def _cut(self, cases: Cases) -> Cases:
        """The histories' events that satisfy the condition; all of them where none does."""
        assert isinstance(cases, ConditionedCases)
        cut: dict[str, list[IntArray]] = {"items": [], "times": [], "actions": []}
        for place, code in enumerate(cases.codes):
            items, times = cases.items[place], cases.times[place]
            fits = self._conditions.satisfied(code, items, times)
            kept = fits if fits.any() else np.ones(len(items), bool)
            for name, column in cut.items():
                column.append(getattr(cases, name)[place][kept])
        return Cases(**{**{field.name: getattr(cases, field.name) for field in fields(Cases)}, **cut})


def satisfied(conditions: Conditions, cases: ConditionedCases) -> Bool[Tensor, "B V"]:
    """Which items satisfy each user's condition at the time of the request."""
    rows = [conditions.items(code, at) for code, at in zip(cases.codes, cases.query_times, strict=True)]
    return torch.from_numpy(np.stack(rows))


class Compliance:
    """How much of what was shown satisfies the condition, and how often the list was full."""

    def __init__(self, conditions: Conditions, ks: tuple[int, ...]) -> None:
        self._conditions = conditions
        self._ks = ks
        self._means = Means()

    def see(self, ranked: Ranked) -> None:
        """Count one batch."""
        assert isinstance(ranked.cases, ConditionedCases)
        shown_BK = ranked.top_BK > 0
        fits_BK = satisfied(self._conditions, ranked.cases).gather(1, ranked.top_BK) & shown_BK
        for k in self._ks:
            shown_B = shown_BK[:, :k].sum(1).double()
            self._means.add(f"cc@{k}", fits_BK[:, :k].sum(1) / shown_B)  # NaN, and left out, where nothing was shown
            self._means.add(f"fill@{k}", (shown_B == k).double())

    def figures(self) -> dict[str, float | None]:
        """The metrics by name."""
        return {name: self._means.mean(name) for name in self._means.counts}
