"""Clusters of the items by what they mean and by the vectors that a model has of them: two-level residual k-means.

An item has a vector from every modality that knows it: from the model (behaviour), from the categories of the
catalogue, and from columns of it that hold vectors. All have the model's width D: categories are the sum of a random
vector each, and a column of another width is multiplied by a random matrix; both keep angles, about. Lengths are 1.

    level 1   k-means on the mean of an item's vectors
    level 2   in each cluster of level 1, k-means on its vectors less the cluster's centre, side by side

Source: MSAC of ESANS (arXiv 2502.16077), as notes of it report the two levels. Ours: the modalities (there text and
image, aligned by a contrastive loss), how they are brought to one width, and that clusters with too few items are
dissolved into the nearest that have enough.

Letters: V rows, I = V - 1 items, D width, M modalities, C clusters.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from scipy.sparse import csr_matrix

from data.dataset import PreparedDataset
from data.errors import RecipeError, TrainingError
from data.item_features import vector_column
from modeling.esans import Clusters
from modeling.esans_settings import ClusterSettings
from modeling.settings import ModelSettings
from trainer.settings import TrainSettings

FloatArray = npt.NDArray[np.float32]

BATCHES = "train.clustered_batches"
VECTOR_COLUMNS = "vector_columns of the clusters"
# Points per cluster among which k-means looks for those that it begins with.
STARTS_FROM = 64


def check_clusters(train: TrainSettings, model: ModelSettings, dataset: PreparedDataset) -> None:
    """Refuse clusters that the table, the catalogue or the number of items does not allow.

    Raises:
        RecipeError: the item table is sharded, there are too few items, both negatives and batches want clusters, or
            the catalogue lacks a column of vectors.
    """
    asked = clusters_asked(train, model)
    if asked is None:
        return
    name, settings, at_least = asked
    if name != BATCHES and train.clustered_batches is not None:
        raise RecipeError(
            f"{name} draws hard negatives, and {BATCHES} makes those in the batch hard; take one of them, or the other"
        )
    if train.item_table.kind == "sharded":
        raise RecipeError(
            f"{name} clusters the vectors of all items in one place, and train.item_table.kind sharded splits them; do "
            "without clusters, or keep the table replicated"
        )
    if settings.num_clusters * at_least > dataset.num_rows - 1:
        raise RecipeError(
            f"{name}: {settings.num_clusters} clusters of at least {at_least} items need "
            f"{settings.num_clusters * at_least}, and {dataset.directory} has {dataset.num_rows - 1}; lower "
            "num_clusters"
        )
    content_vectors(dataset.catalogue(), settings, width=model.width)


def clusters_asked(train: TrainSettings, model: ModelSettings) -> tuple[str, ClusterSettings, int] | None:
    """Which setting wants clusters of the items, how they are made, and the items that each must hold, if one does."""
    if model.negatives.kind == "esans":
        return "model.negatives.kind esans", model.negatives.clusters, model.negatives.per_cluster
    return None if train.clustered_batches is None else (BATCHES, train.clustered_batches, 1)


def near_to_near(clusters: Clusters) -> npt.NDArray[np.int64]:
    """A number for each item row: equal in a subcluster, near in a cluster, and in clusters that are near each other.

    The clusters stand in a chain, each followed by the nearest of those that are left. Padding has the number 0.
    """
    distances_CC = clusters.distances_CC.double().numpy().copy()
    chain_C, at = [0], 0
    for _ in range(1, clusters.num_clusters):
        distances_CC[:, at] = np.inf
        at = int(distances_CC[at].argmin())
        chain_C.append(at)
    codes_V2 = clusters.codes_V2.numpy()
    place_C = np.argsort(chain_C)
    numbers_V: npt.NDArray[np.int64] = place_C[codes_V2[:, 0]] * (codes_V2[:, 1].max() + 1) + codes_V2[:, 1]
    numbers_V[0] = 0
    return numbers_V


def content_vectors(catalogue: pa.Table, settings: ClusterSettings, *, width: int, seed: int = 0) -> list[FloatArray]:
    """Each modality of the catalogue: vectors [I, D] of length 1, zero where it says nothing of an item.

    Args:
        catalogue: in row order, starting with row 1.

    Raises:
        RecipeError: it lacks a column of vectors, or one that is named holds something else.
    """
    random = np.random.default_rng(seed)
    found = []
    if settings.categories:
        categories = [cell or [] for cell in catalogue.column("categories").to_pylist()]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(chain.from_iterable(categories)))}
        of_category = random.standard_normal((len(numbers), width), dtype=np.float32)
        vectors_ID = np.zeros((len(categories), width), np.float32)
        for row, names in enumerate(categories):
            vectors_ID[row] = of_category[[numbers[name] for name in names]].sum(0)
        found.append(_unit(vectors_ID))
    for name in settings.vector_columns:
        vectors_IX, _ = vector_column(catalogue, name, VECTOR_COLUMNS)
        if vectors_IX.shape[1] != width:
            vectors_IX = vectors_IX @ random.standard_normal((vectors_IX.shape[1], width), dtype=np.float32)
        found.append(_unit(vectors_IX))
    return found


def cluster_items(
    behaviour_VD: FloatArray, content: Sequence[FloatArray], settings: ClusterSettings, *, at_least: int, seed: int
) -> Clusters:
    """Two levels of clusters of the items; the same for the same vectors and seed.

    Args:
        behaviour_VD: the model's item vectors; row 0 is padding.
        content: from `content_vectors`.
        at_least: items of every cluster of the first level, where there is more than one.

    Raises:
        TrainingError: a vector is not finite.
    """
    if not np.isfinite(behaviour_VD).all():
        raise TrainingError("item vectors are not finite, so that they cannot be clustered")
    modalities_MID = np.stack([_unit(behaviour_VD[1:]), *content])
    known_MI1 = modalities_MID.any(-1, keepdims=True)
    mean_ID = modalities_MID.sum(0) / np.maximum(known_MI1.sum(0), 1).astype(np.float32)
    codes_I, centres_CD = _with_enough(mean_ID, _k_means(mean_ID, settings.num_clusters, settings, seed), at_least)
    codes_V2 = np.full((len(behaviour_VD), 2), -1, np.int64)
    codes_V2[1:, 0] = codes_I
    for cluster, centre_D in enumerate(centres_CD):
        rows_N = np.flatnonzero(codes_I == cluster)
        residuals_MND = modalities_MID[:, rows_N] - centre_D
        side_by_side = np.ascontiguousarray(residuals_MND.transpose(1, 0, 2).reshape(len(rows_N), -1))
        codes_V2[1 + rows_N, 1] = _k_means(side_by_side, settings.num_subclusters, settings, seed)
    centres = torch.from_numpy(centres_CD)
    return Clusters(torch.from_numpy(codes_V2), torch.cdist(centres, centres))


def _k_means(points_NX: FloatArray, num_clusters: int, settings: ClusterSettings, seed: int) -> npt.NDArray[np.int64]:
    """The cluster of each point; with fewer points than clusters each is one."""
    if len(points_NX) <= num_clusters:
        return np.arange(len(points_NX))
    # One point is enough for a centre: FAISS would warn otherwise.
    found: Any = faiss.Kmeans(
        points_NX.shape[1], num_clusters, niter=settings.iterations, seed=seed + 1, min_points_per_centroid=1
    )
    found.train(points_NX, init_centroids=_starts(points_NX, num_clusters, np.random.default_rng(seed)))
    _, codes_N1 = found.index.search(points_NX, 1)
    codes_N: npt.NDArray[np.int64] = codes_N1[:, 0]
    return codes_N


def _starts(points_NX: FloatArray, num_clusters: int, random: np.random.Generator) -> FloatArray:
    """Points that k-means begins with: each far from those before it (k-means++, Arthur and Vassilvitskii, 2007)."""
    size = min(len(points_NX), STARTS_FROM * num_clusters)
    sample_SX = points_NX[random.choice(len(points_NX), size, replace=False)]
    chosen = [0]
    away_S = np.full(size, np.inf)
    for _ in range(1, num_clusters):
        away_S = np.minimum(away_S, ((sample_SX - sample_SX[chosen[-1]]) ** 2).sum(1))
        total = away_S.sum()
        chosen.append(int(random.choice(size, p=away_S / total if total > 0 else None)))
    return np.ascontiguousarray(sample_SX[chosen])


def _with_enough(
    points_ID: FloatArray, codes_I: npt.NDArray[np.int64], at_least: int
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Dissolve the smallest cluster into the nearest others until all have enough points; codes and centres then."""
    numbers, codes = np.unique(codes_I, return_inverse=True)
    left = np.ones(len(numbers), np.bool_)
    while left.sum() > 1:
        centres_CD, sizes_C = _centres(points_ID, codes, len(numbers))
        smallest = int(np.where(left, sizes_C, len(codes)).argmin())
        if sizes_C[smallest] >= at_least:
            break
        left[smallest] = False
        moved = np.flatnonzero(codes == smallest)
        # Of the squared distance, what tells the centres apart.
        away_NC = (centres_CD**2).sum(1) - 2 * points_ID[moved] @ centres_CD.T
        codes[moved] = np.where(left, away_NC, np.inf).argmin(1)
    codes = np.unique(codes, return_inverse=True)[1]
    return codes, _centres(points_ID, codes, int(left.sum()))[0]


def _centres(
    points_ID: FloatArray, codes_I: npt.NDArray[np.int64], num_clusters: int
) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Mean and number of the points of each cluster; the mean of none is 0."""
    sizes_C = np.bincount(codes_I, minlength=num_clusters)
    members_CI = csr_matrix((np.ones(len(codes_I)), (codes_I, np.arange(len(codes_I)))), (num_clusters, len(codes_I)))
    return (members_CI @ points_ID / np.maximum(sizes_C, 1)[:, None]).astype(np.float32), sizes_C


def _unit(vectors_IX: FloatArray) -> FloatArray:
    """At length 1; zero stays zero."""
    lengths_I1 = np.linalg.norm(vectors_IX, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors_IX / np.where(lengths_I1 > 0, lengths_I1, 1), np.float32)
