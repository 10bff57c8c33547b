"""The portable graph's network in PyTorch: node by node, on a CPU or captured on a GPU."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor

from scrd_fast.graph.portable import NETWORK_INPUT, network_graph
from scrd_fast.graph.tensors import DTYPES, to_tensor
from scrd_fast.reference.preprocess import normalise
from scrd_fast.spec import STRIDES, ScoringSpec

_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
Attributes = dict[str, Any]


def _sides(a: Attributes) -> tuple[list[int], list[int]]:
    """Strides and paddings of a convolution."""
    return a.get("strides", [1, 1]), a.get("pads", [0, 0])[:2]


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, pads = _sides(a)
    return F.conv2d(x, weight, bias, stride=strides, padding=pads)


def _conv_relu(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if "channels" in a:
        x = F.pad(x, (0, 0, 0, 0, 0, a["channels"] - x.shape[1]))
    if not x.is_cuda or x.shape[1] % 8:  # cuDNN fuses nothing behind three channels
        return torch.relu(_conv(a, x, weight, bias))
    strides, pads = _sides(a)
    return torch.cudnn_convolution_relu(x, weight, bias, strides, pads, [1, 1], 1)


def _conv_add_relu(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor, z: Tensor) -> Tensor:
    if not x.is_cuda:
        return torch.relu(_conv(a, x, weight, bias) + z)
    strides, pads = _sides(a)
    return torch.cudnn_convolution_add_relu(x, weight, z, 1.0, bias, strides, pads, [1, 1], 1)


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    return F.max_pool2d(x, a["kernel_shape"], a["strides"], a["pads"][:2])


def _quantise(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The 8-bit numbers of activations by one scale, as float values; zero points are 0."""
    if a["kind"] == torch.int8:
        return torch.round(x / scale).clamp(-128, 127)
    return (x / scale).clamp(-448, 448).to(a["kind"]).to(x.dtype)


def _dequantise(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return x * (scale[:, None, None, None] if scale.ndim else scale)


def _depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    """Channels (row, column, c) of a channels-last tensor to space: whole vectors of c move."""
    n, channels, height, width = x.shape
    side = a["blocksize"]
    c = channels // side**2
    x = x.permute(0, 2, 3, 1).reshape(n, height, width, side, side, c)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(n, height * side, width * side, c)
    return x.permute(0, 3, 1, 2)


def _scale_head(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x in the network's precision; the rest of the head and its result are float32."""
    if x.is_cuda:
        from scrd_fast.kernels.scale_head import scale_head

        return scale_head(x, weight, bias)
    return torch.softmax((x.float().amax((2, 3))[:, None] * weight).sum(2) + bias, 1)


# Every operator that graph.portable and graph.quantize write into the network and its distances,
# and what `_fuse` makes of them.
_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Cast": lambda a, x: x,  # operands have the type of the node's result
    "Conv": _conv,
    "ConvRelu": _conv_relu,
    "ConvAddRelu": _conv_add_relu,
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
    "VectorsToSpace": _depth_to_space,
    "ScaleHead": _scale_head,
    "ReduceSum": lambda a, x: x.sum(a["axes"], keepdim=bool(a["keepdims"])),
    "ReduceMax": lambda a, x: x.amax(a["axes"], keepdim=bool(a["keepdims"])),
}


@dataclass(frozen=True)
class _Node:
    operator: str
    inputs: tuple[str, ...]
    output: str
    name: str
    dtype: torch.dtype
    attributes: Attributes = field(default_factory=dict)


def _read_node(node: onnx.NodeProto, dtype: torch.dtype, weights: dict[str, Tensor]) -> _Node:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    inputs = list(node.input)
    if node.op_type.startswith("Reduce"):  # ONNX has the axes as an input, of integers
        attributes["axes"] = weights[inputs.pop()].tolist()
    if node.op_type == "QuantizeLinear":
        attributes["kind"] = weights[inputs[2]].dtype
    return _Node(node.op_type, tuple(inputs), node.output[0], node.name,
                 dtype if node.name.startswith("network/") else torch.float32, attributes)


def _by_vectors(weight: Tensor) -> Tensor:
    """Outputs of a convolution before DepthToSpace: (c, row, column) to (row, column, c)."""
    return weight.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)


# What `_fuse` can do beyond fusing, for measuring each; all are exact but for rounding.
REWRITES = ("shortcut_biases", "stem", "scale_head")
_HEAD = "tail/scale_head."  # how the names of its nodes begin


def _one_head(nodes: list[_Node], weights: dict[str, Tensor]) -> list[_Node]:
    """The nodes with those of the scale head as one, in the place of the last."""
    head = {node.name.removeprefix(_HEAD): node for node in nodes if node.name.startswith(_HEAD)}
    wanted = {"pool", "sums", "logits", "softmax",
              *(f"{part}{k}" for part in ("product", "sum") for k in range(len(STRIDES)))}
    if set(head) != wanted:
        return nodes
    last, weight, bias = head["softmax"], f"{_HEAD}weight", head["logits"].inputs[1]
    weights[weight] = torch.stack(
        [weights[head[f"product{k}"].inputs[1]] for k in range(len(STRIDES))])
    one = replace(last, operator="ScaleHead", inputs=(head["pool"].inputs[0], weight, bias))
    return [one if node is last else node for node in nodes
            if node is last or node.name.removeprefix(_HEAD) not in head]


