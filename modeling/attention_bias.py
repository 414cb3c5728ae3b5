"""What attention knows of the distance between two events: in events and in time."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from modeling.view import View

# floor(ln(seconds) / 0.301), clipped at 128: the bucketing of HSTU's research code.
LOG_BUCKET_WIDTH = 0.301
NUM_TIME_BUCKETS = 129
_INT32 = torch.iinfo(torch.int32)


def time_buckets(query_times_BL: Int[Tensor, "B L"], times_BL: Int[Tensor, "B L"]) -> Int[Tensor, "B L L"]:
    """Bucket of the seconds between each query (row) and each event (column).

    The query of row i is asked at the time of event i + 1, so the time of the item to be
    predicted, in production the time of the request, is known to the model.

    Source: HSTU research code, `RelativeBucketedTimeAndPositionBasedBias`. Deviation: none.
    """
    # From the first event on, seconds fit into 32 bits (68 years): a quarter of the time on a CPU.
    start_B1 = times_BL[:, :1]
    query_BL = (query_times_BL - start_B1).clamp(_INT32.min, _INT32.max).int()
    event_BL = (times_BL - start_B1).clamp(_INT32.min, _INT32.max).int()
    seconds_BLL = (query_BL[:, :, None] - event_BL[:, None, :]).float().abs_().clamp_(min=1)
    return seconds_BLL.log_().mul_(1 / LOG_BUCKET_WIDTH).clamp_(max=NUM_TIME_BUCKETS - 1).int()


class _BucketLookup(torch.autograd.Function):
    """`weight[buckets]`, whose gradient is a histogram: far cheaper than a scatter of millions of rows.

    The ignores: torch lets the context take any attribute, and its types do not know it.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight_K: Tensor, buckets: Tensor) -> Tensor:
        ctx.save_for_backward(buckets)
        ctx.num_buckets = len(weight_K)  # type: ignore[attr-defined]
        return weight_K.index_select(0, buckets.flatten()).view(buckets.shape)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        (buckets,) = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        sums_K = torch.bincount(
            buckets.flatten(),
            weights=gradient.flatten().float(),
            minlength=ctx.num_buckets,  # type: ignore[attr-defined]
        )
        return sums_K.to(gradient.dtype), None


def _lookup(weight_K: Tensor, buckets: Tensor) -> Tensor:
    values: Tensor = _BucketLookup.apply(weight_K, buckets)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return values


class RelativeBias(nn.Module):
    """Learned attention bias by distance in events and by logarithmic time distance.

    Args:
        max_events: longest history.
        position, time: which of the two parts exist.

    Source: HSTU, eq. 2 (rab^{p,t}), shared by the heads. Deviation: only distances to the past
    have a weight, since the future is masked.
    """

    def __init__(self, max_events: int, *, position: bool, time: bool) -> None:
        super().__init__()
        self.position_L = nn.Parameter(torch.empty(max_events).normal_(std=0.02)) if position else None
        self.time_K = nn.Parameter(torch.empty(NUM_TIME_BUCKETS).normal_(std=0.02)) if time else None

    def forward(self, length: int, view: View) -> Float[Tensor, "#B R L"] | None:
        """Bias of each row for each of `length` events; None if neither part exists."""
        bias: Tensor | None = None
        if self.position_L is not None:
            steps_L = torch.arange(length, device=self.position_L.device)
            places_BR = steps_L[None] if view.places is None else view.places
            distance_BRL = (places_BR[:, :, None] - steps_L).clamp(0, len(self.position_L) - 1).int()
            bias = _lookup(self.position_L, distance_BRL)
        if self.time_K is not None:
            assert view.buckets is not None  # the encoder computes them whenever a block has a time bias
            by_time_BRL = _lookup(self.time_K, view.buckets)
            bias = by_time_BRL if bias is None else by_time_BRL + bias
        return bias
