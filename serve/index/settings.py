"""Settings of the index: how items are arranged for search, and how a build is checked; free of faiss."""

from typing import Annotated, Literal

from pydantic import Field

from data.settings import Settings


class FlatSettings(Settings):
    """Exact search: every query is compared with every item."""

    kind: Literal["flat"] = "flat"
    float16: bool = Field(
        False, description="keep vectors in half precision: half the memory, and scores of vectors so rounded"
    )


class ListSettings(Settings):
    """Items are grouped around centroids."""

    num_lists: int | None = Field(
        None, ge=1, description="number of groups; None takes about 4 sqrt(items), at least 39 items per group"
    )
    num_probes: int = Field(
        32, ge=1, description="groups a query looks into; at most all of them, which makes the search exact"
    )


class IvfSettings(ListSettings):
    """Approximate search: items are grouped around centroids, and a query looks into the nearest groups."""

    kind: Literal["ivf"] = "ivf"
    float16: bool = Field(
        False, description="keep vectors in half precision: half the memory, and scores of vectors so rounded"
    )


class IvfPqSettings(ListSettings):
    """As ivf, with a code of a few bytes per item to find candidates, which are then scored by their vectors (fp16)."""

    kind: Literal["ivfpq"] = "ivfpq"
    code_bytes: int | None = Field(
        None, ge=1, description="bytes of an item's code, a divisor of the width; None takes about a quarter of it"
    )
    candidates_per_hit: int = Field(4, ge=1, description="candidates that are scored per item wanted")


class HnswSettings(Settings):
    """Approximate search along a graph of neighbours; fast for one query, slow to build, larger than the vectors."""

    kind: Literal["hnsw"] = "hnsw"
    links: int = Field(32, ge=2, description="neighbours of an item in the graph (M)")
    ef_construction: int = Field(128, ge=1, description="candidates kept while the graph is built")
    ef_search: int = Field(256, ge=1, description="candidates kept while searching; at least the items wanted")


class CagraSettings(Settings):
    """Approximate search along a graph that a GPU builds, and searches; a CPU searches it as an hnsw graph."""

    kind: Literal["cagra"] = "cagra"
    links: int = Field(64, ge=2, description="neighbours of an item in the graph")
    build_links: int = Field(128, ge=2, description="neighbours that those are chosen from; at least `links`")
    ef_search: int = Field(256, ge=1, description="candidates kept while searching; at least the items wanted")


class BinarySettings(Settings):
    """One bit per dimension, the sign, to find candidates, which are then scored by their vectors (fp16)."""

    kind: Literal["binary"] = "binary"
    candidates_per_hit: int = Field(20, ge=1, description="candidates that are scored per item wanted")


class MatrixSettings(Settings):
    """Exact search as one matrix product, on the device that holds the model."""

    kind: Literal["matrix"] = "matrix"
    float16: bool = Field(
        False, description="keep vectors in half precision: half the memory, and scores of vectors so rounded"
    )


IndexKind = Annotated[
    FlatSettings | IvfSettings | IvfPqSettings | HnswSettings | CagraSettings | BinarySettings | MatrixSettings,
    Field(discriminator="kind"),
]


class IndexSettings(Settings):
    """How a release's index is built and checked."""

    search: IndexKind = Field(default_factory=FlatSettings, description="how the index searches")
    shards: int = Field(
        1, ge=1, description="parts of the catalogue, searched apart and merged; each can have searchers of its own"
    )
    recall_k: int = Field(100, ge=1, description="items per query at which recall against exact search is measured")
    num_recall_queries: int = Field(256, ge=1, description="queries on which recall is measured")
    min_recall: float = Field(0.9, ge=0, le=1, description="share of the exact top-k below which a build is refused")
    chunk_rows: int = Field(65_536, ge=1, description="item rows that go through the model at a time")
    threads: int = Field(1, ge=1, description="threads that build the index")
