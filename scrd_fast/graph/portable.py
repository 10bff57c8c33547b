"""The portable ONNX graph: uint8 pixels in; score, map and scale weights out.

Every backend and the exported ONNX file are made from this one graph. It differs from the
reference model by exact rewritings only: each BatchNorm is folded into the convolution before it,
each transposed convolution (kernel 2, stride 2) is a 1x1 convolution and a depth-to-space, and
upsampling with blurring is U M U^T (see ops.anomaly_map). Node names start with the part they
belong to: "preprocess/", "network/", "tail/".
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from scrd_fast.model.resnet import BasicBlock, BottleneckBlock
from scrd_fast.model.scrd import SCRD
from scrd_fast.reference.anomaly_map import COSINE_EPS, upsample_blur_matrix
from scrd_fast.reference.normal_map import (
    FARTHEST,
    NormalMap,
    foreground_limits,
    thumbnail_rows,
)
from scrd_fast.reference.preprocess import FULL_SCALE
from scrd_fast.reference.prior import interpolation_matrix
from scrd_fast.spec import STRIDES, THUMBNAIL, Prior, ScoringSpec

OPSET = 18
NETWORK_INPUT = "network_input"
OUTPUTS = ("score", "map", "scale_weights")
NETWORK_OUTPUTS = ("distance0", "distance1", "distance2", "scale_weights")
SPEC_KEY = "scrd_fast.spec"
Shape = list[int | str | None]


class _Graph:
    """Collects nodes and weights; `part` prefixes the names of what is added."""

    def __init__(self) -> None:
        self.part = ""
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Any) -> str:
        self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def add(self, op: str, inputs: Sequence[str], name: str, output: str = "", **attrs: Any) -> str:
        name = f"{self.part}/{name}"
        output = output or name
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attrs))
        return output

    def reduce(self, op: str, x: str, axes: Sequence[int], name: str, output: str = "") -> str:
        """A reduction that drops its axes."""
        names = self.constant("axes_" + "_".join(map(str, axes)), np.array(axes, np.int64))
        return self.add(op, [x, names], name, output, keepdims=0)


def _folded(conv: nn.Module, bn: nn.BatchNorm2d) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight and bias of a convolution with its BatchNorm folded in, computed in float64.

    A transposed convolution comes back as (4 * out, in, 1, 1), ordered for depth-to-space CRD.
    """
    assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    factor = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    bias = bn.bias.double() - bn.running_mean.double() * factor
    weight = conv.weight.double()
    if isinstance(conv, nn.ConvTranspose2d):
        weight = (weight * factor[:, None, None]).permute(1, 2, 3, 0).flatten(0, 2)
        weight, bias = weight[:, :, None, None], bias.repeat_interleave(4)
    else:
        weight = weight * factor[:, None, None, None]
    return weight.float().numpy(), bias.float().numpy()


def _conv(g: _Graph, x: str, conv: nn.Module, bn: nn.BatchNorm2d, name: str) -> str:
    weight, bias = _folded(conv, bn)
    inputs = [x, g.constant(f"{name}.weight", weight), g.constant(f"{name}.bias", bias)]
    if isinstance(conv, nn.ConvTranspose2d):
        y = g.add("Conv", inputs, name, kernel_shape=[1, 1])
        return g.add("DepthToSpace", [y], f"{name}.shuffle", blocksize=2, mode="CRD")
    assert isinstance(conv, nn.Conv2d)
    side, stride, pad = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    return g.add("Conv", inputs, name, kernel_shape=[side, side], strides=[stride, stride],
                 pads=[pad] * 4)


def _conv_relu(g: _Graph, x: str, conv: nn.Module, bn: nn.BatchNorm2d, name: str) -> str:
    return g.add("Relu", [_conv(g, x, conv, bn, name)], f"{name}.relu")


def _project(g: _Graph, x: str, conv: nn.Module, name: str) -> str:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    inputs = [x, g.constant(f"{name}.weight", conv.weight.numpy()),
              g.constant(f"{name}.bias", conv.bias.numpy())]
    return g.add("Relu", [g.add("Conv", inputs, name, kernel_shape=[1, 1])], f"{name}.relu")


