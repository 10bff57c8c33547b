"""GPU kernel of ops.add_noise: noise, scale and sum of the patches of a whole batch in one launch.

image[c, y, x] += strength * noise_s[c, y - top, x - left] inside the box of each image
(arXiv 2503.13828, section 3.2). The images are not read outside their boxes.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor
from torch.library import triton_op, wrap_triton

from scrd_fast.kernels.simplex_noise import BLOCK, _octave_noise, noise_tables, upload


# Batches with patches of any size take the same compiled kernel.
@triton.jit(do_not_specialize=["octaves", "blocks"])
def add_noise_kernel(images, boxes, strengths, tables, cases, positions, weights, octaves,
                     channels, blocks, stride_n, stride_c, stride_h, stride_w,
                     BLOCK: tl.constexpr):
    """BLOCK points of the patch of one image; programs: images * blocks of the largest patch."""
    program = tl.program_id(0)
    image = (program // blocks).to(tl.int64)
    top, left = tl.load(boxes + 4 * image), tl.load(boxes + 4 * image + 1)
    height, width = tl.load(boxes + 4 * image + 2), tl.load(boxes + 4 * image + 3)
    first = (program % blocks).to(tl.int64) * BLOCK
    if first >= channels * height * width:
        return
    at = first + tl.arange(0, BLOCK)
    inside = at < channels * height * width
    x, row = at % width, at // width
    y, z = row % height, row // height
    noise = _octave_noise(tables + image * 512, cases, positions, weights, octaves, x, y, z, inside)
    pixels = (images + image * stride_n + z * stride_c + (top + y) * stride_h
              + (left + x) * stride_w)
    noisy = tl.load(pixels, inside, 0.0).to(tl.float32) + tl.load(strengths + image) * noise
    tl.store(pixels, noisy, inside)


@triton_op("scrd_fast::add_noise_", mutates_args={"images"})
def _add_noise_(
    images: Tensor, boxes: Tensor, strengths: Tensor, tables: Tensor, cases: Tensor,
    positions: Tensor, weights: Tensor, largest_patch: int,
) -> None:
    """boxes: int64 (N, 4); strengths: float32 (N,); largest_patch: pixels of the largest box; see
    `noise_tables` for the other tensors."""
    n, channels = images.shape[:2]
    blocks = triton.cdiv(channels * largest_patch, BLOCK)
    wrap_triton(add_noise_kernel)[(n * blocks,)](
        images, boxes, strengths, tables, cases, positions, weights, len(weights), channels,
        blocks, *images.stride(), BLOCK=BLOCK)


def add_noise_(
    images: Tensor, boxes: NDArray[np.int64], seeds: NDArray[np.int64],
    strengths: NDArray[np.float64], octaves: int, persistence: float, wavelength: float,
) -> None:
    """Add noise to `images` where they lie.

    images: (N, C, H, W) float32, float16 or bfloat16 of any strides, in which no two elements
    share memory; boxes: (N, 4) top, left, height, width inside the image; seeds, strengths: (N,).
    The sum is computed in float32.
    """
    largest = max(images.shape[1], int(boxes[:, 2:].max()))
    tables = noise_tables(seeds, largest, octaves, persistence, wavelength)
    moved = upload([boxes.astype(np.int64), strengths.astype(np.float32), *tables],
                     images.device)
    with torch.cuda.device_of(images):  # Triton launches on the current device
        _add_noise_(images, *moved, int(boxes[:, 2:].prod(axis=1).max()))
