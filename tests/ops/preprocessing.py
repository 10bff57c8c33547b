"""Images in every shape, type and layout, for the tests of preprocess."""

from typing import Any

import numpy as np
import torch

from scrd_fast.ops.preprocess import preprocess
from scrd_fast.spec import ScoringSpec
from tests.ops.each_impl import where_it_runs

SPEC = ScoringSpec(input_size=64)
FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0, "float64": 1.0}


@where_it_runs
def on_gpu_from_tensors(images: Any, *args: Any, **options: Any) -> torch.Tensor:
    return preprocess(images, *args, **options)


def on_gpu(images: Any, *args: Any, **options: Any) -> torch.Tensor:
    return on_gpu_from_tensors(as_tensors(images), *args, **options)


def as_tensors(images: Any) -> Any:
    """The same with tensors for the arrays that can be tensors."""
    if isinstance(images, list | tuple):
        return [as_tensors(image) for image in images]
    if not isinstance(images, np.ndarray) or images.dtype.hasobject:
        return images
    return torch.from_numpy(np.array(images, images.dtype.newbyteorder("="), order="C"))


def random_image(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype.startswith("uint"):
        return rng.integers(0, int(FULL_SCALE[dtype]) + 1, shape).astype(dtype)
    return rng.random(shape).astype(dtype)


def in_layout(images: np.ndarray, layout: str) -> np.ndarray:
    """The same values in other memory."""
    if layout == "fortran":
        return np.asfortranarray(images)
    if layout == "reversed":
        turned = (slice(None), slice(None, None, -1), slice(None, None, -1), slice(None, None, -1))
        return np.ascontiguousarray(images[turned[: images.ndim]])[turned[: images.ndim]]
    if layout == "every second":
        return np.repeat(images, 2, axis=2)[:, :, ::2]
    if layout == "misaligned":
        memory = np.zeros(images.nbytes + 1, np.uint8)
        other = memory[1:].view(images.dtype).reshape(images.shape)
        other[:] = images
        return other
    if layout == "read-only":
        other = images.copy()
        other.setflags(write=False)
        return other
    return images.astype(images.dtype.newbyteorder(">"))
