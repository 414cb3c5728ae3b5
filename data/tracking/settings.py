"""The `tracking` section of a recipe."""

from typing import Literal

from pydantic import Field

from data.settings import Settings

TrackerName = Literal["wandb", "mlflow", "tensorboard", "jsonl", "prometheus"]


class WandbSettings(Settings):
    """W&B. Its key comes from WANDB_API_KEY or `wandb login`, never from a recipe."""

    mode: Literal["offline", "online"] = Field(
        "offline",
        description="offline keeps the run's files in its directory and needs no account; wandb sync sends them",
    )
    entity: str | None = Field(None, description="user or team that owns the project; None: the key's own")


class MlflowSettings(Settings):
    """MLflow. A server's user and password come from MLFLOW_TRACKING_USERNAME and _PASSWORD, never from a recipe."""

    uri: str | None = Field(
        None, description="server or local store; None: MLFLOW_TRACKING_URI, or a local store in `runs/mlflow`"
    )


class TrackingSettings(Settings):
    """Where the figures of a run go, besides `metrics.jsonl` in its directory."""

    to: tuple[TrackerName, ...] = Field(
        ("wandb", "prometheus"), description="trackers, several at once or none; prometheus: of training, through Ray"
    )
    project: str = Field("farsight", description="project of W&B, experiment of MLflow")
    group: str | None = Field(
        None, description="what belongs together, as one product's nightly runs: group of W&B, prefix of artifact names"
    )
    steps: tuple[Literal["ingest", "train", "evaluate", "index"], ...] = Field(
        ("ingest", "train", "evaluate", "index"), description="commands that trackers are told of"
    )
    every_steps: int = Field(20, ge=1, description="batches per worker between two rows of figures")
    examples: int = Field(
        8, ge=0, description="users of each validation whose histories and answers are kept as a table; 0: none"
    )
    upload: bool = Field(
        False,
        description="send the files of artifacts, indexes and releases, instead of where they lie and their hashes",
    )
    wandb: WandbSettings = Field(WandbSettings(), description="W&B")
    mlflow: MlflowSettings = Field(MlflowSettings(), description="MLflow")
