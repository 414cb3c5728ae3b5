"""Settings of batch prediction; free of torch, ray and faiss."""

from pydantic import Field, model_validator

from data.settings import Settings
from serve.settings import Holders


class Wanted(Settings):
    """A condition that every user is answered under, as in a request."""

    any_of: tuple[str, ...] = Field((), description="names of categories or pools")
    own_top: int | None = Field(None, ge=1, description="instead: so many of the user's most frequent categories")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="share of the answer, relative")
    hard: bool = Field(False, description="bring only what satisfies it")

    @model_validator(mode="after")
    def _either(self) -> "Wanted":
        if bool(self.any_of) == (self.own_top is not None):
            raise ValueError("expected either any_of with at least one name, or own_top")
        return self


class Workers(Holders):
    """Ray Data actors."""

    at_least: int = Field(1, ge=1, description="actors that always run")
    at_most: int = Field(2, ge=1, description="actors at most, as many as the shards keep busy")

    @model_validator(mode="after")
    def _ordered(self) -> "Workers":
        if self.at_most < self.at_least:
            raise ValueError(f"at_most {self.at_most} is below at_least {self.at_least}")
        return self


class PredictSettings(Settings):
    """Answers for all users of a dataset."""

    k: int = Field(100, ge=1, description="items per user")
    request_time: int | None = Field(
        None, ge=0, description="seconds UTC at which all ask; later events are left out; None: the newest event's"
    )
    exclude_seen: bool = Field(True, description="leave out every item of the user's history")
    conditions: tuple[Wanted, ...] = Field((), description="what the answers should satisfy")
    batch_size: int = Field(64, ge=1, description="users of one forward pass")
    workers: Workers = Field(default_factory=Workers, description="actors")
