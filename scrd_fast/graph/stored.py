"""Networks without their weights, which stay where they are stored once: in the portable graph.

A graph that was cut out of the portable one, and perhaps quantised, is kept as it is but for those
weights that the portable graph holds with the same bytes: of them the places are kept. Putting both
together again needs no ONNX library: a message of protocol buffers followed by a part of it reads
as one whole (https://protobuf.dev/programming-guides/encoding/#last-one-wins), so the weights are
written behind the graph as a second piece of it.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scrd_fast.errors import EngineFileError

if TYPE_CHECKING:
    import onnx

QUANTISATION = "quantisation.json"  # the member of an engine file that graph.quantize makes
_SMALL = 256  # bytes; smaller weights stay in the graph

# The operators of a network and how many inputs they have, None for any number: what compiles a
# graph need not stand a node without its inputs.
_INPUTS = {
    "Conv": 3, "MaxPool": 1, "Relu": 1, "Add": 2, "Sub": 2, "Mul": 2, "Div": 2, "Max": 2, "Sqrt": 1,
    "Softmax": 1, "Concat": None, "DepthToSpace": 1, "ReduceSum": 2, "ReduceMax": 2,
    "QuantizeLinear": 3, "DequantizeLinear": 3}

# Numbers of fields, from onnx.proto.
_GRAPH, _OPSET, _TRAINING, _FUNCTIONS = 7, 8, 20, 25  # of a model
_NODE, _INITIALIZER, _GRAPH_INPUT, _SPARSE = 1, 5, 11, 15  # of a graph
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7  # of a node
_TENSOR, _FOREIGN = 5, (6, 10, 11, 14, 15, 22, 23)  # of an attribute: graphs, types, sparse tensors
_TENSOR_NAME, _EXTERNAL = 8, (13, 14)  # of a tensor; values that lie outside of the file
_VALUE_NAME = 1  # of an input
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # kinds of fields


def split_network(network: "onnx.ModelProto", portable: bytes) -> tuple[bytes, bytes]:
    """A graph without the weights that `portable`, a serialised graph, holds; and their places in
    it. Both are members of an engine file; `join_network` takes them."""
    thin = type(network)()
    thin.CopyFrom(network)
    del thin.graph.initializer[:]
    places: list[tuple[int, int]] = []
    end = 0
    for weight in network.graph.initializer:
        data = weight.SerializeToString()
        # Mostly in the same order.
        found = -1 if len(data) < _SMALL else portable.find(data, end)
        if found < 0 and len(data) >= _SMALL:
            found = portable.find(data)
        if found < 0:
            thin.graph.initializer.append(weight)
        else:
            end = found + len(data)
            places.append((found, len(data)))
    return thin.SerializeToString(), json.dumps(places).encode()


def join_network(thin: bytes, places: bytes, portable: bytes) -> bytes:
    """The graph that was split, serialised. Raises EngineFileError where the parts do not fit or
    refer to anything outside of them."""
    try:
        slices = [(int(start), int(length)) for start, length in json.loads(places)]
    except (TypeError, ValueError, RecursionError) as error:
        raise EngineFileError(f"places of weights: expected pairs of integers, got others"
                              f" ({error})") from error
    if not all(start >= 0 and 0 < length <= len(portable) - start for start, length in slices):
        raise EngineFileError("places of weights: expected places within the portable graph, got"
                              " others")
    view = memoryview(portable)
    weights = [part for start, length in slices
               for part in (_head(_INITIALIZER, length), view[start : start + length])]
    whole = b"".join([thin, _head(_GRAPH, sum(map(len, weights))), *weights])
    check_plain(whole)
    _check_nodes(whole)
    return whole


def check_plain(model: bytes) -> None:
    """Raise EngineFileError unless a serialised model is one of plain nodes with its weights in it:
    no functions, no graphs in nodes, no sparse tensors, nothing outside of the file."""
    view = memoryview(model)
    for number, part in _fields(view):
        if number in (_TRAINING, _FUNCTIONS):
            raise EngineFileError("expected a plain graph, got functions")
        if number == _GRAPH:
            _check_graph(part)


def _check_graph(graph: memoryview) -> None:
    for number, part in _fields(graph):
        if number == _SPARSE:
            raise EngineFileError("expected plain weights, got sparse ones")
        if number == _INITIALIZER:
            _check_tensor(part)
        if number == _NODE:
            for of_node, attribute in _fields(part):
                if of_node == _ATTRIBUTE:
                    _check_attribute(attribute)


def _check_attribute(attribute: memoryview) -> None:
    for number, part in _fields(attribute):
        if number in _FOREIGN:
            raise EngineFileError("expected plain nodes, got graphs or sparse tensors in nodes")
        if number == _TENSOR:
            _check_tensor(part)


def _check_tensor(tensor: memoryview) -> None:
    for number, part in _fields(tensor):
        if number in _EXTERNAL and any(part):
            raise EngineFileError("expected all weights inside the file, got a reference to"
                                  " another one")


def _check_nodes(model: bytes) -> None:
    """Raise EngineFileError unless the nodes are a network's, with all of their inputs, each of
    which is a weight, the graph's input or what a node before gives. What compiles graphs takes
    this for granted: it crashes on a node without inputs and goes round in a circle for ever."""
    fields = list(_fields(memoryview(model)))
    if not any(number == _OPSET for number, _ in fields):
        raise EngineFileError("expected a graph that names its operators' release, got none")
    parts = [part for number, graph in fields if number == _GRAPH for part in _fields(graph)]
    known = {name for number, part in parts if number in (_INITIALIZER, _GRAPH_INPUT)
             for name in _values(part, _TENSOR_NAME if number == _INITIALIZER else _VALUE_NAME)}
    for number, node in parts:
        if number != _NODE:
            continue
        operator = b"".join(_values(node, _OPERATOR)).decode(errors="replace")
        inputs, outputs = _values(node, _INPUT), _values(node, _OUTPUT)
        if operator not in _INPUTS or any(_values(node, _DOMAIN)) or len(outputs) != 1 or (
                len(inputs) != (_INPUTS[operator] or max(len(inputs), 1))):
            raise EngineFileError(f"expected the nodes of a network, got {operator!r} with"
                                  f" {len(inputs)} inputs and {len(outputs)} outputs")
        if not known.issuperset(inputs) or outputs[0] in known:
            raise EngineFileError(f"expected nodes in their order, got {operator!r} before what it"
                                  " reads, or two that give the same")
        known.add(outputs[0])


def _values(message: memoryview, wanted: int) -> list[bytes]:
    """Of the fields of that number."""
    return [bytes(part) for number, part in _fields(message) if number == wanted]


def _head(number: int, length: int) -> bytes:
    """What stands before a field of so many bytes."""
    varint, rest = bytearray(), length
    while rest > 0x7F:
        varint.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([number << 3 | _LENGTH, *varint, rest])


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of each field of a message; of numbers, the bytes as they are encoded."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        begin = at
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        elif kind == _LENGTH:
            length, begin = _varint(message, at)
            at = begin + length
        else:
            raise EngineFileError(f"expected a serialised graph, got a field of kind {kind}")
        if at > len(message):
            raise EngineFileError("expected a serialised graph, got one that is cut off")
        yield key >> 3, message[begin:at]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where what follows it begins."""
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise EngineFileError("expected a serialised graph, got a number that does not end")
