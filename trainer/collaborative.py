"""Classical collaborative filtering: item-kNN and iALS by the library `implicit`, and EASE in closed form.

All are fitted on the training part of the histories, and score a user from the history that is
visible when the target is asked for. A user whose history says nothing, being empty or of items
without training events, gets the scores of popularity.

Letters beside those of DESIGN.md: U training users.
"""

import numpy as np
import numpy.typing as npt
import torch
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import ItemItemRecommender, bm25_weight, normalize, tfidf_weight
from jaxtyping import Float
from scipy.linalg import lapack
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits
from torch import Tensor

from data.cases import Cases
from data.errors import RecipeError
from trainer.baseline_settings import Ease, Ials, ItemKnn
from trainer.training_part import histories_matrix

FloatArray = npt.NDArray[np.float32]
ROWS_PER_BLOCK = 1024


class LinearScorer:
    """Scores that are a weighted sum over the items of the history: item-kNN and EASE.

    Args:
        weights_VV: what a history item (row) adds to the score of each item (column); sparse or dense.
        popularity_V: scores where the history says nothing.
        distinct: an item that stands more than once in the history counts once.
    """

    def __init__(self, weights_VV: csr_matrix | FloatArray, popularity_V: Tensor, *, distinct: bool) -> None:
        self._weights_VV = weights_VV
        self._popularity_V = popularity_V
        self._distinct = distinct

    def __call__(self, cases: Cases) -> Float[Tensor, "B V"]:
        history_BV = histories_matrix(cases.items, len(self._popularity_V))
        if self._distinct:
            history_BV.data[:] = 1
        scores_BV = history_BV @ self._weights_VV
        dense_BV = scores_BV.toarray() if isinstance(scores_BV, csr_matrix) else scores_BV
        return _informed(torch.from_numpy(dense_BV), self._popularity_V)


class FactorScorer:
    """Scores of a matrix factorisation: inner products with the user vector solved from the history.

    Args:
        model: fitted, on the CPU.
        popularity_V: scores where the history says nothing.
    """

    def __init__(self, model: AlternatingLeastSquares, popularity_V: Tensor) -> None:
        self._model = model
        self._popularity_V = popularity_V
        self._items_VD = torch.from_numpy(model.item_factors)

    def __call__(self, cases: Cases) -> Float[Tensor, "B V"]:
        return _informed(self.user_vectors(cases) @ self._items_VD.T, self._popularity_V)

    def user_vectors(self, cases: Cases) -> Float[Tensor, "B D"]:
        """The least-squares solution for each visible history; zeros where it says nothing."""
        history_BV = histories_matrix(cases.items, len(self._popularity_V))
        with threadpool_limits(1, "blas"):
            return torch.from_numpy(self._model.recalculate_user(np.arange(len(cases)), history_BV))


def item_knn(settings: ItemKnn, counts_UV: csr_matrix, popularity_V: Tensor) -> LinearScorer:
    """Each item of the history adds its similarity to its nearest items; repeated events add again."""
    return LinearScorer(knn_weights(settings, counts_UV), popularity_V, distinct=False)


def knn_weights(settings: ItemKnn, counts_UV: csr_matrix) -> csr_matrix:
    """Similarities of each item (row) to its nearest items (columns), itself left out.

    Source: Sarwar et al., "Item-Based Collaborative Filtering Recommendation Algorithms", WWW 2001.
    Deviation: the neighbourhood is that of the item in the history, not of the item scored.
    """
    # The library's weightings take items by users.
    with np.errstate(invalid="ignore"):
        match settings.weighting:
            case "cosine":
                weighted_VU = normalize(counts_UV.T)
            case "tfidf":
                weighted_VU = normalize(tfidf_weight(counts_UV.T))
            case "bm25":
                weighted_VU = bm25_weight(counts_UV.T, K1=1.2, B=0.75)
    # 0/0 where all users of an item weigh nothing, which takes a user with the whole catalogue.
    weighted_VU.data = np.nan_to_num(weighted_VU.data)
    neighbours = min(settings.neighbours + 1, counts_UV.shape[1])  # the nearest item is the item itself
    model = ItemItemRecommender(K=neighbours, num_threads=torch.get_num_threads())
    model.fit(weighted_VU.T.tocsr(), show_progress=False)
    pairs = model.similarity.tocoo()
    others = pairs.row != pairs.col
    similar = pairs.data[others].astype(np.float32), (pairs.row[others], pairs.col[others])
    return csr_matrix(similar, shape=pairs.shape)


