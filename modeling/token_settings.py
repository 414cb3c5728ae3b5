"""Settings of items as sets of tokens, and of the transformer over tokens (HeterRec, arXiv 2503.01469)."""

from typing import Literal

from pydantic import Field, model_validator

from data.settings import Settings


class FeatureItems(Settings):
    """Vectors are composed from what the catalogue says of an item, one token each (heterogeneous tokens, HTFL)."""

    kind: Literal["features"]
    ids: bool = Field(True, description="a token of the item's own id; items without training events share one")
    categories: bool = Field(True, description="a token of its categories: the mean of their vectors")
    numbers: tuple[str, ...] = Field((), description="columns of the catalogue that hold numbers, a token each")
    number_buckets: int = Field(16, ge=2, description="buckets of a number, by quantiles; missing has one of its own")
    contents: tuple[str, ...] = Field(
        (), description="columns of the catalogue that hold vectors of one length, frozen, a token each"
    )
    id_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of a training batch's items whose id is not told, as it is of unseen items"
    )
    pool_width: int = Field(128, ge=1, description="inner width of the layers that make one vector of the tokens")

    @model_validator(mode="after")
    def _have_tokens(self) -> "FeatureItems":
        if not self.num_tokens:
            raise ValueError(
                "there is nothing to make vectors from; set ids or categories, or name numbers or contents"
            )
        if len(set(self.numbers)) < len(self.numbers) or len(set(self.contents)) < len(self.contents):
            raise ValueError("a column is named twice in numbers or in contents; name each once")
        return self

    @property
    def num_tokens(self) -> int:
        """Tokens of an item."""
        return self.ids + self.categories + len(self.numbers) + len(self.contents)


class TokenSettings(Settings):
    """A causal transformer over the tokens of the history, below the blocks over its events (HCT)."""

    blocks: int = Field(1, ge=1, description="blocks of the token level")
    heads: int = Field(1, ge=1, description="attention heads per block; divides the model's width")
    feedforward_width: int = Field(128, ge=1, description="inner width of the feed-forward layer")
    window: int = Field(2, ge=0, description="events before its own whose tokens a token sees")
    fused: bool = Field(False, description="an item is one token, its vector, also where it has several")
    actions: bool = Field(True, description="a token of each event's action, where the log has actions")
    gaps: bool = Field(True, description="a token of the time since the event before; needs times")
    summary: Literal["mean", "last"] = Field(
        "mean", description="what becomes of an event's tokens: their mean or the last of them, through a linear map"
    )
