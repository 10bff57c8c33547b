"""simplex: the published kind, octave noise added in a sharp-edged box (arXiv 2503.13828, 3.2)."""

import numpy as np
import torch
from torch import Tensor

from scrd_fast.data.anomalies.kind import Kind, Patch
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.ops.add_noise import add_noise


class Simplex(Kind):
    """All patches of a batch in one go; nothing is clipped, as published."""

    textured = True
    looks = False

    def apply(
        self, noisy: Tensor, clean: Tensor, noise: NoiseConfig, patches: list[Patch],
        donors: Tensor | None,
    ) -> Tensor:
        rows = [patch.row for patch in patches]
        if rows == list(range(len(noisy))):
            return _add(noisy, noise, patches)
        places = torch.tensor(rows).to(noisy.device, non_blocking=True)
        return noisy.index_copy(0, places, _add(noisy.index_select(0, places), noise, patches))


def _add(pixels: Tensor, noise: NoiseConfig, patches: list[Patch]) -> Tensor:
    """A copy of (N, 3, S, S) pixels with one patch each."""
    source = pixels if noise.channels == "independent" else torch.zeros_like(pixels[:, :1])
    noisy = add_noise(
        source, np.array([patch.box for patch in patches]),
        seeds=np.array([patch.seed for patch in patches]),
        strength=np.array([patch.strength for patch in patches]),
        octaves=noise.octaves, persistence=noise.persistence, wavelength=noise.wavelength,
    )
    return noisy if noise.channels == "independent" else pixels + noisy
