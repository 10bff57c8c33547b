"""blend: a patch of another normal image blended in its gradients (Perez et al. 2003, "Poisson
image editing", as in PII, arXiv 2107.02622, and NSA, arXiv 2109.15222)."""

import numpy as np
import torch
from torch import Tensor

from scrd_fast.data.anomalies.kind import Patch, to_device
from scrd_fast.data.anomalies.paste import Borrowing, difference
from scrd_fast.data.noise_config import NoiseConfig


class Blend(Borrowing):
    """The box keeps the image's pixels on its outermost ring and takes the donor's Laplacian
    inside: Poisson's equation on the grid, solved exactly by sine transforms. That is the donor's
    patch less the harmonic function that its offset on the ring continues to."""

    def change(
        self, clean: Tensor, patch: Patch, noise: NoiseConfig, donor: Tensor | None
    ) -> Tensor:
        # Small products in float64: no setting of float32 products (TF32) changes them.
        wanted = difference(clean, patch, donor).double()
        inside = wanted[:, 1:-1, 1:-1]
        laplacian = (wanted[:, :-2, 1:-1] + wanted[:, 2:, 1:-1] + wanted[:, 1:-1, :-2]
                     + wanted[:, 1:-1, 2:] - 4 * inside)
        down, down_values = _sines(inside.shape[1], wanted)
        right, right_values = _sines(inside.shape[2], wanted)
        solved = down @ laplacian @ right / (down_values[:, None] + right_values)
        change = torch.zeros_like(wanted)
        change[:, 1:-1, 1:-1] = down @ solved @ right
        return change.to(clean.dtype)


def _sines(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (n, n), a symmetric orthogonal matrix, and eigenvalues (n,) of the second
    difference with zeros at both ends."""
    k = np.arange(1, n + 1)
    angles = np.pi / (n + 1) * k
    vectors = np.sqrt(2 / (n + 1)) * np.sin(angles[:, None] * k)
    return to_device(vectors, like), to_device(2 * np.cos(angles) - 2, like)
