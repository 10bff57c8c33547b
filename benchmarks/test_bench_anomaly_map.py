"""Features to map and score: the C++ implementation against the published post-processing.

Feature maps of Wide-ResNet-50-2 for 256 x 256 pixels, 2 threads. Maps and scores are held against
each other before anything is timed; the two are timed in turn, in blocks of which the shortest time
counts: on a busy machine a median flatters whichever side waits less for its second thread. How
near that is to the limit is shown by a copy of as many bytes, which stay in the cache as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.judge import judge
from benchmarks.peers import published_map
from benchmarks.timing import clock, record, record_limit, repeat, time_in_turn
from scrd_fast import _native
from scrd_fast.ops.anomaly_map import anomaly_map
from scrd_fast.ops.native_tail import native_tail
from scrd_fast.reference.anomaly_map import AnomalyMap
from scrd_fast.reference.prior import thumbnails
from scrd_fast.spec import ScoringSpec
from scrd_fast.timing.measure import copy_rate
from tests.support.priors import random_prior

SPEC = ScoringSpec()
SHAPES = ((256, 64), (512, 32), (1024, 16))  # channels, side
ONES = torch.ones(8, 3)  # scale weights, which SPEC does not use
ROUNDS = 30
# Faster than the published post-processing by at least this, with AVX2.
WANTED = {"map and score": 25, "score alone": 40}
LARGEST_ERROR = 5e-6


pytestmark = pytest.mark.usefixtures("two_threads")


def features(n: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, c, side, side, generator=generator) for c, side in SHAPES]


def native(
    teacher: Sequence[Tensor], student: Sequence[Tensor], maps: bool = True
) -> AnomalyMap:
    return anomaly_map(teacher, student, ONES[: len(teacher[0])], SPEC, maps=maps, impl="native")


def check_equal(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> None:
    """Map and score of every image are the published ones."""
    ours, score = native(teacher, student), native(teacher, student, maps=False).mean
    assert ours.map is not None
    for i in range(len(score)):
        expected = published_map([t[i : i + 1].float() for t in teacher],
                                 [s[i : i + 1].float() for s in student], SPEC)
        assert np.abs(ours.map[i].numpy() - expected).max() <= LARGEST_ERROR
        assert abs(float(score[i]) - expected.mean()) <= LARGEST_ERROR


def nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("what", WANTED)
def test_against_the_published_post_processing(benchmark: Any, what: str) -> None:
    teacher, student = features(1, 1), features(1, 2)
    check_equal(teacher, student)

    def ours() -> object:
        return native(teacher, student, maps=what == "map and score")

    def theirs() -> object:
        return published_map(teacher, student, SPEC).mean()

    times = time_in_turn([clock(ours), clock(theirs)], ROUNDS, block=10, warm_up=3, pause=0.01,
                         reduce=np.min)
    ratio = record(benchmark, what, "published post-processing", times)
    read = nbytes([*teacher, *student])
    rate = copy_rate(read)
    record_limit(benchmark, "copying as much in the cache", read / rate * 1e3,
                 benchmark.extra_info["ours_ms"])
    repeat(benchmark, ours, ROUNDS)
    judge(benchmark, ratio, WANTED[what], avx2=True)


def test_a_prior_costs_little(benchmark: Any) -> None:
    """A normal map of 16 components, its thumbnails included, beside the same map without."""
    teacher, student = features(8, 1), features(8, 2)
    spec = replace(SPEC, prior=random_prior(16))
    inputs = torch.randn(8, 3, spec.input_size, spec.input_size,
                         generator=torch.Generator().manual_seed(3))
    thumbs = thumbnails(inputs)
    tail = native_tail(spec)
    # What a prior does hangs on no channel: beside a map of few channels its part is seen best, a
    # few percent being less than what neighbours take from a whole one.
    few_teacher, few_student = (
        [f[:, :4].contiguous() for f in both] for both in (teacher, student))
    for maps in (True, False):
        found = anomaly_map(few_teacher, few_student, ONES, spec, thumbnails=thumbs, maps=maps,
                            impl="native")
        exact = anomaly_map([t.double() for t in few_teacher], [s.double() for s in few_student],
                            ONES, spec, thumbnails=thumbs, maps=maps, impl="reference")
        assert float((found.mean - exact.mean).abs().max()) <= LARGEST_ERROR
    assert np.abs(tail.thumbnails(inputs.numpy()) - thumbs.numpy()).max() <= LARGEST_ERROR

    pixels = inputs.numpy()

    def judged() -> object:
        return anomaly_map(few_teacher, few_student, ONES, spec, thumbnails=thumbs,
                           impl="native")

    def least(*calls: Callable[[], object]) -> list[float]:
        times = time_in_turn([clock(call) for call in calls], ROUNDS, block=5, warm_up=3,
                             pause=0.01, reduce=np.min)
        return [float(ms) for ms in times.min(axis=0)]

    with_ms, without_ms = least(judged, partial(native, few_teacher, few_student))
    (map_ms,) = least(partial(native, teacher, student))
    (thumbs_ms,) = least(lambda: tail.thumbnails(pixels))  # warm: the scorer has just written them
    share = (thumbs_ms + with_ms - without_ms) / map_ms
    benchmark.extra_info |= {"thumbnails_ms": thumbs_ms, "prior_ms": with_ms - without_ms,
                             "map_ms": map_ms, "prior_share": share}
    print(f"\na prior takes {share:.1%} of the map's time more"
          f" ({share * map_ms / 8:.3f} and {map_ms / 8:.3f} ms an image)")
    repeat(benchmark, judged, ROUNDS)
    judge(benchmark, 1 + share, 1.05, at_most=True, avx2=True)


def test_dtypes_layouts_batches_and_instruction_sets(benchmark: Any) -> None:
    """Printed only: how the time depends on what is given. NHWC: channels-last memory."""
    def last(given: list[Tensor]) -> list[Tensor]:
        return [f.contiguous(memory_format=torch.channels_last) for f in given]

    def half(given: list[Tensor]) -> list[Tensor]:
        return [f.bfloat16() for f in given]

    one, eight = (features(1, 1), features(1, 2)), (features(8, 3), features(8, 4))
    fastest = _native.isa()
    cases: dict[str, tuple[str, Sequence[Tensor], Sequence[Tensor]]] = {
        **{f"float32 {isa}": (isa, *one) for isa in _native.isas()},
        "float32 NHWC": (fastest, last(one[0]), last(one[1])),
        "float32 NCHW and NHWC": (fastest, one[0], last(one[1])),
        **{f"bfloat16 {isa}": (isa, half(one[0]), half(one[1])) for isa in _native.isas()},
        "bfloat16 NHWC": (fastest, last(half(one[0])), last(half(one[1]))),
        "float32 batch 8": (fastest, *eight),
        "bfloat16 batch 8": (fastest, half(eight[0]), half(eight[1])),
    }
    size = nbytes([*one[0], *one[1]])
    rates = {"copy of as much": copy_rate(size) / 1e9, "copy of 0.5 GB": copy_rate(2**29) / 1e9}
    print("".join(f"\n{name}: {rate:.0f} GB/s" for name, rate in rates.items()))
    for name, (isa, teacher, student) in cases.items():
        _native.set_isa(isa)
        check_equal(teacher, student)
        n = len(teacher[0])
        both, alone = np.median(
            time_in_turn([clock(partial(native, teacher, student, maps)) for maps in (True, False)],
                         ROUNDS, warm_up=1, pause=0.003), axis=0) / n
        read = nbytes([*teacher, *student]) / n / 1e6
        print(f"{name}: map and score {both:.3f} ms an image ({read / both:.0f} GB/s),"
              f" score alone {alone:.3f} ms ({read / alone:.0f} GB/s)")
        benchmark.extra_info[name] = {"map_ms": float(both), "score_ms": float(alone)}
    benchmark.extra_info |= rates
    _native.set_isa(fastest)
    repeat(benchmark, lambda: native(*eight), ROUNDS)
