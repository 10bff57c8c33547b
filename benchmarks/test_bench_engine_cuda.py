"""The whole path on a GPU: pixels in its memory to score and map on the host.

Wide-ResNet-50-2, 256 x 256, fp16. The peer is the published model with its post-processing on the
GPU, in float16 and channels-last, through torch.compile(mode="max-autotune"). Both begin with the
same uint8 images in the GPU's memory and end with NumPy arrays; scores and maps are held against
each other before they are timed in turn.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import scrd_fast
from benchmarks.judge import judge
from benchmarks.peers import PublishedInTorch
from benchmarks.timing import clock, record, time_in_turn
from scrd_fast.engine.engine import Engine
from scrd_fast.metrics.agreement import Limits
from scrd_fast.model.checkpoint import load_checkpoint
from tests.support.gpu import ON_GPU

BATCH = 64
WANTED_MS, WANTED_PER_S, WANTED_RATIO = 1.5, 4000.0, 1.2
UNJUDGED = Limits()  # untrained weights rank images by chance; the peer's scores are compared

pytestmark = ON_GPU


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with scrd_fast.build_engine(checkpoint, device="cuda", precision="fp16", limits=UNJUDGED,
                                buckets=(1, BATCH)) as engine:
        yield engine


@pytest.fixture(scope="module")
def images() -> Tensor:
    """uint8 (64, 256, 256, 3) on the GPU: smooth, as pictures are."""
    generator = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(BATCH, 3, 12, 12, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (256, 256), mode="bicubic")
    return smooth.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().cuda()


def test_one_image(benchmark: Any, engine: Engine, images: Tensor) -> None:
    singles = images.split(1)
    times = [1e3 * clock(partial(engine.score, singles[i % BATCH]))() for i in range(300)][50:]
    p50, p90, p99 = np.quantile(times, [0.5, 0.9, 0.99])
    print(f"\none image, pixels on the GPU to score and map: p50 {p50:.3f}, p90 {p90:.3f}, p99"
          f" {p99:.3f} ms")
    benchmark.extra_info |= {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
    benchmark.pedantic(engine.score, args=(images[:1],), rounds=50, warmup_rounds=5)
    judge(benchmark, float(p50), WANTED_MS, at_most=True, gpu=True)


def test_many_images(benchmark: Any, engine: Engine, images: Tensor) -> None:
    """Batches of 64, some submitted ahead; maps too."""
    ahead, batches = 3, 20

    def run() -> None:
        pending = [engine.submit(images) for _ in range(ahead)]
        for _ in range(batches - ahead):
            pending.append(engine.submit(images))
            pending.pop(0).result()
        for last in pending:
            last.result()

    run()
    rates = [batches * BATCH / clock(run)() for _ in range(5)]
    print(f"\nbatches of {BATCH}: {np.median(rates):.0f} images/s ({min(rates):.0f} to"
          f" {max(rates):.0f})")
    benchmark.extra_info["images_per_s"] = float(np.median(rates))
    benchmark.pedantic(run, rounds=3)
    judge(benchmark, float(np.median(rates)), WANTED_PER_S, gpu=True)


@pytest.mark.slow
@pytest.mark.parametrize("n", [BATCH, 1])
def test_against_torch_compile(benchmark: Any, engine: Engine, checkpoint: Path, images: Tensor,
                               n: int) -> None:
    """Compiling the peer takes minutes."""
    loaded = load_checkpoint(checkpoint)
    peer = PublishedInTorch(loaded.model, loaded.spec, torch.float16, torch.device("cuda"))
    compiled = torch.compile(peer, mode="max-autotune", dynamic=False)
    batch = images[:n]

    @torch.inference_mode()
    def theirs() -> tuple[Any, Any]:
        scores, maps = compiled(batch)
        return scores.cpu().numpy(), maps.cpu().numpy()

    def ours() -> tuple[Any, Any]:
        result = engine.score(batch)
        return result.scores, result.maps

    compiling = clock(theirs)()
    (our_scores, our_maps), (scores, maps) = ours(), theirs()
    assert np.abs(our_maps - maps).max() <= 2e-2 * np.ptp(maps)
    assert np.abs(our_scores - scores).max() <= 2e-2 * np.abs(scores).max()
    ratio = record(benchmark, f"fp16, batch {n}", "torch.compile (max-autotune)",
                   time_in_turn([clock(ours), clock(theirs)], 30, warm_up=1))
    benchmark.extra_info["compiling_s"] = compiling
    benchmark.pedantic(ours, rounds=10)
    judge(benchmark, ratio, WANTED_RATIO, gpu=True)


@pytest.mark.slow
def test_the_network_compiled(benchmark: Any, checkpoint: Path) -> None:
    """Printed only: the engine's network, with cuDNN's fused convolutions, against the same one
    through torch.compile(max-autotune); both captured with the kernels behind them."""
    from benchmarks.cuda_timing import time_in_turn as replayed_in_turn
    from scrd_fast.backends.cuda import CapturedNetwork, with_tail
    from scrd_fast.backends.torch_network import TorchNetwork
    from scrd_fast.graph.portable import build_graph, network_graph

    loaded, device = load_checkpoint(checkpoint), torch.device("cuda", 0)
    spec = loaded.spec
    graph = network_graph(build_graph(loaded.model, spec), spec, features=True)
    fused, plain = (TorchNetwork(graph, "fp16", device=device, fuse=fuse).run
                    for fuse in (True, False))
    compiled = torch.compile(plain, mode="max-autotune-no-cudagraphs", dynamic=False)
    for n in (1, BATCH):
        networks = [CapturedNetwork(with_tail(network, spec, device), spec, [n], device,
                                    torch.float16, channels_last=True)
                    for network in (fused, plain, compiled)]
        fused_ms, plain_ms, compiled_ms = np.median(
            replayed_in_turn([c.buckets[n].graph.replay for c in networks], rounds=10), axis=0)
        print(f"\nbatch {n}, graph alone: fused {fused_ms:.3f} ms, not fused {plain_ms:.3f},"
              f" compiled {compiled_ms:.3f}")
        benchmark.extra_info |= {f"fused_ms_{n}": float(fused_ms),
                                 f"plain_ms_{n}": float(plain_ms),
                                 f"compiled_ms_{n}": float(compiled_ms)}
    benchmark.pedantic(networks[0].buckets[BATCH].graph.replay, rounds=10)
