"""GPU kernel that rounds features to 8-bit numbers: one read and one write of each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 2048, 4
# Added to a float32 below 2^22 and taken away again it leaves the nearest whole number, the even
# one of two that are as near.
_SHIFT = tl.constexpr(1.5 * 2**23)


@triton.jit
def eight_bits_kernel(x, factor, out, count, BLOCK: tl.constexpr):
    """Programs (blocks of `count` numbers,)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, at < count, 0.0).to(tl.float32) * tl.load(factor)
    if out.dtype.element_ty == tl.int8:
        value = tl.minimum(tl.maximum(value, -128.0), 127.0)
        rounded = ((value + _SHIFT) - _SHIFT).to(tl.int8)
    else:  # NaN stays NaN, which a minimum would lose
        value = tl.where(value > 448.0, 448.0, tl.where(value < -448.0, -448.0, value))
        rounded = value.to(out.dtype.element_ty)
    tl.store(out + at, rounded, at < count)


def round_to_eight_bits(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest 8-bit numbers to x * factor, the largest where it is beyond; of x's layout.

    x: (N, C, H, W) of float32, float16 or bfloat16, channels-last; factor: float32 (); dtype:
    torch.int8, or torch.float8_e4m3fn from compute capability 8.9 on, in which NaN stays NaN.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x, dtype=dtype)
    if out.numel():
        eight_bits_kernel[(triton.cdiv(x.numel(), BLOCK),)](
            x, factor, out, x.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return out
