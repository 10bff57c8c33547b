"""What is known of normal images besides the network: a normal map, and a foreground.

Where patients are roughly aligned, each place has a distance of its own in normal images, which
depends on the slice and the pose as well. With t the thumbnail of the network input (below), z =
clip(P t + p, -3, 3) its K components and phi = (1, z, z^2 - 1), a normal map predicts, on a grid of
16 x 16 cells,

    m_k = sum_j phi_j E_jk         the distance of scale k that a normal image has there,
    s_k = exp(sum_j phi_j L_jk)    the spread of its part of the map there, in its usual spreads.

With v_k the mean of m_k over places and normal images, o the offset, f the foreground (0 to 1, the
same grid) and B_k the bilinear interpolation between the cells' centres at those of scale k's, the
distances M_k become

    gain    g_k = f (1 + o) / (s_k + o)
    shift   b_k = f v_k - g_k m_k
    M'_k        = (B_k g_k B_k^T) M_k + B_k b_k B_k^T        (products by place).

So a place counts by how far it is from what is usual there, in the units of an average place. M'_k
goes where M_k went: everything behind it, the mean in closed form included, stays as it is.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.reference.normal_map import (
    FARTHEST,
    NormalMap,
    foreground_limits,
    thumbnail_rows,
)
from scrd_fast.reference.preprocess import taps
from scrd_fast.spec import STRIDES, THUMBNAIL, Prior, ScoringSpec


def thumbnails(inputs: Tensor) -> Tensor:
    """Normalised (N, 3, S, S) -> float32 (N, 16, 16): the mean of the channels in each cell."""
    first, step, cell = thumbnail_rows(inputs.shape[-1])
    rows = inputs[:, :, first::step].float().mean(1)
    return F.avg_pool2d(rows[:, None], (2, cell))[:, 0]


@lru_cache(maxsize=16)
def _constants(prior: Prior, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """projection, shift, E and L as (J, 6 * 256), and level (3, 1, 1)."""
    normal = NormalMap.of(prior)
    with torch.inference_mode(False):  # a cached inference tensor could not be differentiated
        return tuple(torch.tensor(each, dtype=dtype, device=device) for each in (
            normal.projection, normal.shift, normal.maps(), normal.level[:, None, None]))


def describe(prior: Prior, thumbs: Tensor) -> Tensor:
    """phi (N, J) of thumbnails (N, 16, 16)."""
    projection, shift, _, _ = _constants(prior, thumbs.dtype, thumbs.device)
    z = (thumbs.flatten(1) @ projection.T + shift).clamp(-FARTHEST, FARTHEST)
    return torch.cat([torch.ones_like(z[:, :0].sum(1, keepdim=True)), z, z * z - 1], dim=1)


def _foreground(spec: ScoringSpec, thumbs: Tensor) -> Tensor:
    low, high = foreground_limits(spec)
    brightest = F.max_pool2d(thumbs[:, None], 3, stride=1, padding=1)[:, 0]
    return ((brightest - low) / (high - low)).clamp(0, 1)


def gain_and_shift(spec: ScoringSpec, thumbs: Tensor) -> tuple[Tensor, Tensor]:
    """The g_k and the b_k of thumbnails, (N, 3, 16, 16) each; `spec` has a prior."""
    prior = spec.prior
    assert prior is not None
    seen = torch.ones_like(thumbs) if prior.foreground is None else _foreground(spec, thumbs)
    seen = seen[:, None].expand(-1, len(STRIDES), -1, -1)
    if not prior.values:
        return seen, torch.zeros_like(seen)
    _, _, maps, level = _constants(prior, thumbs.dtype, thumbs.device)
    predicted = (describe(prior, thumbs) @ maps).view(-1, 2, *seen.shape[1:])
    expected, spread = predicted[:, 0], predicted[:, 1].exp()
    gain = seen * ((1 + prior.offset) / (spread + prior.offset))
    return gain, seen * level - gain * expected


@lru_cache(maxsize=16)
def interpolation_matrix(side: int) -> NDArray[np.float64]:
    """B (side, 16), float64: bilinear, half-pixel centres, edges repeated, as images resize."""
    (low, high), fraction = (each.numpy() for each in taps(THUMBNAIL, side))
    matrix = np.zeros((side, THUMBNAIL))
    np.add.at(matrix, (np.arange(side), low), 1 - fraction)
    np.add.at(matrix, (np.arange(side), high), fraction)
    matrix.setflags(write=False)
    return matrix


def _interpolate(maps: Tensor, side: int) -> Tensor:
    """B maps B^T: (N, 16, 16) -> (N, side, side)."""
    b = torch.tensor(interpolation_matrix(side), dtype=maps.dtype, device=maps.device)
    return b @ maps @ b.T


def apply_prior(distances: Sequence[Tensor], thumbs: Tensor, spec: ScoringSpec) -> list[Tensor]:
    """Three distances (N, h_k, h_k) and thumbnails (N, 16, 16) -> the three M'_k, in the dtype of
    the distances; `spec` has a prior."""
    gain, shift = gain_and_shift(spec, thumbs.to(distances[0].dtype))
    return [_interpolate(gain[:, k], d.shape[1]) * d + _interpolate(shift[:, k], d.shape[1])
            for k, d in enumerate(distances)]
