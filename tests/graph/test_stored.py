"""Networks stored without their weights: they come back as they were, and nothing else gets in.

The hostile ones are written byte by byte: what a library would not write, another may still read.
"""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from scrd_fast.errors import EngineFileError
from scrd_fast.graph.portable import build_graph, network_graph
from scrd_fast.graph.stored import find_weights, index_weights, split_network


@pytest.fixture(scope="module")
def stored(small):
    """A network, what it was split into, and the portable graph."""
    proto = build_graph(small.model, small.spec)
    portable, network = proto.SerializeToString(), network_graph(proto, small.spec)
    return network, *split_network(network, index_weights(portable)), portable


def test_it_comes_back_and_no_weight_is_stored_twice(stored):
    network, thin, places, portable = stored
    graph, values = find_weights(thin, places, portable)
    joined = onnx.load_model_from_string(graph)
    assert joined.graph.node == network.graph.node
    assert joined.graph.output == network.graph.output
    inputs = {each.name: each.type.tensor_type for each in joined.graph.input}
    small = {w.name: numpy_helper.to_array(w) for w in joined.graph.initializer}
    assert len(inputs) == 1 + len(values)
    assert len(small) + len(values) == len(network.graph.initializer)
    for weight in network.graph.initializer:
        expected = numpy_helper.to_array(weight)
        if weight.name in small:
            np.testing.assert_array_equal(small[weight.name], expected)
            continue
        assert values[weight.name] == expected.tobytes()
        assert inputs[weight.name].elem_type == weight.data_type
        assert [d.dim_value for d in inputs[weight.name].shape.dim] == list(expected.shape)
    assert len(thin) + len(places) < 30_000 < len(portable) / 1000
    assert len(graph) < 60_000


def test_weights_are_read_where_they_lie(stored):
    """Those of the portable graph, and those that only the thin one has."""
    network, _, _, portable = stored
    changed = type(network)()
    changed.CopyFrom(network)
    largest = max(changed.graph.initializer, key=lambda weight: len(weight.raw_data))
    largest.raw_data = bytes(len(largest.raw_data))
    thin, places = split_network(changed, index_weights(portable))
    _, values = find_weights(thin, places, portable)
    for name, value in values.items():
        if len(value) >= 65536:
            assert value.obj is (thin if name == largest.name else portable)


def test_places_are_pairs_of_integers_inside(stored):
    _, thin, places, portable = stored
    size = len(portable)
    for bad in ("", "{", "3", "[3]", '[["1", 1]]', "[[1.0, 1]]", "[[true, 1]]", '[{"0": 1}]',
                "[[Infinity, 1]]", "[[NaN, 1]]", f"[[0, {size + 1}]]", "[[-1, 5]]", "[[0, 0]]",
                f"[[{size}, 1]]", f"[[0, {size}], [0, {size}]]", "[" * 100_000, "9" * 5000):
        with pytest.raises(EngineFileError, match=r"^places of weights: expected"):
            find_weights(thin, bad.encode(), portable)
    with pytest.raises(EngineFileError):  # its weights are missing
        find_weights(thin, b"[]", portable)
    first = json.loads(places)[0]
    with pytest.raises(EngineFileError):  # cut in the middle
        find_weights(thin, json.dumps([[first[0] + 1, first[1] - 1]]).encode(), portable)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes | int, *, high: int = 0) -> bytes:
    """A field; of a number where data is one. high: bits of the key that others cut off."""
    kind, value = (0, varint(data)) if isinstance(data, int) else (2, varint(len(data)) + data)
    return varint((number << 3 | kind) | high << 32) + value


def node(*inputs: bytes, operator: bytes = b"Relu", output: bytes = b"y") -> bytes:
    return b"".join([*(field(1, each) for each in inputs), field(2, output), field(4, operator)])


WEIGHT = field(1, 1) + field(2, 1) + field(8, b"w") + field(9, bytes(4))
OPSET = field(8, field(2, 18))
INPUT = field(11, field(1, b"x"))


def model(*parts: bytes, opset: bytes = OPSET) -> bytes:
    """A graph of these fields, with an input "x"."""
    return opset + field(7, INPUT + b"".join(parts))


GOOD = (field(1, node(b"x", output=b"a")), field(1, node(b"a", b"w", operator=b"Add")),
        field(5, WEIGHT))
