"""The contrastive reverse distillation loss.

With d_ik(a, b) = 1 - cos(flatten(a_ik), flatten(b_ik)) for image i and scale k, and B the global
batch (all processes),

    clean_k = 1/B sum_i w_ik d_ik(teacher(clean), student)
    noisy_k = 1/B sum_i w_ik d_ik(teacher(noisy), student)
    loss = sum_k clean_k / sum_k noisy_k

w_ik is the scale weight of the image where the weighting is "scale", else 1. Source: arXiv
2503.13828, section 3.2; the published code is the case w = 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scrd_fast.errors import expect
from scrd_fast.ops.anomaly_map import COSINE_EPS, check_features, distance_weights
from scrd_fast.ops.implementations import choose, not_triton
from scrd_fast.spec import WEIGHTINGS

_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ContrastiveLoss(NamedTuple):
    """loss (), and the two (3,) vectors of per-scale terms it is made of."""

    loss: Tensor
    clean: Tensor
    noisy: Tensor


def _flat_distance(a: Tensor, b: Tensor) -> Tensor:
    """(N, C, h, w) twice -> (N,), at least float32."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return 1 - torch.cosine_similarity(
        a.flatten(1).to(dtype), b.flatten(1).to(dtype), dim=1, eps=COSINE_EPS
    )


def _terms(clean: Sequence[Tensor], noisy: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Distances (2, N, 3) of clean and of noisy teacher to student, per image and scale."""
    return torch.stack(
        [
            torch.stack([_flat_distance(t, s) for t, s in zip(teacher, student, strict=True)], 1)
            for teacher in (clean, noisy)
        ]
    )


def _global_sum(values: Tensor) -> Tensor:
    """Sum over all processes; the gradient flows back to each of them."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return values
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(values)


def contrastive_loss(
    clean: Sequence[Tensor],
    noisy: Sequence[Tensor],
    student: Sequence[Tensor],
    scale_weights: Tensor,
    weighting: str,
    *,
    impl: str | None = None,
) -> ContrastiveLoss:
    """The loss of one batch.

    clean, noisy: the teacher's three (N, C_k, h_k, w_k) maps of the clean and of the noisy
    images; student: the student's maps of the clean images; scale_weights (N, 3). Where a
    process group is up, both sums run over the batches of all processes before the ratio, so
    that N processes with batch B train as one with N * B. impl: "triton" (CUDA; first derivatives
    with respect to student and scale weights) or "reference"; None takes triton where it can run.
    Raises InputError and BackendUnavailable.
    """
    expect(weighting in WEIGHTINGS, "weighting", f"one of {WEIGHTINGS}", repr(weighting))
    check_features(scale_weights, "clean", clean, noisy=noisy, student=student)

    def not_native() -> str:
        return "there is no C++ implementation"

    def why_not_triton() -> str | None:
        teacher = [*clean, *noisy]
        if torch.is_grad_enabled() and any(t.requires_grad for t in teacher):
            return "it has no gradient to the teacher's maps, but one of them requires it"
        return not_triton(teacher, _TRITON_DTYPES) or not_triton(student, _TRITON_DTYPES,
                                                                 gradients=True)

    if choose("contrastive_loss", impl, native=not_native, triton=why_not_triton) == "triton":
        from scrd_fast.kernels.contrastive_loss import contrastive_terms

        terms = contrastive_terms(clean, noisy, student)
    else:
        terms = _terms(clean, noisy, student)
    weighted = terms * distance_weights(scale_weights.to(terms.dtype), weighting)
    sums = torch.cat([weighted.sum(dim=1).flatten(), terms.new_full((1,), terms.shape[1])])
    sums = _global_sum(sums)
    means = sums[:6].view(2, 3) / sums[6]
    return ContrastiveLoss(means[0].sum() / means[1].sum(), means[0], means[1])
