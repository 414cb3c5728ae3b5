"""Scaled dot-product attention over several heads, with an optional bias and an optional column of each row's own."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def attend(
    queries_BRD: Float[Tensor, "B R D"],
    keys_BLD: Float[Tensor, "B L D"],
    values_BLD: Float[Tensor, "B L D"],
    heads: int,
    allowed: Bool[Tensor, "#B R L"],
    bias: Float[Tensor, "#B R L"] | None,
    sink: tuple[Float[Tensor, "B R D"], Float[Tensor, "B R D"]] | None = None,
) -> Float[Tensor, "B R D"]:
    """Pooled values of each row, heads side by side again.

    Args:
        allowed: True where a row may look at a column; at least one column per row, or a sink.
        bias: added to the scores of every head.
        sink: key and value of one more column, another for each row, which that row always sees, without bias.
    """
    queries, keys, values = (_split(part, heads) for part in (queries_BRD, keys_BLD, values_BLD))
    if sink is None:
        mask = allowed[:, None] if bias is None else bias[:, None].masked_fill(~allowed[:, None], float("-inf"))
        pooled_BHRV = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    else:
        sink_key, sink_value = (_split(part, heads) for part in sink)
        scale = queries.shape[-1] ** -0.5
        scores_BHRL = queries @ keys.transpose(-1, -2) * scale
        scores_BHRL = scores_BHRL if bias is None else scores_BHRL + bias[:, None]
        scores_BHRL = scores_BHRL.masked_fill(~allowed[:, None], float("-inf"))
        to_sink_BHR1 = (queries * sink_key).sum(-1, keepdim=True) * scale
        weights = torch.cat([scores_BHRL, to_sink_BHR1], -1).softmax(-1)
        pooled_BHRV = weights[..., :-1] @ values + weights[..., -1:] * sink_value
    return pooled_BHRV.transpose(1, 2).flatten(2)


def _split(part_BND: Tensor, heads: int) -> Tensor:
    """From heads side by side to heads one after the other."""
    batch, length, _ = part_BND.shape
    return part_BND.view(batch, length, heads, -1).transpose(1, 2)
