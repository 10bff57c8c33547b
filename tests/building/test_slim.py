"""A slim student through every backend and through the exported graph."""

from dataclasses import asdict

import onnx
import pytest

import scrd_fast
from scrd_fast.building.ranges import measure_ranges, range_pixels
from scrd_fast.cli.app import tell_engine
from scrd_fast.graph.portable import build_graph, network_graph
from scrd_fast.graph.precision import scoring_graph
from scrd_fast.graph.quantize import Quantisation, quantise, quantised_tensors
from scrd_fast.metrics.agreement import LIMITS, map_error, relative_error
from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from scrd_fast.model.reference import score_images
from scrd_fast.model.scrd import new_model
from scrd_fast.spec import ScoringSpec
from tests.support.models import EACH_BACKEND, organs, pictures

IMAGES = pictures(5, 64)


@pytest.fixture(scope="module")
def slim():
    """An untrained resnet18 at 64 px, as the fixture `small` is, but with a slim student."""
    spec = ScoringSpec(input_size=64, weighting="scale", blur_sigma=1.5, reduction="max")
    model = new_model("resnet18", 3, "slim").eval()
    return Checkpoint(model, spec, ModelConfig("resnet18", "random", "slim"))


@pytest.fixture(scope="module")
def slim_path(slim, tmp_path_factory):
    return save_checkpoint(slim, tmp_path_factory.mktemp("slim") / "model.safetensors")


@pytest.fixture(scope="module")
def reference(slim):
    """Scores and maps."""
    result, _ = score_images(slim.model, slim.spec, IMAGES)
    return result.score(slim.spec).numpy(), result.map.numpy()


def keeps_the_limits(reference, scores, maps):
    limits = LIMITS["fp32"]
    assert relative_error(scores, reference[0]) <= limits.score_error
    assert map_error(maps, reference[1]) <= limits.map_error


@pytest.mark.slow
@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_an_engine_gives_the_references_scores(slim_path, reference, tmp_path, backend, capsys):
    if backend == "openvino":
        pytest.importorskip("openvino")
    out = tmp_path / "m.scrd"
    with scrd_fast.build_engine(slim_path, out, backend=backend, precision="fp32",
                                buckets=(1, 4)) as engine:
        built = engine.score(IMAGES)
    keeps_the_limits(reference, built.scores, built.maps)
    with scrd_fast.load_engine(out) as engine:
        loaded = engine.score(IMAGES)
        assert "resnet18 with a slim student" in repr(engine)
        tell_engine(engine)
    keeps_the_limits(reference, loaded.scores, loaded.maps)
    assert "resnet18 with a slim student, 64 px" in capsys.readouterr().err
    assert asdict(engine.manifest.model) == {
        "backbone": "resnet18", "teacher": "random", "student": "slim"}


def test_the_exported_graph_gives_the_references_scores(slim_path, reference, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = scrd_fast.export_onnx(slim_path, tmp_path / "m.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    keeps_the_limits(reference, *session.run(["score", "map"], {"images": IMAGES}))


def test_projections_are_quantised_and_what_they_give_is_not(slim):
    proto = build_graph(slim.model, slim.spec)
    ranges = measure_ranges(proto, slim.spec, range_pixels(slim.spec, organs(2, 64), 4))
    features = [f"network/student.projections.{k}.relu" for k in range(3)]
    assert not set(features) & set(quantised_tensors(network_graph(proto, slim.spec)))
    for keep, kinds in (((), {"int8"}), (("network/student.projections.",), {"float16"})):
        made = quantise(scoring_graph(proto, slim.spec), "int8", Quantisation(ranges, keep))
        onnx.checker.check_model(made, full_check=True)
        maker = {name: node for node in made.graph.node for name in node.output}
        types = {w.name: onnx.numpy_helper.to_array(w).dtype for w in made.graph.initializer}
        for name in features:
            conv = maker[maker[name].input[0]]
            stored = conv.input[1] if conv.input[1] in types else maker[conv.input[1]].input[0]
            assert {str(types[stored])} == kinds
            (reader,) = {node.op_type for node in made.graph.node if name in node.input}
            assert reader == "Cast", "to float32, for the distances"
