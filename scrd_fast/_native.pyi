from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Float32 = NDArray[np.float32]
# Three feature maps: float32, or uint16 with the bits of bfloat16.
_Features = Sequence[NDArray[np.generic]]
# Map, mean and max; None where it was not asked for.
_Scores = tuple[_Float32 | None, _Float32, _Float32 | None]

class Prior:
    def __init__(
        self,
        size: int,
        sides: Sequence[int],
        projection: _Float32,
        shift: _Float32,
        maps: _Float32,
        level: Sequence[float],
        offset: float,
        foreground: tuple[float, float] | None,
    ) -> None: ...

class Tail:
    def __init__(
        self,
        size: int,
        sides: Sequence[int],
        sigma: float,
        weighted: bool,
        prior: Prior | None = None,
    ) -> None: ...
    def thumbnails(self, inputs: _Float32) -> _Float32: ...
    def anomaly_map(
        self,
        teacher: _Features,
        student: _Features,
        scale_weights: NDArray[np.generic],  # float32
        maps: bool,
        maximum: bool,
        thumbnails: NDArray[np.generic] | None = None,  # float32, with a prior
    ) -> _Scores: ...

class Runner:
    @property
    def buckets(self) -> list[int]: ...

class PythonRunner(Runner):
    def __init__(
        self,
        run: Callable[[_Float32], Sequence[_Float32]],
        size: int,
        buckets: Sequence[int],
    ) -> None: ...

class PendingScores:
    def cancel(self) -> None: ...
    def done(self) -> bool: ...
    def wait(self, seconds: float) -> bool: ...
    def get(
        self,
    ) -> tuple[
        _Float32, _Float32 | None, _Float32, tuple[_Float32, _Float32, _Float32] | None
    ]: ...

class Scorer:
    def __init__(
        self,
        runner: Runner,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        tail: Tail,
        maximum: bool,
    ) -> None: ...
    # An array, or a sequence of arrays.
    def submit(
        self,
        batch: Any,
        maps: bool,
        distances: bool = False,
        most_waiting: int | None = None,
        gather_for: float | None = None,
    ) -> PendingScores: ...
    def waiting(self) -> int: ...
    def executions(self) -> int: ...
    def close(self) -> None: ...

def all_inside(values: NDArray[np.generic], low: float, high: float) -> bool: ...
def add_noise(
    images: NDArray[np.generic],  # float32
    boxes: NDArray[np.int64],
    seeds: NDArray[np.int64],
    strengths: NDArray[np.float64],
    octaves: int,
    persistence: float,
    wavelength: float,
) -> None: ...
def contrastive_gradient(
    clean: Sequence[NDArray[np.generic]],  # (N, size), as _Features
    noisy: Sequence[NDArray[np.generic]],
    student: Sequence[NDArray[np.generic]],
    factors: NDArray[np.generic],  # float64
    gradients: Sequence[NDArray[np.generic]],
) -> None: ...
def contrastive_sums(
    clean: Sequence[NDArray[np.generic]],
    noisy: Sequence[NDArray[np.generic]],
    student: Sequence[NDArray[np.generic]],
) -> NDArray[np.float64]: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def peak_ops(kind: str, seconds: float) -> float: ...
def copy_rate(nbytes: int, seconds: float) -> float: ...
def permutation(seed: int) -> NDArray[np.uint8]: ...
def preprocess(
    images: Any, size: int, mean: Sequence[float], std: Sequence[float], bfloat16: bool
) -> NDArray[Any]: ...
def set_isa(name: str) -> None: ...
def set_threads(threads: int) -> None: ...
def simplex_noise(
    seeds: NDArray[np.int64],
    depth: int,
    height: int,
    width: int,
    octaves: int,
    persistence: float,
    wavelength: float,
) -> _Float32: ...
def threads() -> int: ...