BAD = {
    "no operators' release": model(*GOOD, opset=b""),
    "an input that is a number": model(field(1, field(1, 7) + node(operator=b"Relu"))),
    "no inputs": model(field(1, node())),
    "an empty name": model(field(1, node(b""))),
    "too many inputs": model(field(1, node(b"x", b"x"))),
    "an unknown operator": model(field(1, node(b"x", operator=b"Loop"))),
    "an operator twice": model(field(1, node(b"x") + field(4, b"Loop"))),
    "an operator in two pieces": model(field(1, field(1, b"x") + field(2, b"y") + field(4, b"Re")
                                             + field(4, b"lu"))),
    "an operator of another domain": model(field(1, node(b"x") + field(7, b"ours"))),
    "a circle": model(field(1, node(b"y", b"x", operator=b"Add"))),
    "what comes later": model(field(1, node(b"z")), field(1, node(b"x", output=b"z"))),
    "one output twice": model(field(1, node(b"x")), field(1, node(b"x"))),
    "an output that is a weight": model(field(5, WEIGHT), field(1, node(b"x", output=b"w"))),
    "a graph in a node": model(field(1, node(b"x") + field(5, field(1, b"body") + field(6, b"")))),
    "a tensor in a node": model(field(1, node(b"x") + field(5, field(5, WEIGHT)))),
    "external weights": model(*GOOD[:2], field(5, WEIGHT + field(13, field(1, b"location")))),
    "a location of weights": model(*GOOD[:2], field(5, WEIGHT + field(14, 1))),
    "external weights under a long key": model(
        *GOOD[:2], field(5, WEIGHT + field(13, field(1, b"location"), high=1))),
    "an operator under a long key": model(
        field(1, node(b"x") + field(4, b"Loop", high=1))),
    "two weights of one name": model(*GOOD, field(5, WEIGHT)),
    "a weight and an input of one name": model(*GOOD, field(11, field(1, b"w"))),
    "two inputs of one name": model(*GOOD, INPUT),
    "a second name of a weight": model(*GOOD[:2], field(5, WEIGHT + field(8, b"v"))),
    "functions": model(*GOOD) + field(25, b""),
    "sparse weights": model(*GOOD, field(15, b"")),
    "an unknown field": model(*GOOD, field(99, b"")),
    "a group": model(*GOOD) + bytes([3 << 3 | 3]),
    "cut off": model(*GOOD)[:-1],
    "a number that does not end": b"\xff" * 11,
    "garbage": bytes(range(256)),
}


def weight(sizes: list[int], *, kind: bytes = field(2, 1), name: bytes = field(8, b"w"),
           data: bytes = field(9, bytes(4))) -> bytes:
    return b"".join(field(1, size) for size in sizes) + kind + name + data


BAD_WEIGHTS = {
    "too few values": weight([2]),
    "too many values": weight([1, 1], data=field(9, bytes(8))),
    "a size of nothing": weight([0], data=field(9, b"")),
    "sizes that overflow": weight([2**62, 4, 2**62, 1]),
    "a size below nothing": weight([2**64 - 1]),
    "another kind of values": weight([1], kind=field(2, 8)),
    "no kind": weight([1], kind=b""),
    "two kinds": weight([1], kind=field(2, 3) + field(2, 1)),
    "no values": weight([1], data=b""),
    "values twice": weight([1], data=field(9, bytes(4)) * 2),
    "no name": weight([1], name=b""),
    "a name that is no text": weight([1], name=field(8, b"\xff")),
    "a location": weight([1]) + field(14, 1),
}


def test_the_smallest_network_is_taken():
    """What the hostile ones below are made from."""
    graph = find_weights(model(*GOOD), b"[]", b"").graph
    assert [each.op_type for each in onnx.load_model_from_string(graph).graph.node] == [
        "Relu", "Add"]


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_network_is_refused(case):
    with pytest.raises(EngineFileError, match=r"^expected "):
        find_weights(BAD[case], b"[]", b"")


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_from_elsewhere_are_checked_as_well(case):
    """The places could point at anything in the portable graph."""
    tensor = BAD_WEIGHTS[case]
    with pytest.raises(EngineFileError, match=r"^expected "):
        find_weights(model(*GOOD[:2]), json.dumps([[0, len(tensor)]]).encode(), tensor)


def test_a_good_weight_from_elsewhere_becomes_an_input():
    network, good = model(*GOOD[:2]), weight([1])
    graph, values = find_weights(network, json.dumps([[0, len(good)]]).encode(), good)
    assert values == {"w": bytes(4)}
    assert [each.name for each in onnx.load_model_from_string(graph).graph.input] == ["x", "w"]
