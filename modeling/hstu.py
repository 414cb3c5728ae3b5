"""The HSTU block: pointwise SiLU attention with gating.

Source: Zhai et al., "Actions Speak Louder than Words", ICML 2024, eq. 1-3 and the authors' research
code (norms without affine parameters, scores divided by the longest length, no 1/sqrt(d)).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from modeling.attention_bias import RelativeBias
from modeling.dropout import Dropout
from modeling.view import View


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
        self.widths = [heads * value_width, heads * query_width]
        self.norm_input = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_pooled = nn.LayerNorm(heads * value_width, elementwise_affine=False)
        # f1 in two parts, so that few rows that look at many events cost what they are.
        self.project_rows = nn.Linear(width, sum(self.widths), bias=False)  # gates and queries
        self.project_events = nn.Linear(width, sum(self.widths), bias=False)  # values and keys
        self.project_out = nn.Linear(heads * value_width, width)
        self.dropout = Dropout(dropout)
        self.bias = RelativeBias(max_events, position=position_bias, time=time_bias)
        nn.init.normal_(self.project_rows.weight, std=0.02)
        nn.init.normal_(self.project_events.weight, std=0.02)
        nn.init.xavier_uniform_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        view: View,
        rows_BRD: Float[Tensor, "B R D"] | None = None,
        sink_BRD: Float[Tensor, "B R D"] | None = None,
    ) -> Float[Tensor, "B R D"]:
        """One block; the arguments are those of `modeling.encoder.Block`."""
        normed_BLD = self.norm_input(x_BLD)
        if rows_BRD is None:
            rows_BRD, normed_BRD = x_BLD, normed_BLD
        else:
            normed_BRD = self.norm_input(rows_BRD)
        gates, queries = torch.split(functional.silu(self.project_rows(normed_BRD)), self.widths, -1)
        queries = self._split(queries)
        values, keys = self._values_keys(normed_BLD)
        scores_BHRL = queries @ keys.transpose(-1, -2)
        bias = self.bias(x_BLD.shape[1], view)
        if bias is not None:
            scores_BHRL += bias[:, None]
        weights_BHRL = functional.silu(scores_BHRL) * (view.allowed[:, None] / self.max_events).to(scores_BHRL.dtype)
        pooled_BHRV = weights_BHRL @ values
        if sink_BRD is not None:
            sink_value, sink_key = self._values_keys(self.norm_input(sink_BRD))
            to_sink_BHR1 = (queries * sink_key).sum(-1, keepdim=True)
            pooled_BHRV = pooled_BHRV + functional.silu(to_sink_BHR1) / self.max_events * sink_value
        pooled_BRV = pooled_BHRV.transpose(1, 2).flatten(2)
        out_BRD: Tensor = self.project_out(self.dropout(gates * self.norm_pooled(pooled_BRV)))
        return rows_BRD + out_BRD

    def _values_keys(self, normed_BND: Tensor) -> tuple[Tensor, Tensor]:
        values, keys = torch.split(functional.silu(self.project_events(normed_BND)), self.widths, -1)
        return self._split(values), self._split(keys)

    def _split(self, part_BND: Tensor) -> Tensor:
        """From heads side by side to heads one after the other."""
        batch, length, _ = part_BND.shape
        return part_BND.view(batch, length, self.heads, -1).transpose(1, 2)
