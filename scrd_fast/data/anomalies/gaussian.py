"""gaussian: a Gaussian random field in a smooth-edged blob."""

import numpy as np
import torch
from torch import Tensor

from scrd_fast.data.anomalies.kind import Local, Patch, blob_of, scaled, to_device
from scrd_fast.data.noise_config import NoiseConfig

_WAVES = 32


class Gaussian(Local):
    """A sum of 32 plane waves of normal wave vectors and uniform phases, near a field with the
    covariance exp(-d^2 / (2 l^2)), l = wavelength / (2 pi) (Rahimi and Recht 2007)."""

    textured = True

    def change(
        self, clean: Tensor, patch: Patch, noise: NoiseConfig, donor: Tensor | None
    ) -> Tensor:
        _, _, height, width = patch.box
        channels = 3 if noise.channels == "independent" else 1
        rng = np.random.Generator(np.random.Philox(key=patch.seed))
        shape = (channels, _WAVES, 1, 1)
        down, right = (to_device(2 * np.pi / noise.wavelength * rng.standard_normal(shape), clean)
                       for _ in range(2))
        phases = to_device(rng.uniform(0, 2 * np.pi, shape), clean)
        y = torch.arange(height, dtype=clean.dtype, device=clean.device)[:, None]
        x = torch.arange(width, dtype=clean.dtype, device=clean.device)
        field = torch.cos(down * y + right * x + phases).sum(1)
        return scaled(field * blob_of(patch, clean), patch.strength)
