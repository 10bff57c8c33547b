"""ghost: a shifted faint copy of the image, as motion leaves, under a smooth-edged blob."""

import numpy as np
import torch
from torch import Tensor

from scrd_fast.data.anomalies.kind import Local, Patch, blob_of, crop
from scrd_fast.data.noise_config import NoiseConfig


class Ghost(Local):
    """The image mixed with itself, moved by 0.25 to 1 times the box's shorter side in any direction
    and with 0.3 to 0.7 of the weight; beyond the image its border goes on."""

    def draw_own(
        self, rng: np.random.Generator, noise: NoiseConfig, side: int, height: int, width: int
    ) -> tuple[float, ...]:
        length = rng.uniform(0.25, 1) * min(height, width)
        angle, opacity = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.7)
        down, right = round(length * np.sin(angle)), round(length * np.cos(angle))
        return float(down), float(right if (down, right) != (0, 0) else 1), float(opacity)

    def change(
        self, clean: Tensor, patch: Patch, noise: NoiseConfig, donor: Tensor | None
    ) -> Tensor:
        top, left, height, width = patch.box
        down, right, opacity = patch.own[:3]
        rows, columns = (
            torch.arange(start, start + length, device=clean.device).clamp(0, clean.shape[-1] - 1)
            for start, length in ((top + int(down), height), (left + int(right), width)))
        copy = clean.index_select(1, rows).index_select(2, columns)
        return opacity * (copy - crop(clean, patch.box)) * blob_of(patch, clean)
