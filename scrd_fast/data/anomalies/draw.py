"""Drawing the synthetic anomalies: everything random comes from the host, keyed by image.

The Philox generator of an image is keyed by (run seed, epoch, image index), so any worker count,
process count or resumed run makes the same images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.data.anomalies.kind import NUMBERS, Kind, Patch
from scrd_fast.data.anomalies.kinds import KINDS
from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.errors import expect
from scrd_fast.spec import ScoringSpec

# Corners that a kind that looks may choose from, and the standard deviation of pixels, in units of
# the [0, 1] range, that is enough for it: 5 of 255 grey levels. Air and paper have less.
_CORNERS = 8
_ENOUGH = 0.02
_NAMES = tuple(KINDS)


def image_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random generator of one image in one epoch of one run."""
    return np.random.Generator(np.random.Philox(key=[seed, (epoch << 32) + index]))


class Patches(NamedTuple):
    """What is added to the images of a batch, M patches, one or more of each image in its order.

    boxes (M, 4) as top, left, height, width; noise seeds (M,); strengths (M,); rows (M,): of the
    images; kinds (M,): places in noise_config.KINDS; numbers (M, kind.NUMBERS): what else the kinds
    draw; donors (M,): indices of the images that are borrowed from, -1 for none.
    """

    boxes: NDArray[np.int64]
    seeds: NDArray[np.int64]
    strengths: NDArray[np.float64]
    rows: NDArray[np.int64]
    kinds: NDArray[np.int64]
    numbers: NDArray[np.float64]
    donors: NDArray[np.int64]

    @property
    def borrowed(self) -> NDArray[np.int64]:
        """Indices (D,) of the images whose pixels `add_patches` needs, in its order."""
        return self.donors[self.donors >= 0]

    def of_kind(self, kind: int) -> list[Patch]:
        """Those of one kind, their donors counted among the borrowed."""
        places = np.where(self.donors >= 0, np.cumsum(self.donors >= 0) - 1, -1)
        return [
            Patch(int(self.rows[i]), tuple(self.boxes[i].tolist()), int(self.seeds[i]),
                  float(self.strengths[i]), tuple(self.numbers[i].tolist()), int(places[i]))
            for i in np.flatnonzero(self.kinds == kind)]


@dataclass(frozen=True)
class Donors:
    """Normal images that kinds may borrow from: those of `images` with the indices `chosen`, as
    the spec makes pixels of them."""

    images: ImageSet
    chosen: NDArray[np.int64]
    spec: ScoringSpec

    def read(self, patches: Patches) -> Tensor | None:
        """Pixels (D, 3, S, S) of what is borrowed; None where nothing is."""
        borrowed = patches.borrowed
        return self.images.pixels(borrowed, self.spec) if len(borrowed) else None


class Synthesised(NamedTuple):
    """Noisy pixels (N, 3, S, S), and the mask (N, 1, S, S), bool, of those that were changed."""

    pixels: Tensor
    mask: Tensor


def draw_patches(
    noise: NoiseConfig, side: int, seed: int, epochs: NDArray[np.int64],
    indices: NDArray[np.int64], *, clean: Tensor | None = None,
    chosen: NDArray[np.int64] | None = None, factors: Mapping[str, float] | None = None,
) -> Patches:
    """The patches of N images of `side` pixels, image i in epoch epochs[i] of run `seed`.

    clean: their pixels (N, 3, S, S), on the host: all kinds but simplex look at them. chosen:
    indices of the images that may be borrowed from. factors: of the strength, by kind.
    """
    end = max(int(side * noise.max_share), noise.min_side + 1)
    expect(end <= side, "noise.min_side", f"a patch smaller than the {side} px image",
           noise.min_side)
    drawn: list[tuple[int, Patch, int]] = []
    for row, (epoch, index) in enumerate(zip(epochs, indices, strict=True)):
        rng = image_generator(seed, int(epoch), int(index))
        name = _draw_kind(rng, noise)
        kind, factor = KINDS[name], (factors or {}).get(name, 1.0)
        for _ in range(kind.count(rng)):
            box = _draw_box(rng, noise, kind, side, end, None if clean is None else clean[row])
            strength = noise.strength * rng.uniform(noise.weakest, 1) * factor
            fresh = kind.textured and noise.texture == "per_sample"
            texture = int(rng.integers(2**63 - 1)) if fresh else seed
            numbers = kind.draw(rng, noise, side, box[2], box[3])
            donor = _draw_donor(rng, chosen, int(index)) if kind.borrows else -1
            padded = (*numbers, *[0.0] * (NUMBERS - len(numbers)))
            drawn.append((_NAMES.index(name), Patch(row, box, texture, strength, padded, donor),
                          donor))
    patches = [patch for _, patch, _ in drawn]
    return Patches(
        np.array([p.box for p in patches], dtype=np.int64).reshape(-1, 4),
        np.array([p.seed for p in patches], dtype=np.int64),
        np.array([p.strength for p in patches], dtype=np.float64),
        np.array([p.row for p in patches], dtype=np.int64),
        np.array([kind for kind, _, _ in drawn], dtype=np.int64),
        np.array([p.numbers for p in patches], dtype=np.float64).reshape(-1, NUMBERS),
        np.array([donor for _, _, donor in drawn], dtype=np.int64),
    )


