"""What every worker does: set up, resume, then epoch after epoch train, validate and save."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train
import ray.train.torch
import torch

from data.batch import Batch
from data.cases import split_cases
from data.dataset import PreparedDataset
from data.ragged import IntArray
from data.stream import TrainingStream
from modeling.build import build_retriever
from modeling.hashed_table import row_hashes
from modeling.retriever import Retriever
from modeling.settings import ModelSettings
from trainer.checkpoints import METRIC, LoopState, newest_checkpoint, report_checkpoint
from trainer.engine import plain_weights, start_engine
from trainer.evaluation import RetrieverScorer, evaluate_cases
from trainer.ranks import Ranks
from trainer.settings import EvaluateSettings, TrainSettings
from trainer.sharded_evaluation import ShardedRanker
from trainer.start import start_from
from trainer.step import train_step
from trainer.table import Table, start_table
from trainer.telemetry import StepWindow, Telemetry


@dataclass
class Worker:
    """One rank of a run and what it holds."""

    train: TrainSettings
    model: ModelSettings
    evaluate: EvaluateSettings
    dataset: PreparedDataset
    ranks: Ranks
    engine: Any
    table: Table | None  # of items, where it is none of the engine's weights
    state: LoopState
    stream: TrainingStream
    telemetry: Telemetry | None  # on rank 0
    item_hashes: IntArray | None  # by row, where vectors come from hashes
    consumed: pa.Table | None  # windows of the epoch that the run was resumed in, done before
    generator: torch.Generator = field(default_factory=torch.Generator)


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker.

    Args:
        config: `train`, `model`, `evaluate` settings as plain mappings, `run_id` and `total_targets`
            (targets per epoch over all workers).
    """
    worker = set_up_worker(config)
    try:
        while worker.state.epoch < worker.train.epochs and not _out_of_patience(worker):
            began = time.perf_counter()
            train_epoch(worker)
            worker.state.epoch += 1
            worker.consumed = None
            worker.state.seconds = worker.ranks.first(worker.state.seconds + time.perf_counter() - began)
            last = worker.state.epoch == worker.train.epochs or _out_of_time(worker)
            if last or worker.state.epoch % worker.train.evaluate_every_epochs == 0:
                began = time.perf_counter()
                _validate_and_save(worker)
                worker.state.seconds = worker.ranks.first(worker.state.seconds + time.perf_counter() - began)
            if last:
                break
    finally:
        if worker.telemetry is not None:
            worker.telemetry.close()
        worker.ranks.close()


