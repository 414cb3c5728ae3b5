"""Settings of ESANS: which clusters the items are put into, and what negatives are drawn from them."""

from typing import Literal

from pydantic import Field, model_validator

from data.settings import Settings


class ClusterSettings(Settings):
    """Two levels of clusters of the items, by what they mean and by the vectors that the model has of them."""

    num_clusters: int = Field(64, ge=2, description="clusters of the first level")
    num_subclusters: int = Field(8, ge=1, description="clusters of the second level, in each of the first, at most")
    categories: bool = Field(True, description="cluster by the categories of the catalogue, besides the item vectors")
    vector_columns: tuple[str, ...] = Field(
        (), description="columns of the catalogue with a vector per item, such as of its text, to cluster by besides"
    )
    refresh_every_steps: int = Field(
        500, ge=1, description="batches per worker between two clusterings; the next clusters are taken that much later"
    )
    iterations: int = Field(10, ge=1, description="iterations of k-means")


class EsansNegatives(Settings):
    """Negatives of each target's own, from clusters of the items: easy, hard, and virtual ones between them (ESANS)."""

    kind: Literal["esans"]
    other_clusters: int = Field(
        2, ge=1, description="other clusters that each target is told from, drawn by their distance (m_c)"
    )
    per_cluster: int = Field(5, ge=2, description="items drawn from each cluster, its own among them (m_o)")
    distance_temperature: float = Field(
        1.0, gt=0, description="divides the distances between clusters; the smaller it is, the nearer those drawn are"
    )
    hard: bool = Field(True, description="negatives from the target's own cluster, but not from its subcluster")
    simple_virtual: bool = Field(True, description="virtual negatives between the items drawn from one other cluster")
    hard_virtual: bool = Field(True, description="virtual negatives between the target and each of its hard negatives")
    hard_range: tuple[float, float] = Field(
        (0.0, 0.5), description="least and largest weight of the target in a virtual negative, drawn uniformly"
    )
    num_uniform: int = Field(0, ge=0, description="uniform negatives besides, shared by all targets of a batch")
    log_q: bool = Field(True, description="correct for how likely each negative was to be drawn for the target")
    clusters: ClusterSettings = Field(ClusterSettings(), description="how items are clustered")

    @model_validator(mode="after")
    def _fits_together(self) -> "EsansNegatives":
        if self.hard_virtual and not self.hard:
            raise ValueError(
                "hard_virtual lies between the target and its hard negatives; set hard, or switch both off"
            )
        low, high = self.hard_range
        if not low <= high < 1:
            raise ValueError(
                f"hard_range {self.hard_range}: expected a least and a largest weight below 1, at which a virtual "
                "negative would be the target itself"
            )
        return self
