"""Fused convolutions of 8-bit numbers against the quantised graph, node by node."""

import warnings
from dataclasses import replace

import pytest
import torch

from scrd_fast.backends.backend import CompileRequest
from scrd_fast.backends.convolutions import suits_kernel
from scrd_fast.backends.layers import Layer, Operands, run_in_pytorch, to_eight_bits
from scrd_fast.backends.source import Source
from scrd_fast.backends.torch_cuda import _network
from scrd_fast.backends.torch_network import TorchNetwork
from scrd_fast.building.ranges import measure_ranges, range_pixels
from scrd_fast.graph.portable import NETWORK_INPUT, build_graph, network_graph
from scrd_fast.graph.quantize import Quantisation, quantise
from scrd_fast.graph.tensors import EIGHT_BITS
from scrd_fast.model.scrd import SCRD
from scrd_fast.reference.preprocess import normalise
from scrd_fast.spec import ScoringSpec
from tests.convolutions.layers import computes
from tests.support.models import organs

CPU = torch.device("cpu")
SPEC = ScoringSpec(input_size=64)
LAYER = Layer(images=2, channels=32, height=5, width=5, outputs=16, kernel=3, stride=1, padding=1,
              reads="int8", writes="int8", bias=True, residual="int8", relu=True, shuffle=False)


@pytest.fixture(scope="module", params=["resnet18", pytest.param(
    "wide_resnet50_2", marks=pytest.mark.slow)])
def portable(request):
    torch.manual_seed(5)
    proto = build_graph(SCRD(request.param).eval(), SPEC)
    pixels = range_pixels(SPEC, organs(2, 64), 4)
    return proto, Quantisation(measure_ranges(proto, SPEC, pixels)), normalise(pixels[:2], SPEC)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_fused_network_of_8_bits(portable, kind):
    """Convolution by convolution, of what the network that is not fused has there; in float32
    around them, so that what differs is the order of sums alone."""
    proto, quantisation, pixels = portable
    graph = quantise(network_graph(proto, SPEC, features=True), kind, quantisation, base="fp32")
    plain, fused = (TorchNetwork(graph, "fp32", fuse=fuse) for fuse in (False, True))
    known = {name: value for _, name, value in plain.values(pixels)} | {NETWORK_INPUT: pixels}
    dtypes = {name: value.dtype for _, name, value in fused.values(pixels)}
    seen = 0
    for node in fused.nodes:
        if node.operator == "FusedConv":
            inputs = [fused.weights[name] if name in fused.weights
                      else known[name].to(dtypes.get(name, torch.float32)) for name in node.inputs]
            found, expected = fused.compute(node, inputs), known[node.output]
            assert found.shape == expected.shape
            off = (found.float() - expected).abs()
            if "writes" in node.attributes:  # the next number, where a sum lies in the middle
                step = 1.0 if kind == "int8" else 2.0**-3 * expected.abs() + 2.0**-9
                assert bool((off <= step).all())
                assert float((off > 0).float().mean()) <= 2e-3, node.name
                seen += 1
            else:
                assert float(off.max()) <= 1e-5 * float(expected.abs().max()), node.name
    assert seen > 20
    assert fused.precision_used() == plain_counts(plain, kind)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_whole_network_is_as_near_to_the_exact_one(portable, kind):
    """One number that is the next one, of some ten thousand, moves others behind it: what is off
    is off otherwise then, and by no more."""
    proto, quantisation, pixels = portable
    whole = network_graph(proto, SPEC, features=True)
    graph = quantise(whole, kind, quantisation, base="fp32")
    exact, plain, fused = (TorchNetwork(whole, "fp32").run(pixels), *(
        TorchNetwork(graph, "fp32", fuse=fuse).run(pixels) for fuse in (False, True)))
    for true, theirs, ours in zip(exact, plain, fused, strict=True):
        floor = 1e-5 * float(true.norm())
        assert float((ours - true).norm()) <= 1.2 * float((theirs - true).norm()) + floor


def plain_counts(plain: TorchNetwork, kind: str) -> dict[str, dict[str, int]]:
    """precision_used of the fused network: its convolutions by what they read."""
    read = [node.inputs[0] for node in plain.nodes if node.operator == "Conv"]
    of_8_bits = {node.output for node in plain.nodes if node.operator == "DequantizeLinear"}
    eight = sum(name in of_8_bits for name in read)
    names = {"int8": "i8", "fp8": "f8"}
    return {"convolutions": {"f32": len(read) - eight, names[kind]: eight}, "tail": {"f32": 1}}


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_what_lies_between_convolutions_is_of_8_bits(portable, kind):
    """Nearly all that a convolution of 8 bits reads is written by one as such, and what is not, is
    read elsewhere, too: features, which distances are made of, and what is concatenated."""
    proto, quantisation, pixels = portable
    graph = quantise(network_graph(proto, SPEC, features=True), kind, quantisation)
    fused = TorchNetwork(graph, "fp16", fuse=True)
    nodes = {node.output: node for node in fused.nodes}
    dtypes = {name: value.dtype for _, name, value in fused.values(pixels)}
    eight = [node for node in fused.nodes if "reads" in node.attributes]
    for node in eight:
        assert dtypes[node.by_role["x"]] == EIGHT_BITS[kind]
        assert fused.weights[node.by_role["weight"]].dtype == EIGHT_BITS[kind]
        assert fused.weights[node.by_role["scale"]].dtype == torch.float32
    written = [node for node in eight if "writes" in node.attributes]
    assert all(dtypes[node.output] == EIGHT_BITS[kind] for node in written)
    alone = [node for node in nodes.values() if node.operator == "EightBits"]
    assert len(written) > len(alone)
    added = [node.by_role["residual"] for node in eight if "residual" in node.by_role]
    assert sum(dtypes[name] == EIGHT_BITS[kind] for name in added) >= len(added) - 2
    assert all(node.operator != "QuantizeLinear" for node in fused.nodes)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("change", [
    {}, {"residual": None}, {"residual": "fp16"}, {"writes": "fp16"}, {"relu": False},
    {"kernel": 1, "padding": 0, "shuffle": True, "residual": None}], ids=str)
