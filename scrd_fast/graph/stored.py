"""Networks without their weights, which stay where they are stored once: in the portable graph.

A graph that was cut out of the portable one, and perhaps quantised, is kept as it is but for those
weights that the portable graph holds with the same bytes: of them the places are kept. To compile
it no weight is copied and no ONNX library needed: what reads the graph sees weights as inputs of
it, of a name, type and shape, and gets their bytes where they lie.
"""

import json
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from scrd_fast.errors import EngineFileError
from scrd_fast.files import Contents

if TYPE_CHECKING:
    import onnx

QUANTISATION = "quantisation.json"  # the member of an engine file that graph.quantize makes
CONVOLUTIONS = "convolutions.json"  # how those of torch_cuda run
_SMALL = 256  # bytes; smaller weights stay in the graph
_READ_LATER = 65536  # bytes; see _keep

# The operators of a network and how many inputs they have, None for any number: what compiles a
# graph need not stand a node without its inputs.
_INPUTS = {
    "Conv": 3, "MaxPool": 1, "Relu": 1, "Add": 2, "Sub": 2, "Mul": 2, "Div": 2, "Max": 2, "Sqrt": 1,
    "Softmax": 1, "Concat": None, "DepthToSpace": 1, "ReduceSum": 2, "ReduceMax": 2,
    "QuantizeLinear": 3, "DequantizeLinear": 3}

# Kinds of fields, and per message the fields that our graphs have, by their numbers in onnx.proto.
# Whatever else a file holds is refused: who reads it after us may see more in it than we do.
_VARINT, _LENGTH, _FIXED32 = 0, 2, 5
_OPSET, _GRAPH = 8, 7
_MODEL = {1: _VARINT, 2: _LENGTH, 3: _LENGTH, _GRAPH: _LENGTH, _OPSET: _LENGTH, 14: _LENGTH}
_NODE, _INITIALIZER, _GRAPH_INPUT = 1, 5, 11
_OF_GRAPH = {_NODE: _LENGTH, 2: _LENGTH, _INITIALIZER: _LENGTH, _GRAPH_INPUT: _LENGTH, 12: _LENGTH,
             13: _LENGTH}
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE = 1, 2, 4, 5
_OF_NODE = {_INPUT: _LENGTH, _OUTPUT: _LENGTH, 3: _LENGTH, _OPERATOR: _LENGTH, _ATTRIBUTE: _LENGTH}
# No graphs, tensors or types in attributes; a tensor's values are raw data, and inside the file.
_OF_ATTRIBUTE = {1: _LENGTH, 2: _FIXED32, 3: _VARINT, 4: _LENGTH, 7: _FIXED32, 8: _VARINT,
                 20: _VARINT}
_DIMENSION, _KIND, _TENSOR_NAME, _DATA, _VALUE_NAME = 1, 2, 8, 9, 1
_OF_TENSOR = {_DIMENSION: _VARINT, _KIND: _VARINT, _TENSOR_NAME: _LENGTH, _DATA: _LENGTH}
# Of each kind of values that a weight may have: float, int8, int64.
_BYTES = {1: 4, 3: 1, 7: 8}
_VARINT_OF_1 = 1 << 3 | _VARINT  # the head of a field 1 that is a number
_MOST_FIELDS = 1_000_000  # of a message; a network of 50 layers has a few thousand in all


def index_weights(portable: Contents) -> dict[memoryview, int]:
    """Where each weight of a serialised graph lies in it, by the tensor's bytes."""
    whole = memoryview(portable).toreadonly()  # only such can be looked up
    return {whole[start + begin : start + end]: start + begin
            for number, start, stop in _slices(whole, None) if number == _GRAPH
            for inner, begin, end in _slices(whole[start:stop], None)
            if inner == _INITIALIZER and end - begin >= _SMALL}


def split_network(
    network: "onnx.ModelProto", weights: Mapping[memoryview, int]
) -> tuple[bytes, bytes]:
    """A graph without the weights that a portable one holds, and their places in it; weights: of
    `index_weights`. Both are members of an engine file; `find_weights` takes them."""
    thin = type(network)()
    thin.CopyFrom(network)
    del thin.graph.initializer[:]
    places: list[tuple[int, int]] = []
    for weight in network.graph.initializer:
        data = memoryview(weight.SerializeToString())
        found = weights.get(data)
        if found is None:
            thin.graph.initializer.append(weight)
        else:
            places.append((found, len(data)))
    return thin.SerializeToString(), json.dumps(places).encode()


