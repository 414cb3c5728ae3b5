"""A pre-norm causal Transformer block: RMSNorm, softmax attention, gated feed-forward layer, gated residuals."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from modeling.attention_bias import RelativeBias
from modeling.dropout import Dropout
from modeling.softmax_attention import are_few, attend, attend_from_few
from modeling.view import View


class TransformerBlock(nn.Module):
    """x + Attention(RMSNorm(x)), then + FeedForward(RMSNorm(x)).

    The feed-forward layer is SiLU-gated (Shazeer, "GLU Variants Improve Transformer"). With
    `gated_residuals` what each half adds is multiplied by sigmoid(Linear(x)): the block of LiGR
    (arXiv 2502.03417) as eSASRec uses it (arXiv 2508.06450). Deviation: RMSNorm for LayerNorm. The
    relative bias is the same as HSTU's, so that both encoders can be compared with the same inputs.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        feedforward_width: int,
        gated_residuals: bool,
        max_events: int,
        dropout: float,
        position_bias: bool,
        time_bias: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.RMSNorm(width)
        self.norm_feedforward = nn.RMSNorm(width)
        self.project_qkv = nn.Linear(width, 3 * width, bias=False)
        self.project_out = nn.Linear(width, width, bias=False)
        self.feedforward_in = nn.Linear(width, 2 * feedforward_width, bias=False)
        self.feedforward_out = nn.Linear(feedforward_width, width, bias=False)
        self.dropout = Dropout(dropout)
        self.bias = RelativeBias(max_events, position=position_bias, time=time_bias)
        self.gate_attention = nn.Linear(width, width) if gated_residuals else None
        self.gate_feedforward = nn.Linear(width, width) if gated_residuals else None
        for layer in (self.project_qkv, self.project_out, self.feedforward_in, self.feedforward_out):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        view: View,
        rows_BRD: Float[Tensor, "B R D"] | None = None,
        sink_BRD: Float[Tensor, "B R D"] | None = None,
    ) -> Float[Tensor, "B R D"]:
        """One block; the arguments are those of `modeling.encoder.Block`."""
        bias = self.bias(x_BLD.shape[1], view)
        if rows_BRD is not None and are_few(rows_BRD, self.heads):
            width = x_BLD.shape[-1]
            queries_BRD = functional.linear(self.norm_attention(rows_BRD), self.project_qkv.weight[:width])
            few = (queries_BRD, self.norm_attention(x_BLD), self.project_qkv.weight[width:], None)
            sink_BRD = None if sink_BRD is None else self.norm_attention(sink_BRD)
            pooled_BRD = attend_from_few(*few, self.heads, view.allowed, bias, sink_BRD)
        else:
            queries, keys, values = self.project(x_BLD)
            if rows_BRD is not None:
                queries, _, _ = self.project(rows_BRD)
            sink = None if sink_BRD is None else self.project(sink_BRD)[1:]
            pooled_BRD = attend(queries, keys, values, self.heads, view.allowed, bias, sink)
        return self.add(x_BLD if rows_BRD is None else rows_BRD, pooled_BRD)

    def add(self, rows_BRD: Float[Tensor, "B R D"], pooled_BRD: Float[Tensor, "B R D"]) -> Float[Tensor, "B R D"]:
        """What becomes of rows for which attention pooled these values."""
        y_BRD = rows_BRD + _gated(self.dropout(self.project_out(pooled_BRD)), rows_BRD, self.gate_attention)
        gate, value = self.feedforward_in(self.norm_feedforward(y_BRD)).chunk(2, -1)
        out_BRD = self.feedforward_out(self.dropout(functional.silu(gate) * value))
        return y_BRD + _gated(self.dropout(out_BRD), y_BRD, self.gate_feedforward)

    def project(self, x_BND: Float[Tensor, "B N D"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of rows, normed first."""
        queries, keys, values = self.project_qkv(self.norm_attention(x_BND)).chunk(3, -1)
        return queries, keys, values


def _gated(added_BRD: Tensor, x_BRD: Tensor, gate: nn.Linear | None) -> Tensor:
    return added_BRD if gate is None else added_BRD * torch.sigmoid(gate(x_BRD))
