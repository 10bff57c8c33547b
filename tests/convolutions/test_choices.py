"""How convolutions run, chosen and kept: by ways that a CPU has, too."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from time import perf_counter

import pytest
import torch
from torch import Tensor

from scrd_fast.backends import cudnn_plans
from scrd_fast.backends.backend import CompileRequest
from scrd_fast.backends.convolutions import (
    Choice,
    Choices,
    PlanRefused,
    candidates,
    choose,
    is_right,
    make_ways,
)
from scrd_fast.backends.layers import Layer, Operands, Way, run_in_pytorch
from scrd_fast.backends.source import Source
from scrd_fast.backends.torch_cuda import BACKEND, CONVOLUTIONS, _choose_ways
from scrd_fast.backends.torch_network import TorchNetwork
from scrd_fast.errors import EngineFileError
from scrd_fast.graph.portable import build_graph, network_graph
from scrd_fast.model.scrd import SCRD
from scrd_fast.progress import silent
from scrd_fast.spec import ScoringSpec

CPU = torch.device("cpu")
LAYER = Layer(images=1, channels=16, height=4, width=4, outputs=8, kernel=1, stride=1, padding=0,
              reads="fp32", writes="fp32", bias=True, residual=None, relu=True, shuffle=False)
WIDE = replace(LAYER, kernel=3, padding=1)


def network(backbone: str = "resnet18", precision: str = "fp32",
            device: torch.device = CPU) -> TorchNetwork:
    torch.manual_seed(3)
    spec = ScoringSpec(input_size=64)
    graph = network_graph(build_graph(SCRD(backbone).eval(), spec), spec, features=True)
    return TorchNetwork(graph, precision, device=device, fuse=True)


class Ways:
    """Ways of a CPU, in the place of cuDNN's plans: engine 0 is PyTorch's own again, 1 forgets the
    ReLU, 2 makes 0 of NaN, 3 is refused when it is compiled and 4 when it is run."""

    def candidates(self, layer: Layer, most: int) -> Sequence[Choice]:
        return [Choice(engine) for engine in range(5)][:most]

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
        LAYER: Choice(), WIDE: Choice(41, ((2, 7), (13, 1)))})
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
        good | {"ways": [way | {"layer": asdict(LAYER) | {"depth": 2}}]}]
    for each in bad:
        with pytest.raises(EngineFileError, match=r"^convolutions\.json: expected how"):
            Choices.from_bytes(json.dumps(each).encode())
    with pytest.raises(EngineFileError, match=r"^convolutions\.json"):
        Choices.from_bytes(b"\xff{")


def test_another_gpu_or_another_cudnn():
    choices = Choices("NVIDIA H100", 91900)
    assert choices.differs("NVIDIA H100", 91900) is None
    assert "chosen on NVIDIA H100, this is NVIDIA L4" in choices.differs("NVIDIA L4", 91900)
    assert "with cuDNN 91900, this is 91000" in choices.differs("NVIDIA H100", 91000)


@pytest.mark.parametrize(("engine", "right"), [(0, True), (1, False), (2, False)])
@pytest.mark.parametrize("layer", [LAYER, replace(WIDE, residual="fp32")], ids=["1x1", "3x3"])
def test_what_is_right(layer, engine, right):
    assert is_right(layer, Ways().way(layer, Choice(engine)), CPU) == right


def test_the_order_of_sums_is_free_and_little_else():
    layer = replace(LAYER, reads="fp16", writes="fp16", channels=512)

    def reordered(o: Operands) -> Tensor:
        return run_in_pytorch(layer, replace(o, x=o.x.flip(1), weight=o.weight.flip(1)))

    def coarse(o: Operands) -> Tensor:
        return run_in_pytorch(layer, o) * 1.02

    assert is_right(layer, reordered, CPU)
    assert not is_right(layer, coarse, CPU)


def test_the_fastest_that_is_right_is_chosen():
    """By times that are given: those of wrong ones are the least."""
    timed: list[object] = []
    times = {"plain": 5.0, 0: 3.0, None: 4.0}

    def time(call: object) -> float:
        timed.append(call)
        return [times["plain"], times[0], times[None]][len(timed) - 1]

    told: list[tuple[int, int, str]] = []
    chosen = choose([LAYER], Ways(), time, CPU, lambda *step: told.append(step))
    assert chosen == {LAYER: Choice(0)}
    assert len(timed) == 3  # wrong and refused ones were not timed
    assert told == [(0, 1, "choosing how convolutions run"),
                    (1, 1, "choosing how convolutions run")]


def test_pytorchs_own_call_stays_where_nothing_is_clearly_faster():
    assert choose([LAYER, WIDE], Ways(), lambda call: 1.0, CPU, silent) == {}


def test_the_kernel_is_for_convolutions_of_one_pixel():
    assert candidates(LAYER, None) == [Choice()]
    assert candidates(WIDE, None) == candidates(replace(LAYER, padding=1), None) == []
    assert candidates(LAYER, Ways())[-1] == Choice()


def test_layers_of_a_network():
    """Those that its convolutions are asked for when it runs; each once, without data, too."""
    ours, asked = network(), []

    class Asked(dict[Layer, Way]):
        def get(self, layer, default=None):
            asked.append(layer)
            return default

    pixels = torch.randn(2, 3, 64, 64)
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
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4)).to(place)
    plain = ours.run(pixels)
    ways = {layer: Choice() for layer in ours.layers(pixels) if candidates(layer, None)}
    assert len(ways) >= 8
    used = []

    def counted(layer: Layer, way: Way) -> Way:
        def run(operands: Operands) -> Tensor:
            used.append(layer)
            return way(operands)

        return run

    ours.ways = {layer: counted(layer, way) for layer, way in make_ways(
        Choices(ways=ways), None).items()}
    found = ours.run(pixels)
    assert set(used) == set(ways)
    for one, other in zip(found, plain, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


@pytest.mark.gpu
def test_the_kernel_is_right_in_half_precision():
    pytest.importorskip("triton", reason="the kernel needs Triton")
    place = torch.device("cuda") if torch.cuda.is_available() else CPU
    for layer in network(precision="fp16", device=place).layers(
            torch.zeros(1, 3, 64, 64, device=place)):
        for choice in candidates(layer, None):
            (way,) = make_ways(Choices(ways={layer: choice}), None).values()
            assert is_right(layer, way, place), layer


def test_times_of_a_cpu_choose_something():
    """With a clock, and real times: what is chosen is one of the right ones."""
    def time(call) -> float:
        begin = perf_counter()
        for _ in range(3):
            call()
        return perf_counter() - begin

    assert set(choose([WIDE], Ways(), time, CPU, silent).values()) <= {Choice(0)}


def request(compiled: dict[str, bytes]) -> CompileRequest:
    return CompileRequest(Source(b""), ScoringSpec(input_size=64), "fp16", (1,), compiled=compiled)


def test_without_the_frontend_pytorch_runs_all(monkeypatch):
    """What an engine file has chosen is kept for a machine that has it, with a warning here."""
    monkeypatch.setattr(cudnn_plans, "find_spec", lambda name: None)
    ours, chosen = network(), Choices("NVIDIA H100", 91900, {LAYER: Choice(41)})
    assert _choose_ways(ours, request({}), CPU) == Choices()
    assert _choose_ways(ours, request({CONVOLUTIONS: Choices().to_bytes()}), CPU) == Choices()
    with pytest.warns(UserWarning, match="as PyTorch runs them, .* pip install 'scrd-fast.cudnn.'"):
        assert _choose_ways(ours, request({CONVOLUTIONS: chosen.to_bytes()}), CPU) == chosen
    assert not ours.ways
    assert BACKEND.to_offer("int8") == cudnn_plans.frontend_missing()
    assert BACKEND.to_offer("bf16") is None
    with pytest.raises(EngineFileError, match=r"^convolutions\.json: expected how"):
        _choose_ways(ours, request({CONVOLUTIONS: b"{}"}), CPU)
