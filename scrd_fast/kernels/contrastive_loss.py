"""The distances of the contrastive loss, and their gradient with respect to the student's maps.

For image i and scale k let c, n, s be the flattened maps of clean teacher, noisy teacher and
student, and |x|' = max(|x|, eps). One pass over the maps gives the sums c.s, n.s, c.c, n.n, s.s,
and those give

    d(c, s) = 1 - c.s / (|c|' |s|')           and the same for n
    grad_s d(c, s) = -c / (|c|' |s|') + s c.s / (|c|' |s|'^2 |s|)

with the last term 0 where s = 0: as torch.cosine_similarity has it, whose norm keeps its
derivative where it is clamped. A second pass writes the gradient. Source: arXiv 2503.13828,
section 3.2. Distances whose squares overflow are NaN.

No float is added atomically: equal input gives equal bits, as long as the autotuned configuration
is the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from scrd_fast.errors import BackendUnavailable
from scrd_fast.kernels.tuning import autotune
from scrd_fast.reference.anomaly_map import COSINE_EPS

# Elements of one map that one program sums. At 256 x 256 pixels a Wide-ResNet-50-2 image has 224
# such parts, so that a batch of one fills a GPU. Not tuned: the buffer of sums depends on it.
CHUNK = 8192

# Eight elements a thread: one 16-byte load of a half-precision map, and registers for the five sums
# of float64. What is tuned is how many threads share a program.
_CONFIGS = [
    triton.Config({"BLOCK": 4096}, num_warps=16),
    triton.Config({"BLOCK": 2048}, num_warps=8),
    triton.Config({"BLOCK": 1024}, num_warps=4),
]


@triton.jit
def _of_scale(scale, first, second, third):
    """The argument of this scale, 0 to 2."""
    return tl.where(scale == 0, first, tl.where(scale == 1, second, third))


@triton.jit
def _first_part(scale, size1, size2, CHUNK: tl.constexpr):
    """How many of an image's parts belong to finer scales."""
    finest = tl.cdiv(size1, CHUNK)
    return _of_scale(scale, 0, finest, finest + tl.cdiv(size2, CHUNK))


@triton.jit
def _parts(size1, size2, size3, CHUNK: tl.constexpr):
    """How many parts of up to CHUNK elements an image has; no part spans two scales."""
    return tl.cdiv(size1, CHUNK) + tl.cdiv(size2, CHUNK) + tl.cdiv(size3, CHUNK)


@triton.jit
def _locate(program, size1, size2, size3, CHUNK: tl.constexpr):
    """Image and scale of a program's part, its first element in the map, and how many are left."""
    parts = _parts(size1, size2, size3, CHUNK)
    image, part = program // parts, program % parts
    second = _first_part(1, size1, size2, CHUNK)
    third = _first_part(2, size1, size2, CHUNK)
    scale = (part >= second).to(tl.int32) + (part >= third).to(tl.int32)
    size = _of_scale(scale, size1, size2, size3)
    skipped = (part - _first_part(scale, size1, size2, CHUNK)) * CHUNK
    # A batch of maps may hold more than 2^31 elements.
    return image, scale, image.to(tl.int64) * size + skipped, size - skipped


@autotune(_CONFIGS, key=["size1", "size2", "size3"])
@triton.jit
def partial_sums_kernel(
    clean1, clean2, clean3, noisy1, noisy2, noisy3, student1, student2, student3, partials,
    size1, size2, size3, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):
    """Column p of `partials` (5, programs): c.s, n.s, c.c, n.n, s.s of part p."""
    program = tl.program_id(0)
    _, scale, start, left = _locate(program, size1, size2, size3, CHUNK)
    clean = _of_scale(scale, clean1, clean2, clean3) + start
    noisy = _of_scale(scale, noisy1, noisy2, noisy3) + start
    student = _of_scale(scale, student1, student2, student3) + start
    dtype = partials.dtype.element_ty
    clean_student = tl.zeros([BLOCK], dtype)
    noisy_student = tl.zeros([BLOCK], dtype)
    clean_clean = tl.zeros([BLOCK], dtype)
    noisy_noisy = tl.zeros([BLOCK], dtype)
    student_student = tl.zeros([BLOCK], dtype)
    for offset in range(0, CHUNK, BLOCK):
        at = offset + tl.arange(0, BLOCK)
        inside = at < left
        c = tl.load(clean + at, mask=inside, other=0).to(dtype)
        n = tl.load(noisy + at, mask=inside, other=0).to(dtype)
        s = tl.load(student + at, mask=inside, other=0).to(dtype)
        clean_student += c * s
        noisy_student += n * s
        clean_clean += c * c
        noisy_noisy += n * n
        student_student += s * s
    column, programs = partials + program, tl.num_programs(0)
    tl.store(column, tl.sum(clean_student, 0))
    tl.store(column + programs, tl.sum(noisy_student, 0))
    tl.store(column + 2 * programs, tl.sum(clean_clean, 0))
    tl.store(column + 3 * programs, tl.sum(noisy_noisy, 0))
    tl.store(column + 4 * programs, tl.sum(student_student, 0))


