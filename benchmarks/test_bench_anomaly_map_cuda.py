"""Features to map and score on a GPU: the Triton kernels against the published post-processing.

Feature maps of Wide-ResNet-50-2 for 256 x 256 pixels, float16, channels-last, 64 images. Both sides
are captured as CUDA graphs and timed in turn; their maps are held against each other before. How
near the time is to the memory's is shown by the bytes that must be read and written, beside a copy.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.judge import judge
from benchmarks.peers import PublishedTail
from benchmarks.timing import record, record_limit
from scrd_fast.spec import ScoringSpec
from tests.support.gpu import ON_GPU

SPEC = ScoringSpec()
SHAPES = ((256, 64), (512, 32), (1024, 16))  # channels, side
LARGEST_ERROR = 5e-6
WANTED_SHARE, WANTED_RATIO = 0.8, 20.0  # of the copy's rate; against the published one

pytestmark = ON_GPU


def features(n: int, seed: int, dtype: torch.dtype, last: bool = True) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    maps = [torch.randn(n, c, side, side, generator=generator, device="cuda").to(dtype)
            for c, side in SHAPES]
    return [f.contiguous(memory_format=torch.channels_last) if last else f for f in maps]


class Ours:
    """Features -> map, mean and maximum; or the mean alone."""

    def __init__(self, teacher: list[Tensor], student: list[Tensor], maps: bool = True) -> None:
        from scrd_fast.kernels.anomaly_map import tail

        self.teacher, self.student, self.maps = teacher, student, maps
        self.weights = torch.ones(len(teacher[0]), 3, device="cuda")
        self.tail = tail(SPEC, (64, 32, 16), teacher[0].device)

    def __call__(self) -> tuple[Tensor | None, Tensor, Tensor | None]:
        from scrd_fast.kernels.anomaly_map import combine_distances, cosine_distances

        distances = cosine_distances(self.teacher, self.student)
        return combine_distances(distances, self.weights, self.tail, maps=self.maps)


def gigabytes(tensors: list[Tensor], maps: int) -> float:
    """Of features read once and maps written once."""
    return (sum(t.nbytes for t in tensors) + 4 * maps * SPEC.input_size**2) / 1e9


@pytest.fixture(scope="module")
def copied() -> float:
    from benchmarks.cuda_timing import copy_rate

    return copy_rate()


def test_against_the_memory(benchmark: Any, copied: float) -> None:
    from benchmarks.cuda_timing import captured, time_in_turn

    teacher, student = features(64, 1, torch.float16), features(64, 2, torch.float16)
    both, alone = (captured(Ours(teacher, student, maps)) for maps in (True, False))
    both_ms, alone_ms = np.median(time_in_turn([both, alone]), axis=0)
    rate = gigabytes([*teacher, *student], 64) / (both_ms / 1e3)
    of_score = gigabytes([*teacher, *student], 0) / (alone_ms / 1e3)
    record_limit(benchmark, "copying 1 GB", both_ms * rate / copied, both_ms)
    print(f"\nmap and score of 64 images: {both_ms:.3f} ms, {rate:.0f} GB/s; score alone"
          f" {alone_ms:.3f} ms, {of_score:.0f} GB/s; a copy moves {copied:.0f} GB/s")
    benchmark.extra_info |= {"map_ms": float(both_ms), "score_ms": float(alone_ms),
                             "gb_s": rate, "score_gb_s": of_score, "copy_gb_s": copied}
    benchmark.pedantic(both, rounds=20)
    judge(benchmark, rate / copied, WANTED_SHARE, gpu=True)


def test_against_the_published_post_processing(benchmark: Any) -> None:
    from benchmarks.cuda_timing import captured, time_in_turn
    from scrd_fast.torch_state import exact_convolutions

    teacher, student = features(64, 1, torch.float16), features(64, 2, torch.float16)
    ours, tail = Ours(teacher, student), PublishedTail(SPEC, torch.device("cuda"))

    def theirs() -> tuple[Tensor, Tensor]:
        maps = tail(teacher, student)
        return maps, maps.mean(dim=(1, 2))

    with exact_convolutions:  # they are timed as PyTorch has them by default, in TF32
        (our_maps, our_scores, _), (maps, scores) = ours(), theirs()
    assert our_maps is not None
    assert float((our_maps - maps).abs().max()) <= LARGEST_ERROR
    assert float((our_scores - scores).abs().max()) <= LARGEST_ERROR
    times = time_in_turn([captured(ours), captured(theirs)])
    ratio = record(benchmark, "64 images", "published post-processing there", times)
    benchmark.pedantic(captured(ours), rounds=20)
    judge(benchmark, ratio, WANTED_RATIO, gpu=True)


def test_dtypes_layouts_and_batches(benchmark: Any, copied: float) -> None:
    """Printed only: how the time depends on what is given."""
    from benchmarks.cuda_timing import captured, time_in_turn

    cases = {(dtype, last, n): captured(Ours(features(n, 1, dtype, last),
                                             features(n, 2, dtype, last)))
             for dtype in (torch.float16, torch.bfloat16, torch.float32)
             for last in (True, False) for n in (1, 8, 64)}
    for (dtype, last, n), ms in zip(cases, np.median(time_in_turn(list(cases.values()), rounds=5),
                                                     axis=0), strict=True):
        read = 2 * n * sum(c * side**2 for c, side in SHAPES) * dtype.itemsize
        rate = (read + 4 * n * SPEC.input_size**2) / 1e6 / ms
        name = f"{str(dtype).removeprefix('torch.')} {'NHWC' if last else 'NCHW'} batch {n}"
        print(f"\n{name}: {ms * 1e3:.1f} us, {rate:.0f} GB/s of {copied:.0f}", end="")
        benchmark.extra_info[name] = float(ms)
    benchmark.pedantic(cases[torch.float16, True, 1], rounds=20)
