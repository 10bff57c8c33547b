"""Octaves of three-dimensional simplex noise on a pixel grid; the law is in reference."""

import math
from numbers import Real

import numpy as np
import torch
from numpy.typing import NDArray

from scrd_fast import _native
from scrd_fast.errors import expect
from scrd_fast.ops.implementations import as_numbers, choose, fits, interpreted, no_triton
from scrd_fast.reference.simplex_noise import octave_field


def check_octaves(octaves: int, persistence: float, wavelength: float, prefix: str = "") -> None:
    """Raise InputError unless these describe octave noise; `prefix` goes before the names."""
    expect(isinstance(octaves, int | np.integer) and octaves > 0, f"{prefix}octaves",
           "a positive integer", octaves)
    expect(octaves <= 1024, f"{prefix}octaves", "at most 1024", octaves)
    expect(isinstance(persistence, Real) and 0 <= persistence < np.inf, f"{prefix}persistence",
           "a finite number from 0", persistence)
    expect((octaves - 1) * math.log10(max(persistence, 1)) <= 30, f"{prefix}persistence",
           f"a number of which power {octaves - 1} is at most 1e30", persistence)
    expect(isinstance(wavelength, Real) and 0 < wavelength < np.inf, f"{prefix}wavelength",
           "a positive number of pixels", wavelength)


def check_extent(largest: int, octaves: int, wavelength: float) -> None:
    """Raise InputError where the coordinates of a grid of `largest` pixels are too large."""
    # C++ counts cells of the lattice in 32 bits.
    expect(math.log2(largest / wavelength) + octaves - 1 <= 30, "wavelength",
           f"a grid of at most 2^30 wavelengths of the last of {octaves} octaves",
           f"{wavelength} for {largest} pixels")


def simplex_noise(
    depth: int,
    height: int,
    width: int,
    *,
    seeds: NDArray[np.int64] | list[int],
    octaves: int = 6,
    persistence: float = 0.6,
    wavelength: float = 32,
    impl: str | None = None,
) -> NDArray[np.float32]:
    """Octave noise on a pixel grid, one field per seed.

    Returns float32 (len(seeds), depth, height, width); value [s, z, y, x] is
    sum_o persistence^o * noise3(x f_o, y f_o, z f_o) of seed s with f_o = 2^o / wavelength, as
    `opensimplex.noise3array` gives it. impl: "native" (C++) or "triton" (on the current CUDA
    device), both within 1e-5 of the float64 sum, or "reference" (NumPy, rounded once); None takes
    native. Raises InputError and BackendUnavailable.
    """
    for name, value in (("depth", depth), ("height", height), ("width", width)):
        expect(isinstance(value, int | np.integer) and value > 0, name, "a positive integer",
               value)
    check_octaves(octaves, persistence, wavelength)
    check_extent(max(depth, height, width), octaves, wavelength)
    seeds = as_numbers(seeds, "seeds")
    expect(seeds.ndim == 1 and len(seeds) > 0 and np.issubdtype(seeds.dtype, np.integer),
           "seeds", "at least one integer, 1-D", f"{seeds.dtype} of shape {seeds.shape}")
    seeds = np.ascontiguousarray(seeds, dtype=np.int64)
    chosen = choose("simplex_noise", impl, native=fits, triton=no_triton)
    if chosen == "native":
        field: NDArray[np.float32] = _native.simplex_noise(
            seeds, depth, height, width, octaves, persistence, wavelength)
        return field
    if chosen == "triton":
        from scrd_fast.kernels import simplex_noise as kernels

        device = torch.device("cpu" if interpreted() else "cuda")
        field = kernels.simplex_noise(
            seeds, depth, height, width, octaves, persistence, wavelength, device).cpu().numpy()
        return field
    return octave_field(depth, height, width, seeds, octaves, persistence, wavelength).astype(
        np.float32)
