"""The scoring graph with every precision visible in it, for runtimes that change none.

A strongly typed runtime computes each node in the types of its inputs. So the network's nodes
get their weights stored in the wanted type and explicit casts where they meet what stays float32:
the normalised input, and everything from the features on ("tail/").
"""

from collections import Counter

import onnx
import torch
from onnx import TensorProto, helper

from scrd_fast.errors import FidelityError, expect
from scrd_fast.graph.portable import cut_graph, output_shapes
from scrd_fast.graph.tensors import DTYPES, ONNX_TYPES, to_proto, to_tensor
from scrd_fast.spec import ScoringSpec

_BF16_OPSET = 22  # the first whose convolutions and maximum pools know bfloat16


def is_network(node: onnx.NodeProto) -> bool:
    """Whether a node is of the part that a precision is for."""
    return bool(node.name.startswith("network/"))


def _rounded(weight: onnx.TensorProto, precision: str) -> onnx.TensorProto:
    """A float32 weight in a precision; raises FidelityError where it does not fit into it."""
    value = to_tensor(weight)
    dtype = DTYPES[precision]
    rounded = value.to(dtype)
    finite = torch.isfinite(value)
    if not bool(torch.isfinite(rounded[finite]).all()):
        raise FidelityError(
            f"precision {precision!r}: weight {weight.name!r}: expected values up to"
            f" {torch.finfo(dtype).max:g}, got {float(value[finite].abs().max()):g}")
    # Single zeros are rounding; a weight that is gone altogether is a layer that is gone.
    if bool(value.any()) and not bool(rounded.any()):
        raise FidelityError(
            f"precision {precision!r}: weight {weight.name!r}: expected values that do not all"
            f" round to zero, got {float(value.abs().max()):g} at most")
    return to_proto(weight.name, rounded)


def _relu_before_shuffle(graph: onnx.GraphProto) -> None:
    """Conv, DepthToSpace, Relu become Conv, Relu, DepthToSpace, which is the same: runtimes fuse a
    convolution with the ReLU right behind it. The last tensor keeps its name."""
    shuffles = {node.output[0]: node for node in graph.node if node.op_type == "DepthToSpace"}
    uses = [name for node in graph.node for name in node.input]
    nodes = []
    for node in graph.node:
        shuffle = shuffles.get(node.input[0]) if node.op_type == "Relu" else None
        if shuffle is None or uses.count(shuffle.output[0]) > 1:
            nodes.append(node)
            continue
        nodes.remove(shuffle)
        last, between = node.output[0], f"{node.output[0]}.before_shuffle"
        node.input[0], node.output[0] = shuffle.input[0], between
        shuffle.input[0], shuffle.output[0] = between, last
        nodes += [node, shuffle]
    replace_nodes(graph, nodes)


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Put these nodes, some of which may be the graph's own, in the place of its nodes."""
    copies = []
    for node in nodes:
        copies.append(onnx.NodeProto())
        copies[-1].CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)


def scoring_graph(proto: onnx.ModelProto, spec: ScoringSpec) -> onnx.ModelProto:
    """The float32 graph from the normalised input to `score`, `map` and `scale_weights`.

    proto: what graph.portable.build_graph gives. Raises KeyError where it is no such graph.
    """
    made = cut_graph(proto, spec, "scoring", output_shapes(spec))
    _relu_before_shuffle(made.graph)
    return made


def in_precision(proto: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A scoring graph with the float32 values of its network in another precision.

    Weights are stored in it; the network's inputs and outputs are cast. Integers and float8
    values stay what they are. Raises FidelityError that names a weight which does not fit.
    """
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    if precision == "fp32":
        return made
    graph = made.graph
    in_network = {name for node in graph.node if is_network(node) for name in node.output}
    operands = {name for node in graph.node if is_network(node) for name in node.input}
    weights = {weight.name for weight in graph.initializer}
    for weight in graph.initializer:
        if weight.name in operands and weight.data_type == TensorProto.FLOAT:
            weight.CopyFrom(_rounded(weight, precision))
    if precision == "bf16":
        made.opset_import[0].version = _BF16_OPSET
    nodes: list[onnx.NodeProto] = []
    casts: dict[tuple[bool, str], str] = {}
    for node in graph.node:
        inside = is_network(node)
        for i, name in enumerate(node.input):
            if name in weights or (name in in_network) == inside:
                continue
            if (inside, name) not in casts:
                part, kind = ("network", precision) if inside else ("tail", "fp32")
                cast = f"{part}/{name.removeprefix('network/')}.{kind}"
                casts[inside, name] = cast
                nodes.append(helper.make_node("Cast", [name], [cast], name=cast,
                                              to=ONNX_TYPES[DTYPES[kind]]))
            node.input[i] = casts[inside, name]
        nodes.append(node)
    replace_nodes(graph, nodes)
    return made


def explicit_graph(proto: onnx.ModelProto, spec: ScoringSpec, precision: str) -> onnx.ModelProto:
    """The graph from the normalised input to the score, its network in a precision.

    proto: what graph.portable.build_graph gives; precision: "fp32", "fp16" or "bf16". Input
    `network_input`: float32 (batch, 3, S, S). Outputs, float32: `score` (batch,), `map`
    (batch, S, S), `scale_weights` (batch, 3). Cosine distances, scale head, map and score are
    float32 behind explicit casts. Raises InputError for another precision, FidelityError that
    names a weight which overflows or vanishes in it, KeyError where `proto` is no such graph.
    """
    expect(precision in DTYPES, "precision", f"one of {tuple(DTYPES)}", repr(precision))
    return in_precision(scoring_graph(proto, spec), precision)


def precision_counts(graph: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """How many convolutions and how many nodes of the tail compute in which precision, as an
    explicit graph says: by the weight of a convolution, float32 for the tail."""
    names = {TensorProto.FLOAT: "f32", TensorProto.FLOAT16: "f16", TensorProto.BFLOAT16: "bf16",
             TensorProto.INT8: "i8", TensorProto.FLOAT8E4M3FN: "f8"}
    types = {weight.name: weight.data_type for weight in graph.graph.initializer}
    types |= {node.output[0]: types[node.input[0]] for node in graph.graph.node
              if node.op_type == "DequantizeLinear" and node.input[0] in types}
    convolutions = Counter(names[types[node.input[1]]] for node in graph.graph.node
                           if node.op_type == "Conv")
    tail = sum(node.name.startswith("tail/") for node in graph.graph.node)
    return {"convolutions": dict(convolutions), "tail": {"f32": tail}}
