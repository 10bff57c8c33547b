"""The contrastive reverse distillation loss; the formula is in reference."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scrd_fast import _native
from scrd_fast.errors import BackendUnavailable, expect
from scrd_fast.ops.anomaly_map import check_features
from scrd_fast.ops.implementations import as_array, choose, not_native, not_triton
from scrd_fast.reference.anomaly_map import COSINE_EPS, distance_weights
from scrd_fast.reference.contrastive_loss import contrastive_terms
from scrd_fast.spec import WEIGHTINGS

_NATIVE_DTYPES = (torch.bfloat16, torch.float32)
_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ContrastiveLoss(NamedTuple):
    """loss (), and the two (3,) vectors of per-scale terms it is made of."""

    loss: Tensor
    clean: Tensor
    noisy: Tensor


def _alike(
    clean: Sequence[Tensor], noisy: Sequence[Tensor], student: Sequence[Tensor]
) -> list[list[Tensor]]:
    """The maps, those of each scale densely and in one order: as they are where they are
    contiguous or channels-last, but for a teacher's whose layout is not the student's."""
    formats = [
        torch.channels_last
        if s.is_contiguous(memory_format=torch.channels_last) and not s.is_contiguous()
        else torch.contiguous_format
        for s in student
    ]
    return [[m.contiguous(memory_format=f) for m, f in zip(maps, formats, strict=True)]
            for maps in (clean, noisy, student)]


def _in_memory(maps: Sequence[Tensor]) -> list[Any]:
    """Dense maps (N, C, h, w) as arrays (N, C h w), in the order in which they lie in memory."""
    return [as_array((m if m.is_contiguous() else m.permute(0, 2, 3, 1)).flatten(1)) for m in maps]


class _NativeSums(torch.autograd.Function):
    """(N, 3, 5) float64, per image and scale: clean . student, noisy . student, and the squared
    norms of clean, noisy and student. Takes the nine maps, three by three, as `_alike` gives them.
    """

    @staticmethod
    def forward(ctx: Any, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(*maps)
        return torch.from_numpy(_native.contrastive_sums(*_three_by_three(maps)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        factors = torch.stack([grad[..., 0], grad[..., 1], 2 * grad[..., 4]], dim=-1)
        return (None,) * 6 + _NativeGradient.apply(factors, *ctx.saved_tensors)


class _NativeGradient(torch.autograd.Function):
    """The student's maps' gradients, in their dtype and layout: (N, 3, 3) factors of clean, noisy
    and student."""

    @staticmethod
    def forward(ctx: Any, factors: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        gradients = tuple(torch.empty_like(m) for m in maps[6:])
        clean, noisy, student = _three_by_three(maps)
        _native.contrastive_gradient(clean, noisy, student, as_array(factors.contiguous()),
                                     _in_memory(gradients))
        return gradients

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise BackendUnavailable("impl 'native' of contrastive_loss: it has no second derivative;"
                                 " choose 'reference'")


def _three_by_three(maps: Sequence[Tensor]) -> list[list[Any]]:
    return [_in_memory(maps[k:k + 3]) for k in (0, 3, 6)]


@torch.compiler.disable
def _native_terms(
    clean: Sequence[Tensor], noisy: Sequence[Tensor], student: Sequence[Tensor]
) -> Tensor:
    """As the reference's contrastive_terms, of maps as `_alike` gives them; from their sums."""
    sums: Tensor = _NativeSums.apply(*clean, *noisy, *student)
    dots, teacher_squares, squares = sums[..., :2], sums[..., 2:4], sums[..., 4:]
    teacher = teacher_squares.sqrt().clamp_min(COSINE_EPS)
    # As torch.cosine_similarity: the norm keeps its derivative where it is clamped, and has none
    # at zero, where a root's is infinite.
    norm = torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)
    norm = norm + (norm.clamp_min(COSINE_EPS) - norm).detach()
    overflow = 0 * (teacher_squares + squares.detach())  # NaN there, where x / infinity is 0
    return (1 - dots / (teacher * norm) + overflow).permute(2, 0, 1).float()


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
    that N processes with batch B train as one with N * B. impl: "native" (float32 and bfloat16 on
    the CPU) or "triton" (CUDA), both with first derivatives with respect to student and scale
    weights, or "reference"; None takes the first that can run. Raises InputError and
    BackendUnavailable.
    """
    expect(weighting in WEIGHTINGS, "weighting", f"one of {WEIGHTINGS}", repr(weighting))
    check_features(scale_weights, "clean", clean, noisy=noisy, student=student)

    teacher = [*clean, *noisy]

    def trained_teacher() -> str | None:
        if torch.is_grad_enabled() and any(t.requires_grad for t in teacher):
            return "it has no gradient to the teacher's maps, but one of them requires it"
        return None

    def why_not_native() -> str | None:
        return trained_teacher() or not_native([*teacher, *student], _NATIVE_DTYPES,
                                               gradients=True)

    def why_not_triton() -> str | None:
        return trained_teacher() or not_triton([*teacher, *student], _TRITON_DTYPES,
                                               gradients=True)

    chosen = choose("contrastive_loss", impl, native=why_not_native, triton=why_not_triton)
    if chosen == "native":
        terms = _native_terms(*_alike(clean, noisy, student))
    elif chosen == "triton":
        from scrd_fast.kernels import contrastive_loss as kernels

        terms = kernels.contrastive_terms(*_alike(clean, noisy, student))
    else:
        terms = contrastive_terms(clean, noisy, student)
    weighted = terms * distance_weights(scale_weights.to(terms.dtype), weighting)
    sums = torch.cat([weighted.sum(dim=1).flatten(), terms.new_full((1,), terms.shape[1])])
    sums = _global_sum(sums)
    means = sums[:6].view(2, 3) / sums[6]
    return ContrastiveLoss(means[0].sum() / means[1].sum(), means[0], means[1])
