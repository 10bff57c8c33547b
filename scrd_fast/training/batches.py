"""Batches of clean and noisy pixels, the same for any worker, process count or resumed run."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.data.dataset import ImageSet
from scrd_fast.errors import expect
from scrd_fast.spec import ScoringSpec
from scrd_fast.training.noise import NoiseConfig, synthesise

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a training precision; fp32 switches it off."""
    expect(precision in AUTOCAST, "precision", f"one of {sorted(AUTOCAST)}", repr(precision))
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


class Batches:
    """Iterate (clean, noisy) pixel batches from step `start` to `steps`.

    Image p of the run (p = step * global batch + place in it) is number p mod n of the shuffled
    epoch p // n; its noise is drawn from (seed, epoch, image index). With several processes,
    process `rank` of `world` takes every world-th image of the global batch. With `ahead` the next
    batch is made in a thread while the current one is used: for a GPU. On a CPU that thread takes
    a core from the network's, whose threads then wait for each other (126 ms a step, not 103).
    """

    def __init__(
        self, images: ImageSet, chosen: NDArray[np.int64], spec: ScoringSpec, noise: NoiseConfig,
        seed: int, batch_size: int, steps: int, *, start: int = 0, rank: int = 0, world: int = 1,
        ahead: bool = False,
    ) -> None:
        self.images, self.chosen, self.spec, self.noise = images, chosen, spec, noise
        self.seed, self.batch_size, self.steps, self.start = seed, batch_size, steps, start
        self.rank, self.world, self.ahead = rank, world, ahead
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
        epochs, indices = self.indices(step)
        clean = self.images.pixels(indices, self.spec)
        return clean, synthesise(clean, self.noise, seed=self.seed, epochs=epochs, indices=indices)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.ahead:
            yield from map(self.make, range(self.start, self.steps))
            return
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self.make, self.start) if self.start < self.steps else None
            for step in range(self.start, self.steps):
                assert waiting is not None
                ready = waiting.result()
                waiting = pool.submit(self.make, step + 1) if step + 1 < self.steps else None
                yield ready
