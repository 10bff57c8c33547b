"""The portable graph's network in PyTorch: node by node, on a CPU or captured on a GPU."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.backends.fusion import (
    REWRITES,
    Attributes,
    Layer,
    Way,
    fused_operands,
    read_node,
    sides,
    to_space,
)
from scrd_fast.backends.fusion import fuse as fuse_nodes
from scrd_fast.graph.portable import NETWORK_INPUT, network_graph
from scrd_fast.graph.tensors import DTYPES, to_tensor
from scrd_fast.reference.preprocess import normalise
from scrd_fast.spec import ScoringSpec

_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, pads = sides(a)
    return F.conv2d(x, weight, bias, stride=strides, padding=pads)


def _padded(a: Attributes, x: Tensor) -> Tensor:
    """The input of a FusedConv, with channels of zeros where it wants more."""
    return F.pad(x, (0, 0, 0, 0, 0, a["channels"] - x.shape[1])) if "channels" in a else x


def _fused_conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None,
                residual: Tensor | None) -> Tensor:
    """A convolution with what `fusion.fuse` puts behind it, as PyTorch runs it."""
    # cuDNN fuses nothing but what ends with a ReLU and has a bias, and nothing of three channels.
    if a.get("relu") and bias is not None and x.is_cuda and x.shape[1] % 8 == 0:
        strides, pads = sides(a)
        if residual is None:
            x = torch.cudnn_convolution_relu(x, weight, bias, strides, pads, [1, 1], 1)
        else:
            x = torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, strides, pads,
                                                 [1, 1], 1)
    else:
        x = _conv(a, x, weight, bias)
        x = x if residual is None else x + residual
        x = torch.relu(x) if a.get("relu") else x
    return to_space(x, a["shuffle"]) if a.get("shuffle") else x


def plain_way(layer: Layer) -> Way:
    """How PyTorch runs a layer."""
    return partial(_fused_conv, {
        "strides": [layer.stride] * 2, "pads": [layer.padding] * 4, "relu": layer.relu,
        "shuffle": 2 if layer.shuffle else None})


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    return F.max_pool2d(x, a["kernel_shape"], a["strides"], a["pads"][:2])


def _quantise(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The 8-bit numbers of activations by one scale, as float values; zero points are 0."""
    if a["kind"] == torch.int8:
        return torch.round(x / scale).clamp(-128, 127)
    return (x / scale).clamp(-448, 448).to(a["kind"]).to(x.dtype)