def _block(g: _Graph, x: str, block: nn.Module, name: str) -> str:
    assert isinstance(block, BasicBlock | BottleneckBlock)
    y = _conv_relu(g, x, block.conv1, block.bn1, f"{name}.conv1")
    if isinstance(block, BottleneckBlock):
        y = _conv_relu(g, y, block.conv2, block.bn2, f"{name}.conv2")
        y = _conv(g, y, block.conv3, block.bn3, f"{name}.conv3")
    else:
        y = _conv(g, y, block.conv2, block.bn2, f"{name}.conv2")
    if block.shortcut is not None:
        conv, bn = block.shortcut
        assert isinstance(bn, nn.BatchNorm2d)
        x = _conv(g, x, conv, bn, f"{name}.shortcut")
    return g.add("Relu", [g.add("Add", [y, x], f"{name}.add")], f"{name}.relu")


def _stage(g: _Graph, x: str, stage: nn.Sequential, name: str) -> str:
    for i, block in enumerate(stage):
        x = _block(g, x, block, f"{name}.{i}")
    return x


def _preprocess(g: _Graph, spec: ScoringSpec) -> str:
    g.part = "preprocess"
    x = g.add("Cast", ["images"], "float", to=TensorProto.FLOAT)
    full = g.constant("full_scale", np.float32(FULL_SCALE[torch.uint8]))
    x = g.add("Transpose", [g.add("Div", [x, full], "unit")], "channels_first", perm=[0, 3, 1, 2])
    # All four sizes: with `axes` NVIDIA's parser takes no batch of any size.
    batch = g.add("Shape", [x], "batch", start=0, end=1)
    image = g.constant("image_sizes", np.array([3, spec.input_size, spec.input_size], np.int64))
    sizes = g.add("Concat", [batch, image], "sizes", axis=0)
    x = g.add("Resize", [x, "", "", sizes], "resize", mode="linear",
              coordinate_transformation_mode="half_pixel", antialias=0)
    mean = g.constant("mean", np.array(spec.mean, np.float32)[:, None, None])
    std = g.constant("std", np.array(spec.std, np.float32)[:, None, None])
    return g.add("Div", [g.add("Sub", [x, mean], "centre"), std], "normalise", NETWORK_INPUT)


