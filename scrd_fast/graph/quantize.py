"""Where a network is quantised to 8 bits, and by which scales: for every backend that can run it.

Symmetric, zero point 0. Weights per output channel; activations per tensor, from ranges seen on
normal images with and without synthesised anomalies. What is quantised is what a convolution
reads, the skip input of a residual sum (not the convolution's own output, so that convolution, sum
and ReLU fuse) and, by one shared scale, everything that meets in a concatenation. Biases, features
that go to the distances, and all after them stay unquantised. Biases are shifted so that every
channel keeps its mean (Nagel et al., arXiv 1906.04721, section 4.2): rounding alone moves the means
of teacher and student apart, which looks like an anomaly.
"""

import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field

import onnx
import torch
from onnx import helper
from torch import Tensor

from scrd_fast.errors import EngineFileError, expect
from scrd_fast.graph.portable import NETWORK_INPUT
from scrd_fast.graph.precision import in_precision, is_network, replace_nodes
from scrd_fast.graph.stored import QUANTISATION
from scrd_fast.graph.tensors import DTYPES, EIGHT_BITS, to_proto, to_tensor
from scrd_fast.precisions import LARGEST, QUANTISED

BASE = "fp16"  # of what is not quantised
# What stays in the base precision. The stem: runtimes with float8 convolutions have none of three
# channels, and it is some 4 % of the arithmetic of a ResNet-18. The teacher's first stage: what it
# is off by runs through everything behind it, and the student never saw it. On the demo's model,
# 207 probe images, 0.68 % of the decisions flip without it and 0.19 % with it.
STEM = "network/teacher.conv1"
KEEP = (STEM, "network/teacher.layer1.")
# Never quantised, behind the concatenation: OpenVINO 2026.4.1 then departs from what the graph
# says, to a rank correlation of 0.991.
SHORTCUT = "network/bottleneck.blocks.0.shortcut"
_QDQ_OPSET = 19  # the first with float8 and with scales in half precision


@dataclass(frozen=True)
class Ranges:
    """Of each tensor that can be quantised: largest, its greatest magnitude; clipped, the one
    beyond which int8 had better clip."""

    largest: dict[str, float]
    clipped: dict[str, float]

    def of(self, kind: str) -> dict[str, float]:
        """The magnitudes that the greatest number of a kind stands for. float8 keeps the relative
        precision of small values under any scale, so it need not clip: by int8's ranges the rank
        correlation of the network below is 0.9983, by the maximum 0.9987."""
        return self.clipped if kind == "int8" else self.largest


@dataclass(frozen=True)
class Quantisation:
    """What quantised graphs are made from, as an engine file keeps it.

    keep: beginnings of the names of the convolutions that stay in the base precision. shifts: what
    is added to the biases (C,) of convolutions, by name; see `BiasCorrection`. int8_weight: the
    greatest magnitude of a weight in int8.
    """

    ranges: Ranges
    keep: tuple[str, ...] = KEEP
    shifts: dict[str, list[float]] = field(default_factory=dict)
    int8_weight: float = LARGEST["int8"]

    def largest_weight(self, kind: str) -> float:
        """The greatest number that stands for a weight."""
        return self.int8_weight if kind == "int8" else LARGEST[kind]

    def to_bytes(self) -> bytes:
        """The member of an engine file."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_bytes(data: bytes) -> "Quantisation":
        """The other way round; raises EngineFileError."""
        try:
            values = json.loads(data)
            read = Quantisation(Ranges(**values["ranges"]), tuple(values["keep"]),
                                dict(values["shifts"]),
                                float(values.get("int8_weight", LARGEST["int8"])))
            if not 1 <= read.int8_weight <= LARGEST["int8"]:
                raise ValueError("a greatest weight that is none")
            for part in (read.ranges.largest, read.ranges.clipped):
                if not all(math.isfinite(value) and value >= 0 for value in part.values()):
                    raise ValueError("a range is negative or not finite")
            if not all(isinstance(name, str) for name in read.keep):
                raise ValueError("a name is no text")
            if not all(isinstance(shift, list) and all(abs(each) < 1e30 for each in shift)
                       for shift in read.shifts.values()):
                raise ValueError("a shift is no list of finite numbers")
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise EngineFileError(f"{QUANTISATION}: expected ranges of activations, names of"
                                  " layers and shifts of biases, got something else"
                                  f" ({error!r}); build the engine again from its checkpoint"
                                  ) from error
        return read


@dataclass(frozen=True)
class _Places:
    """What is quantised of a graph: convolutions, sums with a quantised skip input, the outputs of
    concatenations; and the tensors (scale: name of the group of tensors that share one)."""

    convolutions: frozenset[str]
    sums: frozenset[str]
    concatenations: frozenset[str]
    groups: dict[str, str]


def check_shifts(proto: onnx.ModelProto, quantisation: Quantisation) -> None:
    """Raise InputError unless every shift is one of a convolution of a graph."""
    shapes = {weight.name: tuple(weight.dims) for weight in proto.graph.initializer}
    biases = {node.name: shapes.get(node.input[2]) for node in _convolutions(proto.graph)}
    for name, shift in quantisation.shifts.items():
        expect(name in biases, "shifts", "names of the network's convolutions", repr(name))
        expect(biases[name] == (len(shift),), f"shifts[{name!r}]", biases[name], (len(shift),))


def _convolutions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "Conv" and is_network(node)]


def convolution_names(proto: onnx.ModelProto) -> list[str]:
    """Of the network's convolutions, in their order."""
    return [node.name for node in _convolutions(proto.graph)]


