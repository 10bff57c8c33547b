"""Which implementation of an operation runs: reference (plain PyTorch or NumPy), native (C++)."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.errors import BackendUnavailable, expect

IMPLEMENTATIONS = ("native", "reference")


def choose(operation: str, impl: str | None, *, native: str | None) -> str:
    """The implementation to use: `impl`, or for None the fastest that can run.

    native: why the C++ implementation cannot take these arguments, None where it can. A forced
    implementation that cannot run raises BackendUnavailable and is never replaced by another.
    """
    expect(impl is None or impl in IMPLEMENTATIONS, "impl", f"None or one of {IMPLEMENTATIONS}",
           repr(impl))
    if impl == "native" and native is not None:
        raise BackendUnavailable(
            f"impl 'native' of {operation}: {native}; leave impl out or choose 'reference'"
        )
    return impl or ("reference" if native is not None else "native")


def not_native(tensors: Iterable[Tensor], dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why C++ cannot take these tensors: None where they are on the CPU, of one of `dtypes`,
    and outside of autograd."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"expected tensors on the CPU, got one on {tensor.device}"
        if tensor.dtype not in dtypes:
            return f"expected a dtype of {[str(d) for d in dtypes]}, got {tensor.dtype}"
        if tensor.requires_grad and torch.is_grad_enabled():
            return "it has no gradient, but a tensor requires one"
    return None


def as_array(tensor: Tensor) -> NDArray[np.generic]:
    """The tensor's memory as an array, not copied; bfloat16 as uint16 with the same bits."""
    tensor = tensor.detach()
    array: NDArray[np.generic] = (
        tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    ).numpy()
    return array
