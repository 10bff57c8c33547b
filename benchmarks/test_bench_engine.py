"""The whole path, uint8 pixels to score and map, against peers in the same run.

The peers are what a user would run instead: the published loop, PyTorch eager and compiled,
onnxruntime, the best plain OpenVINO graph (which is given ready-made floats) and, where it is
installed, anomalib, whose network is another one. Wide-ResNet-50-2, 256 x 256, batch 1, each scorer
in a process of its own. The scores and maps are held against each other before anything is timed;
the two are timed in turn, in short blocks, so that a busy machine hurts both, and the ratio is
taken pair by pair.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.anomalib_peer import missing as anomalib_missing
from benchmarks.judge import LOOP_WANTED, PEERS_WANTED, judge
from benchmarks.models import engine_file, pictures, untrained
from benchmarks.peers import PlainOpenVino
from benchmarks.size import BACKBONE, QUICK, SIDE, turns
from benchmarks.timing import record, record_limit, repeat, time_in_turn
from benchmarks.worker import Worker, assert_equal
from scrd_fast.backends.registry import native_precisions
from scrd_fast.engine.engine_file import read_engine_file
from scrd_fast.machine import cpu_flags, pytorch_has_bf16
from scrd_fast.ops.preprocess import preprocess
from scrd_fast.spec import ScoringSpec
from scrd_fast.timing.bench import limit_of
from scrd_fast.timing.measure import cpu_limits

PAIRS = 12
INT8_WANTED = 1.5  # times as fast as bf16
# Share of the arithmetic peak that was measured in the same run; tiles (AMX) have more of it than
# memory feeds.
PEAK_WANTED = {"bf16": 0.4 if "amx_tile" in cpu_flags() else 0.75}
# Not slower than the best plain graph, which does not even pre-process; 2 % is noise.
PLAIN_WANTED = 0.98
Limits = dict[str, float | None]


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return pictures(SIDE)


@pytest.fixture(scope="module")
def published(checkpoint: Path) -> Iterator[Worker]:
    with Worker("published loop", checkpoint) as worker:
        yield worker


@pytest.fixture(scope="module", params=list(LOOP_WANTED))
def engine(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[tuple[str, Worker]]:
    """Precision and worker of our engine."""
    if request.param not in native_precisions("openvino"):
        pytest.skip(f"this CPU does not compute in {request.param} natively")
    with Worker("engine", engine_file(checkpoint, request.param)) as worker:
        yield request.param, worker


@pytest.fixture(scope="module")
def best(checkpoint: Path) -> Iterator[tuple[str, Worker]]:
    """The same of the fastest precision that this CPU has; its fidelity was judged when it was
    built."""
    precision = native_precisions("openvino")[0]
    with Worker("engine", engine_file(checkpoint, precision)) as worker:
        yield precision, worker


def compared(
    benchmark: Any, what: str, ours: Worker, theirs: Worker, images: list[NDArray[Any]],
    their_images: list[NDArray[Any]] | None = None, *, peer: str = "", pairs: int = PAIRS,
    block: int = 4,
) -> float:
    """How many times as fast ours is, image by image; noted in the stored result."""
    times = time_in_turn([ours.timed(images), theirs.timed(their_images or images)], pairs,
                         block=block, warm_up=1)
    ratio = record(benchmark, what, peer or theirs.kind, times)
    repeat(benchmark, lambda: ours.score(images[0]), PAIRS)
    return ratio


def share(benchmark: Any, path: Path, rates: Limits) -> None:
    """Of the network's arithmetic at this CPU's peak, in the time that was noted."""
    if limit := limit_of(read_engine_file(path)[0], rates):
        record_limit(benchmark, limit.bound, limit.ms(), benchmark.extra_info["ours_ms"])


def test_engine_against_published_loop(
    benchmark: Any, engine: tuple[str, Worker], published: Worker, checkpoint: Path,
    images: NDArray[np.uint8], rates: Limits,
) -> None:
    precision, worker = engine
    for image in images:
        assert_equal(worker.score(image[None]), published.score(image[None]), precision)
    ratio = compared(benchmark, precision, worker, published, [image[None] for image in images])
    share(benchmark, engine_file(checkpoint, precision), rates)
    judge(benchmark, ratio, LOOP_WANTED[precision])


@pytest.mark.parametrize("peer", PEERS_WANTED)
def test_best_precision_against_peers(
    benchmark: Any, best: tuple[str, Worker], checkpoint: Path, images: NDArray[np.uint8],
    peer: str, rates: Limits,
) -> None:
    other_model = peer.startswith("anomalib")
    if other_model and (reason := anomalib_missing()):
        pytest.skip(reason)
    if peer.endswith("bf16") and not pytorch_has_bf16():  # it takes 12 s an image with AVX2
        pytest.skip("PyTorch only imitates bf16 on this CPU, which nobody would run")
    precision, ours = best
    with Worker(peer, checkpoint) as theirs:
        for image in images:
            answer, other = ours.score(image[None]), theirs.score(image[None])
            if other_model:
                assert other.maps.shape == answer.maps.shape
                assert np.isfinite(other.maps).all()
            else:
                assert_equal(answer, other, precision)
        ratio = compared(benchmark, precision, ours, theirs, [image[None] for image in images])
    benchmark.extra_info["other_model"] = other_model
    share(benchmark, engine_file(checkpoint, precision), rates)
    judge(benchmark, ratio, PEERS_WANTED[peer])


def test_share_of_the_peak(
    benchmark: Any, engine: tuple[str, Worker], checkpoint: Path, images: NDArray[np.uint8],
) -> None:
    """The time that the network's arithmetic takes at the CPU's peak, over the engine's."""
    precision, worker = engine
    singles = [image[None] for image in images]
    score = worker.timed(singles)
    found, times = [], []
    for _ in range(turns(4)):  # one after the other
        found.append(cpu_limits())
        times += [score() * 1e3 for _ in images][1:]
    rates = {kind: max(r[kind] or 0.0 for r in found) or None for kind in found[0]}
    limit = limit_of(read_engine_file(engine_file(checkpoint, precision))[0], rates)
    if limit is None:
        pytest.skip(f"the arithmetic peak of this CPU in {precision} is not known")
    ours_ms = float(np.median(times))
    benchmark.extra_info |= {
        "rates": rates, "operations": limit.operations, "weight_bytes": limit.weight_bytes,
        "what": precision, "peer": "the CPU's peak", "peer_ms": limit.arithmetic_ms,
        "ours_ms": ours_ms}
    print("\n" + ", ".join(f"{k} {v / 1e9:.0f} G/s" for k, v in rates.items() if v))
    reached = record_limit(benchmark, "arithmetic", limit.arithmetic_ms, ours_ms)
    repeat(benchmark, lambda: worker.score(singles[0]), PAIRS)
    judge(benchmark, reached, PEAK_WANTED.get(precision))


