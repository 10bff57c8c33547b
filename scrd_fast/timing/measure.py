"""Timing engines: the one place that does."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast import _native
from scrd_fast.backends.runner import Scorer
from scrd_fast.engine.engine import Engine


def time_in_turn(
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


def percentiles(ms: NDArray[np.float64]) -> dict[str, float]:
    """p50_ms, p90_ms and p99_ms of times."""
    values = np.percentile(ms, (50, 90, 99))
    return {f"p{p}_ms": float(value) for p, value in zip((50, 90, 99), values, strict=True)}


def repeated(
    call: Callable[[Any], object], batches: Sequence[Any], *, seconds: float, warmup: int = 5,
    least: int = 10,
) -> NDArray[np.float64]:
    """Milliseconds of calls for so many seconds, `least` calls at least, one batch after the
    other."""
    times: list[float] = []
    for i in range(warmup):
        call(batches[i % len(batches)])
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call(batches[len(times) % len(batches)])
        times.append((time.perf_counter() - start) * 1e3)
    return np.array(times)


LARGEST_COPY = 2.0**29  # bytes, far beyond any cache


def cpu_limits(nbytes: float = LARGEST_COPY) -> dict[str, float | None]:
    """What this CPU can do at most, measured with as many threads as operations use: operations
    per second in "fp32", "bf16" and "int8" on registers, None where they are not known (see
    csrc/include/scrd/peak.hpp), and "copy", bytes read and written per second where as many as
    `nbytes` are.

    The best of several tries in turn: whatever else the machine does only makes them less.
    """
    kinds = ("fp32", "bf16", "int8")
    tries = [{kind: _native.peak_ops(kind, 0.05) for kind in kinds} for _ in range(5)]
    best: dict[str, float | None] = {kind: max(t[kind] for t in tries) or None for kind in kinds}
    return best | {"copy": copy_rate(nbytes)}


def copy_rate(nbytes: float) -> float:
    """Bytes read and written per second by copying, where as many as `nbytes` are: the shortest of
    many times."""
    return _native.copy_rate(max(1, int(nbytes) // 2), 0.2)


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
    return time_in_turn({"": engine.score}, batches, rounds=repeats, warmup=warmup)[""]
