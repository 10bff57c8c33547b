"""Simplex noise against opensimplex compiled by numba, and whole batches against the reference.

Values are held against each other before anything is timed. The peers are timed in turn, and ratios
are taken round by round. The ratio that is judged has one thread on each side.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import opensimplex.internals
import pytest
import torch

from benchmarks.judge import judge
from benchmarks.timing import clock, record, record_limit, repeat, time_in_turn
from scrd_fast import _native
from scrd_fast.ops.add_noise import add_noise
from scrd_fast.ops.simplex_noise import simplex_noise
from scrd_fast.reference.simplex_noise import Floats

OCTAVES, PERSISTENCE, WAVELENGTH = 6, 0.6, 32.0
SEED = 2024
WANTED = 6.0  # times as fast as numba, on a CPU with AVX-512
# Multiplications and additions for a point and octave: 15 for each of eight lattice points (the
# gradient's product 5, the distance 6, its fourth power and the sum 4), 20 to place it.
OPERATIONS = 8 * 15 + 20


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


@pytest.mark.parametrize(("side", "rounds"), [(256, 15), (31, 300)])
def test_field_against_numba(
    benchmark: Any, one_thread: int, numba_octaves: Callable[[int, int, int], Floats], side: int,
    rounds: int, rates: dict[str, float | None],
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

    ratio = record(benchmark, f"3 x {side} x {side}", "opensimplex by numba", time_in_turn(
        [clock(native), clock(lambda: numba_octaves(*shape))], rounds, warm_up=1))
    ours_ms = benchmark.extra_info["ours_ms"]
    if peak := rates["fp32"]:  # of all threads
        record_limit(benchmark, "arithmetic", OPERATIONS * OCTAVES * np.prod(shape) * 1e3
                     / (peak / one_thread), ours_ms)
    slow = float(np.median(time_in_turn([clock(reference)], 3)))
    _native.set_threads(one_thread)
    parallel = float(np.median(time_in_turn([clock(native)], rounds)))
    _native.set_threads(1)
    benchmark.extra_info |= {
        "reference_ms": slow, "all_threads_ms": parallel, "threads": one_thread,
        "ns_per_point_and_octave": ours_ms * 1e6 / (np.prod(shape) * OCTAVES)}
    print(f"3 x {side} x {side}: {one_thread} threads {parallel:.3f} ms, NumPy {slow:.1f} ms")
    repeat(benchmark, native, rounds)
    judge(benchmark, ratio, WANTED)


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
    times = time_in_turn([clock(lambda: noisy("native")), clock(lambda: noisy("reference"))], 20,
                         warm_up=1)
    ratio = record(benchmark, "into 16 images", "NumPy reference", times)
    copy = float(np.median(time_in_turn([clock(images.clone)], 20)))
    _native.set_threads(one_thread)
    parallel = float(np.median(time_in_turn([clock(lambda: noisy("native"))], 20)))
    _native.set_threads(1)
    benchmark.extra_info |= {"copy_ms": copy, "all_threads_ms": parallel, "threads": one_thread}
    print(f"{copy:.2f} ms of them the copy of the images; {one_thread} threads {parallel:.2f} ms")
    repeat(benchmark, lambda: noisy("native"), 20)
    judge(benchmark, ratio, None)
