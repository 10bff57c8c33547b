"""Scoring with the reference model: what every engine is measured against."""

from typing import Any

import torch

from scrd_fast.model.scrd import SCRD
from scrd_fast.ops.anomaly_map import anomaly_map
from scrd_fast.ops.preprocess import to_pixels
from scrd_fast.reference.anomaly_map import AnomalyMap
from scrd_fast.reference.preprocess import normalise
from scrd_fast.reference.prior import thumbnails
from scrd_fast.spec import ScoringSpec


def score_pixels(
    model: SCRD, spec: ScoringSpec, pixels: torch.Tensor, *, maps: bool = True,
    batch_size: int = 16,
) -> tuple[AnomalyMap, torch.Tensor]:
    """Score (N, 3, S, S) pixels in [0, 1]; the model keeps its mode afterwards.

    Returns the anomaly map with mean and max, and the scale weights (N, 3), all on the CPU.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    parts, weights = [], []
    with torch.no_grad():
        for chunk in pixels.split(batch_size):
            inputs = normalise(chunk.to(device), spec)
            features = model(inputs)
            result = anomaly_map(
                features.teacher, features.student, features.scale_weights, spec, maps=maps,
                thumbnails=None if spec.prior is None else thumbnails(inputs), impl="reference")
            parts.append([None if t is None else t.cpu() for t in result])
            weights.append(features.scale_weights.cpu())
    model.train(training)
    joined = [None if column[0] is None else torch.cat([t for t in column if t is not None])
              for column in zip(*parts, strict=True)]
    assert joined[1] is not None
    return AnomalyMap(joined[0], joined[1], joined[2]), torch.cat(weights)


def score_images(
    model: SCRD, spec: ScoringSpec, images: Any, *, maps: bool = True, batch_size: int = 16
) -> tuple[AnomalyMap, torch.Tensor]:
    """The same from images as ops.preprocess takes them."""
    return score_pixels(model, spec, to_pixels(images, spec), maps=maps, batch_size=batch_size)
