"""Images to network input: native against OpenCV's float resize and against the torch reference.

256 x 256 out, two threads each. The results are held against each other before anything is timed;
the two are timed in turn, and the ratio is taken pair by pair. OpenCV's resize of uint8 rounds to
whole grey levels, so what it computes is not the same.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.judge import judge
from benchmarks.timing import clock, record, record_limit, repeat, time_in_turn
from scrd_fast.ops.preprocess import preprocess
from scrd_fast.spec import ScoringSpec
from scrd_fast.timing.measure import copy_rate

PAIRS = 60
SPEC = ScoringSpec()
SIDE = (SPEC.input_size, SPEC.input_size)
MEAN, STD = np.array(SPEC.mean, np.float32), np.array(SPEC.std, np.float32)
WANTED = 3.0  # times as fast as OpenCV's float path, on a CPU with AVX2

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


pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(autouse=True)
def two_opencv_threads() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    yield
    cv2.setNumThreads(before)


def channels_first(pixels: NDArray[Any]) -> NDArray[np.float32]:
    pixels -= MEAN
    pixels /= STD
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def limit(benchmark: Any, image: NDArray[Any], result: torch.Tensor) -> None:
    """Reading the image and writing the result, at the rate of a copy of as much."""
    moved = image.nbytes + result.nbytes
    record_limit(benchmark, "copying as much in the cache", moved / copy_rate(moved) * 1e3,
                 benchmark.extra_info["ours_ms"])


@pytest.mark.parametrize(("peer", "wanted"), [("float", WANTED), ("uint8, which rounds", None)])
def test_against_opencv(benchmark: Any, peer: str, wanted: float | None) -> None:
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
    theirs = opencv_float if peer == "float" else opencv_uint8
    times = time_in_turn([clock(native), clock(theirs)], PAIRS, warm_up=1)
    ratio = record(benchmark, "uint8 1024 colour", f"OpenCV {peer}", times)
    limit(benchmark, image, preprocess(image[None], SPEC))
    repeat(benchmark, native, PAIRS)
    judge(benchmark, ratio, wanted, avx2=True)


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
    times = time_in_turn([clock(native), clock(reference)], PAIRS, warm_up=1)
    to = "" if dtype == torch.float32 else " to bfloat16"
    ratio = record(benchmark, f"{name}{to}", "reference", times)
    limit(benchmark, image, native())
    repeat(benchmark, native, PAIRS)
    judge(benchmark, ratio, 1, avx2=True)
