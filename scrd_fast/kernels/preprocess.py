"""GPU kernel of ops.preprocess: resize, scale, three channels and normalisation in one launch."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from scrd_fast.reference.preprocess import taps

BLOCK = 256  # output pixels of a program


@triton.jit
def _resized(pixels, above, below, left, right, row_fraction, column_fraction, inside):
    """One channel of a block of output pixels, float32: bilinear, rows first."""
    top_left = tl.load(pixels + above + left, inside, 0).to(tl.float32)
    top_right = tl.load(pixels + above + right, inside, 0).to(tl.float32)
    bottom_left = tl.load(pixels + below + left, inside, 0).to(tl.float32)
    bottom_right = tl.load(pixels + below + right, inside, 0).to(tl.float32)
    at_left = top_left + row_fraction * (bottom_left - top_left)
    at_right = top_right + row_fraction * (bottom_right - top_right)
    return at_left + column_fraction * (at_right - at_left)


# Images of any size take the same compiled kernel.
@triton.jit(do_not_specialize=["image_n", "image_h", "blocks"],
            do_not_specialize_on_alignment=["images"])
def preprocess_kernel(images, out, rows, row_fractions, columns, column_fractions,
                      image_n, image_h, image_w, image_c, out_n, out_c, out_h, out_w, size, blocks,
                      scale_0, scale_1, scale_2, offset_0, offset_1, offset_2,
                      COLOUR: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK pixels of one output image; programs: images * blocks.

    image_*, out_*: strides; rows, columns: (2, size), the two that a pixel lies between.
    """
    program = tl.program_id(0)
    image = (program // blocks).to(tl.int64)
    at = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    x, y = at % size, at // size
    inside = y < size
    # An image may have more than 2^31 elements.
    above = tl.load(rows + y, inside, 0).to(tl.int64) * image_h
    below = tl.load(rows + size + y, inside, 0).to(tl.int64) * image_h
    left = tl.load(columns + x, inside, 0).to(tl.int64) * image_w
    right = tl.load(columns + size + x, inside, 0).to(tl.int64) * image_w
    row_fraction = tl.load(row_fractions + y, inside, 0.0)
    column_fraction = tl.load(column_fractions + x, inside, 0.0)
    pixels = images + image * image_n
    red = _resized(pixels, above, below, left, right, row_fraction, column_fraction, inside)
    green, blue = red, red
    if COLOUR:
        pixels += image_c
        green = _resized(pixels, above, below, left, right, row_fraction, column_fraction, inside)
        pixels += image_c
        blue = _resized(pixels, above, below, left, right, row_fraction, column_fraction, inside)
    target = out + image * out_n + y.to(tl.int64) * out_h + x.to(tl.int64) * out_w
    tl.store(target, red * scale_0 + offset_0, inside)
    target += out_c
    tl.store(target, green * scale_1 + offset_1, inside)
    target += out_c
    tl.store(target, blue * scale_2 + offset_2, inside)


# Never evicted: a stream or a captured CUDA graph may still read them. 3 KB per length of an axis.
@cache
def _taps(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices int32 (2, size) and fractions float32 (size,); see ops.preprocess.taps."""
    indices, fractions = taps(length, size)
    # Where nothing is taken of the second, it might still be too far from the first for float32.
    indices[1] = torch.where(fractions == 0, indices[0], indices[1])
    return indices.to(device, torch.int32), fractions.to(device, torch.float32)


@triton_op("scrd_fast::preprocess_into", mutates_args={"out"})
def _preprocess_into(
    images: Tensor, out: Tensor, rows: Tensor, row_fractions: Tensor, columns: Tensor,
    column_fractions: Tensor, scale: Sequence[float], offset: Sequence[float],
) -> None:
    """scale, offset: of the three channels; see `_taps` for rows and columns."""
    _launch(wrap_triton(preprocess_kernel), images, out, rows, row_fractions, columns,
            column_fractions, scale, offset)


def _launch(
    kernel: Any, images: Tensor, out: Tensor, rows: Tensor, row_fractions: Tensor,
    columns: Tensor, column_fractions: Tensor, scale: Sequence[float], offset: Sequence[float],
) -> None:
    size = out.shape[2]
    blocks = triton.cdiv(size * size, BLOCK)
    colour = images.ndim == 4
    image_c = images.stride(3) if colour else 0
    kernel[(len(images) * blocks,)](
        images, out, rows, row_fractions, columns, column_fractions,
        *images.stride()[:3], image_c, *out.stride(), size, blocks, *scale, *offset,
        COLOUR=colour, BLOCK=BLOCK)


def preprocess_into(
    images: Tensor, out: Tensor, mean: Sequence[float], std: Sequence[float], full_scale: float,
    *, traceable: bool = True,
) -> None:
    """out = (resize(images) / full_scale - mean) / std, in one launch, written where `out` lies.

    images: (N, H, W) or (N, H, W, 3) of uint8, uint16, float32 or float64, in any strides; out:
    (N, 3, S, S) of float32, float16 or bfloat16 on the same device, in any strides. Resized
    bilinearly in float32 with half-pixel centres, no antialias (see ops.preprocess); whether the
    values are finite is not checked. traceable: as an operator that torch.export and torch.compile
    see, whose dispatch takes 80 us of the host's time; else the kernel alone.
    """
    size = out.shape[2]
    rows, columns = (_taps(length, size, images.device) for length in images.shape[1:3])
    scale = [1 / (full_scale * s) for s in std]
    offset = [-m / s for m, s in zip(mean, std, strict=True)]
    with torch.cuda.device_of(images):  # Triton launches on the current device
        if traceable:
            _preprocess_into(images, out, *rows, *columns, scale, offset)
        else:
            _launch(preprocess_kernel, images, out, *rows, *columns, scale, offset)
