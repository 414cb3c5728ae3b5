"""The `alerts` section of a recipe: from where on somebody is told."""

from pydantic import Field

from data.settings import Settings


class AlertSettings(Settings):
    """Thresholds of the alert rules."""

    error_share: float = Field(0.01, gt=0, le=1, description="of answers: 5xx but for 503 and 504")
    refused_share: float = Field(0.05, gt=0, le=1, description="of answers: 503 and 429")
    late_share: float = Field(0.01, gt=0, le=1, description="of answers: 504, past their deadline")
    slow_share: float = Field(
        0.8, gt=0, le=1, description="of the deadline that a request has if it states none: what p99 may take"
    )
    fallback_share: float = Field(0.3, gt=0, le=1, description="of answers: those that are not the model's")
    fill_rate: float = Field(0.95, gt=0, le=1, description="items answered of those asked for, at least")
    unknown_share: float = Field(
        0.05, gt=0, le=1, description="of events sent: unknown to the release, beyond the share of its held-out events"
    )
    score_drift: float = Field(0.25, gt=0, description="population stability index of the best scores, over six hours")
    drift_answers: int = Field(1_000, ge=1, description="answers in six hours below which drift is not judged")
    release_days: float = Field(7, gt=0, description="age of the newest release that answers")
    rollout_minutes: int = Field(30, ge=1, description="for which two releases may answer beside each other")
    stall_minutes: int = Field(
        15, ge=1, description="without a figure of a training run; above the time of its validation"
    )
    wait_share: float = Field(0.3, gt=0, le=1, description="of the time that training waits for data")
    checkpoint_minutes: int = Field(120, ge=1, description="since the last checkpoint of a training run")
    attempts: int = Field(3, ge=2, description="of a training run that began within an hour")
    memory_share: float = Field(0.92, gt=0, le=1, description="of a node's memory; at .95 Ray kills tasks")
    disk_share: float = Field(0.9, gt=0, le=1, description="of a node's disk")
    runbook: str = Field(
        "docs/monitoring.md", description="where the page that says what to do is found; alerts link to NAME in it"
    )
