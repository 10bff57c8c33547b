"""The nodes of a network, and the same network in fewer passes over memory, as GPUs run it best."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor

from scrd_fast.graph.tensors import DTYPES
from scrd_fast.spec import STRIDES

Attributes = dict[str, Any]
# (x, weight, bias, residual) of a fused convolution -> its output, channels-last like x.
Way = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
# What `fuse` can do beyond fusing, for measuring each; all are exact but for rounding.
REWRITES = ("shortcut_biases", "stem", "scale_head")
_HEAD = "tail/scale_head."  # how the names of its nodes begin


@dataclass(frozen=True)
class Node:
    """An operator with the names of its inputs and its output, and what it computes in."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    name: str
    dtype: torch.dtype
    attributes: Attributes = field(default_factory=dict)


def read_node(node: onnx.NodeProto, dtype: torch.dtype, weights: dict[str, Tensor]) -> Node:
    """A node of a portable graph; dtype: of the part that a precision is for."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    inputs = list(node.input)
    if node.op_type.startswith("Reduce"):  # ONNX has the axes as an input, of integers
        attributes["axes"] = weights[inputs.pop()].tolist()
    if node.op_type == "QuantizeLinear":
        attributes["kind"] = weights[inputs[2]].dtype
    return Node(node.op_type, tuple(inputs), node.output[0], node.name,
                dtype if node.name.startswith("network/") else torch.float32, attributes)


def sides(attributes: Attributes) -> tuple[list[int], list[int]]:
    """Strides and paddings of a convolution, (rows, columns) each."""
    return attributes.get("strides", [1, 1]), attributes.get("pads", [0, 0])[:2]


def fused_operands(
    attributes: Attributes, others: Sequence[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """Bias and residual of a FusedConv, from its operands behind the weight."""
    residual = others[-1] if attributes.get("residual") else None
    biases = others[:-1] if attributes.get("residual") else others
    return (biases[0] if biases else None), residual


def by_vectors(weight: Tensor) -> Tensor:
    """Outputs of a convolution before DepthToSpace: (c, row, column) to (row, column, c)."""
    return weight.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)


@dataclass(frozen=True)
class Layer:
    """A convolution with what is fused to it, and the sizes that it runs on.

    images, channels, height, width: of its input; kernel, stride, padding: of both directions;
    shuffle: whether its outputs, in an order of (row, column, c), become squares of 2 x 2 pixels.
    """

    images: int
    channels: int
    height: int
    width: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    bias: bool
    residual: bool
    relu: bool
    shuffle: bool
    precision: str

    @classmethod
    def of(cls, attributes: Attributes, x: Tensor, weight: Tensor, *others: Tensor) -> "Layer":
        """That of a FusedConv and its operands."""
        bias, residual = fused_operands(attributes, others)
        strides, pads = sides(attributes)
        precision = next(name for name, dtype in DTYPES.items() if dtype == x.dtype)
        n, channels, height, width = x.shape
        return cls(n, channels, height, width, weight.shape[0], weight.shape[2], strides[0],
                   pads[0], bias is not None, residual is not None, bool(attributes.get("relu")),
                   bool(attributes.get("shuffle")), precision)

    def output_side(self, side: int) -> int:
        """Rows (or columns) of the convolution, before a shuffle, of so many of the input."""
        return (side + 2 * self.padding - self.kernel) // self.stride + 1

    def operands(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Some input, weight, bias and residual, the same each time; outputs are some 1."""
        generator = torch.Generator(device).manual_seed(0)
        dtype, channels_last = DTYPES[self.precision], torch.channels_last

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        x = normal(self.images, self.channels, self.height, self.width)
        weight = normal(self.outputs, self.channels, self.kernel, self.kernel)
        weight /= (self.channels * self.kernel**2) ** 0.5
        parts, factor = (4, 2) if self.shuffle else (1, 1)
        residual = normal(self.images, self.outputs // parts, *(
            factor * self.output_side(side) for side in (self.height, self.width)))
        return (x.to(dtype).contiguous(memory_format=channels_last),
                weight.to(dtype).contiguous(memory_format=channels_last),
                normal(self.outputs).to(dtype) if self.bias else None,
                residual.to(dtype).contiguous(memory_format=channels_last)
                if self.residual else None)


