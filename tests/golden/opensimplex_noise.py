"""Records noise of PyPI's opensimplex: python -m tests.golden.opensimplex_noise; see README.md."""

from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).with_suffix(".npz")
SEEDS = (0, 1, -7, 2**32 + 5, 2**63 - 1, -(2**63))

# Name: seeds, shape, octaves, persistence, wavelength. With wavelengths that are powers of two,
# most pixels of the last octaves lie on borders where the noise jumps. Far from the origin
# fractions are coarse in float32, and whole pixels tie in every octave.
FIELDS = {
    "published": (SEEDS, (2, 3, 21), 6, 0.6, 32.0),
    "one_octave": (SEEDS, (2, 3, 21), 1, 0.6, 32.0),
    "odd_wavelength": (SEEDS, (2, 3, 21), 3, 0.45, 19.0),
    "ties": (SEEDS, (3, 5, 8), 4, 1.0, 4.0),
    "whole_pixels": (SEEDS, (3, 5, 8), 2, 0.0, 1.0),
    "far": ((5,), (1, 1, 1020), 2, 0.6, 0.37),
    "far_ties": ((5,), (1, 1, 1020), 2, 0.6, 0.5),
}


def original_field(depth: int, height: int, width: int, seed: int, octaves: int,
                   persistence: float, wavelength: float) -> np.ndarray:
    """sum_o persistence^o * noise3array(x f_o, y f_o, z f_o) with f_o = 2^o / wavelength."""
    opensimplex = pytest.importorskip("opensimplex")
    z, y, x = (np.arange(n, dtype=float) for n in (depth, height, width))
    field = np.zeros((depth, height, width))
    for octave in range(octaves):
        f = 2.0**octave / wavelength
        field += persistence**octave * opensimplex.OpenSimplex(seed).noise3array(
            x * f, y * f, z * f)
    return field


def recorded(name: str) -> np.ndarray:
    """(seeds, depth, height, width) float64 of one of FIELDS."""
    with np.load(FILE) as fields:
        return fields[name]


if __name__ == "__main__":
    np.savez_compressed(FILE, **{
        name: np.stack([original_field(*shape, seed, *law) for seed in seeds])
        for name, (seeds, shape, *law) in FIELDS.items()})
