"""deform: the image is turned and pulled under a smooth-edged blob."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.data.anomalies.kind import Local, Patch, blob_of, crop
from scrd_fast.data.noise_config import NoiseConfig


class Deform(Local):
    """With probability 1/2 a swirl by 0.5 to 1.5 rad either way, else a bulge: distances from the
    middle become 0.5 to 0.8 or 1.25 to 2 times as long. All of it at the blob's middle, less with
    its weight; sampled bilinearly."""

    def draw_own(
        self, rng: np.random.Generator, noise: NoiseConfig, side: int, height: int, width: int
    ) -> tuple[float, ...]:
        swirls, sign = rng.random() < 0.5, 1.0 if rng.random() < 0.5 else -1.0
        share = rng.uniform()
        if swirls:
            return sign * (0.5 + share), 0.0
        # Distances from the middle times 1 + this: 1.25 to 2, or 0.8 to 0.5.
        factor = 1.25 + 0.75 * share
        return 0.0, factor - 1 if sign > 0 else 1 / factor - 1

    def change(
        self, clean: Tensor, patch: Patch, noise: NoiseConfig, donor: Tensor | None
    ) -> Tensor:
        top, left, height, width = patch.box
        swirl, bulge = patch.own[:2]
        weights, side = blob_of(patch, clean), clean.shape[-1]
        y = torch.arange(height, dtype=clean.dtype, device=clean.device)[:, None]
        x = torch.arange(width, dtype=clean.dtype, device=clean.device)
        y, x = y - (height - 1) / 2, x - (width - 1) / 2
        cosine, sine = torch.cos(swirl * weights), torch.sin(swirl * weights)
        factor = 1 + bulge * weights
        from_y = top + (height - 1) / 2 + factor * (cosine * y + sine * x)
        from_x = left + (width - 1) / 2 + factor * (cosine * x - sine * y)
        grid = 2 / (side - 1) * torch.stack([from_x, from_y], dim=-1) - 1
        moved = F.grid_sample(clean[None], grid[None], padding_mode="border", align_corners=True)
        # Rounding of the grid moves even what stays where it is: the weights hold that back.
        return torch.where(weights > 0, moved[0] - crop(clean, patch.box), 0)
