"""Timing engines: the one place that does."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.engine.backends.runner import Scorer
from scrd_fast.engine.engine import Engine


def in_turn(
    calls: Mapping[str, Callable[[Any], object]], batches: Sequence[Any], *, rounds: int = 20,
    warmup: int = 4,
) -> dict[str, float]:
    """Median milliseconds of each call of a batch, A B A B on one batch after the other: what slows
    the machine down for a while slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warmup + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call(batches[i % len(batches)])
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(ts[warmup:]) * 1e3) for name, ts in times.items()}


def scoring(scorer: Scorer, *, maps: bool = True) -> Callable[[Any], object]:
    """The call from images, as its `submit` takes them, to scores (and maps)."""
    return lambda batch: scorer.submit(batch, maps).get()


def random_images(side: int, count: int = 4, batch: int = 1) -> list[NDArray[np.uint8]]:
    """Batches (batch, side, side, 3) of noise."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8) for _ in range(count)]


def latency_ms(engine: Engine, images: NDArray[Any], *, repeats: int = 30,
               warmup: int = 5) -> float:
    """Median milliseconds from pixels to score and map of one image (batch 1).

    images: (N, H, W) or (N, H, W, 3), taken in turn.
    """
    batches = [images[i : i + 1] for i in range(len(images))]
    return in_turn({"": engine.score}, batches, rounds=repeats, warmup=warmup)[""]
