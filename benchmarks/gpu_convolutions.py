"""Experiments of gpu_lab.py on how the network's convolutions run; see gpu_networks.py."""

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.gpu_networks import (
    SIDE,
    Found,
    capture,
    captured_engine,
    device,
    experiment,
    spec_and_graph,
    time_replays,
)

if TYPE_CHECKING:
    from scrd_fast.backends.convolutions import Choice
    from scrd_fast.backends.layers import Layer
    from scrd_fast.backends.torch_network import TorchNetwork


@experiment("heuristics", 150)
def heuristics() -> Found:
    """cuDNN's algorithms by its heuristics, by measuring, and where any order of sums will do."""
    import torch

    from benchmarks.cuda_timing import captured, time_in_turn
    from scrd_fast.backends.torch_network import TorchNetwork

    _, graph = spec_and_graph()
    network = TorchNetwork(graph, "fp16", device=device(), fuse=True)
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

    spec, graph = spec_and_graph()
    network = TorchNetwork(graph, "fp16", device=device(), fuse=True)
    forked = ForkedNetwork(network, device())
    return {f"ms_{n}": time_replays({
        name: capture(run, spec, (n,) if n == 1 else (1, n))
        for name, run in (("one lane", network.run), ("two lanes", forked.run))}, n)
        for n in (1, 8, 32)}


def _chosen(network: "TorchNetwork", n: int) -> tuple[Found, "dict[Layer, Choice]"]:
    """Let a network run in the ways that are fastest for a batch of n; what came of it."""
    import torch

    from scrd_fast.backends.convolutions import choose, milliseconds
    from scrd_fast.backends.cudnn_plans import CudnnPlanner
    from scrd_fast.progress import silent
    from scrd_fast.torch_state import exact_convolutions

    planner, begin = CudnnPlanner(device()), time.perf_counter()
    with torch.no_grad(), exact_convolutions:
        layers = network.layers(torch.zeros(n, 3, SIDE, SIDE, device=device()))
        chosen = choose(layers, planner, milliseconds, device(), silent)
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

    spec, graph = spec_and_graph()
    found: Found = {}
    for n in (1, 32):
        plain, network = (TorchNetwork(graph, "fp16", device=device(), fuse=True)
                          for _ in range(2))
        told, chosen = _chosen(network, n)
        rows = {}
        with torch.no_grad():
            for layer, choice in chosen.items():
                operands = layer.draw_operands(device())
                rows[str(layer)] = [str(choice), *(milliseconds(partial(way, operands)) for way in (
                    partial(run_in_pytorch, layer), network.ways[layer]))]
        buckets = (n,) if n == 1 else (1, n)
        found[str(n)] = told | {"rows": rows} | time_replays(
            {"pytorch": capture(plain.run, spec, buckets),
             "ways": capture(network.run, spec, buckets)}, n)
    return found


@experiment("eight_bits", 600)
def eight_bits() -> Found:
    """The whole graph in fp16, int8 and fp8 for 32 images, each in the ways that are fastest."""
    from scrd_fast.backends.torch_network import TorchNetwork
    from scrd_fast.graph.quantize import BASE, Quantisation, Ranges, quantise, quantised_tensors

    spec, graph = spec_and_graph()
    ones = dict.fromkeys(quantised_tensors(graph), 1.0)
    captured, told = {}, {}
    for kind in ("fp16", "int8", "fp8"):
        chosen = graph if kind == "fp16" else quantise(
            graph, kind, Quantisation(Ranges(ones, ones)))
        network = TorchNetwork(chosen, BASE, device=device(), fuse=True)
        told[kind], _ = _chosen(network, 32)
        captured[kind] = capture(network.run, spec, (1, 32))
    return {"ms": time_replays(captured, 32), "told": told}


@experiment("compile", 330)
def compile_() -> Found:
    """The network of one image through torch.compile(max-autotune), which takes minutes."""
    import torch

    from benchmarks.cuda_timing import time_in_turn
    from scrd_fast.backends.torch_network import TorchNetwork

    spec, graph = spec_and_graph()
    plain = TorchNetwork(graph, "fp16", device=device())
    compiled = torch.compile(plain.run, mode="max-autotune-no-cudagraphs", dynamic=False)
    theirs = capture(compiled, spec, [1])
    times = np.median(time_in_turn([captured_engine((1,)).buckets[1].graph.replay,
                                    theirs.buckets[1].graph.replay], rounds=10), axis=0)
    return {"ours_ms": float(times[0]), "compiled_ms": float(times[1])}
