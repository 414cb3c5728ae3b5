"""`farsight train`: from a prepared dataset to an artifact, on Ray Train."""

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.util
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from data.dataset import PreparedDataset
from data.errors import DatasetError, FarsightError, MachineError, RecipeError, TrainingError
from data.session import connect
from data.settings import Recipe, read_section
from data.storage import write_json
from data.stream import EqualParts, epoch_size, window_dataset
from data.tracking.build import tracking_settings
from data.tracking.facts import run_facts
from data.tracking.published import Published
from modeling.artifact import Artifact, save_artifact
from modeling.settings import HashedItems, ModelSettings
from trainer.checkpoints import METRIC, RAY, mend_snapshot, whole_checkpoints
from trainer.clusters import check_clusters
from trainer.curves import FILE_NAME as CURVE
from trainer.curves import draw_curve
from trainer.gaps import settled, with_gap
from trainer.loop import train_worker
from trainer.progress import progress_bar
from trainer.reporting import cluster_shape, failure_reported, report_artifact
from trainer.settings import EvaluateSettings, TrainSettings, WorkerSettings
from trainer.stages import check_objectives, validated
from trainer.start import check_start
from trainer.table import check_features

logger = logging.getLogger(__name__)

ARTIFACT = "artifact"
RUN_FILE = "run.json"
# Share of the items that may have the same vector as another, where vectors come from hashes.
MAX_SHARED_VECTORS = 0.01
# What of the section `evaluate` validation goes by.
VALIDATED = ("seen", "gap_seconds", "request_time", "target_actions", "objective_weights")
# Logical CPUs that Ray Data needs beside the workers; with none the first batch never comes.
DATA_CPUS = 1


def run(recipe: Recipe) -> dict[str, Any]:
    """Train, or resume an interrupted run of the same recipe, and write its artifact.

    A run that is complete is not trained again: its artifact is returned.

    Returns:
        artifact directory and hash, best validation metrics, seconds, curve.

    Raises:
        RecipeError: the run directory belongs to a run with other settings.
        DatasetError: the dataset lacks what the recipe needs, or its gap cannot be estimated.
        MachineError: fewer CPUs or GPUs than the workers need.
        TrainingError: training failed and its restarts are used up.
    """
    train = read_section(recipe, "train", TrainSettings)
    model = read_section(recipe, "model", ModelSettings)
    tracking = tracking_settings(recipe)
    dataset = PreparedDataset.open(train.dataset)
    _check_fit(train, model, dataset)
    evaluate = validated(settled(read_section(recipe, "evaluate", EvaluateSettings), dataset), model, dataset)
    run_dir = Path(train.run_dir).resolve()
    model = with_gap(model, dataset, run_dir)
    begins = None if train.start_from is None else check_start(train.start_from, model, dataset)
    config = {
        "train": {
            **train.model_dump(mode="json"),
            "run_dir": str(run_dir),
            "dataset": str(dataset.directory.resolve()),
            "start_from": None if train.start_from is None else str(Path(train.start_from).resolve()),
        },
        "model": model.model_dump(mode="json"),
        "evaluate": evaluate.model_dump(mode="json"),
    }
    published = Published(dataset.directory.resolve(), dataset.manifest)
    run_id = _claim(run_dir, {**config, "dataset_hash": published.content_hash, "begins": begins})
    if (run_dir / ARTIFACT).exists():  # published last, so the run is complete
        return _summary(Artifact.open(run_dir / ARTIFACT), run_dir)
    size = epoch_size(dataset, max_events=model.max_events, rule=train.windows, since=train.since)
    if not size.targets:
        later = "" if train.since is None else f" with one since train.since={train.since}"
        raise DatasetError(
            f"{train.dataset}: no user has two training events{later}, so there is nothing to learn from"
        )
    connect()
    check_resources(train.workers)
    facts = run_facts("train", run_dir, config, run_id=run_id, dataset=published, cluster=cluster_shape())
    began = time.perf_counter()
    batches = int(size.targets * train.epochs / (train.events_per_batch * train.workers.num_workers))
    with progress_bar(str(run_dir), total_batches=batches), failure_reported(tracking, facts):
        followed = {"tracking": tracking.model_dump(mode="json"), "run": facts, "total_targets": size.targets}
        _fit(train, model, dataset, {**config, **followed}, num_windows=size.windows)
    draw_curve(run_dir)
    seconds = round(time.perf_counter() - began, 1)
    artifact = _export(run_dir, model, dataset, {"settings": config, "seconds": seconds, "run_id": run_id})
    report_artifact(tracking, facts, artifact.directory)
    return _summary(artifact, run_dir)


