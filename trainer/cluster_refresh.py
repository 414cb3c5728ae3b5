"""New clusters of the items every so many steps, made beside training.

    step 0       first clusters, from the weights as they are; training waits for them
    step n       rank 0 hands the item vectors to a Ray task; training goes on with the first clusters
    step 2n      all ranks take what the task made, and hand over the next vectors; and so on

What is drawn at a step so depends on the seed alone and not on how fast the task was: a task that is later than n steps
is waited for, and the seconds are reported. A task that failed is reported, and the clusters stay. A resumed run begins
like a new one, with clusters of the weights that it goes on from.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray
import ray.exceptions
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from modeling.esans import Clusters
from modeling.esans_settings import ClusterSettings
from trainer.clusters import FloatArray, cluster_items, content_vectors
from trainer.ranks import Ranks

logger = logging.getLogger(__name__)


class ClusterRefresh:
    """Keeps the clusters fresh. Every method is a collective.

    Args:
        use: takes new clusters.
        at_least: items of every cluster.
        catalogue: in row order; what it says of the items is clustered by too.
        item_vectors: a collective; the model's [V, D] on rank 0, None on others.
        report: step and figures of every clustering.
    """

    def __init__(
        self,
        use: Callable[[Clusters], None],
        settings: ClusterSettings,
        catalogue: pa.Table,
        ranks: Ranks,
        *,
        at_least: int,
        item_vectors: Callable[[], FloatArray | None],
        seed: int,
        report: Callable[[int, dict[str, Any]], None],
    ) -> None:
        self._use, self._settings, self._ranks, self._catalogue = use, settings, ranks, catalogue
        self._make_of: dict[str, Any] = {"settings": settings, "at_least": at_least, "seed": seed}
        self._content: ray.ObjectRef[list[FloatArray]] | None = None  # on rank 0: it is the same for every task
        self._item_vectors = item_vectors
        self._report = report
        self._pending = False  # the same on all ranks
        self._task: ray.ObjectRef[tuple[Clusters, float]] | None = None  # on rank 0

    def first(self, step: int) -> None:
        """Clusters of the weights as they are, made here and now."""
        vectors_VD = self._item_vectors()
        made = None
        if vectors_VD is not None:
            content = content_vectors(self._catalogue, self._settings, width=vectors_VD.shape[1])
            self._content = ray.put(content)
            made = _make(vectors_VD, content, **self._make_of)
        self._take(step, made, waited_seconds=0 if made is None else made[1])

    def tick(self, step: int) -> None:
        """After a step, whatever is due: take the clusters that were asked for, and ask for the next."""
        if step % self._settings.refresh_every_steps:
            return
        if self._pending:
            began = time.perf_counter()
            made = self._result(step)
            self._take(step, made, waited_seconds=time.perf_counter() - began)
        vectors_VD = self._item_vectors()
        if vectors_VD is not None:
            self._task = _in_a_task().remote(vectors_VD, self._content, **self._make_of)
        self._pending = True

    def _result(self, step: int) -> tuple[Clusters, float] | None:
        """What the task made, on rank 0; None where it failed, which is reported, and on other ranks."""
        if self._task is None:
            return None
        try:
            return ray.get(self._task)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", error)  # what the task raised, where it got so far
            logger.warning("step %d: items were not clustered, and the clusters stay: %s", step, cause)
            self._report(step, {"problem": str(cause)})
            return None

    def _take(self, step: int, made: tuple[Clusters, float] | None, *, waited_seconds: float) -> None:
        made = self._ranks.first(made)
        if made is None:
            return
        clusters, seconds = made
        self._use(clusters)
        sizes_C = clusters.sizes()
        figures = {"clusters": clusters.num_clusters, "largest_cluster": int(sizes_C.max())}
        self._report(step, {**figures, "seconds": seconds, "waited_seconds": waited_seconds})


def _make(
    vectors_VD: FloatArray, content: list[FloatArray], *, settings: ClusterSettings, at_least: int, seed: int
) -> tuple[Clusters, float]:
    """The clusters, and the seconds that they took."""
    began = time.perf_counter()
    clusters = cluster_items(vectors_VD, content, settings, at_least=at_least, seed=seed)
    return clusters, time.perf_counter() - began


def _in_a_task() -> Any:
    """`_make` as a Ray task that no full cluster keeps waiting: it reserves nothing, and lies in no worker's bundle."""
    anywhere = PlacementGroupSchedulingStrategy(placement_group=None)  # type: ignore[arg-type]  # Ray's word for none
    task: Any = ray.remote(num_cpus=0, max_retries=1, scheduling_strategy=anywhere)
    return task(_make)
