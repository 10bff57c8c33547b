"""Timing on a GPU: captured calls in turn, by the device's own clock; and what a copy reaches."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The call as one CUDA graph: what the GPU takes for it, without Python's launches. What the
    call holds lives as long as the graph, which reads it."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kept = call()

    def replay() -> None:
        graph.replay()

    replay.keeps = call, kept  # type: ignore[attr-defined]
    return replay


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Of one call, by events around `repeats` of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def time_in_turn(calls: Sequence[Callable[[], object]], *, rounds: int = 20,
                 repeats: int = 10) -> NDArray[np.float64]:
    """(rounds, calls) milliseconds: A B A B, after one round that is not counted."""
    return np.array([[milliseconds(call, repeats) for call in calls]
                     for _ in range(1 + rounds)])[1:]


def copy_rate() -> float:
    """GB/s of a copy of 1 GB on the device, read and written bytes counted."""
    source = torch.ones(2**28, device="cuda")
    target = torch.empty_like(source)
    times = [milliseconds(lambda: target.copy_(source), 5) for _ in range(10)]
    return 2 * source.nbytes / 1e6 / float(np.median(times))
