"""Images to network input: native against OpenCV's float resize and against the torch reference.

256 x 256 out, two threads each. The results are held against each other before anything is timed;
the two are timed in turn (A B A B), so that a busy machine hurts both, and the ratio is taken pair
by pair. OpenCV's resize of uint8 is printed beside it: it rounds to whole grey levels, so what it
computes is not the same.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.judge import judge
from scrd_fast import _native
from scrd_fast.ops.preprocess import preprocess
from scrd_fast.spec import ScoringSpec

PAIRS = 60
SPEC = ScoringSpec()
SIDE = (SPEC.input_size, SPEC.input_size)
MEAN, STD = np.array(SPEC.mean, np.float32), np.array(SPEC.std, np.float32)
WANTED = 3.0  # times as fast as OpenCV's float path, on a CPU with AVX-512

IMAGES = {
    "uint8 1024 colour": ((1024, 1024, 3), np.uint8),
    "uint8 512 colour": ((512, 512, 3), np.uint8),
    "uint8 256 colour": ((256, 256, 3), np.uint8),
    "uint8 100 colour": ((100, 100, 3), np.uint8),
    "uint16 512 grey": ((512, 512), np.uint16),
    "uint16 256 grey": ((256, 256), np.uint16),
    "float32 512 colour": ((512, 512, 3), np.float32),
    "float32 256 grey": ((256, 256), np.float32),
}


def random_image(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    return rng.random(shape).astype(dtype)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = _native.threads(), cv2.getNumThreads(), torch.get_num_threads()
    _native.set_threads(2)
    cv2.setNumThreads(2)
    torch.set_num_threads(2)
    yield
    _native.set_threads(before[0])
    cv2.setNumThreads(before[1])
    torch.set_num_threads(before[2])


def channels_first(pixels: NDArray[Any]) -> NDArray[np.float32]:
    pixels -= MEAN
    pixels /= STD
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def in_turn(calls: list[Callable[[], object]]) -> list[NDArray[np.float64]]:
    """The milliseconds of each call, PAIRS times after three that do not count."""
    times = np.empty((3 + PAIRS, len(calls)))
    for row in times:
        for k, call in enumerate(calls):
            start = time.perf_counter()
            call()
            row[k] = (time.perf_counter() - start) * 1e3
    return list(times[3:].T)


def record(benchmark: Any, name: str, ours: NDArray[np.float64], peer: str,
           theirs: NDArray[np.float64]) -> float:
    """Prints and notes the two medians; returns the median ratio."""
    ratios = theirs / ours
    benchmark.extra_info[f"{peer}_ms"] = float(np.median(theirs))
    benchmark.extra_info[f"{peer}_ratio_median"] = float(np.median(ratios))
    benchmark.extra_info[f"{peer}_ratio_min_max"] = [float(ratios.min()), float(ratios.max())]
    print(f"\n{name}: native {np.median(ours):.3f} ms, {peer} {np.median(theirs):.3f} ms,"
          f" {np.median(ratios):.1f} times as fast ({ratios.min():.1f} to {ratios.max():.1f})")
    return float(np.median(ratios))


def test_against_opencv(benchmark: Any) -> None:
    image = random_image((1024, 1024, 3), np.uint8)
    as_float = np.empty(image.shape, np.float32)  # kept: no allocation counts against OpenCV

    def native() -> NDArray[np.float32]:
        return preprocess(image[None], SPEC, impl="native")[0].numpy()

    def opencv_float() -> NDArray[np.float32]:
        np.copyto(as_float, image)
        np.multiply(as_float, np.float32(1 / 255), out=as_float)
        return channels_first(cv2.resize(as_float, SIDE, interpolation=cv2.INTER_LINEAR))

    def opencv_uint8() -> NDArray[np.float32]:
        small = cv2.resize(image, SIDE, interpolation=cv2.INTER_LINEAR)
        return channels_first(small.astype(np.float32) * np.float32(1 / 255))

    assert np.abs(native() - opencv_float()).max() <= 1e-5
    ours, theirs = in_turn([native, opencv_float])
    ratio = record(benchmark, "uint8 1024 colour", ours, "OpenCV float", theirs)
    rounded, theirs = in_turn([native, opencv_uint8])
    record(benchmark, "uint8 1024 colour", rounded, "OpenCV uint8 (rounds)", theirs)
    benchmark.pedantic(native, rounds=PAIRS, warmup_rounds=3)
    judge(benchmark, ratio, WANTED)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in IMAGES), ("uint8 256 colour", torch.bfloat16)], ids=str)
def test_against_the_reference(benchmark: Any, name: str, dtype: torch.dtype) -> None:
    image = random_image(*IMAGES[name])[None]

    def native() -> torch.Tensor:
        return preprocess(image, SPEC, impl="native", dtype=dtype)

    def reference() -> torch.Tensor:
        return preprocess(image, SPEC, impl="reference", dtype=dtype)

    # A value next to a rounding border may fall to either side: 2^-6 apart from 2 to 4.
    allowed = 1e-5 if dtype == torch.float32 else 2**-6
    assert (native() - reference()).abs().max() <= allowed
    ours, theirs = in_turn([native, reference])
    ratio = record(benchmark, f"{name}, {dtype}", ours, "reference", theirs)
    benchmark.pedantic(native, rounds=PAIRS, warmup_rounds=3)
    if "avx512" in _native.isas():
        assert ratio >= 1
