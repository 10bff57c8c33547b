"""The whole path, uint8 pixels to score and map, against peers in the same run.

The peers are the published loop, and the best plain OpenVINO graph, which is given ready-made
floats. Wide-ResNet-50-2, 256 x 256, batch 1. Each scorer lives in a process of its own, as it
would for a user: in one process they would share an allocator, and the loop runs up to a sixth
faster where something else has made malloc keep its pages. The scores and maps are held against
each other before anything is timed; the two are timed in turn, in short blocks, so that a busy
machine hurts both, and the ratio is taken pair by pair.
"""

import multiprocessing
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import scrd_fast
from benchmarks.judge import judge
from benchmarks.peers import EagerTorch, OnnxRuntime, PlainOpenVino, PublishedLoop
from scrd_fast.engine.backends.choice import native_precisions
from scrd_fast.engine.bench import Work
from scrd_fast.engine.fidelity import Limits
from scrd_fast.engine.measure import cpu_limits
from scrd_fast.engine.quantize import STEM
from scrd_fast.model.checkpoint import (
    Checkpoint,
    ModelConfig,
    load_checkpoint,
    save_checkpoint,
)
from scrd_fast.model.scrd import SCRD
from scrd_fast.ops.preprocess import preprocess
from scrd_fast.spec import ScoringSpec

PAIRS = 12
# Faster than the published loop by at least this, on a CPU with AVX-512 (bf16: AVX-512 BF16).
WANTED = {"fp32": 1.6, "bf16": 3.0, "int8": 5.5}
INT8_WANTED = 1.5  # times as fast as bf16
# Times as fast the best precision is than what a user would run instead.
PEERS = {"eager bf16": None, "torch.compile bf16": 1.6, "onnxruntime fp32": 3.3}
PEAK_WANTED = {"bf16": 0.75}  # share of the arithmetic peak that was measured in the same run
# Not slower than the best plain graph, which does not even pre-process.
PLAIN_LIMIT = 1.02
# Untrained weights rank images by chance, so that fewer bits may reorder them more than the table
# allows, and no layers can be searched for: int8 leaves out what the search finds for one that was
# trained for a short while on the demo's images, and for the demo's own, which is nothing but what
# always is (tests/engine/test_search.py).
LIMITS = {"fp32": None, "bf16": Limits(rank_correlation=0.99), "int8": Limits()}
LARGEST_ERROR = {"fp32": 1e-4, "bf16": 2e-2, "int8": 0.2}


def _serve(kind: str, path: Path, pipe: Connection) -> None:
    """A worker: answers each image with (seconds, score, map).

    kind: "published", "engine", one of PEERS, or variant and precision of PlainOpenVino, such as
    "static fp32".
    """
    scorer: Any
    if kind == "engine":
        engine = scrd_fast.load_engine(path)

        def scorer(image: NDArray[np.uint8]) -> Any:
            result = engine.score(image)
            return result.scores, result.maps
    else:
        loaded = load_checkpoint(path)
        make: Any = {
            "published": PublishedLoop, "onnxruntime fp32": OnnxRuntime,
            "eager bf16": partial(EagerTorch, compiled=False),
            "torch.compile bf16": partial(EagerTorch, compiled=True),
        }.get(kind, lambda *arguments: PlainOpenVino(*arguments, *kind.split()))
        scorer = make(loaded.model, loaded.spec).score

    while (image := pipe.recv()) is not None:
        start = time.perf_counter()
        scores, maps = scorer(image)
        pipe.send((time.perf_counter() - start, scores, maps))


