"""What a network has to do for one image, counted in its graph."""

import math

import onnx

from scrd_fast.engine.manifest import Work
from scrd_fast.graph.portable import network_graph
from scrd_fast.graph.quantize import SHORTCUT, Quantisation
from scrd_fast.spec import ScoringSpec

_SMALL = 64  # values; axes are read


def count_work(
    proto: onnx.ModelProto, spec: ScoringSpec, quantisation: Quantisation | None
) -> Work:
    """Count the work of a portable graph.

    quantisation: of int8 and fp8, which tells what they leave out.
    """
    network = network_graph(proto, spec, features=True)
    dims = {w.name: w.dims for w in network.graph.initializer}
    for weight in network.graph.initializer:
        if math.prod(weight.dims) > _SMALL:  # shapes follow from sizes, and copying values is slow
            weight.ClearField("raw_data")
    inferred = onnx.shape_inference.infer_shapes(network).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in [*inferred.value_info, *inferred.output]}
    kept = () if quantisation is None else (SHORTCUT, *quantisation.keep)
    operations = left_out = 0.0
    for node in network.graph.node:
        if node.op_type == "Conv":
            height, width = shapes[node.output[0]][2:]
            count = 2.0 * height * width * math.prod(dims[node.input[1]])
            if node.name.startswith(kept):
                left_out += count
            else:
                operations += count
    return Work(operations, left_out, float(sum(math.prod(d) for d in dims.values())))
