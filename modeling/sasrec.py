"""The block of SASRec: softmax attention whose queries alone are normalised, and a feed-forward layer as wide as x.

Source: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, in the form of its
later implementations with PyTorch's attention. The residual paths start after the norms, as there.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from modeling.attention_bias import RelativeBias
from modeling.dropout import Dropout
from modeling.softmax_attention import are_few, attend, attend_from_few
from modeling.view import View


class SasrecBlock(nn.Module):
    """y = Norm(x) + Attention(Norm(x), x, x), then Norm(y) + FeedForward(Norm(y)).

    Args:
        width: D.
        heads: attention heads; divides `width`.
        max_events: longest history.
        dropout: share dropped of attention's output and in the feed-forward layer.
        position_bias, time_bias: parts of the relative bias, which the paper does not have.
    """

    def __init__(
        self, width: int, *, heads: int, max_events: int, dropout: float, position_bias: bool, time_bias: bool
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.project_query = nn.Linear(width, width)
        self.project_key_value = nn.Linear(width, 2 * width)
        self.project_out = nn.Linear(width, width)
        self.feedforward_in = nn.Linear(width, width)
        self.feedforward_out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.bias = RelativeBias(max_events, position=position_bias, time=time_bias)
        for layer in (
            self.project_query,
            self.project_key_value,
            self.project_out,
            self.feedforward_in,
            self.feedforward_out,
        ):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        view: View,
        rows_BRD: Float[Tensor, "B R D"] | None = None,
        sink_BRD: Float[Tensor, "B R D"] | None = None,
    ) -> Float[Tensor, "B R D"]:
        """One block; the arguments are those of `modeling.encoder.Block`."""
        normed_BRD = self.norm_attention(x_BLD if rows_BRD is None else rows_BRD)
        queries_BRD, bias = self.project_query(normed_BRD), self.bias(x_BLD.shape[1], view)
        layer = self.project_key_value
        if rows_BRD is not None and are_few(rows_BRD, self.heads):
            few = (queries_BRD, x_BLD, layer.weight, layer.bias)
            pooled_BRD = attend_from_few(*few, self.heads, view.allowed, bias, sink_BRD)
        else:
            sink = None if sink_BRD is None else layer(sink_BRD).chunk(2, -1)
            keys, values = layer(x_BLD).chunk(2, -1)
            pooled_BRD = attend(queries_BRD, keys, values, self.heads, view.allowed, bias, sink)
        y_BRD = self.norm_feedforward(normed_BRD + self.dropout(self.project_out(pooled_BRD)))
        inner_BRD = self.dropout(functional.relu(self.feedforward_in(y_BRD)))
        out_BRD: Tensor = y_BRD + self.dropout(self.feedforward_out(inner_BRD))
        return out_BRD
