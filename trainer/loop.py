"""What every worker does: set up, resume, then epoch after epoch train, validate and save."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data.batch import Batch
from data.errors import NonFiniteLoss
from data.tracking.contract import NOT_FINITE
from trainer.checkpoints import report_checkpoint
from trainer.engine import plain_weights
from trainer.step import train_step
from trainer.telemetry import StepWindow
from trainer.validation import validate_and_save
from trainer.worker import Worker, set_up_worker


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker.

    Args:
        config: `train`, `model`, `evaluate` and `tracking` settings as plain mappings, `run` (what trackers are told)
            and `total_targets` (targets per epoch over all workers).
    """
    worker = set_up_worker(config)
    failed = True
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
                validate_and_save(worker)
                worker.state.seconds = worker.ranks.first(worker.state.seconds + time.perf_counter() - began)
            if last:
                break
        failed = False
    except NonFiniteLoss as error:
        if worker.telemetry is not None:
            worker.telemetry.tracking.alert(NOT_FINITE, str(error))
        raise
    finally:
        if worker.telemetry is not None:
            worker.telemetry.close(failed=failed)
        worker.ranks.close()


def train_epoch(worker: Worker) -> None:
    """Train on one epoch, or what is left of it, and write a row of figures every few batches. A collective.

    Raises:
        NonFiniteLoss: on every rank, if any rank's loss is not finite.
    """
    train, state = worker.train, worker.state
    _seed_epoch(worker)
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
        due = state.step % worker.tracking.every_steps == 0
        figures = train_step(
            worker.engine,
            batch,
            table=worker.table,
            generator=worker.generator,
            ranks=worker.ranks,
            where=where,
            measure_norm=due,
        )
        worker.refresh_clusters()
        window.add(
            head_losses=figures["head_losses"],
            num_targets=figures["num_targets"],
            num_events=int(batch["lengths_B"].sum()),
            num_padded=batch["items_BL"].numel(),
            waited_seconds=waited_seconds,
        )
        seen = worker.events_seen(events) if due else 0
        if worker.telemetry is not None and due:
            worker.telemetry.write(
                "step",
                state.step,
                epoch=state.epoch,
                events_seen=seen,
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
    seen = worker.events_seen()
    if worker.telemetry is not None:
        worker.telemetry.write("epoch", state.step, epoch=state.epoch, events_seen=seen, events=state.events)
    state.events = 0


def _seed_epoch(worker: Worker) -> None:
    """Negatives and dropout are a function of (seed, epoch, rank), so a resumed epoch draws the same."""
    done = [] if worker.consumed is None else [len(worker.consumed)]
    draws = np.random.SeedSequence([worker.train.seed, worker.state.epoch, worker.ranks.rank, *done]).generate_state(2)
    worker.generator.manual_seed(int(draws[0]))
    torch.manual_seed(int(draws[1]))


def _save_inside_epoch(worker: Worker, events: int) -> None:
    """A checkpoint with the position in the data; `events`: trained on by this rank since the epoch was begun."""
    own = worker.stream.position()
    if worker.consumed is not None and worker.ranks.rank == 0:
        own = pa.concat_tables([worker.consumed, own])
    state = replace(worker.state, events=worker.state.events + int(worker.ranks.sum(torch.tensor(events))))
    began = time.perf_counter()
    report_checkpoint(worker.engine, plain_weights(worker.engine), state, worker.ranks, {}, worker.table, position=own)
    worker.saved(time.perf_counter() - began, worker.events_seen(events))


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
