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


def are_few(rows_BRD: Float[Tensor, "B R D"], heads: int) -> bool:
    """Whether `attend_from_few` costs these rows less than `attend` and its keys and values."""
    return rows_BRD.shape[1] * heads <= rows_BRD.shape[2] // 2


def attend_from_few(
    queries_BRD: Float[Tensor, "B R D"],
    events_BLD: Float[Tensor, "B L D"],
    weight_ED: Float[Tensor, "2*D D"],
    offset_E: Float[Tensor, "2*D"] | None,
    heads: int,
    allowed: Bool[Tensor, "#B R L"],
    bias: Float[Tensor, "#B R L"] | None,
    sink_BRD: Float[Tensor, "B R D"] | None = None,
) -> Float[Tensor, "B R D"]:
    """`attend` for rows so few that projecting them costs less than projecting the events to keys and values.

    q (W x + b) = (q W) x + q b, and the mean of W x + b under weights is W of the mean, + b: so the R rows go through
    W twice, and the L events never do.

    Args:
        weight_ED, offset_E: of the linear layer that makes keys and values, side by side, of events and of sinks.
        sink_BRD: see `attend`; before the layer.
    """
    batch, rows, width = queries_BRD.shape
    key_HCD, value_HCD = weight_ED.view(2, heads, width // heads, -1).unbind()
    queries_BHRC = _split(queries_BRD, heads) * (width // heads) ** -0.5
    # Heads and rows side by side: one product with the events of a history.
    scores_BHRL = ((queries_BHRC @ key_HCD).flatten(1, 2) @ events_BLD.transpose(1, 2)).view(batch, heads, rows, -1)
    if offset_E is not None:
        scores_BHRL = scores_BHRL + queries_BHRC @ offset_E[:width].view(heads, -1, 1)
    scores_BHRL = scores_BHRL if bias is None else scores_BHRL + bias[:, None]
    scores_BHRL = scores_BHRL.masked_fill(~allowed[:, None], float("-inf"))
    sink_value: Tensor | None = None
    if sink_BRD is not None:
        sink_key, sink_value = functional.linear(sink_BRD, weight_ED, offset_E).chunk(2, -1)
        to_sink_BHR1 = (queries_BHRC * _split(sink_key, heads)).sum(-1, keepdim=True)
        scores_BHRL = torch.cat([scores_BHRL, to_sink_BHR1], -1)
    weights_BHRL = scores_BHRL.softmax(-1)
    to_events_BHRL = weights_BHRL if sink_value is None else weights_BHRL[..., :-1]
    mean_BHRD = (to_events_BHRL.flatten(1, 2) @ events_BLD).view(batch, heads, rows, -1)
    pooled_BHRC = mean_BHRD @ value_HCD.transpose(-1, -2)
    if offset_E is not None:
        pooled_BHRC = pooled_BHRC + to_events_BHRL.sum(-1, keepdim=True) * offset_E[width:].view(heads, 1, -1)
    if sink_value is not None:
        pooled_BHRC = pooled_BHRC + weights_BHRL[..., -1:] * _split(sink_value, heads)
    few_BRD: Tensor = pooled_BHRC.transpose(1, 2).flatten(2)
    return few_BRD


def _split(part_BND: Tensor, heads: int) -> Tensor:
    """From heads side by side to heads one after the other."""
    batch, length, _ = part_BND.shape
    return part_BND.view(batch, length, heads, -1).transpose(1, 2)
