"""What the experiments of gpu_lab.py share: their list, and networks on the GPU.

Wide-ResNet-50-2, 256 x 256, random weights. PyTorch is imported where it is needed, as the list of
experiments is also read where there is no GPU.
"""

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

    from scrd_fast.backends.cuda import CapturedNetwork

BACKBONE, SIDE = "wide_resnet50_2", 256
Found = dict[str, Any]


class Experiment(NamedTuple):
    """run: what it measures; seconds: that it may take; about: in one line."""

    run: Callable[[], Found]
    seconds: float
    about: str


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(name: str, seconds: float) -> Callable[[Callable[[], Found]], Callable[[], Found]]:
    """Add a function to the list, in the order of worth."""

    def add(run: Callable[[], Found]) -> Callable[[], Found]:
        EXPERIMENTS[name] = Experiment(run, seconds, (run.__doc__ or "").partition("\n")[0])
        return run

    return add


def device() -> "torch.device":
    import torch

    return torch.device("cuda", torch.cuda.current_device())


def spec_and_graph() -> tuple[Any, Any]:
    import torch

    from scrd_fast.graph.portable import build_graph, network_graph
    from scrd_fast.model.scrd import SCRD
    from scrd_fast.spec import ScoringSpec

    torch.manual_seed(0)
    spec = ScoringSpec(input_size=SIDE)
    return spec, network_graph(build_graph(SCRD(BACKBONE).eval(), spec), spec, features=True)


def captured_engine(
    buckets: Sequence[int], *, fuse: bool = True, rewrites: Collection[str] | None = None,
    chunk: int | None = None,
) -> "CapturedNetwork":
    """The engine's network with its tail; chunk: images that go through the network at a time."""
    import torch
    from torch import Tensor

    from scrd_fast.backends.fusion import REWRITES
    from scrd_fast.backends.torch_network import TorchNetwork

    spec, graph = spec_and_graph()
    network = TorchNetwork(graph, "fp16", device=device(), fuse=fuse,
                           rewrites=REWRITES if rewrites is None else rewrites)

    def run(pixels: Tensor) -> list[Tensor]:
        if chunk is None:
            return network.run(pixels)
        parts = [network.run(part) for part in pixels.split(chunk)]
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    return capture(run, spec, buckets)


def capture(run: "Callable[[torch.Tensor], list[torch.Tensor]]", spec: Any,
                      buckets: Sequence[int]) -> "CapturedNetwork":
    import torch

    from scrd_fast.backends.cuda import CapturedNetwork, with_tail

    return CapturedNetwork(with_tail(run, spec, device()), spec, buckets, device(),
                           torch.float16, channels_last=True)


def time_replays(networks: dict[str, "CapturedNetwork"], n: int, rounds: int = 10) -> Found:
    """Milliseconds of each network's graph for a batch of n, in turn."""
    from benchmarks.cuda_timing import time_in_turn

    times = np.median(time_in_turn(
        [each.buckets[n].graph.replay for each in networks.values()], rounds=rounds), axis=0)
    return {name: float(ms) for name, ms in zip(networks, times, strict=True)}


@contextmanager
def built_engine(buckets: tuple[int, ...]) -> Iterator[Any]:
    import scrd_fast
    from benchmarks.models import untrained
    from scrd_fast.metrics.agreement import Limits

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = untrained(BACKBONE, SIDE, Path(folder))
        with scrd_fast.build_engine(checkpoint, device="cuda", backend="torch_cuda",
                                    precision="fp16", limits=Limits(), buckets=buckets) as engine:
            yield engine


def images_on_gpu(count: int) -> "torch.Tensor":
    """uint8 (count, S, S, 3) on the GPU."""
    import torch

    from benchmarks.models import pictures

    return torch.from_numpy(pictures(SIDE, count)).cuda()


def host_ms(call: Callable[[], object], count: int = 200) -> float:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[count // 4:]))
