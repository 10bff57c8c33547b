"""A compiled network as every backend makes it, and the scorer that drives it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scrd_fast import _native
from scrd_fast.errors import BackendUnavailable
from scrd_fast.files import Contents
from scrd_fast.ops.image_arrays import as_arrays
from scrd_fast.ops.native_tail import native_tail
from scrd_fast.spec import ScoringSpec

Distances = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
Scores = tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.float32],
               Distances | None]


class PendingScores(Protocol):
    """Scores that are on their way."""

    def done(self) -> bool: ...

    def cancel(self) -> None:
        """Drop the batch where it still waits: `get` then raises CancelledError."""

    def wait(self, seconds: float) -> bool:
        """Wait this long at most; whether it is done."""

    def get(self) -> Scores:
        """(scores (N,), maps (N, S, S) or None, scale weights (N, 3), the three distances (N, h, w)
        that maps are made of or None), once; waits for them."""


class Scorer(Protocol):
    """Images in, scores and maps out: _native.Scorer on CPUs, backends.cuda.CudaScorer on GPUs."""

    def submit(self, batch: Any, maps: bool, distances: bool = False,
               most_waiting: int | None = None, gather_for: float | None = None) -> PendingScores:
        """Begin, on the terms of `Engine.submit`; a scorer on a GPU does not give distances."""

    def waiting(self) -> int:
        """Images that wait for the network."""

    def executions(self) -> int:
        """Batches that were given to the network so far."""

    def close(self) -> None:
        """Finish what was submitted, then let go of the network."""


@dataclass(frozen=True)
class Runner:
    """A compiled network.

    buckets: batch sizes it is compiled for. scorer: makes the scorer that owns it from now on;
    close it before the interpreter ends. inputs: turns images into what the scorer takes, given
    the argument's name. precision_used: the precision each layer group really computes in.
    compiled: the backend's members of the engine file, by name (see CompileRequest). layers: name,
    precision and milliseconds of each compiled layer, where the runtime tells.
    """

    name: str
    version: str
    buckets: tuple[int, ...]
    scorer: Callable[[], Scorer]
    inputs: Callable[[Any, str], Any]
    precision_used: Callable[[], dict[str, Any]]
    compiled: Mapping[str, Contents] = field(default_factory=dict)
    layers: Callable[[], list[dict[str, Any]]] | None = None


def native_runner(
    name: str, version: str, native: _native.Runner, spec: ScoringSpec,
    precision_used: Callable[[], dict[str, Any]],
) -> Runner:
    """A runner that the C++ scorer drives: normalised pixels in, distances and weights out."""

    def scorer() -> _native.Scorer:
        return _native.Scorer(native, spec.input_size, spec.mean, spec.std, native_tail(spec),
                              spec.reduction == "max")

    return Runner(name, version, tuple(native.buckets), scorer, as_arrays, precision_used)


def one_stream(backend: str, mode: str) -> None:
    """Raise unless a backend that has one stream is asked for no more."""
    if mode != "latency":
        raise BackendUnavailable(
            f"mode {mode!r}: expected 'latency' with backend {backend!r}, which has one stream"
        )