def _dequantise(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return x * (scale[:, None, None, None] if scale.ndim else scale)


def _scale_head(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x in the network's precision; the rest of the head and its result are float32."""
    if x.is_cuda:
        from scrd_fast.kernels.scale_head import scale_head

        return scale_head(x, weight, bias)
    return torch.softmax((x.float().amax((2, 3))[:, None] * weight).sum(2) + bias, 1)


# Every operator that graph.portable and graph.quantize write into the network and its distances,
# and the scale head that `fusion.fuse` makes of some; a FusedConv is `TorchNetwork`'s.
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
    "DequantizeLinear": _dequantise,
    "DepthToSpace": lambda a, x: F.pixel_shuffle(x, a["blocksize"]),
    "ScaleHead": _scale_head,
    "ReduceSum": lambda a, x: x.sum(a["axes"], keepdim=bool(a["keepdims"])),
    "ReduceMax": lambda a, x: x.amax(a["axes"], keepdim=bool(a["keepdims"])),
}


class TorchNetwork:
    """The network graph in PyTorch: "network/" nodes in the precision, "tail/" in float32."""

    def __init__(self, proto: onnx.ModelProto, precision: str, *,
                 device: torch.device | None = None, fuse: bool = False,
                 rewrites: Collection[str] = REWRITES, emulate: bool = False) -> None:
        """proto: what graph.portable.network_graph gives. fuse: in as few passes over memory as
        cuDNN can; rewrites: those of REWRITES that are then made, too. emulate: compute in float32
        and round what each node gives to the precision, as hardware does that adds up in float32.
        Raises KeyError for an operator that is not known."""
        unknown = sorted({node.op_type for node in proto.graph.node} - set(_OPERATORS))
        if unknown:
            raise KeyError(f"operators {unknown} are not known to this backend")
        dtype = DTYPES[precision]
        device = device or torch.device("cpu")
        self.precision, self.fused = precision, fuse
        self._outputs = [output.name for output in proto.graph.output]
        weights = {t.name: to_tensor(t) for t in proto.graph.initializer}
        nodes = [read_node(node, dtype, weights) for node in proto.graph.node]
        self._nodes = fuse_nodes(nodes, weights, self._outputs, rewrites) if fuse else nodes
        self._emulate = emulate
        in_network = {name for node in self._nodes if node.dtype == dtype for name in node.inputs}
        for name, weight in weights.items():
            if weight.is_floating_point():
                weight = weight.to(device, dtype if name in in_network else torch.float32)
                weight = weight.float() if emulate else weight
            if weight.ndim == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
            weights[name] = weight
        self._weights = weights
        self.ways: Mapping[Layer, Way] = {}  # of fused convolutions that PyTorch does not run
        self._last_use = {name: i for i, node in enumerate(self._nodes) for name in node.inputs}

    def values(self, pixels: Tensor) -> Iterator[tuple[str, str, Tensor]]:
        """Run the graph and yield (node name, output name, value) after every node. A value that
        is changed in place goes on as it then is."""
        alive = {NETWORK_INPUT: pixels.contiguous(memory_format=torch.channels_last)}
        for i, node in enumerate(self._nodes):
            operands = [self._weights[n] if n in self._weights else alive[n] for n in node.inputs]
            if node.operator != "ScaleHead":  # which reads features as they are
                kind = torch.float32 if self._emulate else node.dtype
                operands = [operand.to(kind) for operand in operands]
            run = self._convolve if node.operator == "FusedConv" else _OPERATORS[node.operator]
            result = run(node.attributes, *operands)
            alive[node.output] = result.to(node.dtype).float() if self._emulate else result
            yield node.name, node.output, alive[node.output]
            for n in node.inputs:
                if self._last_use[n] == i:
                    alive.pop(n, None)

    def _convolve(self, a: Attributes, x: Tensor, weight: Tensor, *others: Tensor) -> Tensor:
        x = _padded(a, x)
        way = self.ways.get(Layer.of(a, x, weight, *others)) if self.ways else None
        return (way or partial(_fused_conv, a))(x, weight, *fused_operands(a, others))

    @torch.no_grad()
    def layers(self, pixels: Tensor) -> list[Layer]:
        """The fused convolutions that normalised pixels go through, each once, in their order."""
        found: dict[Layer, None] = {}
        known = {NETWORK_INPUT: pixels.to("meta")}
        for node, (_, output, value) in zip(self._nodes, self.values(pixels), strict=True):
            if node.operator == "FusedConv":
                x, *others = [known[n] if n in known else self._weights[n] for n in node.inputs]
                x = _padded(node.attributes, x.to(node.dtype))
                found[Layer.of(node.attributes, x, *others)] = None
            known[output] = value.to("meta")
        return list(found)

    @torch.no_grad()
    def run(self, pixels: Tensor) -> list[Tensor]:
        """Normalised (N, 3, S, S) -> the outputs of the graph, in their order."""
        kept = {o: v for _, o, v in self.values(pixels) if o in self._outputs}
        return [kept[name] for name in self._outputs]

    def precision_used(self) -> dict[str, Any]:
        """How many convolutions and how many nodes after them compute in which precision."""
        counts: dict[str, Counter[str]] = {"convolutions": Counter(), "tail": Counter()}
        for node in self._nodes:
            if node.operator in ("Conv", "FusedConv"):
                counts["convolutions"][_NAMES[node.dtype]] += 1
            elif node.name.startswith("tail/"):
                counts["tail"][_NAMES[node.dtype]] += 1
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
