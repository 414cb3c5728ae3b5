"""A pre-norm causal Transformer block: RMSNorm, softmax attention, gated feed-forward layer, gated residuals."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from modeling.attention_bias import RelativeBias
from modeling.dropout import Dropout
from modeling.softmax_attention import attend


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
        allowed_LL: Bool[Tensor, "L L"],
        buckets_BLL: Int[Tensor, "B L L"] | None,
    ) -> Float[Tensor, "B L D"]:
        """One block; `allowed_LL` is True where a row may look at a column."""
        queries, keys, values = self.project_qkv(self.norm_attention(x_BLD)).chunk(3, -1)
        bias = self.bias(x_BLD.shape[1], buckets_BLL)
        pooled_BLD = self.project_out(attend(queries, keys, values, self.heads, allowed_LL, bias))
        x_BLD = x_BLD + _gated(self.dropout(pooled_BLD), x_BLD, self.gate_attention)
        gate, value = self.feedforward_in(self.norm_feedforward(x_BLD)).chunk(2, -1)
        out_BLD = self.feedforward_out(self.dropout(functional.silu(gate) * value))
        return x_BLD + _gated(self.dropout(out_BLD), x_BLD, self.gate_feedforward)


def _gated(added_BLD: Tensor, x_BLD: Tensor, gate: nn.Linear | None) -> Tensor:
    return added_BLD if gate is None else added_BLD * torch.sigmoid(gate(x_BLD))
