"""The exported ONNX graph in plain onnxruntime."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import scrd_fast
from scrd_fast.errors import CheckpointError, InputError
from scrd_fast.graph.portable import build_graph, network_graph
from scrd_fast.model.reference import score_images
from tests.engine.test_engine import MAP, SCORE, pictures
from tests.support.models import read_spec

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnxruntime extra")


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["score", "map", "scale_weights"]
    return session.run(None, {"images": images})


def test_small_export_matches_engine(small_path, small_file, tmp_path):
    path = scrd_fast.export_onnx(small_path, tmp_path / "model.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    with scrd_fast.load_engine(small_file) as engine:
        for count in (1, 2, 7):
            images = pictures(count, 64)
            score, maps, weights = run(path, images)
            expected = engine.score(images)
            assert np.abs(maps - expected.maps).max() <= MAP * np.ptp(expected.maps)
            assert np.abs(score - expected.scores).max() <= SCORE * np.abs(expected.scores).max()
            np.testing.assert_allclose(weights, expected.scale_weights, atol=1e-4)


@pytest.mark.slow
def test_large_export_matches_reference(large, large_path, tmp_path):
    path = scrd_fast.export_onnx(large_path, tmp_path / "model.onnx")
    images = pictures(2, 256)
    score, maps, _ = run(path, images)
    reference, _ = score_images(large.model, large.spec, images)
    assert np.abs(maps - reference.map.numpy()).max() <= MAP * np.ptp(reference.map.numpy())
    assert np.abs(score - reference.mean.numpy()).max() <= SCORE * reference.mean.abs().max()


@pytest.mark.slow
def test_other_sizes_are_resized_in_the_graph(small, small_path, tmp_path):
    path = scrd_fast.export_onnx(small_path, tmp_path / "model.onnx")
    for height, width in ((100, 37), (64, 65), (300, 200)):
        images = pictures(2, 300)[:, :height, :width].copy()
        score, maps, _ = run(path, images)
        reference, _ = score_images(small.model, small.spec, images)
        assert np.abs(maps - reference.map.numpy()).max() <= MAP * np.ptp(reference.map.numpy())
        np.testing.assert_allclose(score, reference.score(small.spec), rtol=SCORE)


@pytest.mark.slow
def test_four_computed_sizes_resize_as_the_two_sides_do(small):
    """Engine files of before have the sides alone, with `axes`: nothing else differs."""
    now = build_graph(small.model, small.spec)
    before = onnx.ModelProto()
    before.CopyFrom(now)
    resize = next(node for node in before.graph.node if node.op_type == "Resize")
    side = [small.spec.input_size] * 2
    before.graph.initializer.append(numpy_helper.from_array(np.array(side), "input_sides"))
    resize.input[3] = "input_sides"
    resize.attribute.append(onnx.helper.make_attribute("axes", [2, 3]))
    onnx.checker.check_model(before, full_check=True)
    assert network_graph(before, small.spec) == network_graph(now, small.spec)
    one, other = (onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]) for proto in (before, now))
    for shape in ((1, 64, 64, 3), (3, 100, 37, 3), (2, 20, 300, 3)):
        images = pictures(shape[0], 300)[:, : shape[1], : shape[2]].copy()
        for a, b in zip(one.run(None, {"images": images}), other.run(None, {"images": images}),
                        strict=True):
            np.testing.assert_array_equal(a, b)


def test_shapes_follow_from_the_sizes(small):
    proto = build_graph(small.model, small.spec)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in inferred.value_info}
    assert shapes["network_input"] == ["batch", 3, 64, 64]
    assert shapes["network/teacher.conv1.relu"] == ["batch", 64, 32, 32]


def test_metadata_and_operators(small):
    proto = build_graph(small.model, small.spec)
    assert read_spec(proto) == small.spec
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(metadata["scrd_fast.spec"])["input_size"] == 64
    operators = {node.op_type for node in proto.graph.node}
    assert not operators & {"BatchNormalization", "ConvTranspose"}
    assert all(node.name.startswith(("preprocess/", "network/", "tail/"))
               for node in proto.graph.node)


def test_network_part_has_no_matrix_product(small):
    """A runtime told to compute in bf16 rounds what feeds a matrix product."""
    network = network_graph(build_graph(small.model, small.spec), small.spec)
    assert not {node.op_type for node in network.graph.node} & {"MatMul", "Gemm"}
    onnx.checker.check_model(network, full_check=True)


def test_bad_arguments(small_path, tmp_path):
    with pytest.raises(InputError, match=r"\.onnx"):
        scrd_fast.export_onnx(small_path, tmp_path / "model.bin")
    with pytest.raises(CheckpointError):
        scrd_fast.export_onnx(tmp_path / "gone.safetensors", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
