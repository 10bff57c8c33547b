"""How convolutions run, chosen and kept: by ways that a CPU has, too."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from time import perf_counter

import pytest
import torch
from torch import Tensor

from scrd_fast.backends import cudnn_plans
from scrd_fast.backends.backend import CompileRequest
from scrd_fast.backends.convolutions import (
    MOST,
    Choice,
    Choices,
    PlanRefused,
    candidates,
    choose,
    make_way,
    suits_kernel,
)
from scrd_fast.backends.layers import Layer, Operands, Way, run_in_pytorch
from scrd_fast.backends.registry import native_precisions
from scrd_fast.backends.source import Source
from scrd_fast.backends.torch_cuda import _settle_ways, _settle_with
from scrd_fast.backends.torch_network import TorchNetwork
from scrd_fast.errors import EngineBuildError, EngineFileError
from scrd_fast.graph.portable import build_graph, network_graph
from scrd_fast.graph.stored import CONVOLUTIONS
from scrd_fast.model.scrd import SCRD
from scrd_fast.progress import silent
from scrd_fast.spec import ScoringSpec
from scrd_fast.torch_state import exact_convolutions
from tests.convolutions.layers import computes, layers_of

CPU = torch.device("cpu")
SIDE = 32
LAYER = Layer(images=1, channels=16, height=4, width=4, outputs=8, kernel=1, stride=1, padding=0,
              reads="fp32", writes="fp32", bias=True, residual=None, relu=True, shuffle=False)
WIDE = replace(LAYER, kernel=3, padding=1)


def network(backbone: str = "resnet18", precision: str = "fp32",
            device: torch.device = CPU) -> TorchNetwork:
    torch.manual_seed(3)
    spec = ScoringSpec(input_size=SIDE)
    graph = network_graph(build_graph(SCRD(backbone).eval(), spec), spec, features=True)
    return TorchNetwork(graph, precision, device=device, fuse=True)


class Ways:
    """Ways of a CPU, in the place of cuDNN's plans: engine 0 is PyTorch's own again, 1 forgets the
    ReLU, 2 makes 0 of NaN, 3 is refused when it is compiled and 4 when it is run."""

    def __init__(self, engines: Sequence[int] = range(5)) -> None:
        self.engines = engines

    def version(self) -> int:
        return 91900

    def candidates(self, layer: Layer, most: int) -> Sequence[Choice]:
        return [Choice(engine) for engine in self.engines][:most]

    def way(self, layer: Layer, choice: Choice) -> Way:
        if choice.engine == 3:
            raise PlanRefused("not compiled")

        def run(operands: Operands) -> Tensor:
            if choice.engine == 4:
                raise PlanRefused("not run")
            if choice.engine == 1:
                return run_in_pytorch(replace(layer, relu=False), operands)
            out = run_in_pytorch(layer, operands)
            return out.nan_to_num() if choice.engine == 2 else out

        return run


def test_what_was_chosen_is_read_as_it_was_written():
    choices = Choices("NVIDIA H100", 91900, {
        LAYER: Choice(), WIDE: Choice(41, ((2, 7), (13, -1)))})
    assert Choices.from_bytes(choices.to_bytes()) == choices
    assert Choices.from_bytes(Choices().to_bytes()) == Choices()


def test_files_that_hold_something_else():
    good = json.loads(Choices("a", 1, {LAYER: Choice(41, ((2, 7),))}).to_bytes())
    (way,) = good["ways"]
    bad: list[object] = [
        [], {"gpu": "a"}, good | {"ways": 3}, good | {"cudnn": "new"},
        good | {"ways": [way | {"knobs": [[1]]}]}, good | {"ways": [way | {"engine": -1}]},
        good | {"ways": [way | {"engine": "x"}]},
        good | {"ways": [way | {"layer": asdict(LAYER) | {"reads": "fp64"}}]},
        good | {"ways": [way | {"layer": asdict(LAYER) | {"width": 2.5}}]},
        good | {"ways": [way | {"layer": asdict(LAYER) | {"depth": 2}}]},
        good | {"ways": [way | {"layer": asdict(LAYER) | {"stride": 0}}]},
        good | {"ways": [way | {"layer": asdict(LAYER) | {"relu": 1}}]},
        good | {"ways": [way | {"layer": asdict(WIDE), "engine": None}]},
        good | {"ways": [way | {"knobs": [[2, 2**70]]}]},
        good | {"ways": [way | {"engine": 2**31 - 1}]}]
    for each in bad:
        with pytest.raises(EngineFileError, match=r"^convolutions\.json: expected how"):
            Choices.from_bytes(json.dumps(each).encode())
    with pytest.raises(EngineFileError, match=r"^convolutions\.json"):
        Choices.from_bytes(b"\xff{")


def test_another_gpu_or_another_cudnn():
    choices = Choices("NVIDIA H100", 91900)
    assert choices.differs("NVIDIA H100", 91900) is None
    assert choices.differs("NVIDIA L4", 91900) == "it was chosen on NVIDIA H100, this is NVIDIA L4"
    assert choices.differs("NVIDIA H100", 91000) == "it was chosen with cuDNN 91900, this is 91000"


@pytest.mark.parametrize(("engine", "right"), [(0, True), (1, False), (2, False)])
@pytest.mark.parametrize("layer", [LAYER, replace(WIDE, residual="fp32")], ids=["1x1", "3x3"])
def test_what_computes(layer, engine, right):
    assert computes(layer, Ways().way(layer, Choice(engine)), CPU) == right


def test_the_order_of_sums_is_free_and_little_else():
    layer = replace(LAYER, reads="fp16", writes="fp16", channels=512)

    def reordered(o: Operands) -> Tensor:
        return run_in_pytorch(layer, replace(o, x=o.x.flip(1), weight=o.weight.flip(1)))

    def coarse(o: Operands) -> Tensor:
        return run_in_pytorch(layer, o) * 1.02

    assert computes(layer, reordered, CPU)
    assert not computes(layer, coarse, CPU)


def test_the_fastest_that_is_right_is_chosen():
    """By times that are given: those of wrong ones are the least."""
    timed: list[object] = []
    times = {"plain": 5.0, 0: 3.0, None: 4.0}

    def time(call: object) -> float:
        timed.append(call)
        return [times["plain"], times[0], times[None]][len(timed) - 1]

    told: list[tuple[int, int, str]] = []
    chosen = choose([LAYER], Ways(), time, CPU, lambda *step: told.append(step))
    assert {layer: choice for layer, (choice, _) in chosen.items()} == {LAYER: Choice(0)}
    assert len(timed) == 3  # wrong and refused ones were not timed
    assert told == [(0, 1, "choosing how convolutions run"),
                    (1, 1, "choosing how convolutions run")]


def test_pytorchs_own_call_stays_where_nothing_is_clearly_faster():
    assert choose([LAYER, WIDE], Ways(), lambda call: 1.0, CPU, silent) == {}


def test_the_kernel_is_for_convolutions_of_one_pixel():
    none = Ways([])
    assert candidates(LAYER, none) == [Choice()]
    assert candidates(WIDE, none) == candidates(replace(LAYER, padding=1), none) == []
    assert candidates(LAYER, Ways())[-1] == Choice()


def test_layers_of_a_network():
    """Those that its convolutions are asked for when it runs; each once, without data, too."""
    ours, asked = network(), []

    class Asked(dict[Layer, Way]):
        def get(self, layer, default=None):
            asked.append(layer)
            return default

    pixels = torch.randn(2, 3, SIDE, SIDE)
    layers = ours.layers(pixels)
    ours.ways = Asked()
    ours.run(pixels)
    assert layers == list(dict.fromkeys(asked))
    assert layers == network(device=torch.device("meta")).layers(pixels.to("meta"))
    assert layers[0].channels == 8  # three colours and five zeros
    assert sum(layer.shuffle for layer in layers) == 6
    assert all(layer.images == 2 for layer in layers)


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", [
    "resnet18", pytest.param("wide_resnet50_2", marks=pytest.mark.slow)])
def test_a_network_runs_in_the_ways_that_were_chosen(backbone):
    """With the kernel wherever it can be: all convolutions of one pixel, shuffles among them."""
    pytest.importorskip("triton", reason="the kernel needs Triton")
    place = torch.device("cuda") if torch.cuda.is_available() else CPU
    ours = network(backbone, device=place)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4)).to(place)
    with exact_convolutions:
        plain = ours.run(pixels)
    ways = {layer for layer in ours.layers(pixels) if suits_kernel(layer)}
    assert len(ways) >= 8
    used = []

    def counted(layer: Layer, way: Way) -> Way:
        def run(operands: Operands) -> Tensor:
            used.append(layer)
            return way(operands)

        return run

    ours.ways = {layer: counted(layer, make_way(layer, Choice(), Ways())) for layer in ways}
    with exact_convolutions:
        found = ours.run(pixels)
    assert set(used) == ways
    for one, other in zip(found, plain, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


@pytest.mark.gpu
def test_the_kernel_is_right_in_half_precision():
    pytest.importorskip("triton", reason="the kernel needs Triton")
    place = torch.device("cuda") if torch.cuda.is_available() else CPU
    for layer in network(precision="fp16", device=place).layers(
            torch.zeros(1, 3, SIDE, SIDE, device=place)):
        if suits_kernel(layer):
            assert computes(layer, make_way(layer, Choice(), Ways()), place), layer


def clock(call: Callable[[], object]) -> float:
    begin = perf_counter()
    for _ in range(3):
        call()
    return perf_counter() - begin


def test_a_clock_of_a_cpu_chooses():
    """Of 8 bits the fastest that is right, whatever PyTorch takes: it has none of them."""
    layer = replace(WIDE, reads="int8", writes="int8")
    chosen = choose([layer], Ways(), clock, CPU, silent)
    assert {layer: choice for layer, (choice, _) in chosen.items()} in (
        {layer: Choice(0)}, {layer: Choice(2)})  # int8 has no NaN that could be lost


def test_what_does_not_fit_into_memory_is_passed_over():
    def time(call: object) -> float:
        seen.append(call)
        if len(seen) == 2:  # the first plan
            raise torch.cuda.OutOfMemoryError("no room")
        return 1.0 / len(seen)

    seen: list[object] = []
    chosen = choose([WIDE], Ways([0, 0]), time, CPU, silent)
    assert [choice for choice, _ in chosen.values()] == [Choice(0)]
    assert len(seen) == 3


def request(compiled: dict[str, bytes] | None, precision: str = "fp16") -> CompileRequest:
    return CompileRequest(Source(b""), ScoringSpec(input_size=SIDE), precision, (1, 2),
                          compiled=compiled)


def kept(choices: Choices) -> dict[str, bytes]:
    return {CONVOLUTIONS: choices.to_bytes()}


class Network:
    """What is asked of a network while its ways are settled."""

    fused = True

    def __init__(self, *layers: Layer) -> None:
        self.its, self.ways = layers, dict[Layer, Way]()

    def layers(self, pixels: Tensor) -> list[Layer]:
        return [replace(layer, images=len(pixels)) for layer in self.its]


def test_built_and_loaded():
    """What a build chooses is what runs where the file is loaded, and nothing is measured there."""
    gpu, built = "NVIDIA H100", Network(LAYER, WIDE)
    made = _settle_with(built, request(None), None, Ways([0]), gpu, count_down(), CPU)
    assert (made.gpu, made.cudnn) == (gpu, 91900)
    assert set(made.ways) == set(built.ways) == {
        replace(layer, images=n) for layer in (LAYER, WIDE) for n in (1, 2)}

    def time(call: object) -> float:
        raise AssertionError("measured where it is loaded")

    loaded, read = Network(LAYER, WIDE), Choices.from_bytes(made.to_bytes())
    assert _settle_with(loaded, request(kept(made)), read, Ways([0]), gpu, time, CPU) == made
    for layer, way in loaded.ways.items():
        operands = layer.draw_operands(CPU)
        assert torch.equal(way(operands), built.ways[layer](operands))
    assert set(loaded.ways) == set(made.ways)
    elsewhere = Network(LAYER, WIDE)
    with pytest.warns(UserWarning, match="it was chosen on NVIDIA H100, this is NVIDIA L4"):
        assert _settle_with(elsewhere, request(kept(made)), read, Ways([0]), "NVIDIA L4", time,
                            CPU) == made
    assert not elsewhere.ways
    refused = Choices(gpu, 91900, {WIDE: Choice(3)})
    with pytest.raises(EngineFileError, match=r"^convolutions\.json: not compiled"):
        _settle_with(Network(), request(kept(refused)), refused, Ways(), gpu, time, CPU)


def count_down() -> Callable[[Callable[[], object]], float]:
    """A clock by which each call is faster than the one before."""
    left = iter(range(10**6, 0, -1))
    return lambda call: 0.9 ** (10**6 - next(left))


def test_8_bits_without_a_plan():
    """PyTorch would take longer for them than for fp16: neither built nor loaded."""
    layer = replace(WIDE, reads="int8")
    with pytest.raises(EngineBuildError, match=r"^precision 'int8': cuDNN 91900 computes 2"):
        _settle_with(Network(layer), request(None, "int8"), None, Ways([1]), "a", clock, CPU)
    chosen = Choices("NVIDIA H100", 91900, {layer: Choice(0)})
    with pytest.raises(EngineFileError, match=r"^convolutions\.json: how .* this is NVIDIA L4"):
        _settle_with(Network(), request(kept(chosen), "int8"), chosen, Ways(), "NVIDIA L4", clock,
                     CPU)


def test_without_the_frontend_pytorch_runs_all(monkeypatch):
    """What an engine file has chosen is kept for a machine that has it, with a warning here."""
    monkeypatch.setattr(cudnn_plans, "frontend_version", lambda: None)
    ours, chosen = Network(), Choices("NVIDIA H100", 91900, {LAYER: Choice(41)})
    for compiled in (None, {}, kept(Choices())):
        assert _settle_ways(ours, request(compiled), CPU) == Choices()
    with pytest.warns(UserWarning, match="as PyTorch runs them, .* pip install 'scrd-fast.cudnn.'"):
        assert _settle_ways(ours, request(kept(chosen)), CPU) == chosen
    assert not ours.ways
    with pytest.raises(EngineFileError, match=r"^convolutions\.json: expected how"):
        _settle_ways(ours, request({CONVOLUTIONS: b"{}"}), CPU)


def test_8_bits_without_the_frontend(monkeypatch):
    monkeypatch.setattr(cudnn_plans, "frontend_version", lambda: None)
    with pytest.raises(EngineBuildError, match=r"^precision 'int8': expected nvidia-cudnn"):
        _settle_ways(Network(), request(None, "int8"), CPU)
    for compiled in ({}, kept(Choices("a", 1, {replace(WIDE, reads="int8"): Choice(1)}))):
        with pytest.raises(EngineFileError, match=r"^convolutions\.json: how .* got none: pip"):
            _settle_ways(Network(), request(compiled, "int8"), CPU)


@pytest.mark.parametrize(("version", "told"), [
    (None, "got none"), ("1.9.0", "got 1.9.0"), ("1.26.0", None), ("2.0", None)])
def test_which_frontend_will_do(monkeypatch, version, told):
    monkeypatch.setattr(cudnn_plans, "frontend_version", lambda: version)
    missing = cudnn_plans.frontend_missing()
    assert (missing is None) if told is None else (told in missing)


def test_an_engine_file_of_an_older_release_is_not_measured(monkeypatch):
    """It has no such member; what it gave it gives again."""
    monkeypatch.setattr(cudnn_plans, "frontend_version", lambda: "1.29.1")
    assert _settle_ways(Network(), request({}), CPU) == Choices()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_cudnns_plans_are_right(precision):
    """The first that cuDNN offers for each convolution of a network, on the GPU at hand."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    if reason := cudnn_plans.frontend_missing():
        pytest.skip(reason)
    if precision not in native_precisions("torch_cuda"):
        pytest.skip(f"this GPU has no tensor cores of {precision}")
    device = torch.device("cuda", torch.cuda.current_device())
    planner = cudnn_plans.CudnnPlanner(device)
    for layer in layers_of("resnet18", 64, 2, precision):
        (first, *_) = planner.candidates(layer, MOST)
        assert computes(layer, planner.way(layer, first), device), layer