class Worker:
    """A scorer in a process of its own."""

    def __init__(self, kind: str, path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(kind, path, theirs),
                                       daemon=True)  # a failed test must not wait for it
        self.process.start()

    def score(self, image: NDArray[Any]) -> tuple[float, Any, Any]:
        self.pipe.send(image)
        seconds, scores, maps = self.pipe.recv()
        return seconds, scores, maps

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (4, 3, 12, 12)))
    smooth = torch.nn.functional.interpolate(coarse, (256, 256), mode="bicubic").numpy()
    return np.clip(smooth, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


@pytest.fixture(scope="module")
def published(checkpoint: Path) -> Iterator[Worker]:
    worker = Worker("published", checkpoint)
    yield worker
    worker.close()


def engine_worker(precision: str, checkpoint: Path, images: NDArray[np.uint8]) -> Worker:
    """Our engine."""
    if precision not in native_precisions("openvino"):
        pytest.skip(f"this CPU does not compute in {precision} natively")
    path = checkpoint.with_suffix(f".{precision}.scrd")
    if not path.exists():
        scrd_fast.build_engine(
            checkpoint, path, backend="openvino", precision=precision, limits=LIMITS[precision],
            images=images if precision == "int8" else None, keep=[STEM]).close()
    return Worker("engine", path)


@pytest.fixture(scope="module", params=list(WANTED))
def engine(request: pytest.FixtureRequest, checkpoint: Path,
           images: NDArray[np.uint8]) -> Iterator[tuple[str, Worker]]:
    """Precision and worker of our engine."""
    worker = engine_worker(request.param, checkpoint, images)
    yield request.param, worker
    worker.close()


def assert_equal(ours: tuple[Any, ...], theirs: tuple[Any, ...], precision: str,
                 plain: bool = False) -> None:
    """Two answers of workers: the same score and map.

    A plain graph that is told to compute in bf16 rounds its distances to 8 bits too: its maps are
    held to their size, not to their range.
    """
    allowed = LARGEST_ERROR[precision]
    (_, our_scores, our_maps), (_, scores, maps) = ours, theirs
    scale = np.abs(maps).max() if plain and precision == "bf16" else np.ptp(maps)
    assert np.abs(our_maps - maps).max() <= allowed * scale
    assert np.abs(our_scores - scores).max() <= allowed * np.abs(scores).max()


def paired(ours: Worker, theirs: Worker, inputs: list[tuple[NDArray[Any], NDArray[Any]]],
           pairs: int, block: int = 5) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Milliseconds of both in turn, medians of blocks (A A A B B B), the first pair left out.

    In blocks whose first call is not counted, as no user has both at work: one call of the other
    empties the caches and leaves its threads spinning for a while.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + pairs):
        for side, worker in enumerate((ours, theirs)):
            calls = [worker.score(inputs[i % len(inputs)][side])[0] for i in range(block)]
            times[side].append(float(np.median(calls[1:]) * 1e3))
    ours_ms, theirs_ms = np.array(times)[:, 1:]
    return ours_ms, theirs_ms


def record(benchmark: Any, peer: str, ours: NDArray[np.float64], theirs: NDArray[np.float64],
           ratios: NDArray[np.float64]) -> None:
    """Into the stored result: medians in milliseconds and the spread of the ratios."""
    benchmark.extra_info |= {
        "peer": peer, "engine_ms": float(np.median(ours)), "peer_ms": float(np.median(theirs)),
        "ratio_min_max": [float(ratios.min()), float(ratios.max())]}


def test_engine_against_published_loop(
    benchmark: Any, engine: tuple[str, Worker], published: Worker, images: NDArray[np.uint8],
) -> None:
    precision, worker = engine
    for image in images:
        assert_equal(worker.score(image[None]), published.score(image[None]), precision)
    ours, theirs = paired(worker, published, [(i[None], i[None]) for i in images], PAIRS)
    ratios = theirs / ours
    record(benchmark, "published", ours, theirs, ratios)
    print(f"\n{precision}: engine {np.median(ours):.1f} ms, published loop"
          f" {np.median(theirs):.1f} ms, {np.median(ratios):.2f} times as fast"
          f" ({ratios.min():.2f} to {ratios.max():.2f})")
    benchmark.pedantic(worker.score, args=(images[:1],), rounds=PAIRS, warmup_rounds=3)
    judge(benchmark, float(np.median(ratios)), WANTED[precision])


@pytest.mark.parametrize("peer", PEERS)
def test_best_precision_against_peers(
    benchmark: Any, checkpoint: Path, images: NDArray[np.uint8], peer: str,
) -> None:
    """The fastest precision that this CPU has; its fidelity was judged when it was built."""
    precision = native_precisions("openvino")[0]
    ours, theirs = engine_worker(precision, checkpoint, images), Worker(peer, checkpoint)
    for image in images:
        assert_equal(ours.score(image[None]), theirs.score(image[None]), precision)
    ours_ms, theirs_ms = paired(ours, theirs, [(i[None], i[None]) for i in images], PAIRS)
    ratios = theirs_ms / ours_ms
    record(benchmark, peer, ours_ms, theirs_ms, ratios)
    print(f"\n{precision}: engine {np.median(ours_ms):.1f} ms, {peer} {np.median(theirs_ms):.1f}"
          f" ms, {np.median(ratios):.2f} times as fast ({ratios.min():.2f} to {ratios.max():.2f})")
    benchmark.pedantic(ours.score, args=(images[:1],), rounds=PAIRS, warmup_rounds=3)
    for worker in (ours, theirs):
        worker.close()
    judge(benchmark, float(np.median(ratios)), PEERS[peer])