def quantised_tensors(network: onnx.ModelProto) -> list[str]:
    """The tensors of a network that can be quantised."""
    return list(_places(network.graph, ()).groups)


def _places(graph: onnx.GraphProto, keep: Collection[str]) -> _Places:
    chosen = [node for node in _convolutions(graph)
              if not node.name.startswith((SHORTCUT, *keep))]
    read, made = {node.input[0] for node in chosen}, {node.output[0] for node in chosen}
    groups = {name: name for name in read}
    sums, concatenations = set(), set()
    for node in graph.node:
        # graph.portable writes the convolution's output first and the skip input second.
        if node.op_type == "Add" and is_network(node) and node.input[0] in made:
            sums.add(node.name)
            groups.setdefault(node.input[1], node.input[1])
        if node.op_type == "Concat" and is_network(node) and node.output[0] in read:
            concatenations.add(node.name)
            # The output again, by the same scale: a runtime that looks for a pair right before the
            # convolution finds it, and quantising twice by one scale changes nothing.
            groups |= dict.fromkeys([*node.input, node.output[0]], node.output[0])
    return _Places(frozenset(node.name for node in chosen), frozenset(sums),
                   frozenset(concatenations), groups)


def _scale(largest: Tensor, top: float, base: str) -> Tensor:
    """float32 scales, exact in the base precision, by which magnitudes up to `largest` fit into
    numbers up to `top`."""
    dtype = DTYPES[base]
    floor = 2.0**-24 if dtype == torch.float16 else 2.0**-126
    # What is zero throughout has no range: any scale serves.
    wanted = torch.where(largest > 0, largest, 1.0).float() / top
    wanted = wanted.clamp(min=floor)
    # Up, not to the nearest: far below 1 fp16 has few numbers, and a smaller scale would clip.
    return (wanted * (1 + torch.finfo(dtype).eps) + floor / 2).to(dtype).float()


def _to_kind(value: Tensor, scale: Tensor, top: float, kind: str) -> Tensor:
    """The 8-bit numbers up to `top` that stand for a value by a scale that broadcasts to it."""
    scaled = (value / scale).clamp(-top, top)
    return (torch.round(scaled) if kind == "int8" else scaled).to(EIGHT_BITS[kind])


