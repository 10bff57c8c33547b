"""What gpu_lab.py runs: each experiment is a function that measures and tells, and judges nothing.

Wide-ResNet-50-2, 256 x 256, random weights. PyTorch is imported where it is needed, as the list of
experiments is also read where there is no GPU.
"""

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

    from scrd_fast.backends.convolutions import Choice
    from scrd_fast.backends.cuda import CapturedNetwork
    from scrd_fast.backends.layers import Layer
    from scrd_fast.backends.torch_network import TorchNetwork

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


def _device() -> "torch.device":
    import torch

    return torch.device("cuda", torch.cuda.current_device())


def _spec_and_graph() -> tuple[Any, Any]:
    import torch

    from scrd_fast.graph.portable import build_graph, network_graph
    from scrd_fast.model.scrd import SCRD
    from scrd_fast.spec import ScoringSpec

    torch.manual_seed(0)
    spec = ScoringSpec(input_size=SIDE)
    return spec, network_graph(build_graph(SCRD(BACKBONE).eval(), spec), spec, features=True)


def _captured(
    buckets: Sequence[int], *, fuse: bool = True, rewrites: Collection[str] | None = None,
    chunk: int | None = None,
) -> "CapturedNetwork":
    """The engine's network with its tail; chunk: images that go through the network at a time."""
    import torch
    from torch import Tensor

    from scrd_fast.backends.fusion import REWRITES
    from scrd_fast.backends.torch_network import TorchNetwork

    spec, graph = _spec_and_graph()
    network = TorchNetwork(graph, "fp16", device=_device(), fuse=fuse,
                           rewrites=REWRITES if rewrites is None else rewrites)

    def run(pixels: Tensor) -> list[Tensor]:
        if chunk is None:
            return network.run(pixels)
        parts = [network.run(part) for part in pixels.split(chunk)]
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    return _captured_network(run, spec, buckets)


def _captured_network(run: "Callable[[torch.Tensor], list[torch.Tensor]]", spec: Any,
                      buckets: Sequence[int]) -> "CapturedNetwork":
    import torch

    from scrd_fast.backends.cuda import CapturedNetwork, with_tail

    return CapturedNetwork(with_tail(run, spec, _device()), spec, buckets, _device(),
                           torch.float16, channels_last=True)


def _replays(networks: dict[str, "CapturedNetwork"], n: int, rounds: int = 10) -> Found:
    """Milliseconds of each network's graph for a batch of n, in turn."""
    from benchmarks.cuda_timing import time_in_turn

    times = np.median(time_in_turn(
        [each.buckets[n].graph.replay for each in networks.values()], rounds=rounds), axis=0)
    return {name: float(ms) for name, ms in zip(networks, times, strict=True)}


@contextmanager
def _engine(buckets: tuple[int, ...]) -> Iterator[Any]:
    import scrd_fast
    from benchmarks.models import untrained
    from scrd_fast.metrics.agreement import Limits

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = untrained(BACKBONE, SIDE, Path(folder))
        with scrd_fast.build_engine(checkpoint, device="cuda", backend="torch_cuda",
                                    precision="fp16", limits=Limits(), buckets=buckets) as engine:
            yield engine


def _images(count: int) -> "torch.Tensor":
    """uint8 (count, S, S, 3) on the GPU."""
    import torch

    from benchmarks.models import pictures

    return torch.from_numpy(pictures(SIDE, count)).cuda()


