"""Networks whose scores are known, and the native scorer in front of them."""

import numpy as np

from scrd_fast import _native
from scrd_fast.ops.anomaly_map import native_tail
from scrd_fast.spec import ScoringSpec

SPEC = ScoringSpec(input_size=32, blur_sigma=2.0)


class Network:
    """In place of a network: distances from the first pixel, and whatever `then` does to them."""

    def __init__(self, then=lambda outputs: outputs) -> None:
        self.then = then
        self.calls = 0

    def __call__(self, pixels):
        self.calls += 1
        n = len(pixels)
        distances = [np.broadcast_to(pixels[:, :1, 0, 0, None], (n, side, side)).copy()
                     for side in (8, 4, 2)]
        return self.then([*distances, np.full((n, 3), 1 / 3, np.float32)])


def scorer_of(network, buckets=(1, 2)):
    return _native.Scorer(_native.PythonRunner(network, 32, list(buckets)), 32, (0.0,) * 3,
                          (1.0,) * 3, native_tail(SPEC), False)


def grey(*levels: float) -> np.ndarray:
    return np.stack([np.full((32, 32), level, np.float32) for level in levels])
