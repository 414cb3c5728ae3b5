"""A margin for items that a user was shown and did not click: our stand-in for CSMF's adaptive margin loss.

The paper (arXiv 2504.12920) names a margin across stages against conflict between them and does not
publish its formula. Ours adds m0 sigmoid(s_1) to the logit of such a negative, without gradient
through the margin, where s_1 is the first stage's logit: the likelier an item was to be shown, the
further a later stage has to tell it from what was clicked. Off by default.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modeling.losses import own_softmax, positives_among


def margin_softmax(
    query_ED: Float[Tensor, "E D"],
    target_ED: Float[Tensor, "E D"],
    negative_ND: Float[Tensor, "N D"],
    *,
    margins_EN: Float[Tensor, "E N"],
    positive_rows_EK: Int[Tensor, "E K"],
    negative_rows_N: Int[Tensor, "N"],
    target_log_q_E: Float[Tensor, "E"],
    negative_log_q_N: Float[Tensor, "N"],
    temperature: float,
) -> Float[Tensor, ""]:
    """`modeling.losses.sampled_softmax` with something added to each negative's logit. All logits stand in memory."""
    none_E0 = query_ED.new_zeros(len(query_ED), 0)
    return own_softmax(
        query_ED,
        target_ED,
        none_E0,
        negative_ND,
        kept_EX=none_E0.bool(),
        positive_rows_EK=positive_rows_EK,
        shared_rows_N=negative_rows_N,
        target_log_q_E=target_log_q_E,
        own_log_q_EX=none_E0,
        shared_log_q_EN=negative_log_q_N - margins_EN,  # a margin is a log q that depends on the target, negated
        temperature=temperature,
    )


def passed_over(
    targets_BL: Int[Tensor, "B L"], own_BL: Bool[Tensor, "B L"], negative_rows_N: Int[Tensor, "N"]
) -> Bool[Tensor, "B N"]:
    """Which negatives a history was shown without an event of the objective.

    Args:
        targets_BL: the item that follows each event; 0 = none.
        own_BL: where that is an event of the objective.
    """
    found_BN = torch.zeros(len(targets_BL), len(negative_rows_N), dtype=torch.bool, device=targets_BL.device)
    for shown_BL, value in ((targets_BL, True), (targets_BL.where(own_BL, 0), False)):
        row_M, column_M = positives_among(shown_BL, negative_rows_N)
        found_BN[row_M, column_M] = value
    return found_BN