def _check_fit(train: TrainSettings, model: ModelSettings, dataset: PreparedDataset) -> None:
    """Refuse settings that do not fit together, or that ask for what the dataset lacks."""
    if train.item_table.kind == "sharded" and model.negatives.kind == "all":
        raise RecipeError(
            "model.negatives.kind all needs every item on every worker, and train.item_table.kind sharded splits them; "
            "draw uniform negatives, or keep the table replicated"
        )
    check_clusters(train, model, dataset)
    if model.items.kind == "hashed":
        _check_hashed(train, model.items, dataset)
    if model.items.kind == "features":
        check_features(train.item_table, model.items, dataset)
    check_objectives(train, model, dataset)
    if model.needs_times and not dataset.has_times:
        raise DatasetError(
            f"{train.dataset}: its log had no times, and the model needs them; set model.encoder.time_bias=false, "
            "tokens.gaps=false if there are tokens, and keep model.prediction from gaps and windows in seconds, or "
            "ingest a log with times"
        )
    if train.since is not None and not dataset.has_times:
        raise DatasetError(f"{train.dataset}: its log had no times, and train.since needs them; leave it out")
    if not dataset.manifest["counts"]["users_with_validation"]:
        raise DatasetError(
            f"{train.dataset}: no user has validation targets, by which the best checkpoint is chosen; ingest more "
            "events per user, or with another ingest.split"
        )


def _check_hashed(train: TrainSettings, items: HashedItems, dataset: PreparedDataset) -> None:
    if train.item_table.kind == "sharded":
        raise RecipeError(
            "model.items.kind hashed composes vectors from small tables that every worker has, and "
            "train.item_table.kind sharded splits a row per item; keep the table replicated, or model.items.kind rows"
        )
    shared = (dataset.num_rows - 1) / items.num_vectors  # the expected share, where it is small
    if shared > MAX_SHARED_VECTORS:
        raise RecipeError(
            f"model.items: {items.quotient_rows} quotient_rows and {items.remainder_rows} remainder_rows make "
            f"{items.num_vectors} different vectors for {dataset.num_rows - 1} items, so that more than "
            f"{MAX_SHARED_VECTORS:.0%} of the items would share one; raise them"
        )


def _summary(artifact: Artifact, run_dir: Path) -> dict[str, Any]:
    facts = artifact.manifest["facts"]
    return {
        "artifact": str(artifact.directory),
        "content_hash": artifact.content_hash,
        "validation": facts["validation"],
        "seconds": facts["seconds"],
        "curve": str(run_dir / CURVE),
    }


def check_resources(workers: WorkerSettings) -> None:
    """Refuse a plan that Ray could never start, even with the fewest workers, instead of waiting for ever.

    With `wait_minutes` an autoscaler is asked for what is missing first.

    Raises:
        MachineError: naming what there is, what is needed, and what to change.
    """
    num_workers = workers.min_workers or workers.num_workers
    need_cpus = num_workers * workers.cpus_per_worker + DATA_CPUS
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    lacking = have.get("CPU", 0) < need_cpus or (workers.use_gpu and have.get("GPU", 0) < num_workers)
    if lacking and workers.wait_minutes:
        _wait_for_nodes(num_workers, workers)
        have = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    if have.get("CPU", 0) < need_cpus:
        raise MachineError(
            f"{num_workers} workers of {workers.cpus_per_worker:g} CPUs and Ray Data need {need_cpus:g} "
            f"logical CPUs, and Ray has {have.get('CPU', 0):g}; lower train.workers.num_workers or cpus_per_worker"
        )
    if workers.use_gpu and have.get("GPU", 0) < num_workers:
        raise MachineError(
            f"{num_workers} workers need a GPU each, and Ray has {have.get('GPU', 0):g}; lower "
            "train.workers.num_workers or set train.workers.use_gpu=false"
        )


