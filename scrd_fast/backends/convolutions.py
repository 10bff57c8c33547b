"""Which of several ways each fused convolution of a network runs, and how that is chosen.

cuDNN's heuristics guess; here ways are measured, on the GPU at hand, for every shape that a batch
size has: cuDNN's plans (an engine of the library and its knobs, see `cudnn_plans`), and for 1 x 1
convolutions a Triton kernel. A way is taken only where its numbers are right, it keeps what is not
finite, and it is faster. What was chosen is data of the engine file: where it is loaded nothing is
measured.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from scrd_fast.backends.layers import TYPES, Layer, Operands, Way, run_in_pytorch
from scrd_fast.errors import EngineBuildError, EngineFileError
from scrd_fast.graph.stored import CONVOLUTIONS
from scrd_fast.graph.tensors import DTYPES
from scrd_fast.progress import Progress

FASTER = 0.97  # of the time of PyTorch's own call, below which another way is taken
MOST = 10  # of cuDNN's plans for a layer, in the order in which its heuristics like them
CALLS, REPLAYS = 20, 5  # of one that is timed: in a captured graph, and of that graph
_SIZES = ("images", "channels", "height", "width", "outputs", "kernel", "stride")
_FLAGS = ("bias", "relu", "shuffle")


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

    def differs(self, gpu: str, cudnn: int) -> str | None:
        """What is not as it was where they were chosen; None where all is."""
        for what, then, now in (("on", self.gpu, gpu), ("with cuDNN", self.cudnn, cudnn)):
            if then != now:
                return f"it was chosen {what} {then}, this is {now}"
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
            ways = dict(_read_way(each) for each in read["ways"])
            return Choices(str(read["gpu"]), int(read["cudnn"]), ways)
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise EngineFileError(f"{CONVOLUTIONS}: expected how convolutions run, got something"
                                  f" else ({error!r})") from error


def _read_way(each: Mapping[str, object]) -> tuple[Layer, Choice]:
    """Raises KeyError, TypeError or ValueError where it is none."""
    layer = Layer(**each["layer"])  # type: ignore[arg-type]
    engine, knobs = each["engine"], each["knobs"]
    if not (isinstance(knobs, list) and (engine is None or isinstance(engine, int))):
        raise TypeError("an engine or its knobs are none")
    choice = Choice(engine, tuple((knob, value) for knob, value in knobs))
    whole = [getattr(layer, name) for name in _SIZES]
    numbers = [*whole, layer.padding, *(() if engine is None else (engine,)),
               *(knob for knob, _ in choice.knobs)]
    if not all(type(number) is int and 0 <= number < 2**16 for number in numbers):
        raise ValueError("a size, an engine or a knob is no such number")
    if not all(type(value) is int and abs(value) < 2**31 for _, value in choice.knobs):
        raise ValueError("a knob is set to no such number")
    if 0 in whole or not all(type(getattr(layer, name)) is bool for name in _FLAGS):
        raise ValueError("a size is 0, or a flag is none")
    if not {layer.reads, layer.writes, layer.residual or layer.reads} <= set(TYPES):
        raise ValueError("a type is none")
    if engine is None and not suits_kernel(layer):
        raise ValueError("the kernel does not compute such a convolution")
    return layer, choice


class PlanRefused(EngineBuildError):
    """A plan of cuDNN, or the kernel, is not compiled or run, whatever was said of it before."""


class Planner(Protocol):
    """What cuDNN offers: `cudnn_plans.CudnnPlanner`."""

    def version(self) -> int:
        """Of cuDNN."""

    def candidates(self, layer: Layer, most: int) -> Sequence[Choice]:
        """At most so many plans for a layer, those first that its heuristics like best."""

    def way(self, layer: Layer, choice: Choice) -> Way:
        """A plan, compiled; raises PlanRefused, as do calls of it."""


def suits_kernel(layer: Layer) -> bool:
    """Whether the Triton kernel computes such a convolution."""
    return layer.kernel == 1 and layer.padding == 0 and {
        layer.reads, layer.writes, layer.residual or layer.reads} <= set(DTYPES)


def triton_way(layer: Layer) -> Way:
    """The kernel of 1 x 1 convolutions."""
    from triton.errors import TritonError

    from scrd_fast.kernels.pointwise import pointwise

    def run(o: Operands) -> Tensor:
        try:
            return pointwise(o.x, o.weight, o.bias, o.residual, step=layer.stride,
                             shuffle=layer.shuffle, relu=layer.relu)
        except TritonError as error:
            raise PlanRefused(f"Triton does not run {layer}: {error}") from error

    return run


def make_way(layer: Layer, choice: Choice, planner: Planner) -> Way:
    """What runs a layer as was chosen; raises PlanRefused."""
    return triton_way(layer) if choice.engine is None else planner.way(layer, choice)


def candidates(layer: Layer, planner: Planner) -> list[Choice]:
    """What may be faster for a layer than PyTorch's own call."""
    plans = list(planner.candidates(layer, MOST))
    return [*plans, Choice()] if suits_kernel(layer) else plans


