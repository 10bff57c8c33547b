"""Judging a model while it trains."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.data.anomalies import Donors, synthesise
from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.errors import expect
from scrd_fast.metrics.ranking import auroc, auroc_standard_error
from scrd_fast.model.reference import score_pixels
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec

# More images than this make validation slow and the choice hardly better.
MOST_IMAGES = 256
# Epoch number of the validation noise: never reached by training.
_VALIDATION_EPOCH = (1 << 30) - 1
# What the AUROC is called in files and plots, by how the best checkpoint is selected.
FIGURES = {"validation": "auroc_synthesised", "published_test": "auroc_test_used_for_selection"}


@dataclass(frozen=True)
class Validation:
    """Fixed pixels (N, 3, S, S) with labels (N,), 1 = anomalous."""

    pixels: Tensor
    labels: NDArray[np.int64]

    def auroc(self, model: SCRD, spec: ScoringSpec) -> float:
        result, _ = score_pixels(model, spec, self.pixels, maps=False)
        return auroc(self.labels, result.score(spec))

    def standard_error(self, auroc: float) -> float:
        """Of such an AUROC of these images."""
        anomalous = int(self.labels.sum())
        return auroc_standard_error(auroc, anomalous, len(self.labels) - anomalous)


class HeldOut:
    """Pixels (N, 3, S, S) of held-out normals, at most MOST_IMAGES of those with these indices."""

    def __init__(
        self, images: ImageSet, indices: NDArray[np.int64], spec: ScoringSpec, seed: int,
        donors: Donors | None = None,
    ) -> None:
        count = min(len(indices), MOST_IMAGES)
        self._indices = indices[np.linspace(0, len(indices) - 1, count).astype(int)]
        self._spec, self._seed, self._donors = spec, seed, donors
        self.pixels = images.pixels(self._indices, spec)

    def noisy(self, noise: NoiseConfig, factors: Mapping[str, float] | None = None) -> Tensor:
        """The same with synthesised anomalies; factors: of their strength, by kind."""
        return synthesise(self.pixels, noise, seed=self._seed, indices=self._indices,
                          epochs=np.full(len(self._indices), _VALIDATION_EPOCH),
                          donors=self._donors, factors=factors).pixels

    def aurocs(self, model: SCRD, noise: NoiseConfig, factors: Mapping[str, float]
               ) -> dict[str, float]:
        """Per kind of the mixture, the AUROC of these images against the same with that kind; NaN
        where a score is not finite."""
        def score(pixels: Tensor) -> Tensor:
            return score_pixels(model, self._spec, pixels, maps=False)[0].score(self._spec)

        normal, labels = score(self.pixels), np.repeat([0, 1], len(self.pixels))
        found = {}
        for kind, _ in noise.mixture:
            noisy = self.noisy(replace(noise, mixture=((kind, 1.0),)), factors)
            scores = torch.cat([normal, score(noisy)])
            finite = bool(torch.isfinite(scores).all())
            found[kind] = auroc(labels, scores) if finite else float("nan")
        return found


def normal_validation(
    images: ImageSet, indices: NDArray[np.int64], spec: ScoringSpec, noise: NoiseConfig, seed: int,
    donors: Donors | None = None,
) -> Validation:
    """Held-out normals against the same with synthesised anomalies; needs no anomalous image.

    donors: what kinds that borrow take from.
    """
    held = HeldOut(images, indices, spec, seed, donors)
    return Validation(torch.cat([held.pixels, held.noisy(noise)]),
                      np.repeat([0, 1], len(held.pixels)))


def check_labels(labels: Any, count: int) -> NDArray[np.int64]:
    """The labels (count,) of a test set, 0 and 1; raises InputError unless both are there."""
    values = np.asarray(labels)
    expect(values.shape == (count,) and set(np.unique(values)) == {0, 1}, "test labels",
           f"({count},) of 0 and 1, both there", f"{values.shape} of {np.unique(values)}")
    return values.astype(np.int64)


def labelled_validation(images: ImageSet, labels: Any, spec: ScoringSpec) -> Validation:
    """A labelled set; choosing on the test set is the published protocol."""
    return Validation(images.pixels(np.arange(len(images)), spec),
                      check_labels(labels, len(images)))
