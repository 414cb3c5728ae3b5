"""Losses of the retriever."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def sampled_softmax(
    query_ED: Float[Tensor, "E D"],
    target_ED: Float[Tensor, "E D"],
    negative_ND: Float[Tensor, "N D"],
    *,
    target_rows_E: Int[Tensor, "E"],
    negative_rows_N: Int[Tensor, "N"],
    target_log_q_E: Float[Tensor, "E"],
    negative_log_q_N: Float[Tensor, "N"],
    temperature: float,
) -> Float[Tensor, "E"]:
    """Softmax loss of each target against N shared negatives, corrected for how they were drawn.

    A candidate's logit is score / temperature - log q. A negative that is the target itself is left
    out of that row. With every other item of the catalogue as a negative once, and constant q, this
    is the full softmax loss.

    Args:
        query_ED, target_ED, negative_ND: L2-normalised vectors.
        target_log_q_E, negative_log_q_N: natural log of each item's probability in one draw.

    Source: Jean et al., ACL 2015 (sampled softmax); Yi et al., RecSys 2019 (log-q).
    """
    target_logit_E = (query_ED * target_ED).sum(-1).float() / temperature - target_log_q_E
    # One fused product instead of a division and a subtraction over all E x N logits.
    logits_EN = torch.addmm(-negative_log_q_N, (query_ED / temperature).float(), negative_ND.float().T)
    logits_EN = logits_EN.masked_fill(target_rows_E[:, None] == negative_rows_N, float("-inf"))
    return functional.softplus(logits_EN.logsumexp(-1) - target_logit_E)


def full_softmax(
    query_ED: Float[Tensor, "E D"],
    catalogue_VD: Float[Tensor, "V D"],
    target_rows_E: Int[Tensor, "E"],
    *,
    temperature: float,
) -> Float[Tensor, "E"]:
    """Softmax loss of each target against the whole catalogue (row 0 left out); the oracle of the above."""
    logits_EV = (query_ED @ catalogue_VD.T).float() / temperature
    logits_EV[:, 0] = float("-inf")
    return functional.cross_entropy(logits_EV, target_rows_E, reduction="none")
