"""What a user would run instead, in our own words; each gives the same score and map."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from scrd_fast.model.scrd import SCRD
from scrd_fast.ops.preprocess import preprocess
from scrd_fast.spec import ScoringSpec


def published_map(
    teacher: Sequence[Tensor], student: Sequence[Tensor], spec: ScoringSpec
) -> NDArray[np.float64]:
    """Three feature maps (1, C, h, w) twice -> the map (S, S), as the published evaluation does.

    For each scale 1 - cosine similarity, bilinear upsampling with align_corners, and a sum in
    NumPy, then SciPy's Gaussian; the score is the mean. Source: arXiv 2503.13828 and its published
    evaluation, which scores with weights that cancel.
    """
    side = spec.input_size
    total = np.zeros((side, side))
    for t, s in zip(teacher, student, strict=True):
        distance = 1 - F.cosine_similarity(t, s)
        large = F.interpolate(distance[:, None], size=side, mode="bilinear", align_corners=True)
        total += large[0, 0].numpy()
    blurred: NDArray[np.float64] = gaussian_filter(total, sigma=spec.blur_sigma)
    return blurred


class PublishedLoop:
    """The published evaluation: eager float32, a forward pass and `published_map` per image."""

    def __init__(self, model: SCRD, spec: ScoringSpec) -> None:
        self.model, self.spec = model.eval(), spec

    @torch.no_grad()
    def score(self, images: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N, H, W, 3) uint8 -> scores (N,) and maps (N, S, S)."""
        maps = []
        for image in images:
            features = self.model(preprocess(image[None], self.spec))
            maps.append(published_map(features.teacher, features.student, self.spec))
        return np.array([m.mean() for m in maps]), np.stack(maps)