def _network(g: _Graph, model: SCRD, x: str) -> tuple[list[str], list[str], str]:
    """Names of the three teacher maps, the three student maps and the scale weights."""
    g.part = "network"
    t, b, s = model.teacher, model.bottleneck, model.student
    x = _conv_relu(g, x, t.conv1, t.bn1, "teacher.conv1")
    x = g.add("MaxPool", [x], "teacher.maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    f1 = _stage(g, x, t.layer1, "teacher.layer1")
    f2 = _stage(g, f1, t.layer2, "teacher.layer2")
    f3 = _stage(g, f2, t.layer3, "teacher.layer3")
    fine = _conv_relu(g, f1, b.conv1, b.bn1, "bottleneck.conv1")
    fine = _conv_relu(g, fine, b.conv2, b.bn2, "bottleneck.conv2")
    middle = _conv_relu(g, f2, b.conv3, b.bn3, "bottleneck.conv3")
    x = g.add("Concat", [fine, middle, f3], "bottleneck.concat", axis=1)
    x = _stage(g, x, b.blocks, "bottleneck.blocks")
    linear = model.scale_head.linear
    g3 = _stage(g, x, s.layer1, "student.layer1")
    g2 = _stage(g, g3, s.layer2, "student.layer2")
    g1 = _stage(g, g2, s.layer3, "student.layer3")
    rebuilt = [g1, g2, g3]
    if s.projections:
        rebuilt = [_project(g, x, conv, f"student.projections.{k}")
                   for k, (x, conv) in enumerate(zip(rebuilt, s.projections, strict=True))]
    g.part = "tail"
    # Three products and sums, no matrix product: runtimes lower the precision of those.
    pooled = g.reduce("ReduceMax", x, [2, 3], "scale_head.pool")
    axis = g.constant("axes_1", np.array([1], np.int64))
    sums = []
    for k, row in enumerate(linear.weight.detach().numpy()):
        weight = g.constant(f"scale_head.weight{k}", row)
        product = g.add("Mul", [pooled, weight], f"scale_head.product{k}")
        sums.append(g.add("ReduceSum", [product, axis], f"scale_head.sum{k}", keepdims=1))
    bias = g.constant("scale_head.bias", linear.bias.detach().numpy())
    logits = g.add("Add", [g.add("Concat", sums, "scale_head.sums", axis=1), bias],
                   "scale_head.logits")
    weights = g.add("Softmax", [logits], "scale_head.softmax", "scale_weights", axis=1)
    return [f1, f2, f3], rebuilt, weights


def _distance(g: _Graph, teacher: str, student: str, k: int) -> str:
    """1 - cosine similarity over channels: (N, h, w)."""
    eps, one = g.constant("eps", np.float32(COSINE_EPS)), g.constant("one", np.float32(1))
    product = g.add("Mul", [teacher, student], f"product{k}")
    dot = g.reduce("ReduceSum", product, [1], f"dot{k}")
    norms = []
    for name, x in (("teacher", teacher), ("student", student)):
        square = g.reduce("ReduceSum", g.add("Mul", [x, x], f"{name}{k}.square"), [1],
                          f"{name}{k}.sum")
        norms.append(g.add("Max", [g.add("Sqrt", [square], f"{name}{k}.sqrt"), eps],
                           f"{name}{k}.norm"))
    cosine = g.add("Div", [g.add("Div", [dot, norms[0]], f"half_cosine{k}"), norms[1]],
                   f"cosine{k}")
    return g.add("Sub", [one, cosine], f"distance{k}", f"distance{k}")


def _thumbnails(g: _Graph, spec: ScoringSpec) -> str:
    """(N, 1, 16, 16)."""
    first, step, cell = thumbnail_rows(spec.input_size)
    bounds = [g.constant(f"prior.rows_{name}", np.array([value], np.int64)) for name, value in (
        ("start", first), ("end", spec.input_size), ("axis", 2), ("step", step))]
    rows = g.add("Slice", [NETWORK_INPUT, *bounds], "prior.rows")
    channels = g.constant("axes_1", np.array([1], np.int64))
    grey = g.add("ReduceMean", [rows, channels], "prior.grey", keepdims=1)
    return g.add("AveragePool", [grey], "prior.thumbnail", kernel_shape=[2, cell],
                 strides=[2, cell])


def _clip(g: _Graph, x: str, low: float, high: float, name: str) -> str:
    bounds = [g.constant(f"{name}.{which}", np.float32(value))
              for which, value in (("low", low), ("high", high))]
    return g.add("Min", [g.add("Max", [x, bounds[0]], f"{name}.above"), bounds[1]], name)


def _foreground(g: _Graph, spec: ScoringSpec, thumbnail: str) -> str:
    """(N, 1, 16, 16)."""
    low, high = foreground_limits(spec)
    x = g.add("MaxPool", [thumbnail], "prior.brightest", kernel_shape=[3, 3], strides=[1, 1],
              pads=[1] * 4)
    x = g.add("Sub", [x, g.constant("prior.dark", np.float32(low))], "prior.above_dark")
    x = g.add("Mul", [x, g.constant("prior.slope", np.float32(1 / (high - low)))], "prior.ramp")
    return _clip(g, x, 0, 1, "prior.foreground")


def _normal_map(g: _Graph, prior: Prior, thumbnail: str) -> tuple[str, str]:
    """What is expected and the gain, without a foreground: (N, 3, 16, 16) each."""
    normal = NormalMap.of(prior)
    maps = normal.maps()
    flat = g.constant("prior.flat", np.array([-1, THUMBNAIL**2], np.int64))
    grids = g.constant("prior.grids", np.array([-1, 2 * len(STRIDES), THUMBNAIL, THUMBNAIL],
                                               np.int64))
    x = g.add("Reshape", [thumbnail, flat], "prior.pixels")
    x = g.add("MatMul", [x, g.constant("prior.projection", normal.projection.T)],
              "prior.projected")
    x = g.add("Add", [x, g.constant("prior.shift", normal.shift)], "prior.components")
    z = _clip(g, x, -FARTHEST, FARTHEST, "prior.z")
    squares = g.add("Sub", [g.add("Mul", [z, z], "prior.squared"),
                            g.constant("one", np.float32(1))], "prior.squares")
    terms = g.add("Concat", [z, squares], "prior.terms", axis=1)
    x = g.add("MatMul", [terms, g.constant("prior.maps", maps[1:])], "prior.changes")
    x = g.add("Add", [x, g.constant("prior.base", maps[0])], "prior.predicted")
    x = g.add("Reshape", [x, grids], "prior.predicted_grids")
    halves = g.constant("prior.halves", np.array([len(STRIDES)] * 2, np.int64))
    expected, log_spread = f"{g.part}/prior.expected", f"{g.part}/prior.log_spread"
    g.nodes.append(helper.make_node("Split", [x, halves], [expected, log_spread],
                                    name=f"{g.part}/prior.split", axis=1))
    offset = g.constant("prior.offset", np.float32(prior.offset))
    spread = g.add("Add", [g.add("Exp", [log_spread], "prior.spread"), offset], "prior.divisor")
    return expected, g.add("Div", [g.constant("prior.scale", np.float32(1 + prior.offset)), spread],
                           "prior.relative")


def _gain_and_shift(g: _Graph, spec: ScoringSpec) -> tuple[str, str | None]:
    """Gain and shift (N, 3, 16, 16) each, no shift where it is zero; `spec` has a prior."""
    prior = spec.prior
    assert prior is not None
    thumbnail = _thumbnails(g, spec)
    seen = None if prior.foreground is None else _foreground(g, spec, thumbnail)
    if not prior.values:
        assert seen is not None
        return g.add("Concat", [seen] * len(STRIDES), "prior.gain", axis=1), None
    expected, gain = _normal_map(g, prior, thumbnail)
    level = g.constant("prior.level", NormalMap.of(prior).level[:, None, None])
    if seen is not None:
        gain = g.add("Mul", [gain, seen], "prior.gain")
        level = g.add("Mul", [seen, level], "prior.seen_level")
    product = g.add("Mul", [gain, expected], "prior.product")
    return gain, g.add("Sub", [level, product], "prior.shift_of_places")


def _judge(g: _Graph, spec: ScoringSpec, distances: list[str]) -> list[str]:
    """The distances as the spec's prior judges them; see reference.prior."""
    gain, shift = _gain_and_shift(g, spec)
    judged = []
    for k, distance in enumerate(distances):
        b = interpolation_matrix(spec.input_size // STRIDES[k]).astype(np.float32)
        names = g.constant(f"prior.B{k}", b), g.constant(f"prior.B{k}.T", b.T)

        def at_scale(grids: str, name: str, k: int = k, names: tuple[str, str] = names) -> str:
            index = g.constant(f"scale{k}", np.array([k], np.int64))
            one = g.add("Gather", [grids, index], f"prior.{name}{k}.grid", axis=1)
            axis = g.constant("axes_1", np.array([1], np.int64))
            one = g.add("Squeeze", [one, axis], f"prior.{name}{k}.plane")
            rows = g.add("MatMul", [names[0], one], f"prior.{name}{k}.rows")
            return g.add("MatMul", [rows, names[1]], f"prior.{name}{k}")

        x = g.add("Mul", [at_scale(gain, "gain"), distance], f"prior.stretched{k}")
        if shift is not None:
            x = g.add("Add", [x, at_scale(shift, "shift")], f"prior.judged{k}")
        judged.append(x)
    return judged


def _tail(g: _Graph, spec: ScoringSpec, teacher: list[str], student: list[str],
          weights: str) -> None:
    g.part = "tail"
    maps, means = [], []
    judged = None
    if spec.prior is not None:
        judged = _judge(g, spec, [
            _distance(g, teacher[k], student[k], k) for k in range(len(STRIDES))])
    for k, stride in enumerate(STRIDES):
        distance = judged[k] if judged else _distance(g, teacher[k], student[k], k)
        if spec.weighting == "scale":
            index = g.constant(f"scale{k}", np.array([k], np.int64))
            column = g.add("Gather", [weights, index], f"weight{k}", axis=1)
            three = g.constant("weight_shape", np.array([0, 1, 1], np.int64))
            column = g.add("Reshape", [column, three], f"weight{k}.column")
            distance = g.add("Mul", [distance, column], f"weighted{k}")
        matrix = upsample_blur_matrix(spec.input_size, spec.input_size // stride,
                                      float(spec.blur_sigma))
        u = g.constant(f"U{k}", matrix.astype(np.float32))
        ut = g.constant(f"U{k}.T", matrix.T.astype(np.float32))
        rows = g.add("MatMul", [u, distance], f"rows{k}")
        maps.append(g.add("MatMul", [rows, ut], f"map{k}"))
        if spec.reduction == "mean":
            column_mean = g.constant(f"u{k}", matrix.mean(axis=0).astype(np.float32))
            half = g.add("MatMul", [distance, column_mean], f"half_mean{k}")
            means.append(g.add("MatMul", [half, column_mean], f"mean{k}"))
    anomaly = g.add("Sum", maps, "map", "map")
    if spec.reduction == "mean":
        g.add("Sum", means, "score", "score")
    else:
        g.reduce("ReduceMax", anomaly, [1, 2], "score", "score")


def build_graph(model: SCRD, spec: ScoringSpec) -> onnx.ModelProto:
    """The whole path from pixels to score.

    Input `images`: uint8 (batch, height, width, 3), any height and width. Outputs `score`
    (batch,), `map` (batch, S, S), `scale_weights` (batch, 3), all float32. The ScoringSpec
    travels in the metadata.
    """
    g = _Graph()
    with torch.no_grad():
        teacher, student, weights = _network(g, model, _preprocess(g, spec))
    _tail(g, spec, teacher, student, weights)
    images = helper.make_tensor_value_info(
        "images", TensorProto.UINT8, ["batch", "height", "width", 3])
    # Told, because it does not follow from sizes that are computed.
    network_input = _value_infos({NETWORK_INPUT: input_shape(spec)})
    graph = helper.make_graph(g.nodes, "scrd", [images], _value_infos(output_shapes(spec)),
                              list(g.weights.values()), value_info=network_input)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)],
                              producer_name="scrd_fast", ir_version=10)
    helper.set_model_props(proto, {SPEC_KEY: json.dumps(spec.to_dict())})
    return proto