def test_share_of_the_peak(
    benchmark: Any, engine: tuple[str, Worker], checkpoint: Path, images: NDArray[np.uint8],
) -> None:
    """The time that the network's arithmetic takes at the CPU's peak, over the engine's."""
    precision, worker = engine
    rates, times = [], []
    for _ in range(4):  # in turn
        rates.append(cpu_limits())
        times += [worker.score(image[None])[0] * 1e3 for image in images][1:]
    best = {kind: max(r[kind] or 0.0 for r in rates) or None for kind in rates[0]}
    limit = Work.of(checkpoint.with_suffix(f".{precision}.scrd")).limit(best)
    if limit is None:
        pytest.skip(f"the arithmetic peak of this CPU in {precision} is not known")
    share = limit.arithmetic_ms / float(np.median(times))
    benchmark.extra_info |= {"rates": best, "operations": limit.operations,
                             "weight_bytes": limit.weight_bytes,
                             "limit_ms": limit.arithmetic_ms, "engine_ms": float(np.median(times))}
    print(f"\n{precision}: {np.median(times):.1f} ms, at the peak {limit.arithmetic_ms:.1f} ms:"
          f" {share:.0%}; " + ", ".join(f"{k} {v / 1e9:.0f} G/s" for k, v in best.items() if v))
    benchmark.pedantic(worker.score, args=(images[:1],), rounds=PAIRS, warmup_rounds=3)
    judge(benchmark, share, PEAK_WANTED.get(precision))


@pytest.mark.parametrize(("backbone", "side"), [("wide_resnet50_2", 256), ("resnet18", 128)])
def test_int8_against_bf16(
    benchmark: Any, tmp_path: Path, checkpoint: Path, images: NDArray[np.uint8], backbone: str,
    side: int,
) -> None:
    if backbone == "resnet18":
        torch.manual_seed(0)
        checkpoint = save_checkpoint(
            Checkpoint(SCRD(backbone), ScoringSpec(input_size=side),
                       ModelConfig(backbone, "random")), tmp_path / "small.safetensors")
    int8, bf16 = (engine_worker(p, checkpoint, images) for p in ("int8", "bf16"))
    inputs = [image[None, :side, :side] for image in images]
    for image in inputs:
        assert_equal(int8.score(image), bf16.score(image), "int8")
    ours, theirs = paired(int8, bf16, [(i, i) for i in inputs], PAIRS, 10 * 256**2 // side**2)
    ratios = theirs / ours
    record(benchmark, "bf16", ours, theirs, ratios)
    print(f"\n{backbone}: int8 {np.median(ours):.1f} ms, bf16 {np.median(theirs):.1f} ms,"
          f" {np.median(ratios):.2f} times as fast ({ratios.min():.2f} to {ratios.max():.2f})")
    benchmark.pedantic(int8.score, args=(inputs[0],), rounds=PAIRS, warmup_rounds=3)
    for worker in (int8, bf16):
        worker.close()
    judge(benchmark, float(np.median(ratios)), INT8_WANTED)


def test_engine_against_plain_openvino(
    benchmark: Any, engine: tuple[str, Worker], checkpoint: Path, images: NDArray[np.uint8],
) -> None:
    """Against the fastest of three plain graphs, found in the same run."""
    precision, worker = engine
    if precision == "int8":
        pytest.skip("a plain graph of OpenVINO is not quantised")
    floats = [preprocess(image[None], ScoringSpec()).numpy() for image in images]
    plain = {variant: Worker(f"{variant} {precision}", checkpoint)
             for variant in PlainOpenVino.VARIANTS}
    medians = {}
    for variant, peer in plain.items():
        for image, pixels in zip(images, floats, strict=True):
            assert_equal(worker.score(image[None]), peer.score(pixels), precision, plain=True)
        medians[variant] = np.median([peer.score(floats[0])[0] for _ in range(7)])
    best = min(medians, key=lambda variant: medians[variant])
    ours, theirs = paired(worker, plain[best],
                          [(i[None], f) for i, f in zip(images, floats, strict=True)], 2 * PAIRS)
    ratios = ours / theirs
    record(benchmark, best, ours, theirs, ratios)
    print(f"\n{precision}: engine {np.median(ours):.1f} ms from uint8 pixels, plain OpenVINO graph"
          f" ({best}) {np.median(theirs):.1f} ms from floats, {np.median(ratios):.3f} of its time"
          f" ({ratios.min():.3f} to {ratios.max():.3f})")
    benchmark.pedantic(worker.score, args=(images[:1],), rounds=PAIRS, warmup_rounds=3)
    for peer in plain.values():
        peer.close()
    judge(benchmark, float(np.median(ratios)), PLAIN_LIMIT, at_most=True)