def _wait_for_nodes(num_workers: int, workers: WorkerSettings) -> None:
    """Let Ray want the workers' room until it is there; that is what an autoscaler starts nodes for."""
    logger.info("waiting up to %g minutes for nodes with room for %d workers", workers.wait_minutes, num_workers)
    room = [resources_of(workers)] * num_workers
    wanted = ray.util.placement_group([*room, {"CPU": DATA_CPUS}])
    wanted.wait(timeout_seconds=workers.wait_minutes * 60)
    ray.util.remove_placement_group(wanted)


def resources_of(workers: WorkerSettings) -> dict[str, float]:
    """What Ray reserves for each worker."""
    return {"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})}


def _claim(run_dir: Path, identity: dict[str, Any]) -> str:
    """Take the run directory for these settings; the same settings again mean a resumed run."""
    # What may change between two attempts of one run without making it another run.
    lasting = json.loads(json.dumps(identity))
    for name in ("workers", "max_minutes", "checkpoints_kept", "checkpoint_every_batches"):
        lasting["train"].pop(name)
    lasting["evaluate"] = {name: lasting["evaluate"][name] for name in VALIDATED}
    path = run_dir / RUN_FILE
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = _changed(found["settings"], lasting)  # a setting that came since counts as None before
        if changed:
            raise RecipeError(
                f"{run_dir}: holds a run with other settings ({', '.join(changed)}); choose another train.run_dir, or "
                "remove it to start again"
            )
        return str(found["run_id"])
    run_dir.mkdir(parents=True, exist_ok=True)
    run_id = hashlib.sha256(f"{run_dir}{time.time_ns()}".encode()).hexdigest()[:12]
    write_json(path, {"run_id": run_id, "settings": lasting})
    return run_id


def _changed(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            names += _changed(before, after, f"{prefix}{key}.")
        elif before != after:
            names.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return names


def _fit(
    train: TrainSettings, model: ModelSettings, dataset: PreparedDataset, config: dict[str, Any], *, num_windows: int
) -> None:
    workers = train.workers
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=(workers.min_workers, workers.num_workers)  # type: ignore[arg-type]  # mypy sees Train V1
            if workers.min_workers
            else workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker=resources_of(workers),
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees the signature of Train V1
            name=RAY,
            storage_path=config["train"]["run_dir"],
            logging_config=LoggingConfig(log_level="INFO" if logger.isEnabledFor(logging.DEBUG) else "WARNING"),
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=train.checkpoints_kept,
                checkpoint_score_attribute=METRIC,
                checkpoint_score_order="max",
            ),
        ),
        datasets={"train": window_dataset(dataset, max_events=model.max_events, rule=train.windows, since=train.since)},
        dataset_config=EqualParts(num_windows),
    )
    mend_snapshot(Path(config["train"]["run_dir"]))
    try:
        trainer.fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
        raise _cause(error) from error


def _cause(error: Exception) -> FarsightError:
    """The error that a worker raised, if it was one of ours."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, FarsightError):
            return failure
    return TrainingError(
        f"training failed, and its restarts are used up: {error}; mend the cause and run the same command again, which "
        "goes on from the last whole checkpoint"
    )


def _export(run_dir: Path, model: ModelSettings, dataset: PreparedDataset, facts: dict[str, Any]) -> Artifact:
    """Write the artifact from the checkpoint with the best validation; the earliest of equals."""
    complete = [found for found in whole_checkpoints(run_dir) if found.metrics]
    if not complete:
        raise TrainingError(f"{run_dir}: the run ended without a checkpoint; remove it and train again")
    best = max(complete, key=lambda found: (found.metrics[METRIC], -found.state.epoch))
    facts = {**facts, "validation": {**best.metrics, "epoch": best.state.epoch, "step": best.state.step}}
    return save_artifact(run_dir / ARTIFACT, best.weights, model, dataset, table=best.table, facts=facts, replace=True)
