"""`farsight evaluate`: full-catalogue metrics of an artifact, beside baselines and other rankings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from data.cases import Cases, check_targets, split_cases
from data.dataset import PreparedDataset, Split
from data.errors import DatasetError, RecipeError
from data.progress import progress
from data.schema import TRAIN_EVENTS
from data.settings import Recipe, read_section
from data.storage import MANIFEST, published_directory, write_json
from modeling.artifact import Artifact
from trainer.baselines import ExternalRanking, baseline_name, build_baseline
from trainer.evaluation import EarlierScorer, Observer, RetrieverScorer, Scorer, evaluate_cases, query_scales
from trainer.gaps import settled
from trainer.observers import BeyondAccuracy, CaseCounts, CatalogueFacts, UserMetrics, users_with_training
from trainer.settings import EvaluateSettings

MODEL = "model"
KIND = "user_metrics"
FORMAT_VERSION = 1

Builders = dict[str, Callable[[], Scorer]]


def run(
    artifact: str | None,
    dataset: str,
    *,
    split: Split = "test",
    rankings: Mapping[str, str] | None = None,
    recipe: Recipe | None = None,
    users_out: str | None = None,
) -> dict[str, Any]:
    """Evaluate an artifact, baselines and other rankings on one split of a dataset.

    The dataset may have grown since the artifact was trained (`ingest.extends`, `ingest.items_from`): new items are
    then left out of the histories that the model sees and never recommended, as by an endpoint with that artifact.

    Args:
        artifact: directory of an artifact; None measures the others alone.
        rankings: name -> Parquet file of `trainer.baselines.ExternalRanking`.
        recipe: its `evaluate` section holds cut-offs, protocol and baselines.
        users_out: directory to write, with `NAME.parquet` per row: `user_id` and the accuracy metrics
            of that user, in the same order in every file.

    Returns:
        `protocol` (all that the figures depend on besides the rankings), `rows`, one mapping of metrics per
        ranking: baselines, other rankings, the artifact last; and `intervals`, by ranking, of the means over users.
        With an artifact also `artifact`, its content hash, and `unknown_items`, the items of the dataset that it does
        not know.

    Raises:
        ArtifactMismatch: the dataset's vocabulary does not begin with the artifact's.
        DatasetError: the split has no targets, or a gap is asked for without times.
        RecipeError: two rows have one name, a name is no file name, or there is nothing to measure.
        FarsightError: `users_out` exists already.
    """
    stated = read_section(recipe or {}, "evaluate", EvaluateSettings)
    opened, prepared = _opened(artifact, dataset, split)
    settings = settled(stated, prepared)
    check_targets(prepared, split, settings.target_actions)
    builders = _builders(settings, opened, prepared, split, rankings or {})
    facts = CatalogueFacts.of(prepared)
    counts = CaseCounts(facts)
    rows: list[dict[str, Any]] = []
    intervals: dict[str, dict[str, float]] = {}
    with nullcontext() if users_out is None else published_directory(users_out) as directory:
        for name, build in builders.items():
            users = UserMetrics()
            # What the users have to go by is the same for every row, so the first counts it.
            others: list[Observer] = ([] if rows else [counts]) + ([] if directory is None else [users])
            row, intervals[name] = _row(name, build(), prepared, split, settings, facts, others)
            rows.append({"model": name, **row})
            if directory is not None:
                pq.write_table(users.table(), directory / f"{name}.parquet")
        protocol = _protocol(settings, prepared, split, counts)
        result: dict[str, Any] = {"dataset": dataset, "protocol": protocol, "rows": rows, "intervals": intervals}
        if opened is not None:
            result |= {"artifact": opened.content_hash, "unknown_items": prepared.num_rows - opened.num_rows}
        if directory is not None:
            write_json(directory / MANIFEST, {"kind": KIND, "format_version": FORMAT_VERSION, **result})
    return result


def _opened(artifact: str | None, dataset: str, split: Split) -> tuple[Artifact | None, PreparedDataset]:
    opened, prepared = None if artifact is None else Artifact.open(artifact), PreparedDataset.open(dataset)
    if opened is not None and not opened.vocabulary().begins(prepared.vocabulary()):
        opened.check_dataset(prepared)
    if not prepared.manifest["counts"].get(f"users_with_{split}"):
        raise DatasetError(f"{dataset}: no user has {split} targets; ingest with another split")
    return opened, prepared


def _builders(
    settings: EvaluateSettings,
    opened: Artifact | None,
    prepared: PreparedDataset,
    split: Split,
    rankings: Mapping[str, str],
) -> Builders:
    """How each row's scorer is made, in the order of the rows; one is in memory at a time."""
    named: list[tuple[str, Callable[[], Scorer]]] = [
        (baseline_name(baseline), partial(build_baseline, baseline, prepared)) for baseline in settings.baselines
    ]
    vocabulary = prepared.vocabulary() if rankings else None
    for name, path in rankings.items():
        # Read now: a misspelt path must not be found after an hour of baselines.
        external = ExternalRanking(path, vocabulary or prepared.vocabulary(), split)
        named.append((name, partial(_same, external)))
    if opened is not None:
        scales = query_scales(opened.settings, settings.objective_weights)  # now, for the same reason
        named.append((MODEL, partial(_model, opened, prepared, scales)))
    if not named:
        raise RecipeError("evaluate: nothing to measure; give an artifact, rankings, or evaluate.baselines")
    names = [name for name, _ in named]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"evaluate: {names.count(name)} rows are called {name!r}; give each another name or kind")
        if Path(name).name != name:
            raise RecipeError(f"evaluate: {name!r} cannot be the name of a file, as --users-out needs; use another")
    return dict(named)


