"""Noise synthesis: a patch of simplex noise added to each image of a batch.

image[c, y, x] += strength * noise_s[c, y - top, x - left] inside the box of the image, where
noise_s is the octave noise of the image's seed, read at depth = channel (arXiv 2503.13828,
section 3.2). Pixels are in [0, 1]; the sum is not clipped.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.errors import expect
from scrd_fast.ops.simplex_noise import check_octaves, octave_noise, permutations


def add_noise(
    images: Tensor,
    boxes: NDArray[np.int64],
    *,
    seeds: NDArray[np.int64],
    strength: float | NDArray[np.float64],
    octaves: int = 6,
    persistence: float = 0.6,
    wavelength: float = 32,
) -> Tensor:
    """A noisy copy of `images`.

    images: float (N, C, H, W) in [0, 1]; boxes: (N, 4) integers top, left, height, width, inside
    the image; seeds: (N,); strength: one number or (N,). An image's noise depends on its own box
    and seed only. Raises InputError.
    """
    expect(images.ndim == 4 and images.is_floating_point(), "images", "float (N, C, H, W)",
           f"{images.dtype} {tuple(images.shape)}")
    n, channels, height, width = images.shape
    boxes, seeds = np.asarray(boxes), np.asarray(seeds)
    expect(boxes.shape == (n, 4), "boxes", (n, 4), boxes.shape)
    expect(seeds.shape == (n,), "seeds", (n,), seeds.shape)
    ends = boxes[:, :2] + boxes[:, 2:]
    expect(bool((boxes >= (0, 0, 1, 1)).all() and (ends <= (height, width)).all()),
           "boxes", f"boxes inside {height} x {width}", boxes.tolist())
    for name, given in (("boxes", boxes), ("seeds", seeds)):
        expect(np.issubdtype(given.dtype, np.integer), name, "integers", given.dtype)
    check_octaves(octaves, persistence, wavelength)
    strengths = np.asarray(strength, dtype=np.float64)
    expect(strengths.shape in ((), (n,)) and bool(np.isfinite(strengths).all()), "strength",
           f"one finite number or ({n},) of them", strength)
    strengths = np.broadcast_to(strengths, (n,))

    grids = [np.indices((channels, h, w)).reshape(3, -1) for h, w in boxes[:, 2:]]
    z, y, x = np.concatenate(grids, axis=1).astype(np.float64)
    counts = [g.shape[1] for g in grids]
    values = octave_noise(
        x, y, z, permutations(seeds.astype(np.int64)), np.repeat(np.arange(n), counts),
        octaves, persistence, wavelength,
    )
    noisy = images.clone()
    for i, patch in enumerate(np.split(values, np.cumsum(counts)[:-1])):
        top, left, h, w = boxes[i]
        patch = (strengths[i] * patch).reshape(channels, h, w)
        noisy[i, :, top : top + h, left : left + w] += torch.from_numpy(patch).to(noisy)
    return noisy
