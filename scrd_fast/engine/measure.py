"""Timing an engine: the one place that does."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.engine.engine import Engine


def latency_ms(engine: Engine, images: NDArray[Any], *, repeats: int = 30,
               warmup: int = 5) -> float:
    """Median milliseconds from pixels to score and map of one image (batch 1).

    images: (N, H, W) or (N, H, W, 3), taken in turn.
    """
    times = []
    for i in range(warmup + repeats):
        image = images[i % len(images)][None]
        start = time.perf_counter()
        engine.score(image)
        times.append(time.perf_counter() - start)
    return float(np.median(times[warmup:]) * 1e3)
