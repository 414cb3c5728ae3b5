"""Settings of the nightly pipeline: section `pipeline` of a recipe.

The other sections are those of any recipe. What changes from day to day is the pipeline's to say and replaces what they
state: `ingest.log`, `out`, `extends` and `split`, `train.dataset`, `run_dir` and `start_from`, `evaluate.baselines`,
`index.min_recall`.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from data.settings import Settings

DAY = "{day}"


class ChecksSettings(Settings):
    """What the data of a day must be like; looked at before anything is trained."""

    compared_days: int = Field(
        7, ge=1, description="days before whose median a day is compared with, of those whose data were good"
    )
    min_events_share: float = Field(
        0.5, ge=0, description="events of the day, at least this many times those of the days before"
    )
    max_events_share: float = Field(
        3.0, gt=0, description="events of the day, at most this many times those of the days before"
    )
    max_silence_hours: float = Field(
        8.0,
        ge=0,
        description="hours between the newest event and the end of the day: a log that was cut off ends early",
    )
    max_quarantined_share: float = Field(0.01, ge=0, le=1, description="share of the log's rows that may be refused")
    max_duplicate_share: float = Field(
        0.1, ge=0, le=1, description="share of the log's rows that the dataset may hold already"
    )
    max_cold_share: float = Field(
        0.5, ge=0, le=1, description="share of the day's targets that may be items without a training event"
    )
    max_accuracy_fall: float = Field(
        0.4,
        ge=0,
        le=1,
        description="how far the accuracy of the release in use may lie under that of the days before, as a share of "
        "it: items that are not what their ids say look like this",
    )


class GateSettings(Settings):
    """What a candidate must be like to follow the release in use."""

    max_accuracy_drop: float = Field(
        0.05,
        ge=0,
        description="how much worse than the release in use a candidate may be, as a share of the metric; with "
        "judged_by low the whole 95% interval of the difference must be above minus this",
    )
    judged_by: Literal["low", "mean"] = Field(
        "low", description="low: the lower end of the interval over users, so that few users promote nothing; mean"
    )
    above_popularity: bool = Field(True, description="whether a candidate must be better than popularity")
    min_coverage_share: float = Field(
        0.8, ge=0, description="items that a candidate recommends, at least this many times those of the release in use"
    )
    min_recall: float = Field(
        0.9, ge=0, le=1, description="share of the exact top-k (index.recall_k) that the candidate's index finds"
    )
    min_overlap: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the answers to the golden requests of the release in use that the candidate gives too; "
        "None only reports it",
    )


class PipelineSettings(Settings):
    """The `pipeline` section."""

    dir: str = Field(description="directory of the pipeline: a folder per day, and its lock; shared by all nodes")
    log: str = Field(
        description=f"where the log of a day is, with {DAY} for the date (UTC) as YYYY-MM-DD: a place as ingest.log "
        "takes it"
    )
    marker: str | None = Field(
        None, description=f"file, with {DAY} in its name, without which the log of a day is not complete yet"
    )
    registry: str = Field(description="registry of the releases (farsight releases); its current one is in use")
    begin_with: str | None = Field(
        None, description="prepared dataset that the first day extends; None: the first day's log is all there is"
    )
    validation_hours: float = Field(
        6.0, gt=0, description="hours before the day that are validation, which no candidate is trained on either"
    )
    metric: str = Field("ndcg@10", description="what `farsight evaluate` measures accuracy by here, of evaluate.ks")
    start: Literal["in_use", "fresh"] = Field(
        "in_use", description="in_use: training goes on with the release in use, if there is one; fresh: from nothing"
    )
    continued_on: Literal["new", "all"] = Field(
        "new",
        description="where training goes on: new: on windows with an event since the release in use was trained; all",
    )
    continued: dict[str, Any] = Field(
        default_factory=dict,
        description="laid over the `train` section where training goes on, such as fewer epochs",
    )
    checks: ChecksSettings = Field(ChecksSettings(), description="of the day's data")
    gate: GateSettings = Field(GateSettings(), description="of the candidate")
    deploy: str | None = Field(
        None,
        description="address of the Ray that serves, as farsight serve prints it: a promoted release is deployed "
        "there; None: it is added to the registry, and `farsight deploy REGISTRY/latest` is somebody else's",
    )
    keep_releases: int = Field(10, ge=1, description="newest releases that stay in the registry, beside those in use")
    keep_days: int = Field(
        7, ge=1, description="newest days whose dataset, run and release stay; of others reports and figures do"
    )
    notify: list[str] = Field(
        [], description="command that is told of every verdict: the report of the day as JSON on its standard input"
    )

    @field_validator("log", "marker")
    @classmethod
    def _names_a_day(cls, value: str | None) -> str | None:
        if value is not None and DAY not in value:
            raise ValueError(f"expected {DAY} where the date stands")
        return value
