"""Noise synthesis: a patch of simplex noise added to each image of a batch.

image[c, y, x] += strength * noise_s[c, y - top, x - left] inside the box of the image, where
noise_s is the octave noise of the image's seed, read at depth = channel (arXiv 2503.13828,
section 3.2). Pixels are in [0, 1]; the sum is not clipped.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.reference.simplex_noise import octave_noise, permutations


def add_noise(
    images: Tensor, boxes: NDArray[np.int64], seeds: NDArray[np.int64],
    strength: NDArray[np.float64], octaves: int, persistence: float, wavelength: float,
) -> Tensor:
    """A noisy copy of images (N, C, H, W); boxes (N, 4), seeds (N,), strength (N,)."""
    channels = images.shape[1]
    grids = [np.indices((channels, h, w)).reshape(3, -1) for h, w in boxes[:, 2:]]
    z, y, x = np.concatenate(grids, axis=1).astype(np.float64)
    counts = [g.shape[1] for g in grids]
    values = octave_noise(
        x, y, z, permutations(seeds), np.repeat(np.arange(len(images)), counts),
        octaves, persistence, wavelength,
    )
    noisy = images.clone()
    for i, patch in enumerate(np.split(values, np.cumsum(counts)[:-1])):
        top, left, h, w = boxes[i]
        patch = (strength[i] * patch).reshape(channels, h, w)
        noisy[i, :, top : top + h, left : left + w] += torch.from_numpy(patch).to(noisy)
    return noisy
