"""Files that are whole, and make no engine all the same: each is refused with one clear line."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

import scrd_fast
from scrd_fast.engine.engine_file import read_engine_file, write_engine_file
from scrd_fast.errors import EngineFileError


@pytest.fixture(scope="module")
def engine_file(small_file):
    """Manifest and members of a good engine file."""
    return read_engine_file(small_file)


@pytest.mark.parametrize(("change", "message"), [
    ({"buckets": ()}, "buckets"), ({"buckets": (2, 4)}, "buckets"), ({"buckets": "ab"}, "buckets"),
    ({"buckets": (1, 2.5)}, "buckets"), ({"buckets": (1, 2**40)}, "buckets"),
    ({"backend": "auto"}, "backend"), ({"precision": "auto"}, "precision"),
])
def test_manifests_that_make_no_engine(engine_file, tmp_path, change, message):
    manifest, members = engine_file
    path = write_engine_file(tmp_path / "m.scrd", replace(manifest, **change), members)
    with pytest.raises(EngineFileError, match=rf"m\.scrd: .*{message}"):
        scrd_fast.load_engine(path)


def renamed_output(proto):
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "elsewhere"
    proto.graph.node[60].op_type = "Unheard"


def external_weights(proto):
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="passwords")


def external_constant(proto):
    node = proto.graph.node.add(op_type="Constant", output=["more"], name="network/more")
    value = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t
    value.data_type, value.data_location = 1, onnx.TensorProto.EXTERNAL
    value.external_data.add(key="location", value="passwords")


def a_graph_in_a_node(proto):
    attribute = proto.graph.node[3].attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
    attribute.g.name = "body"


def a_function(proto):
    proto.functions.add(name="f", domain="ours")


def no_inputs(proto):
    del proto.graph.node[10].input[:]


def no_opset(proto):
    del proto.opset_import[:]


def short_weights(proto):
    weight = next(w for w in proto.graph.initializer if len(w.dims) == 4)
    weight.raw_data = weight.raw_data[:-4]


def plain(members):
    """Without what OpenVINO compiles, which is then made again from the portable graph."""
    return {name: data for name, data in members.items() if not name.startswith("openvino.")}


@pytest.mark.parametrize("content", [
    b"garbage", b"\x0a", renamed_output, external_weights, external_constant, a_graph_in_a_node,
    a_function, no_inputs, no_opset])
def test_stored_graphs_that_make_no_engine(engine_file, tmp_path, content):
    manifest, members = engine_file
    if not isinstance(content, bytes):
        proto = onnx.load_model_from_string(members["openvino.onnx"])
        content(proto)
        content = proto.SerializeToString()
    path = write_engine_file(tmp_path / "m.scrd", manifest, members | {"openvino.onnx": content})
    with pytest.raises(EngineFileError, match=r"m\.scrd: "):
        scrd_fast.load_engine(path)


@pytest.mark.parametrize("places", [
    b"", b"{", b"3", b"[3]", b'[["a", 1]]', b"[[-1, 5]]", b"[[0, 0]]", b"[[0, 99999999999]]",
    b"[[99999999999, 1]]", b"[[5, 9]]", b"[]", b"[" * 100_000])
def test_places_of_weights_that_make_no_engine(engine_file, tmp_path, places):
    manifest, members = engine_file
    path = write_engine_file(tmp_path / "m.scrd", manifest, members | {"openvino.json": places})
    with pytest.raises(EngineFileError, match=r"m\.scrd: "):
        scrd_fast.load_engine(path)


@pytest.mark.parametrize("backend", ["openvino", "torch_eager"])
@pytest.mark.parametrize("content", [
    b"", b"garbage", renamed_output, external_weights, external_constant, a_graph_in_a_node,
    a_function, no_inputs, no_opset, short_weights])
def test_networks_that_make_no_engine(engine_file, tmp_path, backend, content):
    manifest, members = engine_file
    if not isinstance(content, bytes):
        proto = onnx.load_model_from_string(members["network.onnx"])
        content(proto)
        content = proto.SerializeToString()
    path = write_engine_file(tmp_path / "m.scrd", replace(manifest, backend=backend),
                             plain(members) | {"network.onnx": content})
    with pytest.raises(EngineFileError, match=r"m\.scrd: "):
        scrd_fast.load_engine(path).score(np.zeros((1, 64, 64), np.uint8))
