"""Which of several ways each fused convolution of a network runs, and how that is chosen.

cuDNN's heuristics guess; here ways are measured, on the GPU at hand, for every shape that a batch
size has: cuDNN's plans (an engine of the library and its knobs, see `cudnn_plans`), and for 1 x 1
convolutions a Triton kernel. A way is taken only where its numbers are right, it keeps what is not
finite, and it is faster. What was chosen is data of the engine file, so that each process computes
alike: nothing is measured again.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from scrd_fast.backends.layers import TYPES, Layer, Operands, Way, run_in_pytorch
from scrd_fast.errors import EngineFileError
from scrd_fast.graph.tensors import DTYPES
from scrd_fast.progress import Progress

FASTER = 0.97  # of the time of PyTorch's own call, below which another way is taken
MOST = 10  # of cuDNN's plans for a layer, in the order in which its heuristics like them


@dataclass(frozen=True)
class Choice:
    """A way other than PyTorch's own call. engine: of cuDNN, None for the Triton kernel; knobs: of
    the engine, by number."""

    engine: int | None = None
    knobs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Choices:
    """What was chosen, and where: it says nothing of another GPU or another cuDNN.

    cudnn: its version, such as 91900. Layers that are not among the ways run as PyTorch runs them.
    """

    gpu: str = ""
    cudnn: int = 0
    ways: Mapping[Layer, Choice] = field(default_factory=dict)

    def differs(self, gpu: str, cudnn: int | None) -> str | None:
        """What is not as it was where they were chosen; None where all is."""
        for what, then, now in (("on", self.gpu, gpu), ("with cuDNN", self.cudnn, cudnn)):
            if then != now:
                return (f"they were chosen {what} {then}, this is {now}; build the engine again to"
                        " choose them here")
        return None

    def to_bytes(self) -> bytes:
        """The member of an engine file."""
        return json.dumps({"gpu": self.gpu, "cudnn": self.cudnn, "ways": [
            {"layer": asdict(layer), **asdict(choice)} for layer, choice in self.ways.items()
        ]}).encode()

    @staticmethod
    def from_bytes(data: bytes) -> "Choices":
        """The other way round; raises EngineFileError."""
        try:
            read = json.loads(data)
            ways = {}
            for each in read["ways"]:
                layer, engine = Layer(**each["layer"]), each["engine"]
                knobs = tuple((int(knob), int(value)) for knob, value in each["knobs"])
                if not all(type(value) is int and 0 <= value < 2**31 for value in (
                        layer.images, layer.channels, layer.height, layer.width, layer.outputs,
                        layer.kernel, layer.stride, layer.padding,
                        *(() if engine is None else (engine,)))):
                    raise ValueError("a size or an engine is no such number")
                if not {layer.reads, layer.writes, layer.residual or layer.reads} <= set(TYPES):
                    raise ValueError("a type is none")
                ways[layer] = Choice(engine, knobs)
            return Choices(str(read["gpu"]), int(read["cudnn"]), ways)
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise EngineFileError("convolutions.json: expected how convolutions run, got something"
                                  f" else ({error!r})") from error


class PlanRefused(Exception):
    """cuDNN does not compile or run a plan, whatever its heuristics said."""


class Planner(Protocol):
    """What cuDNN offers: `cudnn_plans.CudnnPlanner`."""

    def candidates(self, layer: Layer, most: int) -> Sequence[Choice]:
        """At most so many plans for a layer, those first that its heuristics like best."""

    def way(self, layer: Layer, choice: Choice) -> Way:
        """A plan, compiled; raises PlanRefused, as do calls of it."""


def triton_way(layer: Layer) -> Way:
    """The kernel of 1 x 1 convolutions."""
    from scrd_fast.kernels.pointwise import pointwise

    def run(o: Operands) -> Tensor:
        return pointwise(o.x, o.weight, o.bias, o.residual, step=layer.stride,
                         shuffle=layer.shuffle, relu=layer.relu)

    return run


def make_ways(choices: Choices, planner: Planner | None) -> dict[Layer, Way]:
    """What runs each chosen layer; without a planner those of the Triton kernel alone."""
    ways = {}
    for layer, choice in choices.ways.items():
        if choice.engine is None:
            ways[layer] = triton_way(layer)
        elif planner is not None:
            ways[layer] = planner.way(layer, choice)
    return ways


def candidates(layer: Layer, planner: Planner | None) -> list[Choice]:
    """What may be faster for a layer than PyTorch's own call."""
    plans = [] if planner is None else list(planner.candidates(layer, MOST))
    pointwise = layer.kernel == 1 and layer.padding == 0 and not layer.eight_bits
    return [*plans, Choice()] if pointwise else plans


def is_right(layer: Layer, way: Way, device: torch.device) -> bool:
    """Whether a way gives what PyTorch's own call gives, but for the order of sums, and makes no
    number of what is not finite."""
    operands = layer.draw_operands(device)
    found, expected = way(operands), run_in_pytorch(layer, operands)
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    off, size = (found.float() - expected.float()).abs(), expected.float().abs()
    if layer.writes in DTYPES:
        right = float(off.max()) <= 4 * torch.finfo(expected.dtype).eps * float(size.max())
    else:  # the next number, and seldom: where a sum lies in the middle between two
        step = 1.0 if layer.writes == "int8" else 2.0**-3 * size + 2.0**-9
        right = bool((off <= step).all()) and float((off > 0).float().mean()) <= 0.01
    if not right or layer.reads == "int8":
        return right
    bad = way(replace(operands, x=torch.full_like(operands.x, float("nan"))))
    return not bool(bad.float().isfinite().any()) if layer.writes != "int8" else right


def choose(
    layers: Iterable[Layer], planner: Planner | None,
    time: Callable[[Callable[[], object]], float], device: torch.device, progress: Progress,
) -> dict[Layer, Choice]:
    """The fastest way of each layer that is right, of those that beat PyTorch's own call.

    time: milliseconds of a call. A plan that cuDNN offers and then refuses is passed over: the
    others remain.
    """
    layers, chosen = list(layers), {}
    for done, layer in enumerate(layers):
        progress(done, len(layers), "choosing how convolutions run")
        operands = layer.draw_operands(device)
        best = FASTER * time(partial(run_in_pytorch, layer, operands))
        for choice in candidates(layer, planner):
            try:
                way = make_ways(Choices(ways={layer: choice}), planner)[layer]
                right = is_right(layer, way, device)
            except PlanRefused:
                continue
            if right and (ms := time(partial(way, operands))) < best:
                best, chosen[layer] = ms, choice
    progress(len(layers), len(layers), "choosing how convolutions run")
    return chosen


def milliseconds(call: Callable[[], object]) -> float:
    """Of a call on the GPU, from a captured graph of many: the host's part is not in it."""
    from triton.testing import do_bench_cudagraph

    return float(do_bench_cudagraph(call, rep=1, return_mode="median"))
