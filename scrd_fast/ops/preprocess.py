"""From images as they come to the normalised network input; the maths is in reference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scrd_fast import _native
from scrd_fast.errors import NotFiniteError, expect
from scrd_fast.ops.image_arrays import DTYPES, as_arrays, check_kind, check_range, is_list
from scrd_fast.ops.implementations import check_device, choose, not_native, not_triton
from scrd_fast.reference.preprocess import FULL_SCALE, checked_pixels, normalise
from scrd_fast.spec import ScoringSpec

OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BATCH = "uint8, uint16 or float (N, H, W) or (N, H, W, 3)"


def _as_tensor(value: Any, name: str) -> Tensor:
    """A tensor view of an array or tensor of an accepted dtype."""
    check_kind(value, name)
    if isinstance(value, np.ndarray):
        dtype = value.dtype.newbyteorder("=")
        accepted = dtype in (np.uint8, np.uint16, np.float32, np.float64)
        expect(accepted, name, DTYPES, value.dtype)
        native = value if value.dtype.isnative else value.astype(dtype)
        readable = native if native.flags.writeable else native.copy()
        contiguous = np.ascontiguousarray(readable)
        # An axis of length 1 that was flipped counts as contiguous, which PyTorch does not take.
        backwards = any(stride < 0 for stride in contiguous.strides)
        return torch.from_numpy(contiguous.copy() if backwards else contiguous)
    expect(isinstance(value, Tensor), name, "an array or a tensor", type(value).__name__)
    expect(value.dtype in FULL_SCALE, name, DTYPES, value.dtype)
    return value


def _check_finite(images: Tensor, name: str, wait: bool = True) -> None:
    if images.is_floating_point() and (wait or not images.is_cuda):
        bad = ~torch.isfinite(images.to(torch.float32))  # what the network computes in
        if bool(bad.any()):
            where = tuple(int(i) for i in bad.nonzero()[0])
            raise NotFiniteError(
                f"{name}: expected finite values, got {float(images[where])} at index {where}")


def check_images(
    images: Any, name: str = "images", *, wait: bool = True
) -> Tensor | list[Tensor]:
    """The images as one tensor, or as a list of tensors (H, W) or (H, W, 3), all checked.

    wait: also look for values that are not finite in tensors on a GPU, which waits for it. Raises
    InputError that names the argument `name`, or the image in it, that does not fit.
    """
    if isinstance(images, np.ndarray | Tensor):
        tensor = _as_tensor(images, name)
        shape = tuple(tensor.shape)
        good = tensor.ndim == 3 or (tensor.ndim == 4 and shape[3] == 3)
        expect(good, name, _BATCH, f"{tensor.dtype} {shape}")
        expect(len(tensor) > 0, name, "at least one image", f"an empty batch {shape}")
        expect(all(shape), name, "images of at least one pixel", shape)
        _check_finite(tensor, name, wait)
        return tensor
    expect(is_list(images), name, f"{_BATCH}, or a list of images", type(images).__name__)
    expect(len(images) > 0, name, "at least one image", "an empty list")
    tensors = []
    for i, image in enumerate(images):
        tensor = _as_tensor(image, f"{name}[{i}]")
        good = tensor.ndim == 2 or (tensor.ndim == 3 and tensor.shape[2] == 3)
        expect(good and tensor.numel() > 0, f"{name}[{i}]", "(H, W) or (H, W, 3)",
               tuple(tensor.shape))
        _check_finite(tensor, f"{name}[{i}]", wait)
        tensors.append(tensor)
    return tensors


def to_pixels(images: Any, spec: ScoringSpec) -> Tensor:
    """Images -> float32 (N, 3, S, S) in the [0, 1] range, before normalisation.

    images: an array or tensor (N, H, W) or (N, H, W, 3) of uint8, uint16 or float32 in [0, 1],
    or a list of (H, W) or (H, W, 3) images of different sizes. Raises InputError that names the
    image where one does not fit.
    """
    checked = check_images(images)
    check_range(images, "images")
    return checked_pixels(checked, spec)


def _check_one_device(parts: Sequence[Any]) -> None:
    """Raise InputError unless all images of a list are where the first is."""
    first = parts[0].device if len(parts) and isinstance(parts[0], Tensor) else torch.device("cpu")
    for i, part in enumerate(parts):
        if isinstance(part, Tensor):
            check_device(f"images[{i}]", part, "images[0]", first)
        elif isinstance(part, np.ndarray) and first.type != "cpu":
            expect(False, f"images[{i}]", f"a tensor on {first} as images[0]", "an array")


def _on_gpu(images: Tensor | list[Tensor], spec: ScoringSpec, dtype: torch.dtype) -> Tensor:
    from scrd_fast.kernels.preprocess import preprocess_into

    size = spec.input_size
    out = torch.empty((len(images), 3, size, size), dtype=dtype, device=images[0].device)
    if isinstance(images, Tensor):
        preprocess_into(images, out, spec.mean, spec.std, FULL_SCALE[images.dtype])
        return out
    for i, image in enumerate(images):
        preprocess_into(image[None], out[i : i + 1], spec.mean, spec.std, FULL_SCALE[image.dtype])
    return out


def preprocess(
    images: Any,
    spec: ScoringSpec,
    *,
    impl: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Images as `to_pixels` takes them -> (N, 3, S, S) of `dtype`, ready for the teacher.

    dtype: torch.float32, torch.bfloat16 or torch.float16 (computed in float32, then rounded).
    impl: "native" (arrays, and tensors on the CPU without gradients, read where they lie, in any
    strides; no float16), "triton" (tensors on one GPU without gradients, in any strides) or
    "reference"; None takes the first that can run. Raises InputError that names the image that
    does not fit, NotFiniteError where a value is not finite as float32, and BackendUnavailable.
    """
    expect(dtype in OUTPUT_DTYPES, "dtype", f"one of {[str(d) for d in OUTPUT_DTYPES]}", dtype)
    parts = images if is_list(images) else [images]
    _check_one_device(parts)
    # A tensor of another dtype fits no implementation; the checks say so.
    tensors = [p for p in parts if isinstance(p, Tensor) and p.dtype in FULL_SCALE]

    def unfit_for_native() -> str | None:
        if dtype == torch.float16:
            return "it writes float32 and bfloat16, not float16"
        return not_native(tensors, tuple(FULL_SCALE))

    def unfit_for_triton() -> str | None:
        if any(isinstance(part, np.ndarray) for part in parts):
            return "expected tensors on a CUDA device, got a NumPy array"
        return not_triton(tensors, tuple(FULL_SCALE))

    chosen = choose("preprocess", impl, native=unfit_for_native, triton=unfit_for_triton)
    check_range(images, "images")
    if chosen == "triton":
        return _on_gpu(check_images(images), spec, dtype)
    if chosen == "reference":
        return normalise(checked_pixels(check_images(images), spec), spec).to(dtype)
    bfloat16 = dtype == torch.bfloat16
    out = torch.from_numpy(_native.preprocess(
        as_arrays(images, "images"), spec.input_size, spec.mean, spec.std, bfloat16))
    return out.view(torch.bfloat16) if bfloat16 else out
