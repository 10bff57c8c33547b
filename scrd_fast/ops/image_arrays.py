"""Images as C++ takes them: arrays and tensors of any shape, checked as far as Python must.

Loads no PyTorch: a tensor can only come from who has loaded it.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from scrd_fast import _native
from scrd_fast.errors import expect, fail

# Floats may lie this far outside [0, 1], as rounding resamplers leave them.
RANGE_SLACK = 1e-3
# The smallest and the largest float32 of those.
_LOWEST = float(np.nextafter(np.float32(-RANGE_SLACK), np.float32(1)))
_HIGHEST = float(np.nextafter(np.float32(1 + RANGE_SLACK), np.float32(0)))
DTYPES = "dtype uint8, uint16 or float32"


def is_tensor(value: Any) -> bool:
    """Whether this is a tensor of PyTorch's."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_list(images: Any) -> bool:
    """Whether this is a sequence of images, as a list is."""
    return isinstance(images, Sequence) and not isinstance(
        images, str | bytes | bytearray | memoryview)


def check_kind(value: Any, name: str) -> None:
    """Raise InputError for arrays and tensors whose memory is not one value per element."""
    if isinstance(value, np.ma.MaskedArray):
        fail(name, "an array without a mask", "a masked array; fill it first")
    if is_tensor(value):
        from scrd_fast.ops.implementations import check_tensor

        check_tensor(value, name)


def check_range(images: Any, name: str, *, batch: bool = True) -> None:
    """Raise InputError where float images leave [0, 1], or their memory is not one value per pixel.

    images: as `preprocess` takes them, or with batch=False one image. What is no float32 or
    float64 is left to other checks, and so are values that are not finite. Tensors on a GPU are
    not looked at, which would wait for it.
    """
    if is_list(images):
        for i, image in enumerate(images):
            check_range(image, f"{name}[{i}]", batch=False)
        return
    check_kind(images, name)
    if is_tensor(images):
        if images.is_cuda or str(images.dtype) not in ("torch.float32", "torch.float64"):
            return
        images = images.detach()
    elif not isinstance(images, np.ndarray) or images.dtype.kind != "f":
        return
    if 0 in images.shape or _seen_inside(images):
        return
    # As float32, in which the network computes: what is infinite there is not finite.
    low, high = (float(np.float32(float(end))) for end in (images.min(), images.max()))
    inside = low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK
    if not inside and math.isfinite(low) and math.isfinite(high):
        if batch and len(images) > 1:
            for i, image in enumerate(images):
                check_range(image, f"{name}[{i}]", batch=False)
        dtype = str(images.dtype).removeprefix("torch.")
        fail(name, f"{dtype} in [0, 1]", f"values from {low:g} to {high:g}; pass integers as uint8"
             " or uint16, or divide by the largest value that the format can hold")


def _seen_inside(images: Any) -> bool:
    """Whether C++, which is quicker, can read these floats and finds them all in their range."""
    array = images
    if is_tensor(images):
        from scrd_fast.ops.implementations import as_array

        if not images.is_cpu:
            return False
        array = as_array(images)
    readable = array.dtype in (np.float32, np.float64) and array.dtype.isnative
    return readable and array.flags.c_contiguous and (
        _native.all_inside(array, _LOWEST, _HIGHEST))


def as_arrays(images: Any, name: str) -> Any:
    """The images for C++, which checks them: arrays and tensors as arrays of the same memory.

    Copied are only tensors of another device and arrays in another byte order.
    """
    def array(value: Any, name: str) -> Any:
        if isinstance(value, np.ndarray):
            return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
        if is_tensor(value):
            from scrd_fast.ops.implementations import as_array
            from scrd_fast.reference.preprocess import FULL_SCALE

            expect(value.dtype in FULL_SCALE, name, DTYPES, value.dtype)
            return as_array(value.cpu())
        return value

    if is_list(images):
        return [array(image, f"{name}[{i}]") for i, image in enumerate(images)]
    return array(images, name)
