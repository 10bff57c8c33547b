"""A smooth-edged blob: a turned superellipse that touches the sides of its box.

(|u / a|^p + |v / b|^p)^(1/p) = r is 1 at its edge, with u, v the coordinates turned by the angle;
the weight falls from 1 to 0 between r = 1 - softness and r = 1.
"""

import math

import numpy as np
import torch
from torch import Tensor

BLOB = 4  # numbers: aspect b / a, angle, exponent p, softness


def draw_blob(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Aspect in [0.4, 1], uniform in its logarithm; the others uniform: angle in [0, pi), exponent
    in [1.5, 4] (2 is an ellipse, more is rounder to a rectangle), softness in [0.2, 1]."""
    return (float(np.exp(rng.uniform(np.log(0.4), 0))), float(rng.uniform(0, np.pi)),
            float(rng.uniform(1.5, 4)), float(rng.uniform(0.2, 1)))


def blob(height: int, width: int, numbers: tuple[float, ...], like: Tensor) -> Tensor:
    """Weights (height, width) in [0, 1], the largest of them 1, as `like` in dtype and device."""
    aspect, angle, exponent, softness = numbers
    cosine, sine = math.cos(angle), math.sin(angle)
    # How far a = 1, b = aspect reaches to the right and down: the dual norm of the directions.
    dual = exponent / (exponent - 1)

    def reach(u: float, v: float) -> float:
        return float((abs(u) ** dual + abs(aspect * v) ** dual) ** (1 / dual))

    size = min(width / 2 / reach(cosine, sine), height / 2 / reach(sine, cosine))
    y = torch.arange(height, dtype=like.dtype, device=like.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=like.dtype, device=like.device) - (width - 1) / 2
    u = (cosine * x + sine * y).abs() / size
    v = (cosine * y - sine * x).abs() / (size * aspect)
    radius = (u**exponent + v**exponent) ** (1 / exponent)
    t = ((1 - radius) / softness).clamp(0, 1)
    weights = t * t * (3 - 2 * t)
    return weights / weights.amax().clamp_min(1e-12)
