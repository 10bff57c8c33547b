"""Drawing the synthetic anomalies: everything random comes from the host, keyed by image.

The Philox generator of an image is keyed by (run seed, epoch, image index), so any worker count,
process count or resumed run makes the same images.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.errors import expect
from scrd_fast.ops.add_noise import add_noise
from scrd_fast.ops.simplex_noise import check_octaves

TEXTURES = ("per_sample", "shared")
CHANNELS = ("independent", "shared")


@dataclass(frozen=True)
class NoiseConfig:
    """The law of the noise patches; the defaults are the published ones.

    strength: factor of the noise, in units of the [0, 1] pixel range.
    min_side, max_share: a patch's height and width are each uniform integers in
        [min_side, max_share * image side); the corner is uniform from 1 to the last that fits.
    octaves, persistence, wavelength: of the simplex noise (see ops.simplex_noise).
    texture: "per_sample": a noise seed per image and epoch; "shared": one for the whole run, as
        the published code does.
    channels: "independent": channel c reads the field at depth c, as published, which tints the
        patch; "shared": the same noise in all channels, which fits images that are grey.
    weakest: an image's strength is uniform in [weakest * strength, strength]; 1 as published.
    """

    strength: float = 0.2
    min_side: int = 10
    max_share: float = 0.125
    octaves: int = 6
    persistence: float = 0.6
    wavelength: float = 32.0
    texture: str = "per_sample"
    channels: str = "independent"
    weakest: float = 1.0

    def __post_init__(self) -> None:
        expect(self.strength > 0, "noise.strength", "a number above 0", self.strength)
        expect(self.min_side >= 1, "noise.min_side", "at least 1 pixel", self.min_side)
        expect(0 < self.max_share <= 1, "noise.max_share", "above 0, at most 1", self.max_share)
        check_octaves(self.octaves, self.persistence, self.wavelength, "noise.")
        expect(self.texture in TEXTURES, "noise.texture", f"one of {TEXTURES}", self.texture)
        expect(self.channels in CHANNELS, "noise.channels", f"one of {CHANNELS}", self.channels)
        expect(0 < self.weakest <= 1, "noise.weakest", "above 0, at most 1", self.weakest)

    def scaled(self, factor: float) -> "NoiseConfig":
        """The same law for images whose sides are `factor` times as long."""
        return replace(self, min_side=max(1, round(self.min_side * factor)),
                       wavelength=self.wavelength * factor)


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