def _host_ms(call: Callable[[], object], count: int = 200) -> float:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[count // 4:]))


@experiment("baseline", 150)
def baseline() -> Found:
    """One image and batches of 64: the whole path, the GPU's share of it, and the host's."""
    import torch

    from benchmarks.cuda_timing import copy_rate

    with _engine((1, 64)) as engine:
        one, many = _images(1), _images(64)
        found: Found = {"one_image_ms": _host_ms(lambda: engine.score(one))}
        found["submit_ms"] = _host_ms(lambda: engine.submit(one).done())
        torch.cuda.synchronize()
        ahead = _host_ms(lambda: [p.result() for p in [engine.submit(many) for _ in range(8)]], 8)
        found["images_per_s"] = 8 * 64 / ahead * 1e3
    network = {"graph": _captured((1, 64))}
    for n in (1, 64):
        found[f"graph_ms_{n}"] = _replays(network, n)["graph"]
    return found | {"copy_gb_per_s": copy_rate()}


@experiment("nan", 120)
def nan() -> Found:
    """Whether values that are not finite in one batch reach a later one of the same bucket."""
    from scrd_fast.errors import NotFiniteError

    with _engine((1, 8)) as engine:
        images = _images(8).float() / 255
        bad = images * float("nan")
        expected, poisoned, raised = engine.score(images), 0, 0
        for _ in range(5):
            try:
                engine.score(bad)
            except NotFiniteError:
                raised += 1
            try:
                poisoned += not np.array_equal(engine.score(images).maps, expected.maps)
            except NotFiniteError:
                poisoned += 1
    return {"raised of 5": raised, "poisoned of 5": poisoned}


@experiment("repeat", 120)
def repeat() -> Found:
    """200 replays of one batch of 8, bit for bit."""
    with _engine((1, 8)) as engine:
        images = _images(8)
        first = engine.score(images)
        others = sum(not (np.array_equal(again.scores, first.scores)
                          and np.array_equal(again.maps, first.maps))
                     for again in (engine.score(images) for _ in range(200)))
    return {"other results of 200": others}


@experiment("rewrites", 180)
def rewrites() -> Found:
    """The graph without and with each exact rewrite of the network, and all of them."""
    from scrd_fast.backends.fusion import REWRITES

    chosen: dict[str, tuple[str, ...]] = {"none": ()} | {each: (each,) for each in REWRITES} | {
        "all": REWRITES}
    found: Found = {}
    for n in (1, 64):
        networks = {name: _captured((n,) if n == 1 else (1, n), rewrites=each)
                    for name, each in chosen.items()}
        found[f"ms_{n}"] = _replays(networks, n)
    return found


@experiment("profile", 120)
def profile() -> Found:
    """Microseconds by kernel of one replay, of one image and of 64."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    found: Found = {}
    network = _captured((1, 64))
    for n in (1, 64):
        replay = network.buckets[n].graph.replay
        replay()
        torch.cuda.synchronize()
        with profiled(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(10):
                replay()
            torch.cuda.synchronize()
        rows = sorted(seen.key_averages(), key=lambda row: -row.device_time_total)[:25]
        found[f"us_{n}"] = {row.key[:90]: [row.device_time_total / 10, row.count / 10]
                            for row in rows}
    return found


@experiment("host", 120)
def host() -> Found:
    """Where Python's time goes between images on the GPU and an enqueued batch of one."""
    import cProfile
    import pstats

    with _engine((1,)) as engine:
        image = _images(1)
        for _ in range(50):
            engine.score(image)
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(500):
            engine.submit(image).result()
        profiler.disable()
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    rows = sorted(stats.items(), key=lambda item: -item[1][2])[:25]
    return {f"{Path(where[0]).name}:{where[1]} {where[2]}": round(1e6 * row[2] / 500, 2)
            for where, row in rows}


@experiment("buckets", 240)
def buckets() -> Found:
    """Images per second of the graph alone, by the size of the batch."""
    found: Found = {}
    for n in (1, 2, 4, 8, 16, 32, 64, 128):
        network = {"": _captured((1, n) if n > 1 else (1,))}
        found[str(n)] = n / _replays(network, n)[""] * 1e3
    return found


@experiment("chunks", 180)
def chunks() -> Found:
    """A batch of 64 through the network in parts whose activations fit into the L2 cache."""
    networks = {str(chunk): _captured((1, 64), chunk=chunk) for chunk in (4, 8, 16, 32)}
    return {"ms_64": _replays(networks | {"whole": _captured((1, 64))}, 64)}


@experiment("heuristics", 150)
def heuristics() -> Found:
    """cuDNN's algorithms by its heuristics, by measuring, and where any order of sums will do."""
    import torch

    from benchmarks.cuda_timing import captured, time_in_turn
    from scrd_fast.backends.torch_network import TorchNetwork

    _, graph = _spec_and_graph()
    network = TorchNetwork(graph, "fp16", device=_device(), fuse=True)
    found: Found = {}
    for n in (1, 64):
        pixels = torch.rand(n, 3, SIDE, SIDE, device="cuda", dtype=torch.float16).contiguous(
            memory_format=torch.channels_last)
        calls = {}
        for name, flags in (("heuristics, deterministic", (False, True)),
                            ("heuristics", (False, False)), ("measured", (True, False))):
            with torch.no_grad(), torch.backends.cudnn.flags(
                    enabled=True, benchmark=flags[0], deterministic=flags[1], allow_tf32=False):
                calls[name] = captured(partial(network.run, pixels))
        times = np.median(time_in_turn(list(calls.values()), rounds=10), axis=0)
        found[f"ms_{n}"] = dict(zip(calls, map(float, times), strict=True))
    return found


@experiment("forks", 150)
def forks() -> Found:
    """The graph in two lanes: shortcuts, and the bottleneck's first convolutions, beside others."""
    from benchmarks.gpu_forks import ForkedNetwork
    from scrd_fast.backends.torch_network import TorchNetwork

    spec, graph = _spec_and_graph()
    network = TorchNetwork(graph, "fp16", device=_device(), fuse=True)
    forked = ForkedNetwork(network, _device())
    return {f"ms_{n}": _replays({
        name: _captured_network(run, spec, (n,) if n == 1 else (1, n))
        for name, run in (("one lane", network.run), ("two lanes", forked.run))}, n)
        for n in (1, 8, 32)}


@experiment("pinned", 60)
def pinned() -> Found:
    """Microseconds of a copy into new page-locked memory, and into some that is there: a ring's."""
    import torch

    found: Found = {}
    for n in (1, 64):
        fresh = partial(torch.empty, (n, SIDE, SIDE), pin_memory=True)
        kept, maps = fresh(), torch.zeros((n, SIDE, SIDE), device=_device())

        def allocate(fresh: Any = fresh, maps: Any = maps) -> None:
            fresh().copy_(maps, non_blocking=True)

        found[f"us_{n}"] = {
            "allocated": 1e3 * _host_ms(allocate),
            "there": 1e3 * _host_ms(partial(kept.copy_, maps, non_blocking=True))}
    return found


@experiment("map_halves", 120)
def map_halves() -> Found:
    """Copies of maps to the host beside the next batch, on a stream of their own."""
    import torch

    network = _captured((1, 64))
    bucket, stream = network.buckets[64], network.stream
    other = torch.cuda.Stream()
    hosts = [torch.empty(bucket.maps.shape, pin_memory=True) for _ in range(2)]
    second = torch.empty_like(bucket.maps)

    def in_order() -> None:
        with torch.cuda.stream(stream):
            for host_maps in hosts:
                bucket.graph.replay()
                host_maps.copy_(bucket.maps, non_blocking=True)
        stream.synchronize()

    def beside() -> None:
        with torch.cuda.stream(stream):
            for host_maps in hosts:
                bucket.graph.replay()
                stream.wait_stream(other)  # the buffer is free again
                second.copy_(bucket.maps)
                other.wait_stream(stream)
                with torch.cuda.stream(other):
                    host_maps.copy_(second, non_blocking=True)
        other.synchronize()

    return {"in_order_ms": _host_ms(in_order, 40) / 2, "beside_ms": _host_ms(beside, 40) / 2}


def _chosen(network: "TorchNetwork", n: int) -> tuple[Found, "dict[Layer, Choice]"]:
    """Let a network run in the ways that are fastest for a batch of n; what came of it."""
    import torch

    from scrd_fast.backends.convolutions import choose, milliseconds
    from scrd_fast.backends.cudnn_plans import CudnnPlanner
    from scrd_fast.progress import silent
    from scrd_fast.torch_state import exact_convolutions

    planner, begin = CudnnPlanner(_device()), time.perf_counter()
    with torch.no_grad(), exact_convolutions:
        layers = network.layers(torch.zeros(n, 3, SIDE, SIDE, device=_device()))
        chosen = choose(layers, planner, milliseconds, _device(), silent)
    network.ways = {layer: way for layer, (_, way) in chosen.items()}
    told = {"cudnn": planner.version(), "layers": len(layers), "chosen": len(chosen),
            "of 8 bits without": sum(layer.eight_bits and layer not in chosen for layer in layers),
            "seconds": time.perf_counter() - begin}
    return told, {layer: choice for layer, (choice, _) in chosen.items()}


@experiment("ways", 420)
def ways() -> Found:
    """Each convolution by PyTorch, by cuDNN's plans and by the Triton kernel; the whole graph."""
    import torch

    from scrd_fast.backends.convolutions import milliseconds
    from scrd_fast.backends.layers import run_in_pytorch
    from scrd_fast.backends.torch_network import TorchNetwork

    spec, graph = _spec_and_graph()
    found: Found = {}
    for n in (1, 32):
        plain, network = (TorchNetwork(graph, "fp16", device=_device(), fuse=True)
                          for _ in range(2))
        told, chosen = _chosen(network, n)
        rows = {}
        with torch.no_grad():
            for layer, choice in chosen.items():
                operands = layer.draw_operands(_device())
                rows[str(layer)] = [str(choice), *(milliseconds(partial(way, operands)) for way in (
                    partial(run_in_pytorch, layer), network.ways[layer]))]
        buckets = (n,) if n == 1 else (1, n)
        found[str(n)] = told | {"rows": rows} | _replays(
            {"pytorch": _captured_network(plain.run, spec, buckets),
             "ways": _captured_network(network.run, spec, buckets)}, n)
    return found


@experiment("eight_bits", 600)
def eight_bits() -> Found:
    """The whole graph in fp16, int8 and fp8 for 32 images, each in the ways that are fastest."""
    from scrd_fast.backends.torch_network import TorchNetwork
    from scrd_fast.graph.quantize import BASE, Quantisation, Ranges, quantise, quantised_tensors

    spec, graph = _spec_and_graph()
    ones = dict.fromkeys(quantised_tensors(graph), 1.0)
    captured, told = {}, {}
    for kind in ("fp16", "int8", "fp8"):
        chosen = graph if kind == "fp16" else quantise(
            graph, kind, Quantisation(Ranges(ones, ones)))
        network = TorchNetwork(chosen, BASE, device=_device(), fuse=True)
        told[kind], _ = _chosen(network, 32)
        captured[kind] = _captured_network(network.run, spec, (1, 32))
    return {"ms": _replays(captured, 32), "told": told}


@experiment("training", 240)
def training() -> Found:
    """Milliseconds of a step of 16 images in bf16, with the noise on the GPU and without any."""
    import torch

    from benchmarks.test_bench_training_cuda import BATCH, OurStep, milliseconds
    from scrd_fast.training.loop import using_device

    pixels = torch.rand(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    step, noisy = OurStep(pixels, "bf16", _device()), pixels.cuda()
    with using_device(_device()):
        for call in (step, lambda i: step(i, noisy)):
            milliseconds(call, 0)
        rounds = [(milliseconds(step, 5 * i), milliseconds(lambda k: step(k, noisy), 5 * i))
                  for i in range(1, 8)]
    with_noise, without = np.median(np.array(rounds), axis=0)
    return {"with_noise_ms": float(with_noise), "without_ms": float(without)}


@experiment("compile", 330)
def compile_() -> Found:
    """The network of one image through torch.compile(max-autotune), which takes minutes."""
    import torch

    from benchmarks.cuda_timing import time_in_turn
    from scrd_fast.backends.torch_network import TorchNetwork

    spec, graph = _spec_and_graph()
    plain = TorchNetwork(graph, "fp16", device=_device())
    compiled = torch.compile(plain.run, mode="max-autotune-no-cudagraphs", dynamic=False)
    theirs = _captured_network(compiled, spec, [1])
    times = np.median(time_in_turn([_captured((1,)).buckets[1].graph.replay,
                                    theirs.buckets[1].graph.replay], rounds=10), axis=0)
    return {"ours_ms": float(times[0]), "compiled_ms": float(times[1])}
