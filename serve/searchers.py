"""An index outside the endpoint: searchers that each hold one shard of a release's catalogue.

For a catalogue that one replica has no memory for, or whose search should scale apart from the model. Searchers are
Serve applications of their own, named after their release, and started before an endpoint of that release: so a
replica asks those of its own release alone, also while another release takes over.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import ray.exceptions
import ray.serve
import ray.serve.exceptions
from jaxtyping import Bool, Float32
from ray.serve.handle import DeploymentHandle

from serve.index.contract import Hits
from serve.index.on_faiss import set_search_threads
from serve.index.settings import IndexSettings
from serve.index.sharded import merged, parts_of, shard_sizes
from serve.index.store import open_shard, read_index_manifest
from serve.release import INDEX, read_release_manifest
from serve.settings import Searchers

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

PREFIX = "farsight-shard"
# A search that takes longer has lost its searcher: an endpoint's own deadlines are shorter.
TIMEOUT_SECONDS = 10
# A request whose searcher is lost goes to another one: searching changes nothing.
ATTEMPTS = 3
LOST = (ray.exceptions.RayActorError, ray.serve.exceptions.RayServeException, TimeoutError)


class Searcher:
    """Serve deployment: one shard of the index of a release."""

    def __init__(self, release: str, shard: int, threads: int) -> None:
        """Load the shard, its files checked.

        Raises:
            ArtifactError: missing or damaged.
        """
        self._index = open_shard(Path(release) / INDEX, shard)
        self._thread = ThreadPoolExecutor(1, "search", initializer=set_search_threads, initargs=(threads,))

    async def search(
        self,
        query_QD: Float32[npt.NDArray[np.float32], "Q D"],
        k: int,
        allowed_V: Bool[npt.NDArray[np.bool_], "V"] | None,
    ) -> Hits:
        """See `Index`; rows begin at 1 in each shard."""
        search = self._index.search
        return await asyncio.get_running_loop().run_in_executor(self._thread, search, query_QD, k, allowed_V)


class RemoteIndex:
    """The index of a release in the searchers' hands. Call it from a thread that runs no event loop."""

    def __init__(self, release: str) -> None:
        release_id = read_release_manifest(Path(release))["release_id"]
        manifest = read_index_manifest(Path(release) / INDEX)
        self._num_items, self._width = manifest["counts"]["items"], manifest["counts"]["width"]
        self._sizes = shard_sizes(self._num_items, IndexSettings.model_validate(manifest["settings"]).shards)
        names = [application(release_id, shard) for shard in range(len(self._sizes))]
        self._shards: list[DeploymentHandle[Any]] = [ray.serve.get_app_handle(name) for name in names]

    @property
    def num_items(self) -> int:
        """Items in the index."""
        return int(self._num_items)

    @property
    def width(self) -> int:
        """D of the vectors."""
        return int(self._width)

    def search(
        self,
        query_QD: Float32[npt.NDArray[np.float32], "Q D"],
        k: int,
        allowed_V: Bool[npt.NDArray[np.bool_], "V"] | None = None,
    ) -> Hits:
        """See `Index`; all shards search at the same time.

        Raises:
            SearchersLost: a shard has no searcher that answers.
        """
        allowed = parts_of(allowed_V, self._sizes)
        calls = [
            partial(shard.search.remote, query_QD, k, own_V) for shard, own_V in zip(self._shards, allowed, strict=True)
        ]
        under_way = [call() for call in calls]
        found = [_answered(first, call) for first, call in zip(under_way, calls, strict=True)]
        return merged(found, self._sizes, k)


class SearchersLost(Exception):
    """A shard has no searcher that answers just now."""


def _answered(under_way: Any, again: Callable[[], Any]) -> Hits:  # of Serve's responses, whose types are too wide
    for attempt in range(ATTEMPTS):
        try:
            found: Hits = under_way.result(timeout_s=TIMEOUT_SECONDS)
        except LOST as error:
            logger.warning("attempt %d: a searcher did not answer: %s", attempt + 1, error)
            under_way = again()
        else:
            return found
    raise SearchersLost(f"a searcher did not answer {ATTEMPTS} times")


def application(release_id: str, shard: int) -> str:
    """Name of the application with the searchers of a shard."""
    return f"{PREFIX}-{release_id}-{shard}"


def start_searchers(release: str, release_id: str, settings: Searchers) -> None:
    """Start searchers of every shard of a release, if they do not run; returns once they answer."""
    shards = IndexSettings.model_validate(read_index_manifest(Path(release) / INDEX)["settings"]).shards
    searcher = ray.serve.deployment(
        name="searcher",
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_ongoing,
        ray_actor_options={"num_cpus": settings.num_cpus},
    )(Searcher)
    targets = [
        ray.serve.RunTarget(searcher.bind(release, shard, settings.threads), application(release_id, shard), None)
        for shard in range(shards)
    ]
    ray.serve.run_many(targets)


def stop_searchers(but_of: Sequence[str]) -> None:
    """Stop the searchers of all releases but these."""
    for name in ray.serve.status().applications:
        if name.startswith(PREFIX) and not any(name.startswith(f"{PREFIX}-{kept}-") for kept in but_of):
            ray.serve.delete(name)
