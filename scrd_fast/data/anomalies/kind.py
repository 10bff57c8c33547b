"""The interface of all kinds of synthetic anomalies, and what most of them share."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.data.anomalies.blob import BLOB, blob, draw_blob
from scrd_fast.data.noise_config import NoiseConfig

NUMBERS = BLOB + 4  # what a patch is described by, besides its box, strength and seed


class Patch(NamedTuple):
    """One change of one image.

    row: of the image in its batch; box: top, left, height, width in pixels; seed: of its texture;
    strength: in units of the [0, 1] pixel range; numbers: the kind's own, those of the blob first;
    donor: the row of the image that it borrows from, or -1.
    """

    row: int
    box: tuple[int, int, int, int]
    seed: int
    strength: float
    numbers: tuple[float, ...]
    donor: int

    @property
    def own(self) -> tuple[float, ...]:
        """The numbers that the kind itself has drawn."""
        return self.numbers[BLOB:]


class Kind(ABC):
    """What is drawn for a patch of one kind, and how it changes the pixels.

    textured: draws a seed of its own for each patch. borrows: needs another normal image. looks:
    chooses its place by the pixels there, for it can change nothing where all are alike.
    """

    textured = False
    borrows = False
    looks = True

    def count(self, rng: np.random.Generator) -> int:
        """How many patches an image gets."""
        return 1

    def draw(
        self, rng: np.random.Generator, noise: NoiseConfig, side: int, height: int, width: int
    ) -> tuple[float, ...]:
        """At most NUMBERS numbers of a patch (height, width) of an image of `side` pixels."""
        return ()

    @abstractmethod
    def apply(
        self, noisy: Tensor, clean: Tensor, noise: NoiseConfig, patches: list[Patch],
        donors: Tensor | None,
    ) -> Tensor:
        """`noisy` (N, 3, S, S) with these patches; may be the same tensor.

        clean: the pixels as they were; donors (D, 3, S, S): what Patch.donor counts.
        """


class Local(Kind):
    """A kind that makes each patch by itself, in the window of its box.

    The largest change of a pixel is the strength; a change that is larger is made fainter as a
    whole. Pixels stay in [0, 1] where they were.
    """

    def draw(
        self, rng: np.random.Generator, noise: NoiseConfig, side: int, height: int, width: int
    ) -> tuple[float, ...]:
        return (*draw_blob(rng), *self.draw_own(rng, noise, side, height, width))

    def draw_own(
        self, rng: np.random.Generator, noise: NoiseConfig, side: int, height: int, width: int
    ) -> tuple[float, ...]:
        """The numbers besides those of the blob."""
        return ()

    @abstractmethod
    def change(
        self, clean: Tensor, patch: Patch, noise: NoiseConfig, donor: Tensor | None
    ) -> Tensor:
        """What is added in the box of one image (3, S, S): (3, h, w), or (1, h, w) for all."""

    def apply(
        self, noisy: Tensor, clean: Tensor, noise: NoiseConfig, patches: list[Patch],
        donors: Tensor | None,
    ) -> Tensor:
        for patch in patches:
            donor = donors[patch.donor] if self.borrows and donors is not None else None
            change = self.change(clean[patch.row], patch, noise, donor)
            # On the device, so that nothing waits for it.
            largest = change.abs().amax().clamp_min(1e-12)
            change = change * (patch.strength / largest).clamp_max(1)
            window = crop(noisy[patch.row], patch.box)
            before = crop(clean[patch.row], patch.box)
            after = before + change
            after = after.clamp(before.clamp_max(0), before.clamp_min(1))
            # Of patches that overlap the larger change stays: the strength bounds it.
            window.copy_(torch.where((after - before).abs() > (window - before).abs(),
                                     after, window))
        return noisy


def crop(image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The window (C, h, w) of an image (C, H, W)."""
    top, left, height, width = box
    return image[:, top : top + height, left : left + width]


def blob_of(patch: Patch, like: Tensor) -> Tensor:
    """The blob (h, w) of a patch, in [0, 1], its largest value 1."""
    _, _, height, width = patch.box
    return blob(height, width, patch.numbers[:BLOB], like)


def to_device(values: NDArray[np.float64], like: Tensor) -> Tensor:
    """Host numbers as a tensor of the dtype and on the device of `like`."""
    return torch.from_numpy(values).to(like.dtype).to(like.device, non_blocking=True)


def scaled(field: Tensor, strength: float) -> Tensor:
    """A field whose largest absolute value is the strength."""
    return field * (strength / field.abs().amax().clamp_min(1e-12))
