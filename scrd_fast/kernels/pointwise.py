"""GPU kernel of 1 x 1 convolutions with bias, residual sum, ReLU and shuffle to space in it.

A 1 x 1 convolution of channels-last features is a matrix product of pixels and channels. cuDNN has
none that moves its outputs to space, so that an upsampling convolution is written, read and written
again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scrd_fast.kernels.tuning import autotune

# Warp-group products (wgmma), which Triton makes of 64 and more rows, are what Hopper is fast with;
# here there is one of them a step of one loop. Few rows are for single images of small features.
CONFIGS = [
    triton.Config({"ROWS": 64, "COLUMNS": 64, "DEPTH": 32}, num_warps=4, num_stages=4),
    triton.Config({"ROWS": 128, "COLUMNS": 64, "DEPTH": 64}, num_warps=4, num_stages=3),
    triton.Config({"ROWS": 128, "COLUMNS": 128, "DEPTH": 64}, num_warps=8, num_stages=3),
    triton.Config({"ROWS": 16, "COLUMNS": 64, "DEPTH": 128}, num_warps=4, num_stages=3),
]
PARTS = 2  # a shuffle makes 2 x 2 pixels of one


@autotune(CONFIGS, key=["rows", "columns", "CHANNELS"])
@triton.jit
def pointwise_kernel(x, weight, bias, residual, out, rows, height, width, image_stride, row_stride,
                     columns, CHANNELS: tl.constexpr,
                     STEP: tl.constexpr, SHUFFLE: tl.constexpr, RESIDUAL: tl.constexpr,
                     RELU: tl.constexpr,
                     ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """Programs (tiles of rows, tiles of columns, parts of a shuffle).

    rows: pixels of all images, of height x width outputs each (before a shuffle); image_stride and
    row_stride: of x, in elements; its pixels are CHANNELS apart, and every STEP-th is read.
    columns: output channels (behind a shuffle). CHANNELS is known when it is compiled: Triton's
    interpreter has no `for` of a number that is not, and a `while` is not pipelined.
    """
    part = tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside, known = row < rows, column < columns
    at_x = row % width
    at_y = (row // width) % height
    image = row // (width * height)
    source = x + (image.to(tl.int64) * image_stride + at_y.to(tl.int64) * (STEP * row_stride)
                  + at_x * (STEP * CHANNELS))
    output = part * columns + column
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(0, CHANNELS, DEPTH):
        channel = first + tl.arange(0, DEPTH)
        there = channel < CHANNELS
        pixels = tl.load(source[:, None] + channel[None, :], inside[:, None] & there[None, :], 0.0)
        products = tl.load(weight + output[None, :].to(tl.int64) * CHANNELS + channel[:, None],
                           known[None, :] & there[:, None], 0.0)
        sums = tl.dot(pixels, products, sums, input_precision="ieee")
    sums += tl.load(bias + output, known, 0.0).to(tl.float32)[None, :]
    place = row.to(tl.int64)
    if SHUFFLE:
        line = (image.to(tl.int64) * height + at_y) * 2 + part // 2
        place = line * (2 * width) + 2 * at_x + part % 2
    at = place[:, None] * columns + column[None, :]
    stored = inside[:, None] & known[None, :]
    if RESIDUAL:
        sums += tl.load(residual + at, stored, 0.0).to(tl.float32)
    if RELU:
        sums = tl.where(sums < 0, 0.0, sums)  # a maximum with 0 would make 0 of NaN
    tl.store(out + at, sums.to(out.dtype.element_ty), stored)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, *,
              step: int = 1, shuffle: bool = False, relu: bool = False) -> Tensor:
    """A 1 x 1 convolution with what follows it; sums in float32, rounded once.

    x: (N, C, H, W) of float32, float16 or bfloat16, channels-last, whose every `step`-th row and
    column is read; weight: (K, C, 1, 1); bias: (K,); all of one dtype. shuffle: outputs (row,
    column, c) of a pixel become a square of 2 x 2 pixels. residual: of the result's shape,
    channels-last, added before the ReLU. Returns (N, K, h, w) or (N, K/4, 2h, 2w), channels-last.
    NaN stays NaN.
    """
    n, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    height, width = -(-height // step), -(-width // step)
    parts = PARTS**2 if shuffle else 1
    columns, side = weight.shape[0] // parts, PARTS if shuffle else 1
    out = torch.empty((n, columns, side * height, side * width), dtype=x.dtype, device=x.device,
                      memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    rows = n * height * width
    bias = weight.new_zeros(len(weight)) if bias is None else bias

    def programs(chosen: dict[str, int]) -> tuple[int, int, int]:
        return (triton.cdiv(rows, chosen["ROWS"]), triton.cdiv(columns, chosen["COLUMNS"]), parts)

    if rows:
        pointwise_kernel[programs](
            x, weight, bias, out if residual is None else residual, out, rows, height, width,
            x.shape[1] * x.shape[2] * x.shape[3], x.shape[1] * x.shape[3], columns,
            CHANNELS=channels, STEP=step, SHUFFLE=shuffle, RESIDUAL=residual is not None, RELU=relu)
    return out