def _shortcut_bias(
    name: str, made: Mapping[str, _Node], fused: Mapping[str, _Node | None],
    weights: dict[str, Tensor]
) -> tuple[_Node, Tensor] | None:
    """The convolution of a shortcut whose output is `name`, perhaps behind a shuffle, and its bias
    by channel of that output; None where there is none, or its channels have several."""
    node, parts = fused.get(name) or made[name], 1
    if node.operator == "VectorsToSpace":
        parts = node.attributes["blocksize"] ** 2
        node = fused.get(node.inputs[0]) or made[node.inputs[0]]
    if node.operator != "Conv" or len(node.inputs) < 3:
        return None
    bias = weights[node.inputs[2]].reshape(parts, -1)
    return (node, bias[0]) if bool((bias == bias[0]).all()) else None


def _fuse(
    nodes: list[_Node], weights: dict[str, Tensor], outputs: list[str], rewrites: Collection[str]
) -> list[_Node]:
    """The same network in fewer passes over memory, as cuDNN can run it: bias, residual sum and
    ReLU inside the convolution, and DepthToSpace that moves whole vectors.

    rewrites: of REWRITES. "shortcut_biases": added where the shortcut meets the main path, whose
    convolution adds its bias anyway, instead of in a pass of its own. "stem": the three colours
    become 8 channels, of which 5 are zero, which the fused convolutions need. "scale_head": one
    kernel instead of ten.
    """
    uses = Counter([*outputs, *(name for node in nodes for name in node.inputs)])
    made = {node.output: node for node in nodes}
    fused: dict[str, _Node | None] = {}  # output -> what takes its node's place

    def only(name: str, operator: str) -> _Node | None:
        node = made.get(name)
        return node if node and node.operator == operator and uses[name] == 1 else None

    for node in nodes:
        if node.operator == "DepthToSpace" and (conv := only(node.inputs[0], "Conv")):
            for name in conv.inputs[1:]:
                weights[name] = _by_vectors(weights[name])
            fused[node.output] = replace(node, operator="VectorsToSpace")
        elif node.operator == "Relu":
            source = node.inputs[0]
            if conv := only(source, "Conv"):
                fused[source] = None
                weight, attributes = weights[conv.inputs[1]], conv.attributes
                if "stem" in rewrites and (missing := -weight.shape[1] % 8):
                    weights[conv.inputs[1]] = F.pad(weight, (0, 0, 0, 0, 0, missing))
                    attributes = attributes | {"channels": weight.shape[1] + missing}
                fused[node.output] = replace(conv, operator="ConvRelu", output=node.output,
                                             attributes=attributes)
            elif (shuffle := only(source, "DepthToSpace")) and (
                    conv := only(shuffle.inputs[0], "Conv")):
                # A ReLU before the shuffle is the same as one after it.
                fused[conv.output] = replace(conv, operator="ConvRelu")
                fused[source] = None
                fused[node.output] = replace(shuffle, operator="VectorsToSpace",
                                             output=node.output)
            elif add := only(source, "Add"):
                for first, second in (add.inputs, add.inputs[::-1]):
                    if conv := only(first, "Conv"):
                        fused[conv.output] = fused[source] = None
                        shortcut = _shortcut_bias(second, made, fused, weights) if (
                            "shortcut_biases" in rewrites and uses[second] == 1) else None
                        if shortcut is not None:
                            behind, bias = shortcut
                            fused[behind.output] = replace(behind, inputs=behind.inputs[:2])
                            both = f"{conv.inputs[2]}+{behind.inputs[2]}"
                            weights[both] = weights[conv.inputs[2]] + bias
                            conv = replace(conv, inputs=(*conv.inputs[:2], both))
                        fused[node.output] = replace(
                            conv, operator="ConvAddRelu", inputs=(*conv.inputs, second),
                            output=node.output)
                        break
    chosen = (fused.get(node.output, node) for node in nodes)
    left = [node for node in chosen if node is not None]
    return _one_head(left, weights) if "scale_head" in rewrites else left


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
        self.precision = precision
        self._outputs = [output.name for output in proto.graph.output]
        weights = {t.name: to_tensor(t) for t in proto.graph.initializer}
        nodes = [_read_node(node, dtype, weights) for node in proto.graph.node]
        self._nodes = _fuse(nodes, weights, self._outputs, rewrites) if fuse else nodes
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
            result = _OPERATORS[node.operator](node.attributes, *operands)
            alive[node.output] = result.to(node.dtype).float() if self._emulate else result
            yield node.name, node.output, alive[node.output]
            for n in node.inputs:
                if self._last_use[n] == i:
                    alive.pop(n, None)

    @torch.no_grad()
    def run(self, pixels: Tensor) -> list[Tensor]:
        """Normalised (N, 3, S, S) -> the outputs of the graph, in their order."""
        kept = {o: v for _, o, v in self.values(pixels) if o in self._outputs}
        return [kept[name] for name in self._outputs]

    def precision_used(self) -> dict[str, Any]:
        """How many convolutions and how many nodes after them compute in which precision."""
        counts: dict[str, Counter[str]] = {"convolutions": Counter(), "tail": Counter()}
        for node in self._nodes:
            if node.operator.startswith("Conv"):
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
