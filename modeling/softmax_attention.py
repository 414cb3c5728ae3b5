"""Scaled dot-product attention over several heads, with an optional bias."""

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def attend(
    queries_BLD: Float[Tensor, "B L D"],
    keys_BLD: Float[Tensor, "B L D"],
    values_BLD: Float[Tensor, "B L D"],
    heads: int,
    allowed_LL: Bool[Tensor, "L L"],
    bias_BLL: Float[Tensor, "#B L L"] | None,
) -> Float[Tensor, "B L D"]:
    """Pooled values of each row, heads side by side again.

    Args:
        allowed_LL: True where a row may look at a column; at least one column per row.
        bias_BLL: added to the scores of every head.
    """
    batch, length, width = queries_BLD.shape
    queries, keys, values = (
        part.view(batch, length, heads, -1).transpose(1, 2) for part in (queries_BLD, keys_BLD, values_BLD)
    )
    mask = allowed_LL if bias_BLL is None else bias_BLL[:, None].masked_fill(~allowed_LL, float("-inf"))
    pooled_BHLV = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return pooled_BHLV.transpose(1, 2).reshape(batch, length, width)
