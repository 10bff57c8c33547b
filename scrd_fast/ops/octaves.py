"""What describes octave noise, checked. Loads neither PyTorch nor NumPy: configurations use it."""

import math
from numbers import Integral, Real

from scrd_fast.errors import expect


def check_octaves(octaves: int, persistence: float, wavelength: float, prefix: str = "") -> None:
    """Raise InputError unless these describe octave noise; `prefix` goes before the names."""
    expect(isinstance(octaves, Integral) and octaves > 0, f"{prefix}octaves",
           "a positive integer", octaves)
    expect(octaves <= 1024, f"{prefix}octaves", "at most 1024", octaves)
    expect(isinstance(persistence, Real) and 0 <= persistence < math.inf, f"{prefix}persistence",
           "a finite number from 0", persistence)
    expect((octaves - 1) * math.log10(max(persistence, 1)) <= 30, f"{prefix}persistence",
           f"a number of which power {octaves - 1} is at most 1e30", persistence)
    expect(isinstance(wavelength, Real) and 0 < wavelength < math.inf, f"{prefix}wavelength",
           "a positive number of pixels", wavelength)


def check_extent(largest: int, octaves: int, wavelength: float) -> None:
    """Raise InputError where the coordinates of a grid of `largest` pixels are too large."""
    # C++ counts cells of the lattice in 32 bits.
    expect(math.log2(largest / wavelength) + octaves - 1 <= 30, "wavelength",
           f"a grid of at most 2^30 wavelengths of the last of {octaves} octaves",
           f"{wavelength} for {largest} pixels")