class Weights(NamedTuple):
    """A graph whose weights are inputs like any other, and the bytes of each by its name."""

    graph: bytes
    values: dict[str, memoryview]


def find_weights(thin: Contents, places: Contents, portable: Contents) -> Weights:
    """The graph that was split, and where in both parts its weights are; small ones are all that is
    copied.

    Raises EngineFileError unless it is a network: plain nodes in their order, with their weights,
    and nothing outside of the two parts.
    """
    whole = memoryview(portable)
    weights = [whole[start : start + length]
               for start, length in _read_places(bytes(places), len(whole))]
    model: list[Contents] = []
    for number, part in _fields(memoryview(thin), _MODEL):
        if number != _GRAPH:
            model += _encode(number, part, _MODEL[number])
            continue
        graph: list[Contents] = []
        for inner, each in _fields(part, _OF_GRAPH):
            if inner == _INITIALIZER and len(each) >= _SMALL:
                weights.append(each)
            else:
                graph += _encode(inner, each)
        model += _encode(_GRAPH, b"".join(graph))
    read = [_read_weight(each) for each in weights]
    # A part of a message that follows reads as one whole with it:
    # https://protobuf.dev/programming-guides/encoding/#last-one-wins
    model += _encode(_GRAPH, b"".join(
        piece for each in read for piece in _encode(_GRAPH_INPUT, each.described)))
    joined = b"".join(model)
    _check_network(memoryview(joined))
    return Weights(joined, {each.name: _keep(each.data) for each in read})


def _keep(data: memoryview) -> memoryview:
    """A copy of what a compiled network goes on reading: biases. Larger ones it packs anew."""
    return memoryview(bytes(data)) if len(data) < _READ_LATER else data


class _Weight(NamedTuple):
    """described: as an input of a graph, an encoded ValueInfoProto."""

    name: str
    described: bytes
    data: memoryview


def _read_weight(tensor: memoryview) -> _Weight:
    """Raises EngineFileError unless it is a tensor with all of its values in it."""
    sizes = [part for number, part in _fields(tensor, _OF_TENSOR) if number == _DIMENSION]
    kind, name, data = (_value(tensor, _OF_TENSOR, number)
                        for number in (_KIND, _TENSOR_NAME, _DATA))
    count = prod(_varint(size, 0)[0] for size in sizes)
    if count * _BYTES.get(_varint(kind, 0)[0], 0) != len(data) or not data:
        raise EngineFileError(f"expected a weight of {count} values, got {len(data)} bytes")
    shape = b"".join(_message(1, bytes([_VARINT_OF_1, *size])) for size in sizes)
    of_tensor = bytes([_VARINT_OF_1, *kind]) + _message(2, shape)
    described = _message(_VALUE_NAME, name) + _message(2, _message(1, of_tensor))
    try:
        return _Weight(bytes(name).decode(), described, data)
    except UnicodeDecodeError:
        raise EngineFileError("expected a name of a weight, got no text") from None


def _encode(number: int, value: Contents, kind: int = _LENGTH) -> tuple[bytes, Contents]:
    """A field in two pieces; of a number, `value` is as it was encoded."""
    return (bytes([number << 3]) if kind == _VARINT else _head(number, len(value))), value


def _message(number: int, value: Contents) -> bytes:
    return b"".join(_encode(number, value))


def _read_places(places: bytes, size: int) -> list[tuple[int, int]]:
    try:
        slices = json.loads(places)
    except (ValueError, RecursionError) as error:
        raise EngineFileError(f"places of weights: expected JSON, got others ({error})") from error
    pairs = isinstance(slices, list) and all(
        isinstance(each, list) and [type(value) for value in each] == [int, int]
        for each in slices)
    # No weight is there twice: so a small file makes no large graph.
    if not (pairs and all(start >= 0 and 0 < length <= size - start for start, length in slices)
            and sum(length for _, length in slices) <= size):
        raise EngineFileError("places of weights: expected pairs of integers within the portable"
                              " graph, got others")
    return [(start, length) for start, length in slices]


