"""Which implementation of an operation runs: reference (plain PyTorch or NumPy), native (C++),
triton (GPU kernels)."""

import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.errors import BackendUnavailable, InputError, expect, fail

IMPLEMENTATIONS = ("native", "triton", "reference")  # fastest first
Unfit = Callable[[], str | None]


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU (for tests; very slow)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose(operation: str, impl: str | None, *, native: Unfit, triton: Unfit) -> str:
    """The implementation to use: `impl`, or for None the fastest that can run.

    native, triton: called to learn why that implementation cannot take these arguments; None
    means it can. A forced implementation that cannot run raises BackendUnavailable and is never
    replaced by another.
    """
    if impl is not None and impl not in IMPLEMENTATIONS:
        fail("impl", f"None or one of {IMPLEMENTATIONS}", repr(impl))
    unfit = {"native": native, "triton": triton, "reference": fits}
    if impl is None:
        return next(name for name in IMPLEMENTATIONS
                    if not (name == "triton" and interpreted()) and unfit[name]() is None)
    if (reason := unfit[impl]()) is not None:
        raise BackendUnavailable(
            f"impl {impl!r} of {operation}: {reason}; leave impl out or choose 'reference'"
        )
    return impl


def fits() -> None:
    """For `choose`: an implementation that takes everything."""


def not_native(
    tensors: Iterable[Tensor], dtypes: tuple[torch.dtype, ...], *, gradients: bool = False
) -> str | None:
    """Why C++ cannot take these tensors: None where they are on the CPU, of one of `dtypes`,
    and outside of autograd. gradients: whether the operation has them."""
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"expected tensors on the CPU, got one on {tensor.device}"
        if reason := _unfit(tensor, dtypes, gradients):
            return reason
    return None


def not_triton(
    tensors: Iterable[Tensor], dtypes: tuple[torch.dtype, ...], *, gradients: bool = False
) -> str | None:
    """Why the GPU kernels cannot take these tensors: None where they are on a CUDA device, or
    anywhere under Triton's interpreter. gradients: whether the kernels have them."""
    tensors = list(tensors)
    for tensor in tensors:
        if tensor.device.type != "cuda" and not interpreted():
            return f"expected tensors on a CUDA device, got one on {tensor.device}"
        if reason := _unfit(tensor, dtypes, gradients):
            return reason
    return no_triton()


def no_triton() -> str | None:
    """Why no GPU kernel can run in this process, whatever the arguments; None where one can."""
    if not find_spec("triton"):
        return "Triton is not installed; pip install 'triton>=3.6'"
    if not (interpreted() or torch.cuda.is_available()):
        return "there is no CUDA device that this PyTorch can use"
    return None


def _unfit(tensor: Tensor, dtypes: tuple[torch.dtype, ...], gradients: bool = False) -> str | None:
    if tensor.dtype not in dtypes:
        return f"expected a dtype of {[str(d) for d in dtypes]}, got {tensor.dtype}"
    if tensor.requires_grad and torch.is_grad_enabled() and not gradients:
        return "it has no gradient, but a tensor requires one"
    return None


def is_dense(value: Any) -> bool:
    """Whether this is a tensor whose memory holds one value per element."""
    return (isinstance(value, Tensor) and value.layout is torch.strided
            and not value.is_meta and not value.is_nested)


def check_tensor(value: Any, name: str) -> None:
    """Raise InputError unless `is_dense`."""
    if not isinstance(value, Tensor):
        fail(name, "a tensor", type(value).__name__)
    if not is_dense(value):
        kind = "meta" if value.is_meta else "nested" if value.is_nested else value.layout
        fail(name, "a dense tensor with values", f"a tensor that is {kind}")


def as_numbers(value: Any, name: str) -> NDArray[Any]:
    """A number, a list or an array as an array of integers or floats; raises InputError."""
    if isinstance(value, Tensor):
        check_tensor(value, name)
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        got = f"{type(value).__name__} ({error})"
        raise InputError(f"{name}: expected numbers, got {got}") from None
    expect(array.dtype.kind in "iuf", name, "numbers", array.dtype)
    return array


def check_device(name: str, tensor: Tensor, first: str, device: torch.device) -> None:
    """Raise InputError unless `tensor` is on `device`, where the argument `first` is."""
    if tensor.device != device:
        expect(False, name, f"a tensor on {device} as {first}", f"one on {tensor.device}")


def as_array(tensor: Tensor) -> NDArray[np.generic]:
    """The tensor's memory as an array, copied only if negated; bfloat16 as uint16 bits."""
    if tensor.requires_grad or tensor.is_neg():
        tensor = tensor.detach().resolve_neg()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    array: NDArray[np.generic] = tensor.numpy()
    return array