def test_a_layer_against_the_formula(kind, change):
    """In float64; what is written in 8 bits is the nearest such number, but where it lies in the
    middle between two."""
    layer = replace(LAYER, **{"reads": kind, "residual": kind, "writes": kind} | change)
    o = layer.draw_operands(CPU)
    exact = torch.nn.functional.conv2d(o.x.double(), o.weight.double(), padding=layer.padding)
    exact = exact * o.scale.double()[:, None, None] + o.bias.double()[:, None, None]
    if layer.shuffle:  # outputs of a square are a quarter of the channels apart
        exact = torch.nn.functional.pixel_shuffle(
            exact.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)
    if o.residual is not None:
        exact = exact + o.residual.double() * (1 if o.residual_scale is None
                                               else o.residual_scale.double())
    exact = exact.relu() if layer.relu else exact
    found = run_in_pytorch(layer, o)
    if layer.writes == "fp16":
        assert found.dtype == torch.float16
        assert float((found.double() - exact).abs().max()) <= 2e-3 * float(exact.abs().max())
        return
    nearest = to_eight_bits((exact * o.out_factor.double()).float(), layer.writes)
    assert found.dtype == EIGHT_BITS[kind]
    assert 0.5 < float(exact.std()) < 3  # the numbers are used, and few are beyond
    assert float((found.float() != nearest.float()).float().mean()) <= 1e-3


def test_which_ways_of_8_bits_are_right():
    def run(layer: Layer, o: Operands) -> torch.Tensor:
        return run_in_pytorch(layer, o)

    assert computes(LAYER, lambda o: run(LAYER, o), CPU)
    halved = replace(LAYER, writes="fp16")
    assert not computes(LAYER, lambda o: run(halved, replace(o, out_factor=None)), CPU)
    assert not computes(LAYER, lambda o: run(LAYER, replace(o, bias=o.bias + 1)), CPU)
    # One number off everywhere: a rounding that is not to the nearest.
    assert not computes(LAYER, lambda o: (run(LAYER, o).float() + 1).clamp(max=127).to(torch.int8),
                        CPU)
    floats = replace(LAYER, reads="fp8", writes="fp8", residual="fp8")
    assert computes(floats, lambda o: run(floats, o), CPU)

    def unsaturated(o: Operands) -> torch.Tensor:
        """NaN instead of the largest number, where a result is beyond it."""
        wide = run(replace(floats, writes="fp16"), replace(o, out_factor=None)).float()
        wide = wide * o.out_factor
        return torch.where(wide.abs() > 464, float("nan"), wide).to(torch.float8_e4m3fn)

    assert not computes(floats, unsaturated, CPU)


def test_the_kernel_is_not_for_8_bits():
    one = replace(LAYER, kernel=1, padding=0)
    assert not suits_kernel(one)
    assert not suits_kernel(replace(one, reads="fp16", writes="fp16"))  # but for the residual
    assert suits_kernel(replace(one, reads="fp16", writes="fp16", residual="fp16"))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_backends_network_is_the_fused_one(portable, kind):
    """On the CPU PyTorch runs it, and it keeps what is not finite."""
    proto, quantisation, pixels = portable
    request = CompileRequest(Source.of(proto, quantisation), SPEC, kind, (1,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that it is not taken
        network = _network(request, CPU)
    assert network.fused
    used = network.precision_used()
    assert set(used["convolutions"]) == {"f16", "i8" if kind == "int8" else "f8"}
    assert set(used["tail"]) == {"f32"}
    pixels = pixels.clone()
    pixels[1, 2, 30, 31] = float("nan")
    first, *_ = network.run(pixels.half())
    assert first.isfinite().flatten(1).all(dim=1).tolist() == [True, False]


@pytest.mark.parametrize("fuse", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_all_weights_go_to_the_device(portable, kind, fuse):
    proto, quantisation, _ = portable
    graph = quantise(network_graph(proto, SPEC, features=True), kind, quantisation)
    network = TorchNetwork(graph, "fp16", device=torch.device("meta"), fuse=fuse)
    assert {weight.device.type for weight in network.weights.values()} == {"meta"}