def _check_network(model: memoryview) -> None:
    """Raise EngineFileError unless the nodes are a network's, with all of their inputs, each of
    which is a weight, the graph's input or what a node before gives. What compiles graphs takes
    this for granted: it crashes on a node without inputs and goes round in a circle for ever."""
    if not any(number == _OPSET for number, _ in _fields(model, _MODEL)):
        raise EngineFileError("expected a graph that names its operators' release, got none")
    known: set[bytes] = set()
    for number, part in _parts(model):
        if number in (_INITIALIZER, _GRAPH_INPUT):
            name = bytes(_value(part, _OF_TENSOR, _TENSOR_NAME) if number == _INITIALIZER
                         else _value(part, None, _VALUE_NAME))
            if name in known:
                raise EngineFileError("expected weights and inputs of different names, got two of"
                                      f" one: {name.decode(errors='replace')!r}")
            known.add(name)
    for number, node in _parts(model):
        if number == _NODE:
            _check_node(node, known)


def _parts(model: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of the graph, which may come in pieces."""
    for number, graph in _fields(model, _MODEL):
        if number == _GRAPH:
            yield from _fields(graph, _OF_GRAPH)


def _check_node(node: memoryview, known: set[bytes]) -> None:
    """Of one node; `known`, what the nodes before it give, gets what it gives."""
    inputs: list[bytes] = []
    outputs: list[bytes] = []
    for number, part in _fields(node, _OF_NODE):
        if number == _INPUT:
            inputs.append(bytes(part))
        elif number == _OUTPUT:
            outputs.append(bytes(part))
        elif number == _ATTRIBUTE:
            for _ in _fields(part, _OF_ATTRIBUTE):
                pass  # each is checked to be one of these
    operator = bytes(_value(node, _OF_NODE, _OPERATOR)).decode(errors="replace")
    if operator not in _INPUTS or len(outputs) != 1 or (
            len(inputs) != (_INPUTS[operator] or max(len(inputs), 1))):
        raise EngineFileError(f"expected the nodes of a network, got {operator!r} with"
                              f" {len(inputs)} inputs and {len(outputs)} outputs")
    if not known.issuperset(inputs) or outputs[0] in known or not all([*inputs, *outputs]):
        raise EngineFileError(f"expected nodes in their order, got {operator!r} before what it"
                              " reads, or two that give the same")
    known.add(outputs[0])


def _value(message: memoryview, allowed: Mapping[int, int] | None, wanted: int) -> memoryview:
    """The value of a field that a message has exactly once: of two, others read the last."""
    found = [part for number, part in _fields(message, allowed) if number == wanted]
    if len(found) != 1:
        raise EngineFileError(f"expected a field of a graph once, got it {len(found)} times")
    return found[0]


def _head(number: int, length: int) -> bytes:
    """What stands before a field of so many bytes."""
    varint, rest = bytearray(), length
    while rest > 0x7F:
        varint.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([number << 3 | _LENGTH, *varint, rest])


def _fields(
    message: memoryview, allowed: Mapping[int, int] | None
) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of each field of a message; of numbers, the bytes as they are encoded.

    allowed: the kind of each field that may be there; None for any, where nothing depends on it.
    """
    for number, begin, end in _slices(message, allowed):
        yield number, message[begin:end]


def _slices(
    message: memoryview, allowed: Mapping[int, int] | None
) -> Iterator[tuple[int, int, int]]:
    """Number of each field of a message, and where its bytes begin and end; see `_fields`."""
    at = count = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        count += 1
        # Others cut a key to 32 bits, and would see another field.
        if key >= 2**32 or count > _MOST_FIELDS or (
                allowed is not None and allowed.get(number) != kind):
            raise EngineFileError(f"expected a plain graph with its weights inside, got field"
                                  f" {number} of kind {kind} in it")
        begin = at
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _FIXED32:
            at += 4
        elif kind == _LENGTH:
            length, begin = _varint(message, at)
            at = begin + length
        else:
            raise EngineFileError(f"expected a serialised graph, got a field of kind {kind}")
        if at > len(message):
            raise EngineFileError("expected a serialised graph, got one that is cut off")
        yield number, begin, at


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
