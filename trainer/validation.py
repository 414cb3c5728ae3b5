"""Validation inside a run: every rank ranks for its share of the users; then a checkpoint."""

import time
from collections.abc import Mapping

import torch

from data.cases import split_cases
from data.tracking.contract import EPOCH, EVENTS_SEEN, GLOBAL_STEP
from trainer.checkpoints import METRIC, report_checkpoint
from trainer.engine import plain_weights
from trainer.evaluation import RetrieverScorer, Totals, evaluate_cases, query_scales
from trainer.examples import COLUMNS, TABLE, ExampleRetrievals
from trainer.sharded_evaluation import ShardedRanker
from trainer.worker import Worker, build_model


def validate_and_save(worker: Worker) -> None:
    """Validate, report the metrics and some examples, and save a checkpoint. A collective."""
    state, ranks = worker.state, worker.ranks
    began = time.perf_counter()
    weights = plain_weights(worker.engine)
    shown = worker.tracking.examples if worker.telemetry is not None and worker.tracking.to else 0
    examples = ExampleRetrievals(shown)
    totals = _validate(worker, weights, examples)
    metrics = totals.means()
    better = metrics[METRIC] > state.best
    state.validations_since_best = 0 if better else state.validations_since_best + 1
    state.best = max(state.best, metrics[METRIC])
    seen = worker.events_seen()
    if worker.telemetry is not None:
        worker.telemetry.write(
            "validation",
            state.step,
            epoch=state.epoch,
            events_seen=seen,
            seconds=time.perf_counter() - began,
            train_seconds=state.seconds,
            **metrics,
            **totals.intervals(),
        )
        if shown:
            axes = {GLOBAL_STEP: state.step, EPOCH: state.epoch, EVENTS_SEEN: seen}
            worker.telemetry.tracking.table(TABLE, COLUMNS, examples.rows(worker.dataset), axes)
    began = time.perf_counter()
    report_checkpoint(worker.engine, weights, state, ranks, metrics, worker.table)
    worker.saved(time.perf_counter() - began, seen)


def _validate(worker: Worker, weights: Mapping[str, torch.Tensor], examples: ExampleRetrievals) -> Totals:
    """Totals of the whole split under the recipe's protocol, every rank ranking for its share of the users."""
    dataset, evaluate, ranks = worker.dataset, worker.evaluate, worker.ranks
    retriever = build_model(worker.model, dataset, worker.table, worker.item_hashes, trains=False)
    retriever.load_state_dict(weights)
    retriever.to(worker.engine.device).eval()
    limit = worker.train.max_validation_users
    cases = split_cases(
        dataset,
        "validation",
        users_per_batch=evaluate.users_per_batch,
        gap_seconds=int(evaluate.gap_seconds),
        request_time=evaluate.request_time,
        target_actions=evaluate.target_actions,
        max_users=None if limit is None else -(-limit // ranks.world),
        rank=ranks.rank,
        world=ranks.world,
    )
    remove_seen = evaluate.seen == "removed"
    max_events, counts_V = worker.model.max_events, dataset.train_counts()
    if worker.table is not None:
        ranker = ShardedRanker(retriever, worker.table.rows, ranks, max_events=max_events, train_events_V=counts_V)
        totals = ranker.evaluate(cases, ks=(10,), remove_seen=remove_seen, observers=[examples])
    else:
        scales = query_scales(worker.model, evaluate.objective_weights)
        scorer = RetrieverScorer(retriever, max_events=max_events, train_events_V=counts_V, scales=scales)
        totals = evaluate_cases(
            scorer, cases, num_rows=dataset.num_rows, ks=(10,), remove_seen=remove_seen, observers=[examples]
        )
    return totals.over_ranks(ranks)
