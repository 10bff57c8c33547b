"""The portable graph's network in PyTorch: node by node, on a CPU or captured on a GPU."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.backends.fusion import REWRITES, Attributes, Node, fuse_nodes, read_node
from scrd_fast.backends.layers import (
    NAMES,
    Layer,
    Operands,
    Way,
    run_in_pytorch,
    to_eight_bits,
)
from scrd_fast.graph.portable import NETWORK_INPUT, network_graph
from scrd_fast.graph.tensors import DTYPES, EIGHT_BITS, to_tensor
from scrd_fast.reference.preprocess import normalise
from scrd_fast.spec import ScoringSpec

# As the reports of runtimes call them.
_REPORTED = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.int8: "i8",
          torch.float8_e4m3fn: "f8"}


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, stride=a.get("strides", [1, 1]),
                    padding=a.get("pads", [0, 0])[:2])


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    return F.max_pool2d(x, a["kernel_shape"], a["strides"], a["pads"][:2])


def _quantise(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The 8-bit numbers of activations by one scale, as float values; zero points are 0."""
    if a["kind"] == torch.int8:
        return torch.round(x / scale).clamp(-128, 127)
    return (x / scale).clamp(-448, 448).to(a["kind"]).to(x.dtype)


def _dequantise(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return x * (scale[:, None, None, None] if scale.ndim else scale)


def _eight_bits(a: Attributes, x: Tensor, factor: Tensor) -> Tensor:
    """x in the network's precision or float32, of which the nearest 8-bit numbers are taken."""
    if x.is_cuda:
        from scrd_fast.kernels.eight_bits import round_to_eight_bits

        return round_to_eight_bits(x, factor, a["kind"])
    return to_eight_bits(x.float() * factor, NAMES[a["kind"]])


def _scale_head(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x in the network's precision; the rest of the head and its result are float32."""
    if x.is_cuda:
        from scrd_fast.kernels.scale_head import scale_head

        return scale_head(x, weight, bias)
    return torch.softmax((x.float().amax((2, 3))[:, None] * weight).sum(2) + bias, 1)


# Every operator that graph.portable and graph.quantize write into the network and its distances,
# and what `fusion.fuse_nodes` makes of some, but for FusedConv, which is `TorchNetwork`'s.
_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Cast": lambda a, x: x,  # operands have the type of the node's result
    "Conv": _conv,
    "MaxPool": _max_pool,
    "Relu": lambda a, x: torch.relu(x),
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "Max": lambda a, x, y: torch.maximum(x, y),
    "Sqrt": lambda a, x: torch.sqrt(x),
    "Softmax": lambda a, x: torch.softmax(x, a["axis"]),
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "QuantizeLinear": _quantise,
    "EightBits": _eight_bits,
    "DequantizeLinear": _dequantise,
    "DepthToSpace": lambda a, x: F.pixel_shuffle(x, a["blocksize"]),
    "ScaleHead": _scale_head,
    "ReduceSum": lambda a, x: x.sum(a["axes"], keepdim=bool(a["keepdims"])),
    "ReduceMax": lambda a, x: x.amax(a["axes"], keepdim=bool(a["keepdims"])),
}


def _layer(node: Node, inputs: list[Tensor]) -> tuple[Layer, Operands]:
    """What a FusedConv computes of these inputs, and as its operands."""
    a = node.attributes
    operands = Operands(**dict(zip(node.roles, inputs, strict=True)))
    x, residual = operands.x, operands.residual
    if "reads" not in a:
        x = x.to(node.dtype)
    if "channels" in a:
        x = F.pad(x, (0, 0, 0, 0, 0, a["channels"] - x.shape[1]))
    n, channels, height, width = x.shape
    outputs, _, kernel, _ = operands.weight.shape
    layer = Layer(n, channels, height, width, outputs, kernel, a.get("strides", [1])[0],
                  a.get("pads", [0])[0], NAMES[x.dtype], NAMES[a.get("writes", node.dtype)],
                  operands.bias is not None, None if residual is None else NAMES[residual.dtype],
                  bool(a.get("relu")), bool(a.get("shuffle")))
    return layer, replace(operands, x=x)


def _exact(nodes: list[Node]) -> set[str]:
    """Names of what stays float32 in any precision: the factors of 8-bit numbers, and the biases
    that are added to their products."""
    names: set[str] = set()
    for node in nodes:
        if node.operator == "EightBits":
            names.add(node.inputs[1])
        elif node.operator == "FusedConv" and "reads" in node.attributes:
            names.update(name for role, name in zip(node.roles, node.inputs, strict=True)
                         if role not in ("x", "weight", "residual"))
    return names


class TorchNetwork:
    """The network graph in PyTorch: "network/" nodes in the precision, "tail/" in float32."""

    def __init__(self, proto: onnx.ModelProto, precision: str, *,
                 device: torch.device | None = None, fuse: bool = False,
                 rewrites: Collection[str] = REWRITES, emulate: bool = False) -> None:
        """proto: what graph.portable.network_graph gives. fuse: in as few passes over memory as
        cuDNN can; rewrites: those of REWRITES that are then made, too. emulate: compute in float32
        and round what each node gives to the precision, as hardware does that adds up in float32.
        Not both. Raises KeyError for an operator that is not known."""
        assert not (fuse and emulate), "a fused convolution rounds once, at its end"
        unknown = sorted({node.op_type for node in proto.graph.node} - set(_OPERATORS))
        if unknown:
            raise KeyError(f"operators {unknown} are not known to this backend")
        dtype = DTYPES[precision]
        device = device or torch.device("cpu")
        self.precision, self.fused = precision, fuse
        self.outputs = [output.name for output in proto.graph.output]
        weights = {t.name: to_tensor(t) for t in proto.graph.initializer}
        nodes = [read_node(node, dtype, weights) for node in proto.graph.node]
        self.nodes = fuse_nodes(nodes, weights, self.outputs, rewrites) if fuse else nodes
        self._emulate = emulate
        in_network = {name for node in self.nodes if node.dtype == dtype
                      for name in node.inputs} - _exact(self.nodes)
        for name, weight in weights.items():
            weight = weight.to(device)
            if weight.is_floating_point() and not (fuse and weight.dtype in EIGHT_BITS.values()):
                weight = weight.to(dtype if name in in_network else torch.float32)
                weight = weight.float() if emulate else weight
            if weight.ndim == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
            weights[name] = weight
        self.weights = weights
        self.ways: Mapping[Layer, Way] = {}  # of fused convolutions that PyTorch does not run
        self._last_use = {name: i for i, node in enumerate(self.nodes) for name in node.inputs}

    def values(self, pixels: Tensor) -> Iterator[tuple[str, str, Tensor]]:
        """Run the graph and yield (node name, output name, value) after every node. A value that
        is changed in place goes on as it then is."""
        alive = {NETWORK_INPUT: pixels.contiguous(memory_format=torch.channels_last)}
        for i, node in enumerate(self.nodes):
            alive[node.output] = self.compute(node, [
                self.weights[n] if n in self.weights else alive[n] for n in node.inputs])
            yield node.name, node.output, alive[node.output]
            for n in node.inputs:
                if self._last_use[n] == i:
                    alive.pop(n, None)

    def compute(self, node: Node, operands: list[Tensor]) -> Tensor:
        """The output of a node of its operands."""
        if node.operator == "FusedConv":
            layer, given = _layer(node, operands)
            return self.ways.get(layer, partial(run_in_pytorch, layer))(given)
        if node.operator not in ("ScaleHead", "EightBits"):  # which read all as it is
            kind = torch.float32 if self._emulate else node.dtype
            operands = [operand.to(kind) for operand in operands]
        result = _OPERATORS[node.operator](node.attributes, *operands)
        return result.to(node.dtype).float() if self._emulate else result

    @torch.no_grad()
    def layers(self, pixels: Tensor) -> list[Layer]:
        """The fused convolutions that normalised pixels go through, each once, in their order."""
        found: dict[Layer, None] = {}
        known = {NETWORK_INPUT: pixels.to("meta")}
        for node, (_, output, value) in zip(self.nodes, self.values(pixels), strict=True):
            if node.operator == "FusedConv":
                layer, _ = _layer(node, [known[n] if n in known else self.weights[n].to("meta")
                                         for n in node.inputs])
                found[layer] = None
            known[output] = value.to("meta")
        return list(found)

    @torch.no_grad()
    def run(self, pixels: Tensor) -> list[Tensor]:
        """Normalised (N, 3, S, S) -> the outputs of the graph, in their order."""
        kept = {o: v for _, o, v in self.values(pixels) if o in self.outputs}
        return [kept[name] for name in self.outputs]

    def precision_used(self) -> dict[str, Any]:
        """How many convolutions and how many nodes after them compute in which precision."""
        counts: dict[str, Counter[str]] = {"convolutions": Counter(), "tail": Counter()}
        for node in self.nodes:
            if node.operator in ("Conv", "FusedConv"):
                kind = node.attributes.get("reads", node.dtype)
                counts["convolutions"][_REPORTED[kind]] += 1
            elif node.name.startswith("tail/"):
                counts["tail"][_REPORTED[node.dtype]] += 1
        return {group: dict(count) for group, count in counts.items()}


@torch.no_grad()
def first_nonfinite(
    proto: onnx.ModelProto, spec: ScoringSpec, pixels: Tensor, precision: str
) -> str | None:
    """The name of the first node whose output is not finite in a precision, or None.

    proto: what graph.portable.build_graph gives; pixels: (N, 3, S, S) in [0, 1].
    """
    network = TorchNetwork(network_graph(proto, spec), precision)
    for name, _, value in network.values(normalise(pixels, spec)):
        if not bool(torch.isfinite(value).all()):
            return name
    return None
