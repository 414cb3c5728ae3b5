"""Settings of training and evaluation: the `train` and `evaluate` sections of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data.settings import Settings
from data.windows import WindowRule
from modeling.esans_settings import ClusterSettings
from trainer.baseline_settings import BaselineSettings, MostPopular


class OptimizerSettings(Settings):
    """AdamW with warm-up and decay."""

    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.98, ge=0, lt=1, description="decay of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    warmup_steps: int = Field(100, ge=0, description="optimiser steps of linear warm-up")
    decay: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="course of the learning rate after warm-up, over all epochs"
    )
    final_share: float = Field(0.1, ge=0, le=1, description="learning rate at the end, as a share of the peak")


class EngineSettings(Settings):
    """What DeepSpeed is asked to do."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="what is split over workers: 0 nothing, 1 optimiser, 2 and gradients, 3 and weights"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="number format of weights and activations")
    gradient_clipping: float = Field(1.0, ge=0, description="largest global gradient norm; 0 for no clipping")
    gradient_accumulation: int = Field(1, ge=1, description="batches per optimiser step and worker")
    compiled_ops: bool = Field(
        False, description="let DeepSpeed compile its shared-memory collectives on CPUs; takes a minute and a compiler"
    )


class ReplicatedTable(Settings):
    """The item table is a weight like others: whole on every worker, trained by AdamW, split by ZeRO."""

    kind: Literal["replicated"] = "replicated"


class ShardedTableSettings(Settings):
    """The rows of the item table are split over the workers; a step moves and updates only those that it names."""

    kind: Literal["sharded"]
    optimizer: Literal["lazy_adam", "rowwise_adagrad"] = Field(
        "lazy_adam", description="lazy_adam: two more numbers per weight; rowwise_adagrad: one more per row"
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="peak learning rate of the rows, on the schedule of train.optimizer, whose own is the default",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="number format of the rows; bf16 rounds at random")


class WorkerSettings(Settings):
    """Ray Train workers and what each may use."""

    num_workers: int = Field(1, ge=1, description="workers, one process each")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="fewest workers to go on with when there is no room for num_workers, as after a node died; more "
        "are taken up again when there is; None: num_workers, always",
    )
    use_gpu: bool = Field(False, description="one GPU per worker, NCCL between them; otherwise CPUs and gloo")
    cpus_per_worker: float = Field(1, gt=0, description="logical CPUs that Ray reserves per worker")
    threads_per_worker: int | None = Field(
        None, ge=1, description="torch threads per worker; None shares the machine's cores between its workers"
    )
    wait_minutes: float = Field(
        0, ge=0, description="minutes to wait for nodes that an autoscaler starts; 0: refuse what there is no room for"
    )
    max_failures: int = Field(2, ge=0, description="restarts from the last checkpoint after a worker died")

    @model_validator(mode="after")
    def _fewer(self) -> "WorkerSettings":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} is more than num_workers {self.num_workers}")
        return self


