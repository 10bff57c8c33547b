"""Running graphs with explicit precisions on a CPU, and what they are held to."""

from types import MappingProxyType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from scrd_fast.building.judge import Probe
from scrd_fast.metrics.agreement import Report, compare
from scrd_fast.model.checkpoint import Checkpoint
from scrd_fast.model.reference import score_pixels
from scrd_fast.reference.preprocess import normalise

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnxruntime extra")

# Of those that TensorRT's ONNX parser knows, what these graphs are made of.
OPERATORS = frozenset({
    "Add", "Cast", "Concat", "Conv", "DepthToSpace", "DequantizeLinear", "Div", "Gather", "MatMul",
    "Max", "MaxPool", "Mul", "QuantizeLinear", "ReduceMax", "ReduceSum", "Relu", "Reshape",
    "Softmax", "Sqrt", "Sub", "Sum"})
# bfloat16 convolutions are not in an older operator set.
OPSETS = MappingProxyType({"fp32": 18, "fp16": 18, "bf16": 22, "int8": 19, "fp8": 19})
TYPES = MappingProxyType({"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16,
                          "bf16": TensorProto.BFLOAT16, "int8": TensorProto.INT8,
                          "fp8": TensorProto.FLOAT8E4M3FN})


def check_graph(proto: onnx.ModelProto, side: int, opset: int) -> dict[str, int]:
    """Check form, shapes and operators of a graph; the element type of every tensor in it."""
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True,
                                                 data_prop=True).graph
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in [*inferred.input, *inferred.value_info, *inferred.output]}
    assert [v.name for v in inferred.input] == ["network_input"]
    assert [v.name for v in inferred.output] == ["score", "map", "scale_weights"]
    assert shapes["network_input"] == ["batch", 3, side, side]
    assert (shapes["score"], shapes["map"], shapes["scale_weights"]) == (
        ["batch"], ["batch", side, side], ["batch", 3])
    constant = {node.output[0] for node in inferred.node if node.name.endswith("weight.dequantize")}
    for name, shape in shapes.items():
        if name not in constant:
            assert shape[0] == "batch", name
            assert all(isinstance(n, int) and n > 0 for n in shape[1:]), name
    assert {node.op_type for node in proto.graph.node} <= OPERATORS
    assert [o.version for o in proto.opset_import] == [opset]
    types = {v.name: v.type.tensor_type.elem_type
             for v in [*inferred.input, *inferred.value_info, *inferred.output]}
    return types | {w.name: w.data_type for w in inferred.initializer}


def in_float32(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for a runtime without bfloat16: every node computes in float32 from what its
    inputs hold, and its output is rounded to the type that it has in the graph."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {w.name: w.data_type for w in inferred.graph.initializer}
    low, nodes = TensorProto.BFLOAT16, []
    for node in proto.graph.node:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for i, name in enumerate(node.input):
            if types.get(name) == low and node.op_type != "Cast":
                made.input[i] = f"{node.name}.operand{i}"
                nodes.append(helper.make_node("Cast", [name], [made.input[i]],
                                              to=TensorProto.FLOAT))
        nodes.append(made)
        if types.get(node.output[0]) == low and node.op_type != "Cast":
            made.output[0] = f"{node.output[0]}.exact"
            nodes.append(helper.make_node("Cast", [made.output[0]], [node.output[0]], to=low))
    graph = helper.make_graph(nodes, proto.graph.name, proto.graph.input, proto.graph.output,
                              proto.graph.initializer)
    return helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)


def run_onnxruntime(proto: onnx.ModelProto, inputs: np.ndarray, fuse: bool) -> list[np.ndarray]:
    """score, map and scale weights; fuse: let onnxruntime rewrite the graph as it likes."""
    level = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = level.ORT_ENABLE_ALL if fuse else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options,
                                           providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"network_input": part}) for part in np.array_split(inputs, 16)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def report_of(checkpoint: Checkpoint, probe: Probe, scores: np.ndarray, maps: np.ndarray) -> Report:
    """Figures against the reference model."""
    reference, _ = score_pixels(checkpoint.model, checkpoint.spec, probe.pixels)
    return compare(probe.labels, torch.from_numpy(scores), torch.from_numpy(maps),
                   reference.score(checkpoint.spec), reference.map)


def normalised(checkpoint: Checkpoint, probe: Probe) -> np.ndarray:
    return normalise(probe.pixels, checkpoint.spec).numpy()
