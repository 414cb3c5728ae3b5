"""The HSTU block: pointwise SiLU attention with gating.

Source: Zhai et al., "Actions Speak Louder than Words", ICML 2024, eq. 1-3 and the authors' research
code (norms without affine parameters, scores divided by the longest length, no 1/sqrt(d)).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from modeling.attention_bias import RelativeBias
from modeling.dropout import Dropout


class HstuBlock(nn.Module):
    """x + f2(Norm(SiLU(Q K^T + bias) V) * U), with U, V, Q, K = Split(SiLU(f1(Norm(x)))).

    Args:
        width: D of the input.
        heads, query_width, value_width: attention heads and their widths.
        max_events: attention weights are divided by it, whatever the batch's length.
        dropout: share dropped before the output projection.
        position_bias, time_bias: parts of the relative bias.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        query_width: int,
        value_width: int,
        max_events: int,
        dropout: float,
        position_bias: bool,
        time_bias: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.max_events = max_events
        self.widths = [heads * value_width, heads * value_width, heads * query_width, heads * query_width]
        self.norm_input = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_pooled = nn.LayerNorm(heads * value_width, elementwise_affine=False)
        self.project_in = nn.Linear(width, sum(self.widths), bias=False)
        self.project_out = nn.Linear(heads * value_width, width)
        self.dropout = Dropout(dropout)
        self.bias = RelativeBias(max_events, position=position_bias, time=time_bias)
        nn.init.normal_(self.project_in.weight, std=0.02)
        nn.init.xavier_uniform_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        allowed_LL: Bool[Tensor, "L L"],
        buckets_BLL: Int[Tensor, "B L L"] | None,
    ) -> Float[Tensor, "B L D"]:
        """One block; `allowed_LL` is True where a row may look at a column."""
        batch, length, _ = x_BLD.shape
        projected = functional.silu(self.project_in(self.norm_input(x_BLD)))
        gates, values, queries, keys = torch.split(projected, self.widths, dim=-1)
        queries, keys, values = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in (queries, keys, values)
        )
        scores_BHLL = queries @ keys.transpose(-1, -2)
        bias = self.bias(length, buckets_BLL)
        if bias is not None:
            scores_BHLL += bias[:, None]
        weights_BHLL = functional.silu(scores_BHLL) * (allowed_LL / self.max_events).to(scores_BHLL.dtype)
        pooled_BLV = (weights_BHLL @ values).transpose(1, 2).reshape(batch, length, -1)
        out_BLD: Tensor = self.project_out(self.dropout(gates * self.norm_pooled(pooled_BLV)))
        return x_BLD + out_BLD
