"""What a backend compiles: the portable graph, parsed only where somebody needs to look into it."""

import json
from functools import cached_property
from typing import TYPE_CHECKING

from scrd_fast.errors import EngineFileError, InputError
from scrd_fast.files import Contents
from scrd_fast.graph.stored import QUANTISATION, index_weights
from scrd_fast.precisions import LARGEST

if TYPE_CHECKING:
    import onnx

    from scrd_fast.graph.quantize import Quantisation


class Source:
    """A portable graph as its bytes, and how to quantise it, as an engine file has both.

    Reading `proto` and `quantisation` needs ONNX and PyTorch, and raises EngineFileError where they
    are not what they should be.
    """

    def __init__(self, network: Contents, quantisation: Contents | None = None) -> None:
        self.network = network
        self._other: Source | None = None  # of the same graph, with an index of its weights
        self._quantisation = quantisation

    @classmethod
    def of(cls, proto: "onnx.ModelProto", quantisation: "Quantisation | None" = None) -> "Source":
        """From what graph.portable.build_graph gives."""
        made = cls(proto.SerializeToString())
        made.__dict__["proto"] = proto  # nothing to parse
        return made.quantised(quantisation)

    def quantised(self, quantisation: "Quantisation | None") -> "Source":
        """The same graph, to be quantised in this way."""
        made = Source(self.network, None if quantisation is None else quantisation.to_bytes())
        made.__dict__ |= {"proto": self.proto, "quantisation": quantisation}
        made._other = self
        return made

    @cached_property
    def weights(self) -> dict[memoryview, int]:
        """Where each weight lies in the graph's bytes."""
        return index_weights(self.network) if self._other is None else self._other.weights

    @cached_property
    def proto(self) -> "onnx.ModelProto":
        """The graph, checked to be one of plain, complete nodes with its weights in it."""
        import onnx
        from google.protobuf.message import DecodeError

        try:
            proto = onnx.load_model_from_string(bytes(self.network))
            _check_plain(proto)
            context = type(onnx.checker.DEFAULT_CONTEXT)()
            context.ir_version = proto.ir_version
            context.opset_imports = {each.domain: each.version for each in proto.opset_import}
            for node in proto.graph.node:
                onnx.checker.check_node(node, context)
        except (DecodeError, onnx.checker.ValidationError) as error:
            raise EngineFileError(str(error).strip().splitlines()[-1]) from error
        return proto

    @property
    def int8_weight(self) -> float:
        """The greatest magnitude of a weight in int8, without ONNX and PyTorch."""
        try:
            return float(json.loads(bytes(self._quantisation or b"{}")).get(
                "int8_weight", LARGEST["int8"]))
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise EngineFileError(f"{QUANTISATION}: expected JSON, got others ({error})"
                                  ) from error

    @cached_property
    def quantisation(self) -> "Quantisation":
        """Of int8 and fp8."""
        from scrd_fast.graph.quantize import Quantisation, check_shifts

        read = Quantisation.from_bytes(bytes(self._quantisation or b""))
        try:
            check_shifts(self.proto, read)
        except InputError as error:
            raise EngineFileError(f"{QUANTISATION}: {error}") from error
        return read


def _check_plain(proto: "onnx.ModelProto") -> None:
    """Raise EngineFileError unless a graph is one of plain nodes with its weights in it."""
    from onnx import AttributeProto, TensorProto

    attributes = [a for node in proto.graph.node for a in node.attribute]
    if proto.functions or proto.graph.sparse_initializer or any(a.type in (
            AttributeProto.GRAPH, AttributeProto.GRAPHS, AttributeProto.TENSORS,
            AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS) for a in attributes):
        raise EngineFileError("expected plain nodes, got functions, graphs in nodes or sparse"
                              " tensors")
    tensors = [*proto.graph.initializer, *(a.t for a in attributes if a.HasField("t"))]
    if any(t.data_location == TensorProto.EXTERNAL or t.external_data for t in tensors):
        raise EngineFileError("expected all weights inside the file, got a reference to another"
                              " one")
