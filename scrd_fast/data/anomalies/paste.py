"""paste: a patch of another normal image, with a soft edge (CutPaste, arXiv 2104.04015)."""

import numpy as np
from torch import Tensor

from scrd_fast.data.anomalies.kind import Local, Patch, blob_of, crop
from scrd_fast.data.noise_config import NoiseConfig


class Borrowing(Local):
    """A kind that takes a window of the same size from anywhere in another normal image."""

    borrows = True

    def draw_own(
        self, rng: np.random.Generator, noise: NoiseConfig, side: int, height: int, width: int
    ) -> tuple[float, ...]:
        return float(rng.integers(0, side - height + 1)), float(rng.integers(0, side - width + 1))


class Paste(Borrowing):
    """CutPaste cuts from the image itself, with hard edges; this takes from another one."""

    def change(
        self, clean: Tensor, patch: Patch, noise: NoiseConfig, donor: Tensor | None
    ) -> Tensor:
        return difference(clean, patch, donor) * blob_of(patch, clean)


def difference(clean: Tensor, patch: Patch, donor: Tensor | None) -> Tensor:
    """What the donor's window has more than the image's own, (3, h, w)."""
    assert donor is not None
    _, _, height, width = patch.box
    top, left = map(int, patch.own[:2])
    return crop(donor, (top, left, height, width)) - crop(clean, patch.box)
