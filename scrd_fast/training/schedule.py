"""The learning-rate schedule that training and pre-training share."""

import math


def warmup_cosine(step: int, steps: int, warmup: int = 20) -> float:
    """Factor of the learning rate at `step` of `steps`: linear warm-up, then a cosine to 0."""
    decay = 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))
    return min(1.0, (step + 1) / warmup) * decay
