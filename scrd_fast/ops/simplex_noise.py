"""Octaves of three-dimensional simplex noise on a pixel grid; the law is in reference."""

import numpy as np
import torch
from numpy.typing import NDArray

from scrd_fast import _native
from scrd_fast.errors import expect
from scrd_fast.ops.implementations import as_numbers, choose, fits, interpreted, no_triton
from scrd_fast.ops.octaves import check_extent, check_octaves
from scrd_fast.reference.simplex_noise import octave_field


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