class TrainSettings(Settings):
    """The `train` section."""

    dataset: str = Field(description="prepared dataset to train on")
    run_dir: str = Field(description="directory of the run: figures, checkpoints, artifact; shared by all nodes")
    start_from: str | None = Field(
        None, description="artifact whose weights training begins with; the model's new parts begin fresh"
    )
    frozen: Literal["nothing", "backbone"] = Field(
        "nothing", description="backbone: item vectors and shared blocks stay as `start_from` has them"
    )
    epochs: int = Field(10, ge=1, description="passes over the training windows at most")
    max_minutes: float | None = Field(
        None, gt=0, description="minutes of training after which no epoch begins; the artifact is still written"
    )
    seed: int = Field(0, ge=0, description="seed of weights, order, negatives and dropout")
    windows: WindowRule = Field("all", description="all: every training event is a target; last: newest window only")
    since: int | None = Field(
        None,
        description="seconds UTC: only windows whose last event is not earlier are trained on, such as those that are "
        "new since `start_from` was trained; None for all",
    )
    events_per_batch: int = Field(
        16_384,
        ge=1,
        description="events per batch and worker, padding included; where another number of workers goes on, theirs "
        "are larger or smaller, so that all together take as many as before",
    )
    clustered_batches: ClusterSettings | None = Field(
        None,
        description="batches are of windows whose last targets lie in the same clusters of the items, or in near ones, "
        "so that in-batch negatives are hard (NGAME); None: of any windows of similar length",
    )
    windows_per_buffer: int = Field(16_384, ge=1, description="windows shuffled and bucketed by length together")
    cache_gib: float = Field(
        1.0, ge=0, description="a worker's windows stay in its memory after the first epoch if they take at most this"
    )
    evaluate_every_epochs: int = Field(1, ge=1, description="epochs between two validations, each with a checkpoint")
    checkpoint_every_batches: int | None = Field(
        None, ge=1, description="batches per worker between two checkpoints inside an epoch; None for none"
    )
    patience: int | None = Field(None, ge=1, description="validations without a better NDCG@10 before stopping early")
    max_validation_users: int | None = Field(
        None, ge=1, description="users validated during training, about; None for all"
    )
    checkpoints_kept: int = Field(2, ge=1, description="best checkpoints kept; the newest is kept besides")
    optimizer: OptimizerSettings = Field(OptimizerSettings(), description="optimiser and schedule")
    item_table: ReplicatedTable | ShardedTableSettings = Field(
        ReplicatedTable(), discriminator="kind", description="where the item vectors live"
    )
    engine: EngineSettings = Field(EngineSettings(), description="DeepSpeed")
    workers: WorkerSettings = Field(WorkerSettings(), description="Ray Train workers")

    @model_validator(mode="before")
    @classmethod
    def _tracking_apart(cls, stated: Any) -> Any:
        if isinstance(stated, dict) and "tracking" in stated:
            raise ValueError(
                "tracking is a section of its own: tracking.every_steps, tracking.wandb.mode=online; "
                "tracking.to=[] where nothing is to follow the run"
            )
        return stated

    @model_validator(mode="after")
    def _nothing_to_freeze(self) -> "TrainSettings":
        if self.frozen != "nothing" and self.start_from is None:
            raise ValueError(f"frozen {self.frozen} keeps what start_from gives; set start_from, or freeze nothing")
        return self


class EvaluateSettings(Settings):
    """The `evaluate` section. Validation during training goes by its `seen`, `gap_seconds` and `request_time`."""

    ks: tuple[int, ...] = Field((10, 50, 200), description="cut-offs of the metrics")
    seen: Literal["removed", "kept"] = Field(
        "removed", description="removed: items of the history are not recommended, a repeated target is a miss"
    )
    gap_seconds: Annotated[int, Field(ge=0)] | Literal["estimated"] = Field(
        0,
        description="delay of the data: events later than this before the first target are hidden; 0: none; estimated: "
        "the length of a burst, as `farsight gaps` measures it",
    )
    request_time: Literal["target", "last_event"] = Field(
        "target", description="time of the request: that of the first target, or of the newest visible event"
    )
    target_actions: tuple[str, ...] | None = Field(
        None,
        description="only events with these actions are targets, and users who have none are left out; histories and "
        "request times stay. None: all events, in validation of a stage those of its objective",
    )
    objective_weights: dict[str, float] | None = Field(
        None, description="objective -> weight of its score, as in a request; None: the default weights of the model"
    )
    horizon: int = Field(10, ge=0, description="events of the split, counted from its first, that have a hit rate each")
    baselines: tuple[BaselineSettings, ...] = Field((MostPopular(),), description="rankings measured beside the model")
    users_per_batch: int = Field(256, ge=1, description="users scored against the whole catalogue at a time")

    @model_validator(mode="after")
    def _cut_offs(self) -> "EvaluateSettings":
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks {self.ks}: expected one or more cut-offs of at least 1")
        return self
