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

import torch
from torch import Tensor

from scrd_fast.reference.anomaly_map import COSINE_EPS


def flat_distance(a: Tensor, b: Tensor) -> Tensor:
    """(N, C, h, w) twice -> (N,), at least float32."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return 1 - torch.cosine_similarity(
        a.flatten(1).to(dtype), b.flatten(1).to(dtype), dim=1, eps=COSINE_EPS
    )


def contrastive_terms(
    clean: Sequence[Tensor], noisy: Sequence[Tensor], student: Sequence[Tensor]
) -> Tensor:
    """Distances (2, N, 3) of clean and of noisy teacher to student, per image and scale."""
    return torch.stack(
        [
            torch.stack([flat_distance(t, s) for t, s in zip(teacher, student, strict=True)], 1)
            for teacher in (clean, noisy)
        ]
    )