def _same(scorer: Scorer) -> Scorer:
    return scorer


def _model(opened: Artifact, prepared: PreparedDataset, scales: Sequence[float] | None) -> Scorer:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    own_V = opened.catalogue().column(TRAIN_EVENTS).to_numpy()
    scorer = RetrieverScorer(
        opened.load_retriever(device),
        max_events=opened.max_events,
        train_events_V=np.concatenate([np.zeros(1, np.int64), own_V]),
        scales=scales,
    )
    if opened.num_rows == prepared.num_rows and opened.actions == prepared.manifest["actions"]:
        return scorer
    return EarlierScorer(
        scorer, known_rows=opened.num_rows, num_rows=prepared.num_rows, num_actions=len(opened.actions)
    )


def _row(
    name: str,
    scorer: Scorer,
    prepared: PreparedDataset,
    split: Split,
    settings: EvaluateSettings,
    facts: CatalogueFacts,
    others: list[Observer],
) -> tuple[dict[str, Any], dict[str, float]]:
    """Metrics of one ranking, and the intervals of their means."""
    cases: Iterator[Cases] = split_cases(
        prepared,
        split,
        users_per_batch=settings.users_per_batch,
        gap_seconds=int(settings.gap_seconds),
        request_time=settings.request_time,
        target_actions=settings.target_actions,
    )
    beyond = BeyondAccuracy(facts, settings.ks, horizon=settings.horizon)
    totals = evaluate_cases(
        scorer,
        progress(cases, doing=f"evaluate {name}", unit="batch"),
        num_rows=prepared.num_rows,
        ks=settings.ks,
        remove_seen=settings.seen == "removed",
        observers=[beyond, *others],
    )
    return {**totals.means(), **beyond.figures()}, totals.intervals()


def _of_objectives(settings: EvaluateSettings) -> dict[str, Any]:
    stated = {"target_actions": settings.target_actions, "objective_weights": settings.objective_weights}
    return {name: value for name, value in stated.items() if value is not None}


def _protocol(
    settings: EvaluateSettings, prepared: PreparedDataset, split: Split, counts: CaseCounts
) -> dict[str, Any]:
    """All that the figures depend on besides the rankings, and how much the users gave to go by."""
    by_order = prepared.manifest.get("settings", {}).get("sort") == "order"
    keys = "(order, log order)" if by_order else "(time, order, log order)"
    visible = "all events before the first target"
    if settings.gap_seconds:
        visible += f" and not later than {settings.gap_seconds} s before its time"
    asked = "time of the first target" if settings.request_time == "target" else "time of the newest visible event"
    return {
        "split": split,
        "split_rule": prepared.manifest["split"],
        "gap_seconds": settings.gap_seconds,
        "seen": settings.seen,
        **_of_objectives(settings),
        "catalogue_items": prepared.num_rows - 1,
        "history": f"stable sort by {keys}; visible: {visible}",
        "request_time": asked if prepared.has_times else "0: the log had no times",
        "ties": "equal scores by item row",
        "without_history": "the model answers popularity",
        "share_without_history": counts.num_without_history / counts.num_users,
        # Counted of all users with targets, whatever their actions.
        **(
            {}
            if settings.target_actions
            else {"share_warm_users": users_with_training(prepared, split) / counts.num_users}
        ),
        "share_warm_targets": 1 - counts.num_cold_targets / counts.num_targets,
        "share_repeated_targets": counts.num_repeated_targets / counts.num_targets,
    }