@triton.jit
def _distance(dot, teacher_squares, student_squares, EPS: tl.constexpr):
    """d, and the factors of the teacher's and of the student's map in its gradient; float64."""
    eps = tl.full([], EPS, tl.float64)  # a bare literal would be rounded to float32
    norm = tl.sqrt(student_squares)
    teacher, student = tl.maximum(tl.sqrt(teacher_squares), eps), tl.maximum(norm, eps)
    similarity = dot / (teacher * student)
    finite = (teacher_squares < float("inf")) & (student_squares < float("inf"))
    similarity = tl.where(finite, similarity, float("nan"))
    own = similarity / (student * tl.where(norm > 0, norm, 1))  # times s, which is 0 where |s| is
    return 1 - similarity, -1 / (teacher * student), own


@triton.jit
def loss_terms_kernel(
    partials, terms, factors, size1, size2, size3, CHUNK: tl.constexpr, EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program 3 i + k: the partial sums of image i and scale k, added in their order.

    terms (2, N, 3): distances of clean and noisy; factors (N, 3, 4): in the gradient of the clean
    distance those of c and s, in that of the noisy one those of n and s.
    """
    row = tl.program_id(0)
    rows = tl.num_programs(0)
    image, scale = row // 3, row % 3
    parts = _parts(size1, size2, size3, CHUNK)
    count = tl.cdiv(_of_scale(scale, size1, size2, size3), CHUNK)
    start = partials + image * parts + _first_part(scale, size1, size2, CHUNK)
    length = rows // 3 * parts
    clean_student = tl.zeros([BLOCK], tl.float64)
    noisy_student = tl.zeros([BLOCK], tl.float64)
    clean_clean = tl.zeros([BLOCK], tl.float64)
    noisy_noisy = tl.zeros([BLOCK], tl.float64)
    student_student = tl.zeros([BLOCK], tl.float64)
    offset = 0
    while offset < count:
        at = offset + tl.arange(0, BLOCK)
        inside = at < count
        clean_student += tl.load(start + at, inside, 0).to(tl.float64)
        noisy_student += tl.load(start + length + at, inside, 0).to(tl.float64)
        clean_clean += tl.load(start + 2 * length + at, inside, 0).to(tl.float64)
        noisy_noisy += tl.load(start + 3 * length + at, inside, 0).to(tl.float64)
        student_student += tl.load(start + 4 * length + at, inside, 0).to(tl.float64)
        offset += BLOCK
    squares = tl.sum(student_student, 0)
    d, of_teacher, of_student = _distance(
        tl.sum(clean_student, 0), tl.sum(clean_clean, 0), squares, EPS)
    tl.store(terms + row, d)
    tl.store(factors + 4 * row, of_teacher)
    tl.store(factors + 4 * row + 1, of_student)
    d, of_teacher, of_student = _distance(
        tl.sum(noisy_student, 0), tl.sum(noisy_noisy, 0), squares, EPS)
    tl.store(terms + rows + row, d)
    tl.store(factors + 4 * row + 2, of_teacher)
    tl.store(factors + 4 * row + 3, of_student)


@autotune(_CONFIGS, key=["size1", "size2", "size3"])
@triton.jit
def student_gradient_kernel(
    clean1, clean2, clean3, noisy1, noisy2, noisy3, student1, student2, student3,
    gradient1, gradient2, gradient3, grad_terms, factors, images, size1, size2, size3,
    BLOCK: tl.constexpr,
):
    """The gradient of one block of one map, from grad_terms (2, N, 3) and factors (N, 3, 4)."""
    image, scale, start, left = _locate(tl.program_id(0), size1, size2, size3, BLOCK)
    row = 3 * image + scale
    of_clean, of_noisy = tl.load(grad_terms + row), tl.load(grad_terms + 3 * images + row)
    factor = factors + 4 * row
    times_clean = of_clean * tl.load(factor)
    times_noisy = of_noisy * tl.load(factor + 2)
    times_student = of_clean * tl.load(factor + 1) + of_noisy * tl.load(factor + 3)
    at = start + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < left
    dtype = factors.dtype.element_ty
    c = tl.load(_of_scale(scale, clean1, clean2, clean3) + at, mask=inside).to(dtype)
    n = tl.load(_of_scale(scale, noisy1, noisy2, noisy3) + at, mask=inside).to(dtype)
    s = tl.load(_of_scale(scale, student1, student2, student3) + at, mask=inside).to(dtype)
    value = times_clean * c + times_noisy * n + times_student * s
    tl.store(_of_scale(scale, gradient1, gradient2, gradient3) + at, value, mask=inside)


def _sizes(maps: Sequence[Tensor]) -> list[int]:
    """Elements of one image's map, per scale."""
    return [m[0].numel() for m in maps]


def _programs(images: int, sizes: Sequence[int], chunk: int) -> int:
    return images * sum(triton.cdiv(size, chunk) for size in sizes)


@triton_op("scrd_fast::contrastive_terms", mutates_args=())
def _terms(
    clean: Sequence[Tensor], noisy: Sequence[Tensor], student: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """terms (2, N, 3) and factors (N, 3, 4) as loss_terms_kernel makes them, float32, float64 for
    float64. The three maps of a scale have one dtype, shape and dense memory layout."""
    images, sizes = len(student[0]), _sizes(student)
    programs = _programs(images, sizes, CHUNK)
    dtype = torch.promote_types(student[0].dtype, torch.float32)
    partials = student[0].new_empty((5, programs), dtype=dtype)
    terms = student[0].new_empty((2, images, 3), dtype=dtype)
    factors = student[0].new_empty((images, 3, 4), dtype=dtype)
    with torch.cuda.device_of(partials):  # Triton launches on the current device
        wrap_triton(partial_sums_kernel)[(programs,)](
            *clean, *noisy, *student, partials, *sizes, CHUNK=CHUNK)
        wrap_triton(loss_terms_kernel)[(3 * images,)](
            partials, terms, factors, *sizes, CHUNK=CHUNK, EPS=COSINE_EPS, BLOCK=128)
    return terms, factors


@triton_op("scrd_fast::contrastive_terms_backward", mutates_args=())
def _terms_backward(
    grad_terms: Tensor, factors: Tensor, clean: Sequence[Tensor], noisy: Sequence[Tensor],
    student: Sequence[Tensor],
) -> list[Tensor]:
    """The gradient of each student map, in its dtype and memory layout."""
    images, sizes = len(student[0]), _sizes(student)
    gradients = [torch.empty_like(s) for s in student]

    def grid(config: dict[str, int]) -> tuple[int]:
        return (_programs(images, sizes, config["BLOCK"]),)

    with torch.cuda.device_of(factors):  # as above
        wrap_triton(student_gradient_kernel)[grid](
            *clean, *noisy, *student, *gradients, grad_terms.contiguous(), factors, images, *sizes)
    return gradients


def _keep(ctx: Any, inputs: tuple[Sequence[Tensor], ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *(m for maps in inputs for m in maps))


def _gradients(ctx: Any, grad_terms: Tensor | None, _: None) -> tuple[list[Any], ...]:
    factors, *maps = ctx.saved_tensors
    nothing = [None] * 3
    if grad_terms is None:  # as where only zeros would come
        return nothing, nothing, nothing
    return nothing, nothing, _terms_backward(grad_terms, factors, maps[:3], maps[3:6], maps[6:])


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise BackendUnavailable("impl 'triton' of contrastive_loss: it has no second derivative;"
                             " choose 'reference'")


_terms.register_autograd(_gradients, setup_context=_keep)
_terms_backward.register_autograd(_no_second_derivative)


def contrastive_terms(
    clean: Sequence[Tensor], noisy: Sequence[Tensor], student: Sequence[Tensor]
) -> Tensor:
    """Distances (2, N, 3) of clean and of noisy teacher to student, per image and scale.

    clean, noisy, student: three maps (N, C, h, w) each, float16, bfloat16, float32 or float64;
    summed in float32, float64 for float64. The three of a scale lie in memory alike and densely.
    Gradients go to the student alone.
    """
    terms: Tensor = _terms(clean, noisy, student)[0]
    return terms
