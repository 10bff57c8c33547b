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

from scrd_fast.spec import ScoringSpec

COSINE_EPS = 1e-8


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


def distance_weights(scale_weights: Tensor, weighting: str) -> Tensor:
    """(N, 3) factors of the three distances.

    "feature" multiplies teacher and student features by one positive number before the cosine,
    which cancels: it equals "none".
    """
    return scale_weights if weighting == "scale" else torch.ones_like(scale_weights)


def combine_distances(
    distances: Sequence[Tensor], scale_weights: Tensor, spec: ScoringSpec, *, maps: bool = True
) -> AnomalyMap:
    """Three distances (N, h_k, w_k) and weights (N, 3) -> map, mean, max of `spec`."""
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
