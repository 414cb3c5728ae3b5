"""`matrix` indexes: exact search as one matrix product, on whatever device holds the model."""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from serve.index.contract import Hits
from serve.index.deepening import search_deeper

# Rows of the product that stand in memory at a time, for each query.
CHUNK_ROWS = 262_144

Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]


class MatrixIndex:
    """Vectors in a tensor; the vector at position p is item row p + 1.

    Args:
        item_VD: in half precision, they stay so, and a GPU multiplies in half precision, too.
    """

    def __init__(self, item_VD: Vectors, device: str = "cpu") -> None:
        self._items_VD = torch.from_numpy(item_VD).to(device)

    @property
    def num_items(self) -> int:
        """Items in the index."""
        return len(self._items_VD)

    @property
    def width(self) -> int:
        """D of the vectors."""
        return self._items_VD.shape[1]

    def vectors_VD(self) -> Vectors:
        """The vectors, on the host."""
        vectors_VD: Vectors = self._items_VD.cpu().numpy()
        return vectors_VD

    @torch.inference_mode()
    def search(
        self,
        query_QD: Float32[npt.NDArray[np.float32], "Q D"],
        k: int,
        allowed_V: Bool[npt.NDArray[np.bool_], "V"] | None = None,
    ) -> Hits:
        """The min(k, V) best of the allowed items of each query."""
        allowed = None if allowed_V is None else torch.from_numpy(allowed_V).to(self._items_VD.device)
        num_allowed = self.num_items if allowed_V is None else int(allowed_V.sum())

        def candidates(
            query_QD: npt.NDArray[np.float32], depth: int, _: int
        ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
            # A NaN is a largest value to topk and would be found everywhere; it must be found nowhere.
            query = torch.from_numpy(query_QD).to(self._items_VD.device)
            scores_QC, rows_QC = self._best(query, depth, allowed)
            rows_QC = torch.where(scores_QC > -torch.inf, rows_QC, 0)
            return rows_QC.cpu().numpy(), scores_QC.cpu().numpy()

        return search_deeper(candidates, np.ascontiguousarray(query_QD, np.float32), k, num_allowed)

    def _best(self, query_QD: Tensor, depth: int, allowed_V: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores and rows of the `depth` best, [Q, depth], the rows of a chunk at a time."""
        scores_QC = query_QD.new_empty((len(query_QD), 0))
        rows_QC = torch.empty((len(query_QD), 0), dtype=torch.int64, device=query_QD.device)
        for start in range(0, self.num_items, CHUNK_ROWS):
            items_RD = self._items_VD[start : start + CHUNK_ROWS]
            # A CPU is slow in half precision, and does not need it.
            same = items_RD.float() if items_RD.device.type == "cpu" else items_RD
            product_QR = (query_QD.to(same.dtype) @ same.T).float()
            product_QR.nan_to_num_(nan=-torch.inf)
            if allowed_V is not None:
                product_QR.masked_fill_(~allowed_V[start : start + CHUNK_ROWS], -torch.inf)
            best = product_QR.topk(min(depth, product_QR.shape[1]), dim=1)
            scores_QC = torch.cat([scores_QC, best.values], dim=1)
            rows_QC = torch.cat([rows_QC, best.indices + start + 1], dim=1)
            kept = scores_QC.topk(min(depth, scores_QC.shape[1]), dim=1)
            scores_QC, rows_QC = kept.values, rows_QC.gather(1, kept.indices)
        return scores_QC, rows_QC