def input_shape(spec: ScoringSpec) -> Shape:
    """The normalised pixels' shape."""
    return ["batch", 3, spec.input_size, spec.input_size]


def output_shapes(spec: ScoringSpec) -> dict[str, Shape]:
    """The outputs of the whole graph and their shapes."""
    side = spec.input_size
    return dict(zip(OUTPUTS, (["batch"], ["batch", side, side], ["batch", 3]), strict=True))


def _value_infos(shapes: dict[str, Shape]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()]


def cut_graph(
    proto: onnx.ModelProto, spec: ScoringSpec, name: str, outputs: dict[str, Shape]
) -> onnx.ModelProto:
    """What of `proto` lies between the normalised input and `outputs`, as a graph of that name.

    Input `network_input`: float32 (batch, 3, S, S); outputs: shapes of float32 tensors by name.
    The metadata goes along. Raises KeyError where `proto` lacks an output.
    """
    producers = {output: node for node in proto.graph.node for output in node.output}
    wanted, kept = [producers[output].output[0] for output in outputs], set()
    while wanted:
        node = producers.get(wanted.pop())
        if node is not None and node.name not in kept and node.output[0] != NETWORK_INPUT:
            kept.add(node.name)
            wanted.extend(node.input)
    nodes = [node for node in proto.graph.node if node.name in kept]
    used = {operand for node in nodes for operand in node.input}
    graph = helper.make_graph(
        nodes, name, _value_infos({NETWORK_INPUT: input_shape(spec)}),
        _value_infos(outputs), [w for w in proto.graph.initializer if w.name in used],
    )
    cut = helper.make_model(graph, opset_imports=list(proto.opset_import),
                            producer_name=proto.producer_name, ir_version=proto.ir_version)
    cut.metadata_props.extend(proto.metadata_props)
    return cut