def set_up_worker(config: dict[str, Any]) -> Worker:
    """Build one rank's part of a run and load the newest checkpoint, if there is one. A collective."""
    train = TrainSettings.model_validate(config["train"])
    model = ModelSettings.model_validate(config["model"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    threads = train.workers.threads_per_worker
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    dataset = PreparedDataset.open(train.dataset)
    table = start_table(
        train.item_table,
        train.optimizer,
        num_rows=dataset.num_rows,
        width=model.width,
        seed=train.seed,
        device=ray.train.torch.get_device(),
    )
    item_hashes = row_hashes(dataset.vocabulary().item_ids) if model.items.kind == "hashed" else None
    torch.manual_seed(train.seed)  # the same first weights on every rank
    retriever = _build(model, dataset, table, item_hashes, trains=True)
    if train.start_from is not None:
        start_from(train.start_from, retriever, frozen=train.frozen)
    ranks = Ranks(rank, world)
    found = newest_checkpoint(Path(train.run_dir), ranks)
    state = LoopState(train.events_per_batch * train.workers.num_workers) if found is None else found.state
    batches_per_epoch = config["total_targets"] / state.events_per_batch
    total_steps = int(train.epochs * batches_per_epoch / train.engine.gradient_accumulation)
    universal = found is not None and found.world != world
    engine = start_engine(retriever, train.engine, train.optimizer, total_steps=total_steps, universal=universal)
    if found is not None:
        found.load(engine, ranks, table)
    consumed = None if found is None else found.consumed()
    ranks.all(True)  # all have read it, before a new one lets Ray delete it
    telemetry = None
    if rank == 0:
        recipe = {section: config[section] for section in ("train", "model", "evaluate")}
        telemetry = Telemetry(train.run_dir, config["run_id"], train.tracking, resumed_at=state.step, recipe=recipe)
        windows = 0 if consumed is None else len(consumed)
        telemetry.write("start", state.step, epoch=state.epoch, workers=world, seconds=state.seconds, windows=windows)
    stream = TrainingStream(
        ray.train.get_dataset_shard("train"),
        # Of a run that more workers began each takes more, so that a step learns from as many events as before.
        events_per_batch=max(1, state.events_per_batch // world),
        windows_per_buffer=train.windows_per_buffer,
        cache_bytes=int(train.cache_gib * 2**30),
        device=engine.device,
    )
    evaluate = EvaluateSettings.model_validate(config["evaluate"])
    return Worker(
        train, model, evaluate, dataset, ranks, engine, table, state, stream, telemetry, item_hashes, consumed
    )


def _build(
    model: ModelSettings, dataset: PreparedDataset, table: Table | None, item_hashes: IntArray | None, *, trains: bool
) -> Retriever:
    """A retriever over the dataset's items; one that trains has negatives."""
    return build_retriever(
        model,
        num_rows=dataset.num_rows,
        num_actions=dataset.num_actions,
        train_counts=dataset.train_counts() if trains else None,
        catalogue=dataset.catalogue() if model.condition else None,
        item_hashes=item_hashes,
        items=None if table is None else table.rows,
    )


def train_epoch(worker: Worker) -> None:
    """Train on one epoch, or what is left of it, and write a row of figures every few batches. A collective.

    Raises:
        NonFiniteLoss: on every rank, if any rank's loss is not finite.
    """
    train, state = worker.train, worker.state
    # Negatives and dropout are a function of (seed, epoch, rank), so a resumed epoch draws the same.
    done = [] if worker.consumed is None else [len(worker.consumed)]
    draws = np.random.SeedSequence([train.seed, state.epoch, worker.ranks.rank, *done]).generate_state(2)
    worker.generator.manual_seed(int(draws[0]))
    torch.manual_seed(int(draws[1]))
    worker.engine.train()
    window = StepWindow()
    batches = worker.stream.batches(
        seed=train.seed, epoch=state.epoch, rank=worker.ranks.rank, consumed=worker.consumed
    )
    events, began_at = 0, state.step
    for batch, waited_seconds in _aligned(batches, worker):
        where = f"epoch {state.epoch}, batch {state.step}"
        state.step += 1
        events += int((batch["targets_BL"] > 0).sum())
        due = state.step % train.tracking.every_steps == 0
        figures = train_step(
            worker.engine,
            batch,
            table=worker.table,
            generator=worker.generator,
            ranks=worker.ranks,
            where=where,
            measure_norm=due,
        )
        window.add(
            head_losses=figures["head_losses"],
            num_targets=figures["num_targets"],
            num_events=int(batch["lengths_B"].sum()),
            num_padded=batch["items_BL"].numel(),
            waited_seconds=waited_seconds,
        )
        if worker.telemetry is not None and due:
            worker.telemetry.write(
                "step",
                state.step,
                epoch=state.epoch,
                learning_rate=worker.engine.get_lr()[0],
                gradient_norm=figures["gradient_norm"],
                **window.figures(worker.ranks.world),
            )
        every = train.checkpoint_every_batches
        if every is not None and (state.step - began_at) % every == 0:
            _save_inside_epoch(worker, events)
    if worker.ranks.all(worker.stream.fits):
        worker.stream.keep()
    state.events += int(worker.ranks.sum(torch.tensor(events)))
    if worker.telemetry is not None:
        worker.telemetry.write("epoch", state.step, epoch=state.epoch, events=state.events)
    state.events = 0


def _save_inside_epoch(worker: Worker, events: int) -> None:
    """A checkpoint with the position in the data; `events`: trained on by this rank since the epoch was begun."""
    own = worker.stream.position()
    if worker.consumed is not None and worker.ranks.rank == 0:
        own = pa.concat_tables([worker.consumed, own])
    state = replace(worker.state, events=worker.state.events + int(worker.ranks.sum(torch.tensor(events))))
    report_checkpoint(worker.engine, plain_weights(worker.engine), state, worker.ranks, {}, worker.table, position=own)


def _aligned(batches: Iterator[Batch], worker: Worker) -> Iterator[tuple[Batch, float]]:
    """Batches and the seconds waited for each, until no rank has any left.

    Ranks cut their windows into unequal numbers of batches, and a step is a collective; a rank that
    is done goes on with idle batches, so that all take equally many steps and no window is left out.
    """
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        waited_seconds = time.perf_counter() - began
        if not worker.ranks.any(batch is not None):
            return
        yield worker.stream.idle_batch() if batch is None else batch, waited_seconds


def _validate_and_save(worker: Worker) -> None:
    state, ranks = worker.state, worker.ranks
    began = time.perf_counter()
    weights = plain_weights(worker.engine)
    metrics = _validate(worker, weights)
    better = metrics[METRIC] > state.best
    state.validations_since_best = 0 if better else state.validations_since_best + 1
    state.best = max(state.best, metrics[METRIC])
    if worker.telemetry is not None:
        seconds = time.perf_counter() - began
        worker.telemetry.write(
            "validation", state.step, epoch=state.epoch, seconds=seconds, train_seconds=state.seconds, **metrics
        )
    report_checkpoint(worker.engine, weights, state, ranks, metrics, worker.table)


def _validate(worker: Worker, weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Metrics of the whole split under the recipe's protocol, every rank ranking for its share of the users."""
    dataset, evaluate, ranks = worker.dataset, worker.evaluate, worker.ranks
    retriever = _build(worker.model, dataset, worker.table, worker.item_hashes, trains=False)
    retriever.load_state_dict(weights)
    retriever.to(worker.engine.device).eval()
    limit = worker.train.max_validation_users
    cases = split_cases(
        dataset,
        "validation",
        users_per_batch=evaluate.users_per_batch,
        gap_seconds=int(evaluate.gap_seconds),
        request_time=evaluate.request_time,
        max_users=None if limit is None else -(-limit // ranks.world),
        rank=ranks.rank,
        world=ranks.world,
    )
    remove_seen = evaluate.seen == "removed"
    max_events, counts_V = worker.model.max_events, dataset.train_counts()
    if worker.table is not None:
        ranker = ShardedRanker(retriever, worker.table.rows, ranks, max_events=max_events, train_events_V=counts_V)
        totals = ranker.evaluate(cases, ks=(10,), remove_seen=remove_seen)
    else:
        scorer = RetrieverScorer(retriever, max_events=max_events, train_events_V=counts_V)
        totals = evaluate_cases(scorer, cases, num_rows=dataset.num_rows, ks=(10,), remove_seen=remove_seen)
    return totals.over_ranks(ranks).means()


def _out_of_time(worker: Worker) -> bool:
    """Whether another epoch like the last ones would pass the time limit; rank 0's clock decides."""
    limit = worker.train.max_minutes
    if limit is None:
        return False
    per_epoch = worker.state.seconds / worker.state.epoch
    return worker.ranks.first(worker.state.seconds + per_epoch) > limit * 60


def _out_of_patience(worker: Worker) -> bool:
    patience = worker.train.patience
    return patience is not None and worker.state.validations_since_best >= patience
