"""Multi-scale cosine distance and scale-weighted anomaly map.

With M_k = 1 - cos(teacher_k, student_k) over channels (N, h_k, w_k), the published map is: each
M_k upsampled bilinearly (align_corners) to S x S, summed, blurred by a Gaussian. Both steps are
linear and separable, so with U_k = G B_k (G the Gaussian as a matrix, B_k the interpolation)

    map = sum_k w_k U_k M_k U_k^T          (S x S)
    mean(map) = sum_k w_k u_k^T M_k u_k    with u_k the column means of U_k

Source: arXiv 2503.13828, section 3; the matrix form is an exact rewriting of its scoring.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from scrd_fast import _native
from scrd_fast.errors import NotFiniteError, expect, fail
from scrd_fast.ops.implementations import (
    as_array,
    check_device,
    check_tensor,
    choose,
    not_native,
    not_triton,
)
from scrd_fast.spec import ScoringSpec

COSINE_EPS = 1e-8
STRIDES = (4, 8, 16)
GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_FEATURE_DTYPES = (*GPU_DTYPES, torch.float64)


class AnomalyMap(NamedTuple):
    """map (N, S, S), mean (N,), max (N,), float32; None where it was not asked for."""

    map: Tensor | None
    mean: Tensor
    max: Tensor | None

    def score(self, spec: ScoringSpec) -> Tensor:
        """(N,): the reduction that `spec` names."""
        chosen = self.mean if spec.reduction == "mean" else self.max
        assert chosen is not None  # anomaly_map always computes what the spec reduces by
        return chosen


@lru_cache(maxsize=64)
def upsample_blur_matrix(size: int, side: int, sigma: float) -> NDArray[np.float64]:
    """U = G B (size, side), float64: bilinear align_corners upsampling, then the Gaussian.

    G has SciPy's radius int(4 sigma + 0.5) and its border mode "reflect", which repeats the
    edge pixel. The rows of U sum to 1, so a constant stays a constant.
    """
    centres = np.arange(size) * ((side - 1) / (size - 1))
    lower = np.minimum(centres.astype(int), max(side - 2, 0))
    fraction = centres - lower
    matrix = np.zeros((size, side))
    matrix[np.arange(size), lower] = 1 - fraction
    matrix[np.arange(size), np.minimum(lower + 1, side - 1)] += fraction
    if sigma > 0:
        matrix = gaussian_filter1d(matrix, sigma, axis=0, mode="reflect", truncate=4.0)
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=64)
def _matrix_tensors(
    size: int, side: int, sigma: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """U (size, side) and its column means (side,) as tensors."""
    matrix = upsample_blur_matrix(size, side, sigma)
    with torch.inference_mode(False):  # a cached inference tensor could not be differentiated
        u = torch.tensor(matrix, dtype=dtype, device=device)
        return u, torch.tensor(matrix.mean(axis=0), dtype=dtype, device=device)


def cosine_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """1 - cosine similarity over channels: (N, C, h, w) twice -> (N, h, w), at least float32.

    Each norm is clamped to 1e-8 from below, so a zero vector has distance 1 to everything.
    """
    dtype = torch.promote_types(teacher.dtype, torch.float32)
    return 1 - torch.cosine_similarity(teacher.to(dtype), student.to(dtype), 1, COSINE_EPS)


def _check_finite(teacher: Tensor, student: Tensor, k: int) -> None:
    """Raise NotFiniteError at the first pixel where the cosine of scale k has no finite norms."""
    dtype = torch.promote_types(teacher.dtype, torch.float32)
    fine = [torch.isfinite(f.to(dtype).square().sum(dim=1)) for f in (teacher, student)]
    bad = ~(fine[0] & fine[1])
    if bool(bad.any()):
        i, y, x = bad.nonzero()[0].tolist()
        name, features = ("student", student) if bool(fine[0][i, y, x]) else ("teacher", teacher)
        got = ("values whose sum of squares overflows"
               if bool(torch.isfinite(features[i, :, y, x]).all()) else "one that is not")
        raise NotFiniteError(f"{name}[{k}]: expected finite values, got {got}, at row {y}, column"
                             f" {x} of image {i}")


def distance_weights(scale_weights: Tensor, weighting: str) -> Tensor:
    """(N, 3) factors of the three distances.

    "feature" multiplies teacher and student features by one positive number before the cosine,
    which cancels: it equals "none".
    """
    return scale_weights if weighting == "scale" else torch.ones_like(scale_weights)


def check_features(
    scale_weights: Tensor, first: str, features: Sequence[Tensor], **others: Sequence[Tensor]
) -> None:
    """Raise InputError unless all scales agree in count, shape, dtype, batch and device.

    first, features: name and feature maps that the `others`, given by name, are held against.
    """
    # The texts are made only where they are needed: all of them take 6 of a map's 150 us.
    check_tensor(scale_weights, "scale_weights")
    for name, maps in ((first, features), *others.items()):
        if not isinstance(maps, Sequence) or len(maps) != 3:
            got = len(maps) if isinstance(maps, Sequence) else type(maps).__name__
            fail(name, "three feature maps", got)
        for k, f in enumerate(maps):
            check_tensor(f, f"{name}[{k}]")
    n, dtype, device = features[0].shape[:1].numel(), features[0].dtype, features[0].device
    for k, f in enumerate(features):
        if f.ndim != 4 or f.numel() == 0:
            fail(f"{first}[{k}]", "(N, C, h, w)", tuple(f.shape))
        if f.dtype not in _FEATURE_DTYPES:
            fail(f"{first}[{k}]", "float16, bfloat16, float32 or float64", f.dtype)
        if len(f) != n:
            fail(f"{first}[{k}]", f"a batch of {n} as at the first scale", len(f))
        if f.dtype != dtype:
            fail(f"{first}[{k}]", f"{dtype} as at the first scale", f.dtype)
        check_device(f"{first}[{k}]", f, f"{first}[0]", device)
    for name, maps in others.items():
        for k, (f, m) in enumerate(zip(features, maps, strict=True)):
            if m.shape != f.shape:
                fail(f"{name}[{k}]", tuple(f.shape), tuple(m.shape))
            if m.dtype != f.dtype:
                fail(f"{name}[{k}]", f.dtype, m.dtype)
            check_device(f"{name}[{k}]", m, f"{first}[0]", device)
    if scale_weights.shape != (n, 3):
        fail("scale_weights", (n, 3), tuple(scale_weights.shape))
    check_device("scale_weights", scale_weights, f"{first}[0]", device)


def check_weights(scale_weights: Tensor, weighting: str) -> None:
    """Raise InputError unless the weights (N, 3) are a softmax's, where they count at all."""
    if weighting == "scale":
        w = scale_weights.detach().double()
        # A bfloat16 softmax sums to one within 3 roundings of 2^-9.
        fits = ((w.sum(dim=1) - 1).abs() <= 1e-2) & (w >= 0).all(dim=1)
        if not bool(fits.all()):
            i = int((~fits).nonzero()[0])
            expect(False, "scale_weights", "three weights from 0 that sum to 1",
                   f"{', '.join(f'{v:f}' for v in w[i].tolist())} for image {i}")