def _draw_kind(rng: np.random.Generator, noise: NoiseConfig) -> str:
    """Nothing is drawn where there is but one: simplex alone keeps its draws."""
    names, weights = zip(*noise.mixture, strict=True)
    if len(names) == 1:
        return str(names[0])
    edges = np.cumsum(weights)
    # Its last step may be below a number that rounds up to it.
    place = np.searchsorted(edges, rng.random() * edges[-1], side="right")
    return str(names[min(int(place), len(names) - 1)])


def _draw_box(
    rng: np.random.Generator, noise: NoiseConfig, kind: Kind, side: int, end: int,
    clean: Tensor | None,
) -> tuple[int, int, int, int]:
    """Top, left, height, width: of the corners that are drawn the first under which there is enough
    to see, else the one under which there is most."""
    height, width = map(int, rng.integers(noise.min_side, end, size=2))
    corners = [(int(rng.integers(1, side - height + 1)), int(rng.integers(1, side - width + 1)))
               for _ in range(_CORNERS if kind.looks else 1)]
    if not kind.looks:
        return *corners[0], height, width
    expect(clean is not None, "clean", "the pixels of the images, for other kinds than simplex",
           None)
    assert clean is not None
    spreads = []
    for top, left in corners:
        under = clean[:, top : top + height, left : left + width].numpy()
        spreads.append(float(under.std(axis=(1, 2)).max()))
        if spreads[-1] >= _ENOUGH:
            break
    return *corners[int(np.argmax(spreads))], height, width


def _draw_donor(
    rng: np.random.Generator, chosen: NDArray[np.int64] | None, index: int
) -> int:
    """Another of the chosen images; the image itself where there is no other. Of a held-out image
    the index counts another set: it then may miss a donor, which does no harm."""
    expect(chosen is not None and len(chosen) > 0, "donors",
           "normal images to borrow from, for the kinds paste and blend", None)
    assert chosen is not None
    others = chosen[chosen != index] if len(chosen) > 1 else chosen
    return int(others[rng.integers(len(others))])


def synthesise(
    pixels: Tensor, noise: NoiseConfig, *, seed: int, epochs: NDArray[np.int64],
    indices: NDArray[np.int64], donors: Donors | None = None,
    factors: Mapping[str, float] | None = None, threshold: float = 0,
) -> Synthesised:
    """A noisy copy of (N, 3, S, S) pixels in [0, 1], and where it differs by more than `threshold`.

    donors: only for kinds that borrow; factors: as `draw_patches` takes them. Raises InputError.
    """
    looks = any(KINDS[name].looks for name, _ in noise.mixture)
    patches = draw_patches(
        noise, pixels.shape[-1], seed, epochs, indices, clean=pixels.cpu() if looks else None,
        chosen=None if donors is None else donors.chosen, factors=factors)
    borrowed = None if donors is None else donors.read(patches)
    noisy = add_patches(pixels, noise, patches, borrowed)
    return Synthesised(noisy, changed(pixels, noisy, threshold))


def add_patches(
    pixels: Tensor, noise: NoiseConfig, patches: Patches, borrowed: Tensor | None = None
) -> Tensor:
    """A copy of (N, 3, S, S) pixels in [0, 1] with the drawn patches; made on the device of the
    pixels, and the same on each up to rounding.

    borrowed: pixels (D, 3, S, S) of the images patches.borrowed.
    """
    kinds = sorted(set(patches.kinds.tolist()))
    simplex = kinds == [_NAMES.index("simplex")]
    if borrowed is not None:
        borrowed = borrowed.to(pixels.device, non_blocking=True)
    # What simplex noise alone is added to is copied there.
    noisy = pixels if simplex else pixels.clone(memory_format=torch.contiguous_format)
    for kind in kinds:
        noisy = KINDS[_NAMES[kind]].apply(noisy, pixels, noise, patches.of_kind(kind), borrowed)
    return noisy


def changed(clean: Tensor, noisy: Tensor, threshold: float) -> Tensor:
    """The mask (N, 1, S, S), bool, of pixels of which a channel differs by more than `threshold`.

    One rule for all kinds: what a kind leaves as it was is not anomalous.
    """
    return (noisy - clean).abs().amax(1, keepdim=True) > threshold