def ials(settings: Ials, counts_UV: csr_matrix, popularity_V: Tensor) -> FactorScorer:
    """Item vectors by alternating least squares; an item with n events of a user weighs alpha * n.

    Source: Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008,
    with the conjugate gradients of Takacs et al., RecSys 2011. Deviation: the weight is alpha * n, not
    1 + alpha * n, which is the convention of `implicit`.
    """
    with threadpool_limits(1, "blas"):  # the library has threads of its own
        model = AlternatingLeastSquares(
            factors=settings.factors,
            regularization=settings.regularization,
            alpha=settings.alpha,
            iterations=settings.iterations,
            random_state=settings.seed,
            num_threads=torch.get_num_threads(),
            use_gpu=False,
        )
        model.fit(counts_UV, show_progress=False)
    return FactorScorer(model, popularity_V)


def ease(settings: Ease, counts_UV: csr_matrix, popularity_V: Tensor) -> LinearScorer:
    """A linear model of each item from the others, over which distinct items users have.

    Raises:
        RecipeError: the catalogue is larger than `max_items`.
    """
    items = counts_UV.shape[1] - 1
    if items > settings.max_items:
        raise RecipeError(
            f"evaluate.baselines: ease for {items} items needs {12e-9 * items**2:.1f} GB of memory, and max_items "
            f"allows {settings.max_items}; raise max_items on a machine that has it, or take ials or item_knn"
        )
    return LinearScorer(ease_weights(counts_UV, settings.regularization), popularity_V, distinct=True)


def ease_weights(counts_UV: csr_matrix, regularization: float) -> FloatArray:
    """Weights with zero diagonal that minimise `|X - X B|^2 + regularization * |B|^2`, X binary.

    Memory is 12 bytes times the square of the catalogue, time its cube.

    Source: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, equation 8.
    """
    precision_VV = _gram(counts_UV.sign().astype(np.float64))
    np.fill_diagonal(precision_VV, precision_VV.diagonal() + regularization)
    # In place and in the lower triangle only: of a large catalogue, nothing else is as large. The matrix is
    # positive definite, so neither step can fail.
    precision_VV, _ = lapack.dpotrf(precision_VV, lower=1, overwrite_a=1, clean=0)
    precision_VV, _ = lapack.dpotri(precision_VV, lower=1, overwrite_c=1)
    diagonal_V = precision_VV.diagonal().astype(np.float32)
    # Transposed it is in C order, which sparse products need, and holds the upper triangle.
    weights_VV: FloatArray = precision_VV.T.astype(np.float32)
    del precision_VV
    torch.from_numpy(weights_VV).triu_(1)
    weights_VV += weights_VV.T
    weights_VV /= -diagonal_V
    return weights_VV


def _gram(matrix_UV: csr_matrix) -> npt.NDArray[np.float64]:
    """Inner products of the columns, dense in Fortran order; the sparse product is formed in blocks of rows."""
    matrix_VU = matrix_UV.T.tocsr()
    gram_VV = np.empty((matrix_UV.shape[1],) * 2, order="F")
    for first in range(0, len(gram_VV), ROWS_PER_BLOCK):
        gram_VV[first : first + ROWS_PER_BLOCK] = (matrix_VU[first : first + ROWS_PER_BLOCK] @ matrix_UV).toarray()
    return gram_VV


def _informed(scores_BV: Tensor, popularity_V: Tensor) -> Tensor:
    """The scores, with those of popularity where a row has none: zero for every item."""
    silent_B1 = ~scores_BV.any(dim=1, keepdim=True)
    return torch.where(silent_B1, popularity_V.to(scores_BV.dtype), scores_BV)
