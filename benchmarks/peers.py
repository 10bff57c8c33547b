"""What a user would run instead, in our own words; each gives the same score and map."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from scrd_fast.model.scrd import SCRD
from scrd_fast.ops.preprocess import preprocess
from scrd_fast.spec import ScoringSpec


class PublishedLoop:
    """The published evaluation: eager float32, one image after the other.

    Per image: a forward pass, then for each scale 1 - cosine similarity, bilinear upsampling with
    align_corners, and a sum in NumPy, then SciPy's Gaussian; the score is the mean. Source:
    arXiv 2503.13828 and its published evaluation, which scores with weights that cancel.
    """

    def __init__(self, model: SCRD, spec: ScoringSpec) -> None:
        self.model, self.spec = model.eval(), spec

    @torch.no_grad()
    def score(self, images: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N, H, W, 3) uint8 -> scores (N,) and maps (N, S, S)."""
        scores, maps = [], []
        for image in images:
            features = self.model(preprocess(image[None], self.spec))
            side = self.spec.input_size
            total = np.zeros((side, side))
            for teacher, student in zip(features.teacher, features.student, strict=True):
                distance = 1 - F.cosine_similarity(teacher, student)
                large = F.interpolate(distance[:, None], size=side, mode="bilinear",
                                      align_corners=True)
                total += large[0, 0].numpy()
            total = gaussian_filter(total, sigma=self.spec.blur_sigma)
            scores.append(total.mean())
            maps.append(total)
        return np.array(scores), np.stack(maps)