def network_graph(
    proto: onnx.ModelProto, spec: ScoringSpec, *, features: bool = False
) -> onnx.ModelProto:
    """The part that a backend compiles: normalised pixels in, distances and scale weights out.

    Input `network_input`: float32 (batch, 3, S, S), made by ops.preprocess, which takes more
    dtypes and lists than a graph can. Outputs `distance0` to `distance2` (batch, h_k, w_k) and
    `scale_weights` (batch, 3); ops.anomaly_map does the rest. The cut keeps the last matrix
    products out of the compiled graph: a runtime told to compute those in bf16 would round the
    distances to 8 bits on the way. features: cut before the distances instead; the outputs are
    the three teacher maps, the three student maps (batch, C_k, h_k, w_k), and the scale weights.
    Raises KeyError where `proto` is no such graph.
    """
    nodes_by_name = {node.name: node for node in proto.graph.node}
    sides: list[int | str | None] = [spec.input_size // s for s in STRIDES]
    shapes: dict[str, Shape] = {}
    if features:
        pairs = [nodes_by_name[f"tail/product{k}"].input for k in range(len(STRIDES))]
        for names in zip(*pairs, strict=True):
            shapes |= {name: ["batch", None, side, side]
                       for name, side in zip(names, sides, strict=True)}
    else:
        shapes |= {name: ["batch", side, side]
                   for name, side in zip(NETWORK_OUTPUTS[:-1], sides, strict=True)}
    shapes[NETWORK_OUTPUTS[-1]] = ["batch", 3]
    return cut_graph(proto, spec, "network", shapes)
