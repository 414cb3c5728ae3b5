"""Losses of the retriever."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

# Logits computed at a time: half a megabyte stays in a CPU's cache; a GPU wants large products.
LOGITS_PER_CHUNK = {"cpu": 2**17, "cuda": 2**26}
# Targets at a time at least, however many negatives there are: the negatives are read once per chunk.
MIN_TARGETS_PER_CHUNK = 32


def sampled_softmax(
    query_ED: Float[Tensor, "E D"],
    target_ED: Float[Tensor, "E D"],
    negative_ND: Float[Tensor, "N D"],
    *,
    positive_rows_EK: Int[Tensor, "E K"],
    negative_rows_N: Int[Tensor, "N"],
    target_log_q_E: Float[Tensor, "E"],
    negative_log_q_N: Float[Tensor, "N"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean softmax loss of each target against N shared negatives, corrected for how they were drawn.

    A candidate's logit is score / temperature - log q. A negative that is one of the row's positives
    (the target is one of them) is left out of that row. With every other item of the catalogue as a
    negative once, and constant q, this is the full softmax loss.

    The E x N logits never stand in memory at once: they are computed chunk by chunk, each chunk's
    share of the gradient right behind it. On a CPU that takes half the time at 1,024 negatives.

    Args:
        query_ED, target_ED, negative_ND: L2-normalised vectors; E is at least 1.
        positive_rows_EK: what follows each row: its target, and other items that are not negatives for it; 0 = none.
        target_log_q_E, negative_log_q_N: natural log of each item's probability in one draw.

    Source: Jean et al., ACL 2015 (sampled softmax); Yi et al., RecSys 2019 (log-q).
    """
    loss: Tensor = _SampledSoftmax.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        query_ED,
        target_ED,
        negative_ND,
        positive_rows_EK,
        negative_rows_N,
        target_log_q_E,
        negative_log_q_N,
        temperature,
    )
    return loss


class _SampledSoftmax(torch.autograd.Function):
    """`sampled_softmax` with its gradient computed in the forward pass. All arithmetic in float32."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        query_ED: Tensor,
        target_ED: Tensor,
        negative_ND: Tensor,
        positive_rows_EK: Tensor,
        negative_rows_N: Tensor,
        target_log_q_E: Tensor,
        negative_log_q_N: Tensor,
        temperature: float,
    ) -> Tensor:
        queries, targets, negatives = query_ED.float() / temperature, target_ED.float(), negative_ND.float()
        num_targets, num_negatives = len(queries), len(negatives)
        target_logit_E = (queries * targets).sum(-1) - target_log_q_E
        losses_E = torch.empty_like(target_logit_E)
        to_queries, to_targets = torch.empty_like(queries), torch.empty_like(targets)
        to_negatives = torch.zeros_like(negatives)
        rows = max(MIN_TARGETS_PER_CHUNK, LOGITS_PER_CHUNK.get(queries.device.type, 2**20) // num_negatives)
        row_M, column_M = positives_among(positive_rows_EK, negative_rows_N)
        starts = torch.arange(0, num_targets + rows, rows, device=row_M.device)
        bounds = torch.searchsorted(row_M, starts).tolist()
        for number, first in enumerate(range(0, num_targets, rows)):
            part = slice(first, first + rows)
            logits = torch.addmm(-negative_log_q_N, queries[part], negatives.T)
            met = slice(bounds[number], bounds[number + 1])
            logits[row_M[met] - first, column_M[met]] = float("-inf")
            largest = torch.maximum(logits.amax(1), target_logit_E[part])
            weights = logits.sub_(largest[:, None]).exp_()
            target_weight = (target_logit_E[part] - largest).exp_()
            total = weights.sum(1) + target_weight
            losses_E[part] = total.log() + largest - target_logit_E[part]
            # Softmax minus one at the target: the gradient by each logit.
            by_negative = weights.div_(total[:, None])
            by_target = (target_weight / total - 1)[:, None]
            to_queries[part] = torch.addmm(by_target * targets[part], by_negative, negatives)
            to_targets[part] = by_target * queries[part]
            to_negatives.addmm_(by_negative.T, queries[part])
        ctx.save_for_backward(
            (to_queries / (temperature * num_targets)).to(query_ED.dtype),
            (to_targets / num_targets).to(target_ED.dtype),
            (to_negatives / num_targets).to(negative_ND.dtype),
        )
        return losses_E.mean()

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        by_inputs = ctx.saved_tensors  # type: ignore[attr-defined]  # torch's types do not know it
        return (*[gradient * by_input for by_input in by_inputs], None, None, None, None, None)


def positives_among(
    positive_rows_EK: Int[Tensor, "E K"], negative_rows_N: Int[Tensor, "N"]
) -> tuple[Int[Tensor, "M"], Int[Tensor, "M"]]:
    """Where a negative is one of a row's positives: M rows, ascending, and the negatives' places.

    They are few, so finding them costs a fraction of a comparison of all E x N pairs.
    """
    ordered_N, places_N = negative_rows_N.sort()
    positives = positive_rows_EK.flatten()
    firsts = torch.searchsorted(ordered_N, positives)
    counts = torch.searchsorted(ordered_N, positives, right=True) - firsts
    which_M = torch.repeat_interleave(counts)
    nth_M = torch.arange(len(which_M), device=which_M.device) - (counts.cumsum(0) - counts)[which_M]
    return which_M // positive_rows_EK.shape[1], places_N[firsts[which_M] + nth_M]


def own_softmax(
    query_ED: Float[Tensor, "E D"],
    target_ED: Float[Tensor, "E D"],
    own_score_EX: Float[Tensor, "E X"],
    shared_ND: Float[Tensor, "N D"],
    *,
    kept_EX: Bool[Tensor, "E X"],
    positive_rows_EK: Int[Tensor, "E K"],
    shared_rows_N: Int[Tensor, "N"],
    target_log_q_E: Float[Tensor, "E"],
    own_log_q_EX: Float[Tensor, "E X"],
    shared_log_q_EN: Float[Tensor, "E N"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean softmax loss of each target against X negatives of its own and N shared ones, all in one softmax.

    Logits are those of `sampled_softmax`, but what one draw gives depends on the target. All arithmetic in float32.

    Args:
        query_ED, target_ED, shared_ND: L2-normalised vectors; E is at least 1, X and N may be 0.
        own_score_EX: cosines with each target's own negatives.
        kept_EX: which of its own each target is told from; a target with none and N = 0 has the loss 0.
        positive_rows_EK: shared negatives that are among a row's are left out of that row.
    """
    queries = query_ED.float() / temperature
    target_E1 = (queries * target_ED.float()).sum(-1, keepdim=True) - target_log_q_E[:, None]
    own_EX = own_score_EX.float() / temperature - own_log_q_EX
    shared_EN = queries @ shared_ND.float().T - shared_log_q_EN
    shared_EN = shared_EN.index_put(
        positives_among(positive_rows_EK, shared_rows_N), shared_EN.new_tensor(float("-inf"))
    )
    logits_EC = torch.cat([target_E1, own_EX.masked_fill(~kept_EX, float("-inf")), shared_EN], 1)
    return functional.cross_entropy(logits_EC, torch.zeros(len(logits_EC), dtype=torch.long, device=logits_EC.device))


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
