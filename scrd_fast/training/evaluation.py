"""Judging a model while it trains."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.data.anomalies import Donors, synthesise
from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.errors import expect
from scrd_fast.metrics.ranking import auroc
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


def normal_validation(
    images: ImageSet, indices: NDArray[np.int64], spec: ScoringSpec, noise: NoiseConfig, seed: int,
    donors: Donors | None = None,
) -> Validation:
    """Held-out normals against the same with synthesised anomalies; needs no anomalous image.

    donors: what kinds that borrow take from.
    """
    indices = indices[np.linspace(0, len(indices) - 1, min(len(indices), MOST_IMAGES)).astype(int)]
    normal = images.pixels(indices, spec)
    epochs = np.full(len(indices), _VALIDATION_EPOCH)
    noisy = synthesise(normal, noise, seed=seed, epochs=epochs, indices=indices, donors=donors
                       ).pixels
    labels = np.repeat([0, 1], len(indices))
    return Validation(torch.cat([normal, noisy]), labels)


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
