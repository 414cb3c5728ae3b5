"""Settings of the rankings that a retriever is compared with: `evaluate.baselines` of a recipe."""

from typing import Annotated, Literal

from pydantic import Field

from data.settings import Settings


class MostPopular(Settings):
    """Items by their number of training events; the same list for everyone."""

    kind: Literal["popularity"] = "popularity"


class RecentlyPopular(Settings):
    """Items by their number of training events in the last days; the same list for everyone. Needs times."""

    kind: Literal["recent_popularity"] = "recent_popularity"
    days: float = Field(7.0, gt=0, description="days before the newest training event that count")


class ItemKnn(Settings):
    """Items similar to those of the history, by which training users they share (`implicit`)."""

    kind: Literal["item_knn"] = "item_knn"
    neighbours: int = Field(100, ge=1, description="most similar items kept per item, itself not counted")
    weighting: Literal["cosine", "tfidf", "bm25"] = Field(
        "tfidf",
        description="similarity of two items: cosine over users; the same with users of many items weighing less; "
        "inner product with BM25 weights",
    )


class Ials(Settings):
    """Matrix factorisation of implicit feedback by alternating least squares (`implicit`)."""

    kind: Literal["ials"] = "ials"
    factors: int = Field(128, ge=1, description="width of user and item vectors")
    regularization: float = Field(8.0, gt=0, description="weight of the squared norms")
    alpha: float = Field(10.0, gt=0, description="weight of an event; that of an item without events is 1")
    iterations: int = Field(15, ge=1, description="passes of alternating least squares")
    seed: int = Field(0, ge=0, description="seed of the first vectors")


class Ease(Settings):
    """Linear item-item model with a closed form (Steck, WWW 2019); for small catalogues."""

    kind: Literal["ease"] = "ease"
    regularization: float = Field(100.0, gt=0, description="weight of the squared entries, lambda of the paper")
    max_items: int = Field(20_000, ge=1, description="a larger catalogue is refused: memory is quadratic, time cubic")


BaselineSettings = Annotated[
    MostPopular | RecentlyPopular | ItemKnn | Ials | Ease,
    Field(discriminator="kind"),
]
