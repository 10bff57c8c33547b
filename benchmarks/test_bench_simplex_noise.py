"""Simplex noise against opensimplex compiled by numba, and whole batches against the reference.

Values are held against each other before anything is timed. The peers are timed in turn
(A B A B), so that a busy machine hurts all of them, and ratios are taken round by round. The ratio
that is asserted has one thread on each side.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import opensimplex.internals
import pytest
import torch

from benchmarks.judge import judge
from scrd_fast import _native
from scrd_fast.ops.add_noise import add_noise
from scrd_fast.ops.simplex_noise import Floats, simplex_noise

OCTAVES, PERSISTENCE, WAVELENGTH = 6, 0.6, 32.0
SEED = 2024
WANTED = 6.0  # times as fast as numba, on a CPU with AVX-512


@pytest.fixture
def one_thread() -> Iterator[int]:
    """One thread during the test; the value is the number of threads otherwise."""
    before = _native.threads()
    _native.set_threads(1)
    yield before
    _native.set_threads(before)


@pytest.fixture
def numba_octaves() -> Iterator[Callable[[int, int, int], Floats]]:
    """(depth, height, width) -> the octave sum of opensimplex's own grids, by numba in one thread.

    A loop over points that sums the octaves of each is slower: its branches are harder to predict.
    """
    numba = pytest.importorskip("numba", reason="numba is not installed (extra `bench`)")
    tables = opensimplex.internals._init(SEED)

    def field(depth: int, height: int, width: int) -> Floats:
        total = np.zeros((depth, height, width))
        for octave in range(OCTAVES):
            f = 2.0**octave / WAVELENGTH
            axes = (np.arange(n) * f for n in (width, height, depth))
            total += PERSISTENCE**octave * opensimplex.internals._noise3a(*axes, *tables)
        return total

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield field
    numba.set_num_threads(before)


def in_turn(rounds: int, *calls: Callable[[], object]) -> np.ndarray:
    """(rounds, calls) milliseconds."""
    times = np.empty((rounds + 2, len(calls)))
    for row in times:
        for k, call in enumerate(calls):
            start = time.perf_counter()
            call()
            row[k] = (time.perf_counter() - start) * 1e3
    return times[2:]


@pytest.mark.parametrize(("side", "rounds"), [(256, 15), (31, 300)])
def test_field_against_numba(
    benchmark: Any, one_thread: int, numba_octaves: Callable[[int, int, int], Floats], side: int,
    rounds: int,
) -> None:
    shape = (3, side, side)

    def native() -> np.ndarray:
        return simplex_noise(*shape, seeds=[SEED], octaves=OCTAVES, persistence=PERSISTENCE,
                             wavelength=WAVELENGTH, impl="native")

    def reference() -> np.ndarray:
        return simplex_noise(*shape, seeds=[SEED], octaves=OCTAVES, persistence=PERSISTENCE,
                             wavelength=WAVELENGTH, impl="reference")

    expected = numba_octaves(*shape)
    assert np.abs(native()[0] - expected).max() <= 1e-5
    assert np.abs(reference()[0] - expected).max() <= 1e-6

    times = in_turn(rounds, native, lambda: numba_octaves(*shape))
    ratios = times[:, 1] / times[:, 0]
    ours, theirs = np.median(times, axis=0)
    slow = float(np.median(in_turn(3, reference)))
    _native.set_threads(one_thread)
    parallel = float(np.median(in_turn(rounds, native)))
    _native.set_threads(1)
    per_point = ours * 1e6 / (np.prod(shape) * OCTAVES)
    benchmark.extra_info.update(
        native_ms=float(ours), numba_ms=float(theirs), reference_ms=slow,
        native_all_threads_ms=parallel, threads=one_thread, ns_per_point_and_octave=per_point,
        ratio_median=float(np.median(ratios)),
        ratio_min_max=[float(ratios.min()), float(ratios.max())])
    print(f"\n3 x {side} x {side}: native {ours:.3f} ms ({per_point:.2f} ns per point and octave),"
          f" numba {theirs:.2f} ms, {np.median(ratios):.1f} times as fast ({ratios.min():.1f} to"
          f" {ratios.max():.1f}); {one_thread} threads {parallel:.3f} ms, NumPy {slow:.1f} ms")
    benchmark.pedantic(native, rounds=rounds, warmup_rounds=2)
    judge(benchmark, float(np.median(ratios)), WANTED)


def test_batch_against_reference(benchmark: Any, one_thread: int) -> None:
    """16 images of 3 x 256 x 256 with boxes of sides 10 to 31, as in training."""
    rng = np.random.default_rng(0)
    images = torch.rand(16, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    sides = rng.integers(10, 32, (16, 2))
    boxes = np.concatenate([rng.integers(0, 256 - sides), sides], axis=1)
    seeds = rng.integers(2**62, size=16)

    def noisy(impl: str) -> torch.Tensor:
        return add_noise(images, boxes, seeds=seeds, strength=0.2, impl=impl)

    assert float((noisy("native") - noisy("reference")).abs().max()) <= 1e-5
    times = in_turn(20, lambda: noisy("native"), lambda: noisy("reference"), images.clone)
    ratios = times[:, 1] / times[:, 0]
    ours, theirs, copy = np.median(times, axis=0)
    _native.set_threads(one_thread)
    parallel = float(np.median(in_turn(20, lambda: noisy("native"))))
    _native.set_threads(1)
    benchmark.extra_info.update(
        native_ms=float(ours), reference_ms=float(theirs), copy_ms=float(copy),
        native_all_threads_ms=parallel, threads=one_thread, ratio_median=float(np.median(ratios)),
        ratio_min_max=[float(ratios.min()), float(ratios.max())])
    print(f"\n16 x 3 x 256 x 256, boxes of 10 to 31: native {ours:.2f} ms ({copy:.2f} of them the"
          f" copy of the images), NumPy {theirs:.1f} ms, {np.median(ratios):.0f} times as fast"
          f" ({ratios.min():.0f} to {ratios.max():.0f}); {one_thread} threads {parallel:.2f} ms")
    benchmark.pedantic(noisy, args=("native",), rounds=20, warmup_rounds=2)