class _Quantiser:
    """Writes the pairs into a float32 scoring graph."""

    def __init__(self, graph: onnx.GraphProto, places: _Places, quantisation: Quantisation,
                 kind: str, base: str) -> None:
        self.graph, self.places, self.kind, self.base = graph, places, kind, base
        self.shifts, ranges = quantisation.shifts, quantisation.ranges.of(kind)
        self.largest_weight = quantisation.largest_weight(kind)
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.largest: dict[str, float] = {}  # by group
        for name, group in places.groups.items():
            self.largest[group] = max(self.largest.get(group, 0.0), ranges[name])
        self.nodes: list[onnx.NodeProto] = []
        self.read: dict[str, str] = {}  # tensor -> its quantised version

    def constant(self, name: str, value: Tensor) -> str:
        if name not in self.weights:
            self.weights[name] = to_proto(name, value)
        return name

    def activation(self, name: str) -> None:
        """Add the pair behind a tensor."""
        group = self.places.groups[name]
        largest = torch.tensor(self.largest[group])
        scale = self.constant(f"{group.removeprefix('network/')}.scale",
                              _scale(largest, LARGEST[self.kind], self.base))
        zero = self.constant("zero_point", torch.zeros((), dtype=EIGHT_BITS[self.kind]))
        stem = f"network/{name.removeprefix('network/')}"
        quantised, self.read[name] = f"{stem}.quantized", f"{stem}.dequantized"
        self.nodes += [
            helper.make_node("QuantizeLinear", [name, scale, zero], [quantised],
                             name=f"{stem}.quantize"),
            helper.make_node("DequantizeLinear", [quantised, scale, zero], [self.read[name]],
                             name=f"{stem}.dequantize")]

    def weight(self, name: str) -> str:
        """Store a weight in 8 bits; the name of what the convolution reads instead."""
        value = to_tensor(self.weights.pop(name))
        top = self.largest_weight
        scale = _scale(value.abs().amax((1, 2, 3)), top, self.base)
        stored = self.constant(f"{name}.{self.kind}",
                               _to_kind(value, scale[:, None, None, None], top, self.kind))
        inputs = [stored, self.constant(f"{name}.scale", scale),
                  self.constant(f"{name}.zero_point",
                                torch.zeros(scale.shape, dtype=EIGHT_BITS[self.kind]))]
        output = f"network/{name}.dequantized"
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [output],
                                           name=f"network/{name}.dequantize", axis=0))
        return output

    def shift(self, node: onnx.NodeProto) -> None:
        """Add to the bias of a convolution what keeps its means."""
        name = node.input[2]
        bias = to_tensor(self.weights[name]) + torch.tensor(self.shifts[node.name])
        self.weights[name] = to_proto(name, bias)

    def write(self) -> None:
        """Rewrite the graph in place."""
        places = self.places
        if NETWORK_INPUT in places.groups:
            self.activation(NETWORK_INPUT)
        for node in list(self.graph.node):
            if node.name in places.convolutions:
                node.input[0] = self.read[node.input[0]]
                node.input[1] = self.weight(node.input[1])
            elif node.name in places.sums:
                node.input[1] = self.read[node.input[1]]
            elif node.name in places.concatenations:
                for i, name in enumerate(node.input):
                    node.input[i] = self.read[name]
            if node.name in self.shifts:
                self.shift(node)
            self.nodes.append(node)
            if node.output[0] in places.groups:
                self.activation(node.output[0])
        replace_nodes(self.graph, self.nodes)
        del self.graph.initializer[:]
        self.graph.initializer.extend(self.weights.values())


def quantise(
    graph: onnx.ModelProto, kind: str, quantisation: Quantisation, *, base: str = BASE
) -> onnx.ModelProto:
    """A float32 graph with its network's convolutions in 8 bits.

    graph: what graph.precision.scoring_graph or graph.portable.network_graph gives; kind: "int8" or
    "fp8" (float8 e4m3fn); base: "fp32", "fp16" or "bf16", of what is not quantised. Raises
    InputError, FidelityError that names a weight which does not fit into the base.
    """
    expect(kind in QUANTISED, "kind", f"one of {QUANTISED}", repr(kind))
    expect(base in DTYPES, "base", f"one of {tuple(DTYPES)}", repr(base))
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    names, keep = convolution_names(made), quantisation.keep
    unknown = sorted(k for k in keep if not any(name.startswith(k) for name in names))
    expect(not unknown, "keep", "beginnings of names of the network's convolutions, such as"
           " 'network/teacher.conv1'", unknown)
    check_shifts(made, quantisation)
    places, known = _places(made.graph, keep), quantisation.ranges.of(kind)
    missing = sorted(set(places.groups) - set(known))
    expect(not missing, "ranges", "those of all tensors that are quantised",
           f"none for {missing[:3]}")
    _Quantiser(made.graph, places, quantisation, kind, base).write()
    made.opset_import[0].version = _QDQ_OPSET
    return in_precision(made, base)
