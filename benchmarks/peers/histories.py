"""What a peer reads, and how it is measured: the histories of a prepared dataset, and ranks over the whole catalogue.

Read by the benchmark and by the peer's own environment, so it needs numpy alone. Letters: E events
laid end to end, B users, V item rows.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Histories:
    """Users' histories end to end, in order, and how many events of each are training and validation; one is test."""

    items_E: IntArray
    offsets_B1: IntArray
    num_train_B: IntArray
    num_rows: IntArray  # of the item table, padding row 0 included; one number

    def save(self, file: Path) -> None:
        """Write an .npz file of plain arrays."""
        np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, file: Path) -> "Histories":
        """Read what `save` wrote."""
        with np.load(file, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def known(self, user: int, split: str) -> IntArray:
        """What is known before the user's target of a split, `validation` or `test`."""
        first = self.offsets_B1[user]
        return self.items_E[first : first + self.num_train_B[user] + (split == "test")]

    def target(self, user: int, split: str) -> int:
        """The user's target of a split."""
        return int(self.items_E[self.offsets_B1[user] + self.num_train_B[user] + (split == "test")])

    def users(self) -> IntArray:
        """Users with both targets, shortest history first."""
        lengths_B = np.diff(self.offsets_B1)
        chosen = np.flatnonzero(lengths_B >= self.num_train_B + 2)
        return chosen[np.argsort(lengths_B[chosen], kind="stable")]

    def num_targets(self, max_events: int) -> int:
        """Training targets of one epoch over each user's newest `max_events` + 1 training events."""
        return int(np.minimum(np.maximum(self.num_train_B - 1, 0), max_events).sum())


def hits(scores_BV: FloatArray, histories: Histories, users: IntArray, split: str) -> npt.NDArray[np.float64]:
    """Sums of NDCG@10 and HR@10 over `users`, as `modeling.metrics` defines them for one target per user.

    Padding and every item of the history before the target are removed, a target among them is a
    miss, and equal scores are ordered by item row. An item that a model does not know has -inf.
    """
    scores_BV[:, 0] = -np.inf
    for place, user in enumerate(users):
        scores_BV[place, histories.known(user, split)] = -np.inf
    targets_B = np.array([histories.target(user, split) for user in users])
    target_B1 = np.take_along_axis(scores_BV, targets_B[:, None], axis=1)
    above_B = (scores_BV > target_B1).sum(1)
    tied_B = ((scores_BV == target_B1) & (np.arange(scores_BV.shape[1]) < targets_B[:, None])).sum(1)
    ranks_B = above_B + tied_B
    found_B = (ranks_B < 10) & np.isfinite(target_B1[:, 0])
    return np.array([(found_B / np.log2(ranks_B + 2.0)).sum(), found_B.sum()])