def is_right(layer: Layer, way: Way, operands: Operands, expected: Tensor) -> bool:
    """Whether a way gives what PyTorch's own call gives of these operands, but for the order of
    sums, and makes no number of what is not finite; in 8 bits the first stage, which is not
    quantised, shows that."""
    found = way(operands)
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    off, size = (found.float() - expected.float()).abs(), expected.float().abs()
    if layer.writes in DTYPES:
        right = float(off.max()) <= 4 * torch.finfo(expected.dtype).eps * float(size.max())
    else:  # the next number, and seldom: where a sum lies in the middle between two
        step = 1.0 if layer.writes == "int8" else 2.0**-3 * size + 2.0**-9
        share = float((off > 0).float().mean())
        # Sums of int8 are exact; some GPUs keep some 14 bits of those of fp8.
        right = bool((off <= step).all()) and share <= (0.01 if layer.reads == "int8" else 0.1)
    if not right or layer.eight_bits:
        return right
    bad = way(replace(operands, x=torch.full_like(operands.x, float("nan"))))
    return not bool(bad.float().isfinite().any())


def choose(
    layers: Iterable[Layer], planner: Planner,
    time: Callable[[Callable[[], object]], float], device: torch.device, progress: Progress,
) -> dict[Layer, tuple[Choice, Way]]:
    """The fastest way of each layer that is right, of those that beat PyTorch's own call; of 8 bits
    the fastest, as PyTorch has none.

    time: milliseconds of a call. What is offered and then refused, or does not fit into memory, is
    passed over: the others remain.
    """
    layers = list(layers)
    chosen: dict[Layer, tuple[Choice, Way]] = {}
    for done, layer in enumerate(layers):
        progress(done, len(layers), "choosing how convolutions run")
        try:
            operands = layer.draw_operands(device)
            expected = run_in_pytorch(layer, operands)
            best = float("inf") if layer.eight_bits else FASTER * time(
                partial(run_in_pytorch, layer, operands))
        except torch.cuda.OutOfMemoryError:  # of a batch that will be too large
            torch.cuda.empty_cache()
            continue
        for choice in candidates(layer, planner):
            try:
                way = make_way(layer, choice, planner)
                if is_right(layer, way, operands, expected) and (
                        ms := time(partial(way, operands))) < best:
                    best, chosen[layer] = ms, (choice, way)
            except PlanRefused:
                continue
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
    progress(len(layers), len(layers), "choosing how convolutions run")
    return chosen


def milliseconds(call: Callable[[], object]) -> float:
    """Of a call on the current GPU, from a captured graph of many: the host's part is not in it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.stream(stream):
        call()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(CALLS):
                call()
        graph.replay()
        for _ in range(REPLAYS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / CALLS)
    return median(times)
