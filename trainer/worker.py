"""One rank of a run: what it holds, and how it is set up or resumed."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.train
import ray.train.torch
import torch

from data.dataset import PreparedDataset
from data.ragged import IntArray
from data.stream import TrainingStream
from data.tracking.contract import RunFacts
from data.tracking.published import Published
from data.tracking.settings import TrackingSettings
from modeling.build import build_retriever
from modeling.esans import Clusters, EsansSampler
from modeling.hashed_table import row_hashes
from modeling.retriever import Retriever
from modeling.settings import ModelSettings
from trainer.checkpoints import LoopState, newest_checkpoint
from trainer.cluster_refresh import ClusterRefresh
from trainer.clusters import clusters_asked, near_to_near
from trainer.engine import plain_weights, start_engine
from trainer.ranks import Ranks
from trainer.settings import EvaluateSettings, TrainSettings
from trainer.start import start_from
from trainer.table import Table, start_table
from trainer.telemetry import Telemetry


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
    tracking: TrackingSettings
    targets_per_epoch: int  # over all ranks
    generator: torch.Generator = field(default_factory=torch.Generator)
    clusters: ClusterRefresh | None = None  # of items, where negatives or batches are made of them

    def events_seen(self, own: int = 0) -> int:
        """Targets that all ranks have trained on since the run began. A collective.

        Args:
            own: by this rank since the epoch was begun, or resumed.
        """
        return self.state.epoch * self.targets_per_epoch + self.state.events + int(self.ranks.sum(torch.tensor(own)))

    def saved(self, seconds: float, events_seen: int) -> None:
        """Report that a checkpoint was saved, in so many seconds."""
        if self.telemetry is not None:
            state = self.state
            self.telemetry.write("checkpoint", state.step, epoch=state.epoch, events_seen=events_seen, seconds=seconds)

    def refresh_clusters(self) -> None:
        """After a step, whatever the clusters of the items need, where there are any. A collective."""
        if self.clusters is not None:
            self.clusters.tick(self.state.step)

    def clustered(self, step: int, figures: dict[str, Any]) -> None:
        """Report that the items were put into new clusters, or were not."""
        if self.telemetry is not None:
            self.telemetry.write("clusters", step, epoch=self.state.epoch, **figures)


def set_up_worker(config: dict[str, Any]) -> Worker:
    """Build one rank's part of a run and load the newest checkpoint, if there is one. A collective.

    Args:
        config: of `trainer.loop.train_worker`.
    """
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
    retriever = build_model(model, dataset, table, item_hashes, trains=True)
    if train.start_from is not None:
        start_from(train.start_from, retriever, frozen=train.frozen, objectives=model.objectives)
    ranks = Ranks(rank, world)
    found = newest_checkpoint(Path(train.run_dir), ranks)
    events_per_batch = train.events_per_batch * train.workers.num_workers
    state = LoopState(events_per_batch, config["run"].run_id) if found is None else found.state
    batches_per_epoch = config["total_targets"] / state.events_per_batch
    total_steps = int(train.epochs * batches_per_epoch / train.engine.gradient_accumulation)
    universal = found is not None and found.world != world
    engine = start_engine(retriever, train.engine, train.optimizer, total_steps=total_steps, universal=universal)
    if found is not None:
        found.load(engine, ranks, table)
    consumed = None if found is None else found.consumed()
    ranks.all(True)  # all have read it, before a new one lets Ray delete it
    worker = Worker(
        train=train,
        model=model,
        evaluate=EvaluateSettings.model_validate(config["evaluate"]),
        dataset=dataset,
        ranks=ranks,
        engine=engine,
        table=table,
        state=state,
        stream=_stream(train, state, world, engine.device),
        telemetry=None,
        item_hashes=item_hashes,
        consumed=consumed,
        tracking=TrackingSettings.model_validate(config["tracking"]),
        targets_per_epoch=config["total_targets"],
    )
    _start_telemetry(worker, config["run"], resumed=found is not None)
    _start_clusters(worker)
    return worker


def _stream(train: TrainSettings, state: LoopState, world: int, device: torch.device) -> TrainingStream:
    """This rank's share of the training windows."""
    return TrainingStream(
        ray.train.get_dataset_shard("train"),
        # Of a run that more workers began each takes more, so that a step learns from as many events as before.
        events_per_batch=max(1, state.events_per_batch // world),
        windows_per_buffer=train.windows_per_buffer,
        cache_bytes=int(train.cache_gib * 2**30),
        device=device,
    )


def _start_telemetry(worker: Worker, run: RunFacts, *, resumed: bool) -> None:
    """Begin to report, on rank 0. A collective."""
    state, seen = worker.state, worker.events_seen()
    if worker.ranks.rank != 0:
        return
    worker.telemetry = Telemetry(replace(run, resumed_at=state.step if resumed else None), worker.tracking)
    for directory in (worker.train.dataset, worker.train.start_from):
        if directory is not None:
            worker.telemetry.tracking.used(Published.of(directory))
    worker.telemetry.write(
        "start",
        state.step,
        epoch=state.epoch,
        events_seen=seen,
        workers=worker.ranks.world,
        seconds=state.seconds,
        windows=0 if worker.consumed is None else len(worker.consumed),
    )


def _start_clusters(worker: Worker) -> None:
    """Cluster the items, from the weights as they are, where negatives or batches need it. A collective."""
    asked, sampler = clusters_asked(worker.train, worker.model), worker.engine.module.sampler
    if asked is None:
        return
    _, settings, at_least = asked

    def use(clusters: Clusters) -> None:
        if isinstance(sampler, EsansSampler):
            sampler.use(clusters)
        else:
            worker.stream.group_by(near_to_near(clusters))

    def item_vectors() -> npt.NDArray[np.float32] | None:
        weights = plain_weights(worker.engine)
        if worker.ranks.rank != 0:
            return None
        retriever = build_model(worker.model, worker.dataset, None, worker.item_hashes, trains=False)
        retriever.load_state_dict(weights)
        with torch.no_grad():
            return retriever.catalogue_vectors().numpy()

    worker.clusters = ClusterRefresh(
        use,
        settings,
        worker.dataset.catalogue(),
        worker.ranks,
        at_least=at_least,
        item_vectors=item_vectors,
        seed=worker.train.seed,
        report=worker.clustered,
    )
    worker.clusters.first(worker.state.step)


def build_model(
    model: ModelSettings, dataset: PreparedDataset, table: Table | None, item_hashes: IntArray | None, *, trains: bool
) -> Retriever:
    """A retriever over the dataset's items; one that trains has negatives."""
    return build_retriever(
        model,
        num_rows=dataset.num_rows,
        num_actions=dataset.num_actions,
        actions=dataset.manifest["actions"],
        train_counts=dataset.train_counts() if trains else None,
        catalogue=dataset.catalogue() if model.needs_catalogue else None,
        item_hashes=item_hashes,
        items=None if table is None else table.rows,
    )
