"""Batches of clean and noisy pixels, the same for any worker, process count or resumed run.

On a GPU too: what is random is drawn on the host, and the same noise comes out up to rounding.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.data.anomalies import Donors, Patches, add_patches, draw_patches
from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.spec import ScoringSpec
from scrd_fast.training.config import AUTOCAST, check_autocast


def autocast_dtype(precision: str) -> torch.dtype | None:
    """What a training precision computes in by autocast; None of fp32, which has none."""
    check_autocast(precision)
    name = AUTOCAST[precision]
    return None if name is None else getattr(torch, name)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a training precision; fp32 switches it off."""
    dtype = autocast_dtype(precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


class Batches:
    """Iterate (clean, noisy) pixel batches from step `start` to `steps`.

    Image p of the run (p = step * global batch + place in it) is number p mod n of the shuffled
    epoch p // n; its noise is drawn from (seed, epoch, image index), its strength times the factor
    of its kind among `factors`. With several processes,
    process `rank` of `world` takes every world-th image of the global batch. The batches lie on
    `device`; a GPU adds the noise itself, and nothing waits for its copy of the clean pixels. With
    `ahead` the next clean pixels are read and the next patches drawn in a thread while the current
    batch is used: for a GPU. On a CPU that thread takes a core from the network's, whose threads
    then wait for each other (126 ms a step, not 103).
    """

    def __init__(
        self, images: ImageSet, chosen: NDArray[np.int64], spec: ScoringSpec, noise: NoiseConfig,
        seed: int, batch_size: int, steps: int, *, start: int = 0, rank: int = 0, world: int = 1,
        ahead: bool = False, device: torch.device | None = None,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.images, self.chosen, self.spec, self.noise = images, chosen, spec, noise
        self.seed, self.batch_size, self.steps, self.start = seed, batch_size, steps, start
        self.rank, self.world, self.ahead = rank, world, ahead
        self.device, self.factors = device or torch.device("cpu"), factors
        self._donors = Donors(images, chosen, spec)
        self._orders: dict[int, NDArray[np.int64]] = {}

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            key = [self.seed, (1 << 62) + epoch]
            order = np.random.Generator(np.random.Philox(key=key)).permutation(self.chosen)
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]

    def indices(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epochs (N,) and image indices (N,) of this process's part of one step."""
        first = step * self.batch_size * self.world + self.rank
        places = first + self.world * np.arange(self.batch_size)
        epochs = places // len(self.chosen)
        picked = [self._order(int(e))[p % len(self.chosen)]
                  for e, p in zip(epochs, places, strict=True)]
        return epochs, np.array(picked)

    def make(self, step: int) -> tuple[Tensor, Tensor]:
        """Clean and noisy pixels (N, 3, S, S) of one step."""
        return self._finish(*self._read(step))

    def _read(self, step: int) -> tuple[Tensor, Patches, Tensor | None]:
        """The host's part of a batch: clean pixels, the patches that are to be added to them, and
        the pixels that these borrow."""
        epochs, indices = self.indices(step)
        clean = self.images.pixels(indices, self.spec)
        patches = draw_patches(self.noise, self.spec.input_size, self.seed, epochs, indices,
                               clean=clean, chosen=self.chosen, factors=self.factors)
        borrowed = self._donors.read(patches)
        if self.device.type != "cuda":
            return clean, patches, borrowed
        return _pinned(clean), patches, None if borrowed is None else _pinned(borrowed)

    def _finish(
        self, clean: Tensor, patches: Patches, borrowed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The device's part: both batches."""
        clean = clean.to(self.device, non_blocking=True)
        return clean, add_patches(clean, self.noise, patches, borrowed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.ahead:
            yield from map(self.make, range(self.start, self.steps))
            return
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self._read, self.start) if self.start < self.steps else None
            for step in range(self.start, self.steps):
                assert waiting is not None
                ready = waiting.result()
                waiting = pool.submit(self._read, step + 1) if step + 1 < self.steps else None
                yield self._finish(*ready)


def _pinned(pixels: Tensor) -> Tensor:
    """Only from pinned memory does a copy to the GPU not hold up the thread that asks for it.

    Grey images are one channel seen three times, which cannot be pinned as it is.
    """
    return pixels.contiguous().pin_memory()
