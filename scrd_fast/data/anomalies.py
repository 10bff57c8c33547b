"""Drawing the synthetic anomalies: everything random comes from the host, keyed by image.

The Philox generator of an image is keyed by (run seed, epoch, image index), so any worker count,
process count or resumed run makes the same images.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.errors import expect
from scrd_fast.ops.add_noise import add_noise


def image_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random generator of one image in one epoch of one run."""
    return np.random.Generator(np.random.Philox(key=[seed, (epoch << 32) + index]))


class Patches(NamedTuple):
    """boxes (N, 4) as top, left, height, width; noise seeds (N,); strengths (N,)."""

    boxes: NDArray[np.int64]
    seeds: NDArray[np.int64]
    strengths: NDArray[np.float64]


def draw_patches(
    noise: NoiseConfig, side: int, seed: int, epochs: NDArray[np.int64], indices: NDArray[np.int64]
) -> Patches:
    """The patches of N images of `side` pixels, image i in epoch epochs[i] of run `seed`."""
    end = max(int(side * noise.max_share), noise.min_side + 1)
    expect(end <= side, "noise.min_side", f"a patch smaller than the {side} px image",
           noise.min_side)
    boxes = np.empty((len(indices), 4), dtype=np.int64)
    seeds = np.full(len(indices), seed, dtype=np.int64)
    strengths = np.empty(len(indices))
    for row, (epoch, index) in enumerate(zip(epochs, indices, strict=True)):
        rng = image_generator(seed, int(epoch), int(index))
        height, width = rng.integers(noise.min_side, end, size=2)
        top, left = rng.integers(1, side - height + 1), rng.integers(1, side - width + 1)
        boxes[row] = top, left, height, width
        strengths[row] = noise.strength * rng.uniform(noise.weakest, 1)
        if noise.texture == "per_sample":
            seeds[row] = rng.integers(2**63 - 1)
    return Patches(boxes, seeds, strengths)


def synthesise(
    pixels: Tensor, noise: NoiseConfig, *, seed: int, epochs: NDArray[np.int64],
    indices: NDArray[np.int64],
) -> Tensor:
    """A noisy copy of (N, 3, S, S) pixels in [0, 1]."""
    return add_patches(pixels, noise, draw_patches(noise, pixels.shape[-1], seed, epochs, indices))


def add_patches(pixels: Tensor, noise: NoiseConfig, patches: Patches) -> Tensor:
    """A copy of (N, 3, S, S) pixels in [0, 1] with the drawn patches; made on the device of the
    pixels, and the same on each up to rounding."""
    source = pixels if noise.channels == "independent" else torch.zeros_like(pixels[:, :1])
    noisy = add_noise(
        source, patches.boxes, seeds=patches.seeds, strength=patches.strengths,
        octaves=noise.octaves, persistence=noise.persistence, wavelength=noise.wavelength,
    )
    return noisy if noise.channels == "independent" else pixels + noisy