@pytest.mark.parametrize(
    ("backbone", "side"), [(BACKBONE, SIDE)] if QUICK else [(BACKBONE, SIDE), ("resnet18", 128)])
def test_int8_against_bf16(
    benchmark: Any, folder: Path, backbone: str, side: int, rates: Limits,
) -> None:
    if native_precisions("openvino")[:2] != ["int8", "bf16"]:
        pytest.skip("this CPU does not compute in int8 and bf16 natively")
    checkpoint = untrained(backbone, side, folder)
    images = [image[None] for image in pictures(side)]
    path = engine_file(checkpoint, "int8")
    with Worker("engine", path) as int8, Worker("engine", engine_file(checkpoint, "bf16")) as bf16:
        for image in images:
            assert_equal(int8.score(image), bf16.score(image), "int8")
        ratio = compared(benchmark, f"int8, {backbone}, {side} px", int8, bf16, images,
                         peer="our bf16 engine", block=4 if side == SIDE else 39)
    share(benchmark, path, rates)
    judge(benchmark, ratio, INT8_WANTED)


@pytest.mark.parametrize(
    ("backbone", "side"), [(BACKBONE, SIDE)] if QUICK else [(BACKBONE, SIDE), ("resnet18", 128)])
def test_slim_student_against_the_full_one(
    benchmark: Any, folder: Path, backbone: str, side: int, rates: Limits,
) -> None:
    """Two networks of one teacher; their scores have nothing to do with each other."""
    full, slim = (engine_file(untrained(backbone, side, folder, student), "fp32")
                  for student in ("full", "slim"))
    images = [image[None] for image in pictures(side)]
    with Worker("engine", slim) as ours, Worker("engine", full) as theirs:
        ratio = compared(benchmark, f"fp32, slim student, {backbone}, {side} px", ours, theirs,
                         images, peer="our engine, full student", block=4 if side == SIDE else 39)
    share(benchmark, slim, rates)
    judge(benchmark, ratio, None)


def test_engine_against_plain_openvino(
    benchmark: Any, engine: tuple[str, Worker], checkpoint: Path, images: NDArray[np.uint8],
    rates: Limits,
) -> None:
    """Against the fastest of three plain graphs, found in the same run."""
    precision, worker = engine
    if precision == "int8":
        pytest.skip("a plain graph of OpenVINO is not quantised")
    spec = ScoringSpec(input_size=SIDE)
    floats = [preprocess(image[None], spec).numpy() for image in images]
    fastest, best_ms = "", np.inf
    for variant in PlainOpenVino.VARIANTS:
        with Worker(f"{variant} {precision}", checkpoint) as peer:
            for image, pixels in zip(images, floats, strict=True):
                assert_equal(worker.score(image[None]), peer.score(pixels), precision, plain=True)
            ms = float(np.median([peer.score(floats[0]).seconds for _ in range(7)]) * 1e3)
        if ms < best_ms:
            fastest, best_ms = variant, ms
    with Worker(f"{fastest} {precision}", checkpoint) as plain:
        ratio = compared(benchmark, precision, worker, plain, [image[None] for image in images],
                         floats, peer=f"plain OpenVINO ({fastest})", pairs=2 * PAIRS)
    share(benchmark, engine_file(checkpoint, precision), rates)
    judge(benchmark, ratio, PLAIN_WANTED)
