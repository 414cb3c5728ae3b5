"""`Batch`: the one form in which histories reach the model.

A TypedDict of tensors, because Ray moves plain dicts to devices and DeepSpeed's hooks see the
tensors inside them. Rows are padded on the right with 0, so a causal model never looks at padding.
"""

from typing import TypedDict, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from data.encode import EncodedHistories
from data.ragged import IntArray


class Batch(TypedDict):
    """B histories of up to L events; all tensors are int64."""

    items_BL: Int[Tensor, "B L"]  # item rows; 0 = padding
    times_BL: Int[Tensor, "B L"]  # seconds UTC of each event
    query_times_BL: Int[Tensor, "B L"]  # when the answer after each event is asked for
    actions_BL: Int[Tensor, "B L"]  # action codes; 0 = none
    requests_BL: Int[Tensor, "B L"]  # which request of the history showed each event; -1 = not known
    next_requests_BL: Int[Tensor, "B L"]  # the same of the event that follows each event
    next_actions_BL: Int[Tensor, "B L"]  # the action of the event that follows each event; 0 = none or not known
    targets_BL: Int[Tensor, "B L"]  # the item that follows each event; 0 = none or not known
    lengths_B: Int[Tensor, "B"]
    users_B: Int[Tensor, "B"]  # `user_key`, names the rows in error messages


def collate(histories: EncodedHistories, rows: npt.NDArray[np.int64] | None = None) -> Batch:
    """Pad the chosen rows (all by default) to the longest of them."""
    chosen = np.arange(len(histories)) if rows is None else rows
    starts_B = histories.offsets_B1[chosen]
    lengths_B = histories.lengths_B[chosen]
    length = int(lengths_B.max(initial=1))
    column_L = np.arange(length)
    valid_BL = column_L < lengths_B[:, None]
    position_BL = np.where(valid_BL, starts_B[:, None] + column_L, 0)

    def padded(flat_E: IntArray) -> IntArray:
        if not len(flat_E):
            return np.zeros(valid_BL.shape, np.int64)
        return np.where(valid_BL, flat_E[position_BL], 0)

    items_BL = padded(histories.items_E)
    times_BL = padded(histories.times_E)
    requests_BL = padded(histories.requests_E)
    actions_BL = padded(histories.actions_E)
    return Batch(
        items_BL=torch.from_numpy(items_BL),
        times_BL=torch.from_numpy(times_BL),
        query_times_BL=torch.from_numpy(_shifted(times_BL, histories.query_times_B[chosen], lengths_B)),
        actions_BL=torch.from_numpy(actions_BL),
        requests_BL=torch.from_numpy(requests_BL),
        next_requests_BL=torch.from_numpy(_shifted(requests_BL, histories.next_requests_B[chosen], lengths_B)),
        next_actions_BL=torch.from_numpy(_shifted(actions_BL, histories.next_actions_B[chosen], lengths_B)),
        targets_BL=torch.from_numpy(_shifted(items_BL, histories.next_items_B[chosen], lengths_B)),
        lengths_B=torch.from_numpy(lengths_B),
        users_B=torch.from_numpy(histories.users_B[chosen]),
    )


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on a device. To a GPU it goes through pinned memory, so that nothing waits for the copy."""
    target = torch.device(device)
    tensors = cast(dict[str, Tensor], batch)
    if target.type == "cuda":
        tensors = {name: value.pin_memory() for name, value in tensors.items()}
    return cast(Batch, {name: value.to(target, non_blocking=True) for name, value in tensors.items()})


def _shifted(values_BL: IntArray, last_B: IntArray, lengths_B: IntArray) -> IntArray:
    """Each row moved one to the left, with `last_B` at its last event."""
    result_BL = np.zeros_like(values_BL)
    result_BL[:, :-1] = values_BL[:, 1:]
    filled = np.flatnonzero(lengths_B)
    result_BL[filled, lengths_B[filled] - 1] = last_B[filled]
    return result_BL
