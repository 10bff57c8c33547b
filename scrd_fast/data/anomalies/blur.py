"""blur: the image is smoothed under a smooth-edged blob."""

import numpy as np
from torch import Tensor

from scrd_fast.data.anomalies.kind import Local, Patch, blob_of, crop, to_device
from scrd_fast.data.noise_config import NoiseConfig


class Blur(Local):
    """By a Gaussian of sigma 0.05 to 0.15 times the box's shorter side, at least 1 px; it is cut
    off at the image's border and its weights there sum to 1."""

    def draw_own(
        self, rng: np.random.Generator, noise: NoiseConfig, side: int, height: int, width: int
    ) -> tuple[float, ...]:
        return (max(1.0, float(rng.uniform(0.05, 0.15)) * min(height, width)),)

    def change(
        self, clean: Tensor, patch: Patch, noise: NoiseConfig, donor: Tensor | None
    ) -> Tensor:
        top, left, height, width = patch.box
        sigma, side = patch.own[0], clean.shape[-1]
        margin = int(np.ceil(4 * sigma))
        rows, columns = (slice(max(0, start - margin), min(side, start + length + margin))
                         for start, length in ((top, height), (left, width)))
        # Small products in float64: no setting of float32 products (TF32) changes them.
        around = clean[:, rows, columns].double()
        down = to_device(_weights(top, height, rows, sigma), around)
        across = to_device(_weights(left, width, columns, sigma), around)
        smooth = (down @ around @ across.T).to(clean.dtype)
        return (smooth - crop(clean, patch.box)) * blob_of(patch, clean)


def _weights(start: int, length: int, source: slice, sigma: float) -> np.ndarray:
    """(length, source): what each pixel from `start` on takes of those of `source`."""
    distances = np.arange(start, start + length)[:, None] - np.arange(source.start, source.stop)
    weights = np.exp(-0.5 * (distances / sigma) ** 2)
    result: np.ndarray = weights / weights.sum(1, keepdims=True)
    return result
