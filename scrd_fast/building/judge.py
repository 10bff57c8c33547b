"""Does an engine give the reference model's scores? It is asked about a probe set of images."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.backends.runner import Scorer
from scrd_fast.data.anomalies import synthesise
from scrd_fast.data.golden_images import PROBE_SEED, golden_images
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.engine.golden import probe_images
from scrd_fast.metrics.agreement import JUDGED_FROM, Report, compare
from scrd_fast.model.checkpoint import Checkpoint
from scrd_fast.model.reference import score_pixels
from scrd_fast.ops.preprocess import to_pixels
from scrd_fast.progress import Progress
from scrd_fast.spec import ScoringSpec

Maps = NDArray[np.float32]
FEW = 24
BATCH = 8


@dataclass(frozen=True)
class Probe:
    """Probe pixels (N, 3, S, S) in [0, 1]; labels (N,): 0 = normal, 1 = with a synthesised anomaly,
    -1 = odd content; None = not known."""

    pixels: Tensor
    labels: NDArray[np.int64] | None


def make_probe(
    spec: ScoringSpec, images: Any | None, count: int, seed: int = PROBE_SEED
) -> Probe:
    """The probe set: the user's normal images with synthesised anomalies, else golden images.

    images: normals as ops.preprocess takes them, or None. At most count / 2 of them are used,
    each once as it is and once with a noise patch; fewer are used with several patches each, so
    that there are at least `count` images to judge. seed: of golden images and noise patches.
    """
    if images is None:
        return Probe(to_pixels(golden_images(count, spec.input_size, seed), spec), None)
    chosen = np.linspace(0, len(images) - 1, min(count // 2, len(images))).astype(int)
    some = images[chosen] if isinstance(images, np.ndarray) else [images[i] for i in chosen]
    pixels = to_pixels(some, spec).contiguous()
    # Stronger patches than in training: an anomaly that training fits is no probe of ranks.
    noise = NoiseConfig(strength=0.8, max_share=0.25, min_side=min(10, spec.input_size // 8),
                        channels="shared")
    n = len(pixels)
    copies = max(1, -(-(count - n) // n))
    again = pixels.repeat(copies, 1, 1, 1)
    epochs, indices = np.divmod(np.arange(copies * n), n)
    noisy = synthesise(again, noise, seed=seed, epochs=epochs, indices=indices).pixels
    odd = odd_pixels(spec)
    return Probe(torch.cat([pixels, noisy, odd]), np.repeat([0, 1, -1], [n, copies * n, len(odd)]))


def odd_pixels(spec: ScoringSpec) -> Tensor:
    """What a scanner gives by accident, (N, 3, S, S) in [0, 1]: black, white, grey, noise, and the
    extreme contrasts of a checkerboard, of stripes and of one bright pixel."""
    side = spec.input_size
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    generator = torch.Generator().manual_seed(PROBE_SEED)
    grey = [torch.full((side, side), value) for value in (0.0, 1.0, 0.5)]
    sharp = [((x + y) % 2).float(), (x // 8 % 2).float(),
             ((x == side // 2) & (y == side // 2)).float()]
    noise = torch.rand(3, side, side, generator=generator)
    return torch.stack([*(image.expand(3, -1, -1) for image in grey + sharp), noise])


class Judge:
    """Holds scorers to the reference model, which scores each probe set once."""

    def __init__(self, checkpoint: Checkpoint, images: Any | None, progress: Progress) -> None:
        """images: as in `make_probe`."""
        self.spec, self._model, self._images = checkpoint.spec, checkpoint.model, images
        self._progress = progress
        self._probes: dict[bool, Probe] = {}
        self._references: dict[bool, tuple[Maps, Maps]] = {}

    @cached_property
    def golden(self) -> list[NDArray[np.uint8]]:
        """The larger probe set of the golden member, which takes long to make."""
        return probe_images(self.spec.input_size)

    def probe(self, few: bool) -> Probe:
        if few not in self._probes:
            count = FEW if few else JUDGED_FROM
            self._probes[few] = (
                Probe(to_pixels(self.golden[:count], self.spec), None) if self._images is None
                else make_probe(self.spec, self._images, count))
        return self._probes[few]

    def _reference(self, few: bool) -> tuple[Maps, Maps]:
        """Scores (N,) and maps (N, S, S)."""
        if few not in self._references:
            self._references[few] = self._by_reference(few)
        return self._references[few]

    def _by_reference(self, few: bool) -> tuple[Maps, Maps]:
        pixels = self.probe(few).pixels
        scores: list[Tensor] = []
        maps: list[Tensor] = []
        for batch in pixels.split(BATCH):
            self._progress(BATCH * len(maps), len(pixels), "scoring by the reference")
            result, _ = score_pixels(self._model, self.spec, batch)
            assert result.map is not None
            scores.append(result.score(self.spec))
            maps.append(result.map)
        return torch.cat(scores).numpy(), torch.cat(maps).numpy()

    def report(self, scorer: Scorer, *, few: bool) -> Report:
        """Figures of a scorer; few: on a few images, which show the largest error but not ranks.
        Raises NotFiniteError; torch_network.first_nonfinite tells the layer."""
        probe, reference = self.probe(few), self._reference(few)
        parts: list[tuple[Any, ...]] = []
        for batch in probe.pixels.split(BATCH):
            self._progress(BATCH * len(parts), len(probe.pixels), "checking against the reference")
            parts.append(scorer.submit(batch.permute(0, 2, 3, 1).numpy(), True).get()[:2])
        scores, maps = (np.concatenate(column) for column in zip(*parts, strict=True))
        return compare(probe.labels, scores, maps, *reference)