@lru_cache(maxsize=64)
def native_tail(spec: ScoringSpec) -> _native.Tail:
    """The C++ object that turns three distances into map and scores by `spec`."""
    side = spec.input_size
    return _native.Tail(side, [side // stride for stride in STRIDES], float(spec.blur_sigma),
                        spec.weighting == "scale")


def _on_gpu(
    teacher: Sequence[Tensor], student: Sequence[Tensor], scale_weights: Tensor,
    spec: ScoringSpec, maps: bool,
) -> AnomalyMap:
    """`anomaly_map` by the GPU kernels; where a feature is not finite, the mean is not."""
    from scrd_fast.kernels.anomaly_map import combine_distances, cosine_distances, tail

    check_weights(scale_weights, spec.weighting)
    sides = (teacher[0].shape[2], teacher[1].shape[2], teacher[2].shape[2])
    return AnomalyMap(*combine_distances(
        cosine_distances(teacher, student), scale_weights.float(),
        tail(spec, sides, teacher[0].device), maps=maps))


def anomaly_map(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    scale_weights: Tensor,
    spec: ScoringSpec,
    *,
    maps: bool = True,
    impl: str | None = None,
) -> AnomalyMap:
    """The anomaly map of a batch and its mean and maximum.

    teacher, student: three (N, C_k, S/4, S/4), (N, C_k, S/8, S/8), (N, C_k, S/16, S/16), any
    floating dtype; scale_weights: (N, 3). Distances and map are computed in float32 (float64
    where the features are). With maps=False the mean comes from the closed form and `.map` and
    `.max` are None, unless the spec reduces by the maximum, which needs the map. impl: "native"
    (float32 and bfloat16 on the CPU), "triton" (these and float16 on a GPU), both without
    gradients, or "reference"; None takes the first that can run. Raises InputError naming the
    argument that does not fit or is not finite, and BackendUnavailable.
    """
    check_features(scale_weights, "teacher", teacher, student=student)
    for k, (t, stride) in enumerate(zip(teacher, STRIDES, strict=True)):
        side = spec.input_size // stride
        expect(t.shape[2:] == (side, side), f"teacher[{k}]", f"(N, C, {side}, {side})",
               tuple(t.shape))
    tensors = [*teacher, *student, scale_weights]
    chosen = choose("anomaly_map", impl,
                    native=lambda: not_native(tensors, (torch.float32, torch.bfloat16)),
                    triton=lambda: not_triton(tensors, GPU_DTYPES))
    if chosen == "native":
        total, mean, largest = native_tail(spec).anomaly_map(
            [as_array(t) for t in teacher], [as_array(s) for s in student],
            as_array(scale_weights.float().contiguous()), maps, spec.reduction == "max")
        return AnomalyMap(None if total is None else torch.from_numpy(total),
                          torch.from_numpy(mean),
                          None if largest is None else torch.from_numpy(largest))
    if chosen == "triton":
        result = _on_gpu(teacher, student, scale_weights, spec, maps)
        if bool(result.mean.isfinite().all()):
            return result
    distances = [cosine_distance(t, s) for t, s in zip(teacher, student, strict=True)]
    for k, (t, s) in enumerate(zip(teacher, student, strict=True)):
        _check_finite(t, s, k)
    return combine_distances(distances, scale_weights, spec, maps=maps)


def combine_distances(
    distances: Sequence[Tensor], scale_weights: Tensor, spec: ScoringSpec, *, maps: bool = True
) -> AnomalyMap:
    """The second half of `anomaly_map`: three distances (N, h_k, w_k) -> map, mean, max."""
    check_weights(scale_weights, spec.weighting)
    for k, distance in enumerate(distances):
        if not bool(torch.isfinite(distance).all()):
            raise NotFiniteError(f"distances[{k}]: expected finite values, got one that is not")
    weights = distance_weights(scale_weights.to(distances[0].dtype), spec.weighting)
    total: Tensor | None = None
    mean = torch.zeros_like(weights[:, 0])
    for k, distance in enumerate(distances):
        u, column = _matrix_tensors(spec.input_size, distance.shape[1], float(spec.blur_sigma),
                                    distance.dtype, distance.device)
        weighted = weights[:, k, None, None] * distance
        mean = mean + (weighted @ column) @ column
        if maps or spec.reduction == "max":
            part = u @ weighted @ u.T
            total = part if total is None else total + part
    return AnomalyMap(
        total if maps else None, mean, None if total is None else total.amax(dim=(1, 2))
    )
