"""From images as they come to the normalised network input.

What the values mean is decided by dtype, never by looking at them: uint8 is divided by 255,
uint16 by 65535, float32 and float64 are in [0, 1] already. Then the float bilinear resize of the
spec, three channels, and (x - mean) / std.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from scrd_fast.spec import ScoringSpec

FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.float32: 1.0, torch.float64: 1.0}


def taps(length: int, size: int) -> tuple[Tensor, Tensor]:
    """How an axis of `length` becomes one of `size`: int64 (2, size), the two elements that each
    lies between, and float64 (size,), how far it is from the first to the second."""
    centre = (np.arange(size) + 0.5) * (length / size) - 0.5
    centre = np.clip(centre, 0, length - 1)
    low = np.floor(centre).astype(np.int64)
    high = np.minimum(low + 1, length - 1)
    return torch.from_numpy(np.stack([low, high])), torch.from_numpy(centre - low)


def _resize(images: Tensor, size: int) -> Tensor:
    """(N, C, H, W) floats -> (N, C, size, size): bilinear, half-pixel centres, no antialias."""
    if images.shape[2] != size:
        (low, high), fraction = (t.to(images.device) for t in taps(images.shape[2], size))
        images = torch.lerp(images[:, :, low], images[:, :, high], fraction.to(images)[:, None])
    if images.shape[3] != size:
        (low, high), fraction = (t.to(images.device) for t in taps(images.shape[3], size))
        images = torch.lerp(images[..., low], images[..., high], fraction.to(images))
    return images


def _batch_pixels(images: Tensor, spec: ScoringSpec) -> Tensor:
    scale = FULL_SCALE[images.dtype]
    pixels = images.to(torch.float32)
    pixels = pixels[:, None] if images.ndim == 3 else pixels.permute(0, 3, 1, 2)
    pixels = _resize(pixels / scale if scale != 1 else pixels, spec.input_size)
    return pixels.expand(-1, 3, -1, -1)


def checked_pixels(images: Tensor | list[Tensor], spec: ScoringSpec) -> Tensor:
    """What `check_images` gave -> float32 (N, 3, S, S) in the [0, 1] range."""
    if isinstance(images, Tensor):
        return _batch_pixels(images, spec)
    return torch.cat([_batch_pixels(image[None], spec) for image in images])


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(1, 3, 1, 1), made once: a copy to a GPU waits for all the work that it was given before."""
    with torch.inference_mode(False):  # a cached inference tensor could not be differentiated
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)


def normalise(pixels: Tensor, spec: ScoringSpec) -> Tensor:
    """(N, 3, S, S) in [0, 1] -> (pixels - mean) / std, channels-first contiguous."""
    mean, std = _per_channel(spec.mean, pixels.device), _per_channel(spec.std, pixels.device)
    return ((pixels - mean) / std).contiguous()
