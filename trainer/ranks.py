"""What the ranks of a run tell each other besides gradients."""

import time
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Ranks:
    """Small agreements between ranks, on the CPU over gloo, so that no GPU waits for them.

    Every method is a collective: all ranks call it equally often.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        self.world = world
        self._group = dist.new_group(backend="gloo") if world > 1 else None
        self.born = self.first(time.time_ns() // 10**6)  # milliseconds UTC: names these ranks among a run's

    def all(self, flag: bool) -> bool:
        """Whether the flag is true on every rank."""
        if self._group is None:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MIN, group=self._group)
        return bool(value)

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on some rank."""
        return not self.all(not flag)

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the ranks, of a CPU tensor."""
        total = values.clone()
        if self._group is not None:
            dist.all_reduce(total, group=self._group)
        return total

    def first(self, value: T) -> T:
        """Rank 0's value, on every rank; anything that can be pickled."""
        values = [value]
        if self._group is not None:
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
