"""The nodes of a network, and the same network in fewer passes over memory, as GPUs run it best."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor

from scrd_fast.backends.layers import by_vectors
from scrd_fast.spec import STRIDES

Attributes = dict[str, Any]
# What `fuse_nodes` can do beyond fusing, for measuring each; all are exact but for rounding.
REWRITES = ("shortcut_biases", "stem", "scale_head")
_HEAD = "tail/scale_head."  # how the names of its nodes begin


@dataclass(frozen=True)
class Node:
    """An operator with the names of its inputs and its output, and what it computes in.

    roles: of a FusedConv: the names of its inputs among `layers.Operands`.
    """

    operator: str
    inputs: tuple[str, ...]
    output: str
    name: str
    dtype: torch.dtype
    attributes: Attributes = field(default_factory=dict)
    roles: tuple[str, ...] = ()

    @property
    def by_role(self) -> dict[str, str]:
        """The names of the inputs that have roles."""
        return dict(zip(self.roles, self.inputs, strict=False))  # the others have none

    def reading(self, inputs: dict[str, str]) -> "Node":
        """The same with these inputs, by role."""
        return replace(self, roles=tuple(inputs), inputs=tuple(inputs.values()))

    def followed_by(self, node: "Node", **attributes: Any) -> "Node":
        """The same with what a node behind it does in its attributes."""
        return replace(self, output=node.output, attributes=self.attributes | attributes)


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


def fuse_nodes(
    nodes: list[Node], weights: dict[str, Tensor], outputs: list[str],
    rewrites: Collection[str] = REWRITES
) -> list[Node]:
    """The same network with its convolutions as FusedConv, each with what follows it: the sum with
    a residual, ReLU, the shuffle to space, and in a quantised network the way from 8-bit numbers
    and back to them. Tensors of 8 bits are then such ones: EightBits instead of QuantizeLinear.

    weights: may be changed and added to. rewrites: of REWRITES. "shortcut_biases": added where the
    shortcut meets the main path, whose convolution adds its bias anyway, instead of in a pass of
    its own. "stem": the three colours become 8 channels, of which 5 are zero, which the fused
    convolutions need. "scale_head": one kernel instead of ten.
    """
    whole = _fuse_convolutions(_read_eight_bits(nodes, weights), weights, outputs)
    if "shortcut_biases" in rewrites:
        whole = _move_biases(whole, weights, outputs)
    if "stem" in rewrites:
        whole = [_widen(node, weights) for node in whole]
    if "scale_head" in rewrites:
        whole = _one_head(whole, weights)
    uses = _uses(whole, outputs)
    return [node for node in whole if uses[node.output]]  # some pairs of 8 bits are read no more


def _uses(nodes: list[Node], outputs: list[str]) -> Counter[str]:
    return Counter([*outputs, *(name for node in nodes for name in node.inputs)])


def _read_eight_bits(nodes: list[Node], weights: dict[str, Tensor]) -> list[Node]:
    """The nodes with each Conv as a FusedConv of nothing else yet, and each convolution of values
    that 8-bit numbers stand for as one of the numbers."""
    made = {node.output: node for node in nodes}

    def convolution(node: Node) -> Node:
        x, weight = (made.get(name) for name in node.inputs[:2])
        conv = replace(node, operator="FusedConv",
                       roles=("x", "weight", "bias")[: len(node.inputs)])
        if weight is None:  # stored as it is
            return conv
        assert x is not None
        stored, of_weight = weight.inputs[:2]
        quantised, of_x = x.inputs[:2]
        scale = f"{node.name}.scale"
        weights[scale] = weights[of_weight].float() * weights[of_x].float()
        read = conv.by_role | {"x": quantised, "weight": stored, "scale": scale}
        return replace(conv.reading(read), attributes={
            **conv.attributes, "reads": weights[stored].dtype})

    def eight_bits(node: Node) -> Node:
        factor = f"{node.inputs[1]}.factor"
        weights[factor] = 1 / weights[node.inputs[1]].float()
        return replace(node, operator="EightBits", inputs=(node.inputs[0], factor))

    return [convolution(node) if node.operator == "Conv" else
            eight_bits(node) if node.operator == "QuantizeLinear" else node for node in nodes]


def _fuse_convolutions(
    nodes: list[Node], weights: dict[str, Tensor], outputs: list[str]
) -> list[Node]:
    uses = _uses(nodes, outputs)
    # What was fused so far, by its output; a name that is gone belongs to a later node now.
    fused: dict[str, Node] = {}

    def pop_convolution(name: str, *without: str) -> Node | None:
        """A convolution that nothing else reads, and that nothing of `without` follows yet."""
        conv = fused.get(name)
        if conv is None or conv.operator != "FusedConv" or uses[name] > 1 or any(
                each in conv.attributes for each in ("writes", *without)):
            return None
        return fused.pop(name)

    for node in nodes:
        made = node
        if node.operator == "DepthToSpace" and (conv := pop_convolution(
                node.inputs[0], "shuffle", "residual")):
            for role, name in conv.by_role.items():
                if role != "x":
                    weights[name] = by_vectors(weights[name])
            made = conv.followed_by(node, shuffle=True)
        elif node.operator == "Relu" and (conv := pop_convolution(node.inputs[0], "relu")):
            made = conv.followed_by(node, relu=True)
        elif node.operator == "Add":
            # The convolution that is written first takes the sum along; the other is its shortcut.
            for first, second in (node.inputs, node.inputs[::-1]):
                if conv := pop_convolution(first, "shuffle", "residual", "relu"):
                    made = _with_residual(conv, fused.get(second), second, weights).followed_by(
                        node, residual=True)
                    break
        elif node.operator == "EightBits" and _reads_eight_bits(fused.get(node.inputs[0])) and (
                conv := pop_convolution(node.inputs[0])):
            made = conv.reading(conv.by_role | {"out_factor": node.inputs[1]}).followed_by(
                node, writes=node.attributes["kind"])
        fused[made.output] = made
    return list(fused.values())


def _reads_eight_bits(node: Node | None) -> bool:
    return node is not None and "reads" in node.attributes


def _with_residual(conv: Node, source: Node | None, name: str, weights: dict[str, Tensor]) -> Node:
    """A convolution with a residual, which is read in 8 bits where it comes from such."""
    if not _reads_eight_bits(conv) or source is None or source.operator != "DequantizeLinear":
        return conv.reading(conv.by_role | {"residual": name})
    scale = f"{conv.name}.residual_scale"
    weights[scale] = weights[source.inputs[1]].float()
    return conv.reading(conv.by_role | {"residual": source.inputs[0], "residual_scale": scale})


def _move_biases(nodes: list[Node], weights: dict[str, Tensor], outputs: list[str]) -> list[Node]:
    """The nodes with each shortcut's bias in the convolution that its sum is in."""
    uses, made = _uses(nodes, outputs), {node.output: node for node in nodes}
    for node in nodes:
        shortcut, own = made.get(node.by_role.get("residual", "")), node.by_role.get("bias")
        if shortcut is None or own is None or uses[shortcut.output] > 1 or (
                shortcut.attributes.keys() & {"relu", "writes"}):
            continue
        read = shortcut.by_role
        if (other := read.pop("bias", None)) is None:
            continue
        # Behind a shuffle each channel has the bias of as many outputs; in the graph it is one.
        bias = weights[other].reshape(-1, len(weights[own]))
        if not bool((bias == bias[0]).all()):
            continue
        both = f"{own}+{other}"
        weights[both] = weights[own] + bias[0]
        made[shortcut.output] = shortcut.reading(read)
        made[node.output] = node.reading(node.by_role | {"bias": both})
    return [made[node.output] for node in nodes]


def _widen(node: Node, weights: dict[str, Tensor]) -> Node:
    """A convolution of three colours as one of 8 channels."""
    if node.operator != "FusedConv" or not node.attributes.get("relu"):
        return node
    name = node.by_role["weight"]
    if not (missing := -weights[name].shape[1] % 8):
        return node
    channels = weights[name].shape[1] + missing
    weights[name] = F.pad(weights[name], (0, 0, 0, 0, 0, missing))
    return replace(node, attributes=node.attributes | {"channels": channels})


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
