"""perlin: octaves of gradient noise in a smooth-edged blob (DRAEM, arXiv 2108.07610, masks its
textures by such noise; here it is the texture)."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.data.anomalies.kind import Local, Patch, blob_of, scaled, to_device
from scrd_fast.data.noise_config import NoiseConfig

Array = NDArray[np.float64]


class Perlin(Local):
    """Gradient noise with a fade of 6t^5 - 15t^4 + 10t^3 (Perlin 2002, "Improving noise").

    A pixel's value is the faded mean of g . d over the four corners of its cell, with g the
    corner's random unit gradient and d the way from it. Fades and ways belong to rows and columns:
    an octave is two products of small matrices with the gradients between them.
    """

    textured = True

    def change(
        self, clean: Tensor, patch: Patch, noise: NoiseConfig, donor: Tensor | None
    ) -> Tensor:
        _, _, height, width = patch.box
        channels = 3 if noise.channels == "independent" else 1
        rng = np.random.Generator(np.random.Philox(key=patch.seed))
        # Small products in float64: no setting of float32 products (TF32) changes them.
        field = clean.new_zeros(channels, height, width).double()
        for octave in range(noise.octaves):
            wavelength = noise.wavelength / 2**octave
            if octave and wavelength < 2:  # finer than pixels: only noise of sampling
                break
            starts = rng.uniform(0, 1, 2)
            fade_y, way_y = _corners(height, wavelength, starts[0])
            fade_x, way_x = _corners(width, wavelength, starts[1])
            shape = (channels, fade_y.shape[1], fade_x.shape[1])
            angles = rng.uniform(0, 2 * np.pi, shape)
            rows = to_device(np.stack([way_y, fade_y]), field)
            columns = to_device(np.stack([fade_x.T, way_x.T]), field)
            gradients = to_device(
                noise.persistence**octave * np.stack([np.sin(angles), np.cos(angles)]), field)
            field += (rows[:, None] @ gradients @ columns[:, None]).sum(0)
        return scaled(field.to(clean.dtype) * blob_of(patch, clean), patch.strength)


def _corners(length: int, wavelength: float, start: float) -> tuple[Array, Array]:
    """What each of `length` pixels takes of the corners of its cell along one axis, and that times
    the way from them, both (length, corners). start: where in a cell the first pixel is."""
    places = np.arange(length) / wavelength + start
    cells = np.floor(places).astype(int)
    t = places - cells
    fade = t * t * t * (t * (6 * t - 15) + 10)
    pixels, shape = np.arange(length), (length, int(cells[-1]) + 2)
    taken, way = np.zeros(shape), np.zeros(shape)
    taken[pixels, cells], taken[pixels, cells + 1] = 1 - fade, fade
    way[pixels, cells], way[pixels, cells + 1] = (1 - fade) * t, fade * (t - 1)
    return taken, way