def fuse(
    nodes: list[Node], weights: dict[str, Tensor], outputs: list[str],
    rewrites: Collection[str] = REWRITES
) -> list[Node]:
    """The same network with its convolutions as FusedConv: with "shuffle", their outputs go to
    space in whole vectors of channels; with "residual", the last input is added; with "relu" that
    follows.

    weights: may be changed and added to. rewrites: of REWRITES. "shortcut_biases": added where the
    shortcut meets the main path, whose convolution adds its bias anyway, instead of in a pass of
    its own. "stem": the three colours become 8 channels, of which 5 are zero, which the fused
    convolutions need. "scale_head": one kernel instead of ten.
    """
    whole = _fuse_convolutions(nodes, weights, outputs)
    if "shortcut_biases" in rewrites:
        whole = _move_biases(whole, weights, outputs)
    if "stem" in rewrites:
        whole = [_widen(node, weights) for node in whole]
    return _one_head(whole, weights) if "scale_head" in rewrites else whole


def to_space(x: Tensor, side: int) -> Tensor:
    """Channels (row, column, c) of a channels-last tensor to space: whole vectors of c move."""
    n, channels, height, width = x.shape
    c = channels // side**2
    x = x.permute(0, 2, 3, 1).reshape(n, height, width, side, side, c)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(n, height * side, width * side, c)
    return x.permute(0, 3, 1, 2)


def _uses(nodes: list[Node], outputs: list[str]) -> Counter[str]:
    return Counter([*outputs, *(name for node in nodes for name in node.inputs)])


def _fuse_convolutions(
    nodes: list[Node], weights: dict[str, Tensor], outputs: list[str]
) -> list[Node]:
    uses = _uses(nodes, outputs)
    # What was fused so far, by its output; a name that is gone belongs to a later node now.
    fused: dict[str, Node] = {}

    def take(name: str, *without: str) -> Node | None:
        """A convolution that nothing else reads, and that nothing of `without` follows yet."""
        conv = fused.get(name)
        if conv is None or conv.operator != "FusedConv" or uses[name] > 1 or any(
                conv.attributes.get(each) for each in without):
            return None
        return fused.pop(name)

    for node in nodes:
        made = node
        if node.operator == "Conv":
            made = replace(node, operator="FusedConv")
        elif node.operator == "DepthToSpace" and (conv := take(
                node.inputs[0], "shuffle", "residual")):
            for name in conv.inputs[1:]:
                weights[name] = by_vectors(weights[name])
            made = _followed(conv, node, shuffle=node.attributes["blocksize"])
        elif node.operator == "Relu" and (conv := take(node.inputs[0], "relu")):
            made = _followed(conv, node, relu=True)
        elif node.operator == "Add":
            # The convolution that is written first takes the sum along; the other is its shortcut.
            for first, second in (node.inputs, node.inputs[::-1]):
                if conv := take(first, "shuffle", "residual", "relu"):
                    made = _followed(replace(conv, inputs=(*conv.inputs, second)), node,
                                     residual=True)
                    break
        fused[made.output] = made
    return list(fused.values())


def _followed(conv: Node, by: Node, **attributes: Any) -> Node:
    return replace(conv, output=by.output, attributes=conv.attributes | attributes)


def _move_biases(nodes: list[Node], weights: dict[str, Tensor], outputs: list[str]) -> list[Node]:
    """The nodes with each shortcut's bias in the convolution that its sum is in."""
    uses, made = _uses(nodes, outputs), {node.output: node for node in nodes}
    for node in nodes:
        if not node.attributes.get("residual") or len(node.inputs) < 4:
            continue
        shortcut = made.get(node.inputs[-1])
        if (shortcut is None or shortcut.operator != "FusedConv" or len(shortcut.inputs) < 3
                or uses[shortcut.output] > 1 or shortcut.attributes.get("relu")):
            continue
        # Behind a shuffle each channel has the bias of as many outputs; in the graph it is one.
        parts = shortcut.attributes.get("shuffle", 1) ** 2
        bias = weights[shortcut.inputs[2]].reshape(parts, -1)
        if not bool((bias == bias[0]).all()):
            continue
        both = f"{node.inputs[2]}+{shortcut.inputs[2]}"
        weights[both] = weights[node.inputs[2]] + bias[0]
        made[shortcut.output] = replace(shortcut, inputs=shortcut.inputs[:2])
        made[node.output] = replace(node, inputs=(*node.inputs[:2], both, node.inputs[3]))
    return [made[node.output] for node in nodes]


def _widen(node: Node, weights: dict[str, Tensor]) -> Node:
    """A convolution of three colours as one of 8 channels."""
    if node.operator != "FusedConv" or not node.attributes.get("relu"):
        return node
    weight = weights[node.inputs[1]]
    if not (missing := -weight.shape[1] % 8):
        return node
    weights[node.inputs[1]] = F.pad(weight, (0, 0, 0, 0, 0, missing))
    return replace(node, attributes=node.attributes | {"channels": weight.shape[1] + missing})


def _one_head(nodes: list[Node], weights: dict[str, Tensor]) -> list[Node]:
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
