"""Settings of the retriever. They stop at `modeling.build`; modules take plain arguments."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data.settings import Settings
from modeling.esans_settings import EsansNegatives
from modeling.objectives_settings import ObjectivesSettings
from modeling.token_settings import FeatureItems, TokenSettings


class HstuSettings(Settings):
    """HSTU blocks: pointwise SiLU attention with gating ("Actions Speak Louder than Words", eq. 1-3)."""

    kind: Literal["hstu"] = "hstu"
    blocks: int = Field(2, ge=1, description="number of blocks")
    heads: int = Field(1, ge=1, description="attention heads per block")
    query_width: int = Field(64, ge=1, description="width of queries and keys per head (d_qk)")
    value_width: int = Field(64, ge=1, description="width of values and gates per head (d_v)")
    position_bias: bool = Field(True, description="learned bias by distance in events, per block")
    time_bias: bool = Field(True, description="learned bias by logarithmic time distance, per block; needs times")


class TransformerSettings(Settings):
    """Pre-norm causal Transformer blocks with RMSNorm and a gated feed-forward layer.

    With `gated_residuals` these are the blocks of LiGR, which make eSASRec out of SASRec.
    """

    kind: Literal["transformer"] = "transformer"
    blocks: int = Field(2, ge=1, description="number of blocks")
    heads: int = Field(1, ge=1, description="attention heads per block; divides the model's width")
    feedforward_width: int = Field(128, ge=1, description="inner width of the feed-forward layer")
    gated_residuals: bool = Field(False, description="multiply what each half of a block adds by a learned gate (LiGR)")
    position_bias: bool = Field(False, description="learned bias by distance in events, per block")
    time_bias: bool = Field(False, description="learned bias by logarithmic time distance, per block; needs times")


class SasrecSettings(Settings):
    """The blocks of SASRec, as published; the biases are additions, off by default."""

    kind: Literal["sasrec"] = "sasrec"
    blocks: int = Field(2, ge=1, description="number of blocks")
    heads: int = Field(1, ge=1, description="attention heads per block; divides the model's width")
    position_bias: bool = Field(False, description="learned bias by distance in events, per block")
    time_bias: bool = Field(False, description="learned bias by logarithmic time distance, per block; needs times")


class UniformNegatives(Settings):
    """Items drawn uniformly from the catalogue, shared by all positions of a batch."""

    kind: Literal["uniform"] = "uniform"
    num_uniform: int = Field(256, ge=1, description="negatives per batch, drawn with replacement")


class InBatchNegatives(Settings):
    """Targets of the same batch, corrected for how often each item is a target (log-q)."""

    kind: Literal["in_batch"] = "in_batch"
    num_in_batch: int = Field(256, ge=1, description="negatives per batch, drawn from its targets with replacement")


class MixedNegatives(Settings):
    """Uniform and in-batch negatives together, corrected by the probability of the mixture."""

    kind: Literal["mixed"] = "mixed"
    num_uniform: int = Field(128, ge=1, description="uniform negatives per batch")
    num_in_batch: int = Field(128, ge=1, description="in-batch negatives per batch")


class AllNegatives(Settings):
    """Every other item of the catalogue: the full softmax, whose logits never stand in memory at once."""

    kind: Literal["all"]


class ItemRows(Settings):
    """Every item has a vector of its own."""

    kind: Literal["rows"] = "rows"


class HashedItems(Settings):
    """Vectors are composed from the hash of an item's id, out of tables that do not grow with the catalogue.

    They have 2 (quotient_rows + remainder_rows) rows in all.
    """

    kind: Literal["hashed"]
    quotient_rows: int = Field(8192, ge=2, description="rows of each of the two quotient tables")
    remainder_rows: int = Field(8192, ge=2, description="rows of each of the two remainder tables")

    @model_validator(mode="after")
    def _fit_half_a_hash(self) -> "HashedItems":
        pairs = self.quotient_rows * self.remainder_rows
        if pairs > 2**32:
            raise ValueError(
                f"quotient_rows x remainder_rows is {pairs}, and half a hash has 2^32 values, so that some rows would "
                "never be used; lower one of them"
            )
        return self

    @property
    def num_vectors(self) -> int:
        """Different vectors that can be composed: one for each pair of numbers."""
        return (self.quotient_rows * self.remainder_rows) ** 2


ItemsSettings = Annotated[ItemRows | HashedItems | FeatureItems, Field(discriminator="kind")]
EncoderSettings = Annotated[HstuSettings | TransformerSettings | SasrecSettings, Field(discriminator="kind")]
NegativesSettings = Annotated[
    UniformNegatives | InBatchNegatives | MixedNegatives | AllNegatives | EsansNegatives, Field(discriminator="kind")
]


# Negatives whose scores are those of plain item vectors, block by block.
WITH_OBJECTIVES = ("uniform", "in_batch", "mixed", "all")


class PredictionSettings(Settings):
    """What each position learns to predict: next-item prediction by default.

    Time-aware multi-item prediction (TAMIP) of Climber-Pilot is `heads: 2` with `hidden: faithful`
    or `hidden: strict`.
    """

    heads: int = Field(1, ge=1, description="items ahead that are predicted, one head each; the first answers requests")
    branch: Literal["block", "linear", "shared"] = Field(
        "block",
        description="what a head has of its own: the last block; (but for the first) a linear map behind it; or, "
        "shared, nothing: one vector for all (listwise multi-step prediction)",
    )
    hidden: Literal["nothing", "faithful", "strict"] = Field(
        "nothing",
        description="what a prediction does not see. nothing: all of the history is visible; faithful: attention to "
        "events later than the gap before the target is masked, as published; strict: targets are predicted from the "
        "last event before the gap",
    )
    gap: Annotated[int, Field(ge=0)] | Literal["request"] | None = Field(
        None,
        description="seconds before the target that are hidden; request: the events of the target's request; None: "
        "estimated from the log when training begins",
    )
    window_seconds: int | None = Field(
        None, ge=1, description="draw each target from the events within this many seconds (dense all-action); one head"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "PredictionSettings":
        if self.window_seconds is not None and self.heads > 1:
            raise ValueError(f"window_seconds draws one target and {self.heads} heads predict several; set one of them")
        return self


class PoolSettings(Settings):
    """A named pool of young items, which a request may ask for like a category."""

    name: str = Field(min_length=1, description="name of the condition, such as new")
    max_age_days: float = Field(gt=0, description="days since the item's first event in the log, at most")


class ConditionSettings(Settings):
    """Answers for a condition: a category of the catalogue, or a pool. Trained on top of a model that has none."""

    kind: Literal["cgsa", "head", "adaln", "token"] = Field(
        "cgsa",
        description="cgsa: the branch sees matching events alone (condition-guided sparse attention); head: embedding "
        "beside the last hidden vector; adaln: AdaLN-Zero; token: a token that reads the history",
    )
    pools: tuple[PoolSettings, ...] = Field((), description="conditions besides the categories")
    drop: float = Field(0.15, ge=0, le=1, description="share of the targets that are asked for without a condition")
    targets: Literal["all", "last"] = Field(
        "all",
        description="all: every event is a target, under its own condition; last: each window's last, as published",
    )

    @property
    def pool_ages(self) -> list[tuple[str, float]]:
        """Name and largest age in days of each pool, as `data.conditions.Conditions.of` takes them."""
        return [(pool.name, pool.max_age_days) for pool in self.pools]


class ModelSettings(Settings):
    """Shape and loss of the retriever."""

    width: int = Field(64, ge=1, description="width of item and query vectors (D)")
    max_events: int = Field(200, ge=1, description="events of a history that the model sees (L)")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of activations dropped in training")
    items: ItemsSettings = Field(ItemRows(), description="where an item's vector comes from")
    use_actions: bool = Field(False, description="add an embedding of each event's action to the input")
    tokens: TokenSettings | None = Field(
        None, description="a transformer over tokens below the encoder's blocks; None: an event is one vector"
    )
    encoder: EncoderSettings = Field(HstuSettings(), description="the blocks; the last of them is that of a head")
    prediction: PredictionSettings = Field(PredictionSettings(), description="what each position predicts")
    condition: ConditionSettings | None = Field(None, description="how answers are asked for; None: they are not")
    objectives: ObjectivesSettings | None = Field(
        None, description="several objectives in one vector, learnt in stages (CSMF); None: one objective, all events"
    )
    negatives: NegativesSettings = Field(UniformNegatives(), description="what a target is told from")
    temperature: float = Field(0.05, gt=0, description="divides the cosine scores in the loss")

    @model_validator(mode="after")
    def _conditions_need_branches(self) -> "ModelSettings":
        if self.condition is not None and self.prediction.branch != "block":
            raise ValueError("condition needs a branch of its own for each head; set prediction.branch to block")
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelSettings":
        if not isinstance(self.encoder, HstuSettings) and self.width % self.encoder.heads:
            raise ValueError(f"width {self.width} is not a multiple of the {self.encoder.heads} heads")
        if self.tokens is not None and self.width % self.tokens.heads:
            raise ValueError(f"width {self.width} is not a multiple of the {self.tokens.heads} heads of tokens")
        return self

    @model_validator(mode="after")
    def _objectives_fit(self) -> "ModelSettings":
        if self.objectives is None:
            return self
        blocks = self.objectives.blocks(self.width)
        if sum(blocks) != self.width or min(blocks) < 1:
            raise ValueError(f"objectives: blocks of {list(blocks)} coordinates do not make a width of {self.width}")
        several = self.prediction.heads > 1 or self.prediction.window_seconds is not None
        negatives = self.negatives.kind in WITH_OBJECTIVES
        others = self.condition is not None or self.tokens is not None or self.items.kind != "rows"
        if several or others or not negatives:
            raise ValueError(
                "objectives needs one head that predicts the next item (prediction.heads 1, no window_seconds), no "
                "condition, no tokens, a row per item (items.kind rows), and negatives.kind of "
                f"{', '.join(WITH_OBJECTIVES)}"
            )
        return self

    @property
    def reads_times(self) -> bool:
        """Whether the model reads the times of the events, also when it answers."""
        return self.encoder.time_bias or (self.tokens is not None and self.tokens.gaps)

    @property
    def reads_actions(self) -> bool:
        """Whether the model reads the actions of the events."""
        return self.use_actions or (self.tokens is not None and self.tokens.actions)

    @property
    def needs_catalogue(self) -> bool:
        """Whether the model is built from the catalogue, and not from the number of items alone."""
        return self.condition is not None or self.items.kind == "features"

    @property
    def needs_times(self) -> bool:
        """Whether training needs the times of the events."""
        by_time = self.prediction.hidden != "nothing" and self.prediction.gap != "request"
        return self.reads_times or by_time or self.prediction.window_seconds is not None
