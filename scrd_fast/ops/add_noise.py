"""Noise synthesis: a patch of simplex noise added to each image; the law is in reference."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast import _native
from scrd_fast.errors import expect
from scrd_fast.ops.implementations import (
    as_array,
    as_numbers,
    check_tensor,
    choose,
    not_native,
    not_triton,
)
from scrd_fast.ops.octaves import check_extent, check_octaves
from scrd_fast.reference import add_noise as reference

GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_DTYPES = (*GPU_DTYPES, torch.float64)


def add_noise(
    images: Tensor,
    boxes: NDArray[np.int64],
    *,
    seeds: NDArray[np.int64],
    strength: float | NDArray[np.float64],
    octaves: int = 6,
    persistence: float = 0.6,
    wavelength: float = 32,
    impl: str | None = None,
) -> Tensor:
    """A noisy copy of `images`.

    images: float (N, C, H, W) in [0, 1]; boxes: (N, 4) integers top, left, height, width, inside
    the image; seeds: (N,) integers; strength: one number or (N,). An image's noise depends on its
    own box and seed only. impl: "native" (C++; float32 on the CPU), "triton" (float32, float16 or
    bfloat16 on a GPU), both without gradients and with noise within 1e-5 of the float64 values,
    times the strength, or "reference" (NumPy); None takes the first that can run. Raises
    InputError and BackendUnavailable.
    """
    check_tensor(images, "images")
    expect(images.ndim == 4 and len(images) > 0 and images.dtype in _DTYPES, "images",
           "float (N, C, H, W)", f"{images.dtype} {tuple(images.shape)}")
    n, channels, height, width = images.shape
    boxes, seeds = as_numbers(boxes, "boxes"), as_numbers(seeds, "seeds")
    expect(boxes.shape == (n, 4), "boxes", (n, 4), boxes.shape)
    expect(seeds.shape == (n,), "seeds", (n,), seeds.shape)
    room = np.array([height, width]) - boxes[:, 2:]  # their sum with the corner may overflow
    expect(bool((boxes >= (0, 0, 1, 1)).all() and (boxes[:, :2] <= room).all()),
           "boxes", f"boxes inside {height} x {width}", boxes.tolist())
    for name, given in (("boxes", boxes), ("seeds", seeds)):
        expect(np.issubdtype(given.dtype, np.integer), name, "integers", given.dtype)
    check_octaves(octaves, persistence, wavelength)
    check_extent(max(channels, int(boxes[:, 2:].max())), octaves, wavelength)
    strengths = as_numbers(strength, "strength").astype(np.float64)
    expect(strengths.shape in ((), (n,)) and bool(np.isfinite(strengths).all()), "strength",
           f"one finite number or ({n},) of them", strength)
    strengths, seeds = np.broadcast_to(strengths, (n,)), seeds.astype(np.int64)

    chosen = choose("add_noise", impl, native=lambda: not_native([images], (torch.float32,)),
                    triton=lambda: not_triton([images], GPU_DTYPES))
    if chosen == "native":
        noisy = images.clone()
        _native.add_noise(
            as_array(noisy), np.ascontiguousarray(boxes, dtype=np.int64),
            np.ascontiguousarray(seeds), np.ascontiguousarray(strengths),
            octaves, persistence, wavelength)
        return noisy
    if chosen == "triton":
        from scrd_fast.kernels.add_noise import add_noise_

        noisy = images.clone()
        add_noise_(noisy, boxes, seeds, strengths, octaves, persistence, wavelength)
        return noisy
    return reference.add_noise(
        images, boxes, seeds, strengths, octaves, persistence, wavelength)
