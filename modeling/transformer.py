"""A pre-norm causal Transformer block: RMSNorm, softmax attention, gated feed-forward layer."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from modeling.attention_bias import RelativeBias


class TransformerBlock(nn.Module):
    """x + Attention(RMSNorm(x)), then + FeedForward(RMSNorm(x)).

    The feed-forward layer is SiLU-gated (Shazeer, "GLU Variants Improve Transformer"). The
    relative bias is the same as HSTU's, so that both encoders can be compared with the same inputs.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        feedforward_width: int,
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
        self.dropout = nn.Dropout(dropout)
        self.bias = RelativeBias(max_events, position=position_bias, time=time_bias)
        for layer in (self.project_qkv, self.project_out, self.feedforward_in, self.feedforward_out):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        allowed_LL: Bool[Tensor, "L L"],
        buckets_BLL: Int[Tensor, "B L L"] | None,
    ) -> Float[Tensor, "B L D"]:
        """One block; `allowed_LL` is True where a row may look at a column."""
        x_BLD = x_BLD + self.dropout(self._attend(self.norm_attention(x_BLD), allowed_LL, buckets_BLL))
        gate, value = self.feedforward_in(self.norm_feedforward(x_BLD)).chunk(2, -1)
        out_BLD: Tensor = x_BLD + self.dropout(self.feedforward_out(self.dropout(functional.silu(gate) * value)))
        return out_BLD

    def _attend(self, x_BLD: Tensor, allowed_LL: Tensor, buckets_BLL: Tensor | None) -> Tensor:
        batch, length, width = x_BLD.shape
        queries, keys, values = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.project_qkv(x_BLD).chunk(3, -1)
        )
        bias = self.bias(length, buckets_BLL)
        mask = allowed_LL if bias is None else bias[:, None].masked_fill(~allowed_LL, float("-inf"))
        pooled_BHLV = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        out: Tensor = self.project_out(pooled_BHLV.transpose(1, 2).reshape(batch, length, width))
        return out
