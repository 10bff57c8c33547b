"""shift: the intensity moves under one to three smooth-edged blobs, as lesions look."""

import numpy as np
import torch
from torch import Tensor

from scrd_fast.data.anomalies.kind import Local, Patch, blob_of
from scrd_fast.data.noise_config import NoiseConfig


class Shift(Local):
    """Brighter or darker, each with probability 1/2, by the strength at the blob's middle.

    With independent channels each moves by its own share of it, uniform in [-1, 1] and then scaled
    so that the largest is 1. Where the pixels have no room for the sign, black for darker, the
    other is taken.
    """

    def count(self, rng: np.random.Generator) -> int:
        """One with probability 0.7, two with 0.2, three with 0.1."""
        return 1 + int(np.searchsorted([0.7, 0.9], rng.random(), side="right"))

    def draw_own(
        self, rng: np.random.Generator, noise: NoiseConfig, side: int, height: int, width: int
    ) -> tuple[float, ...]:
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if noise.channels == "shared":
            return sign, sign, sign
        shares = rng.uniform(-1, 1, 3)
        return tuple(map(float, sign * shares / np.abs(shares).max()))

    def change(
        self, clean: Tensor, patch: Patch, noise: NoiseConfig, donor: Tensor | None
    ) -> Tensor:
        top, left, height, width = patch.box
        weights = blob_of(patch, clean)
        under = clean[:, top : top + height, left : left + width]
        mean = (under * weights).sum((1, 2)) / weights.sum()
        main = int(np.argmax(np.abs(patch.own[:3])))
        above, below = 1 - mean[main], mean[main]
        room, other = (above, below) if patch.own[main] > 0 else (below, above)
        turned = torch.where((room < patch.strength) & (room < other), -patch.strength,
                             patch.strength)
        shares = torch.tensor(patch.own[:3], dtype=clean.dtype).to(clean.device, non_blocking=True)
        return turned.to(clean.dtype) * shares[:, None, None] * weights
