"""An engine that is not what was built: each planted fault is caught by `verify`."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load, save

import scrd_fast
from scrd_fast.backends.backend import CompileRequest
from scrd_fast.backends.registry import make_runner, native_precisions
from scrd_fast.backends.source import Source
from scrd_fast.engine import load as loading
from scrd_fast.engine.engine_file import GOLDEN, NETWORK, read_engine_file, write_engine_file
from scrd_fast.errors import EngineFileError, FidelityError, NotFiniteError
from scrd_fast.graph.stored import QUANTISATION
from scrd_fast.metrics.agreement import Limits
from tests.support.models import organs

cv2 = pytest.importorskip("cv2")
pytest.importorskip("openvino")

# All faults in every precision takes minutes.
PRECISIONS = [pytest.param(p, marks=() if p == "fp32" else pytest.mark.slow)
              for p in ("fp32", "bf16", "int8") if p in native_precisions("openvino")]


@pytest.fixture(scope="module", params=PRECISIONS)
def built(request, small_path, tmp_path_factory):
    """Manifest and members of an engine; untrained, so that only its own figures judge it."""
    path = tmp_path_factory.mktemp("verify") / "m.scrd"
    scrd_fast.build_engine(small_path, path, backend="openvino", precision=request.param,
                           images=organs(24, 64), buckets=(1,), limits=Limits()).close()
    return read_engine_file(path)


def planted(built, folder, *, network=None, golden=None, **manifest):
    """A file with a fault, every digest computed again."""
    old, members = built
    changed = dict(members)
    if network is not None:
        proto = onnx.load_model_from_string(members[NETWORK])
        network(proto)
        changed[NETWORK] = proto.SerializeToString()
        # What OpenVINO compiles has the fault, too.
        source = Source(changed[NETWORK], changed.get(QUANTISATION))
        changed |= make_runner("openvino", CompileRequest(
            source, old.spec, old.precision, old.buckets)).compiled
    if golden is not None:
        changed[GOLDEN] = save(load(members[GOLDEN]) | golden)
    return write_engine_file(folder / "m.scrd", replace(old, **manifest), changed)


def refused(path):
    message = r"does not reproduce the golden images: \w+ expected <= .*, got"
    with pytest.raises(FidelityError, match=message):
        scrd_fast.verify_engine(path)
    with pytest.raises(FidelityError, match=message):
        scrd_fast.load_engine(path, verify=True)


@pytest.mark.slow
def test_what_was_built_is_verified(built, tmp_path):
    figures = scrd_fast.verify_engine(planted(built, tmp_path))
    assert figures["score_change"] <= 1e-6
    assert figures["map_change"] <= 1e-6
    assert figures["flipped"] == 0
    assert figures["rank_lost"] <= 1e-6


def flip(weight: str, index: int, bit: int):
    def change(proto):
        (tensor,) = [w for w in proto.graph.initializer if w.name == weight]
        value = numpy_helper.to_array(tensor).copy()
        value.reshape(-1).view(np.uint32)[index] ^= np.uint32(1 << bit)
        tensor.CopyFrom(numpy_helper.from_array(value, weight))
    return change


# From the lowest bit of the exponent on, which is the hardest to see: in each part of the network.
@pytest.mark.slow
@pytest.mark.parametrize("bit", [23, 26, 30])
@pytest.mark.parametrize(("weight", "index"), [
    ("teacher.conv1.weight", 4000), ("teacher.layer2.0.conv1.weight", 1000),
    ("student.layer1.0.conv2.weight", 30_000), ("bottleneck.conv1.weight", 5)])
def test_a_flipped_bit_of_an_exponent(built, tmp_path, weight, index, bit):
    path = planted(built, tmp_path, network=flip(weight, index, bit))
    with pytest.raises((FidelityError, NotFiniteError)):
        scrd_fast.verify_engine(path)


@pytest.mark.slow
@pytest.mark.parametrize("change", [
    {"std": (0.229, 0.224, 0.226)}, {"mean": (0.485, 0.456, 0.4065)}, {"blur_sigma": 1.6},
    {"mean": (0.406, 0.456, 0.485), "std": (0.225, 0.224, 0.229)}, {"weighting": "none"},
    {"reduction": "mean"}])
def test_a_changed_constant(built, tmp_path, change):
    refused(planted(built, tmp_path, spec=replace(built[0].spec, **change)))


@pytest.mark.slow
def test_swapped_channels(built, tmp_path):
    def swap(proto):
        (tensor,) = [w for w in proto.graph.initializer if w.name == "teacher.conv1.weight"]
        value = numpy_helper.to_array(tensor)[:, ::-1].copy()
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    refused(planted(built, tmp_path, network=swap))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["rounded", "area", "antialiased"])
def test_another_resize_rule(built, tmp_path, monkeypatch, rule):
    """As other programs resize: in uint8, by areas, or behind a low-pass filter."""
    def resized(image):
        if image.shape[:2] == (64, 64):
            return image
        if rule == "antialiased":
            image = cv2.GaussianBlur(image, (3, 3), 0.5)
        return cv2.resize(image, (64, 64),
                          interpolation=cv2.INTER_AREA if rule == "area" else cv2.INTER_LINEAR)

    path = planted(built, tmp_path)
    make = loading.make_runner

    def other_rule(*arguments, **options):
        runner = make(*arguments, **options)
        return replace(runner, inputs=lambda batch, name: runner.inputs(
            [resized(image) for image in batch], name))

    monkeypatch.setattr(loading, "make_runner", other_rule)
    refused(path)


@pytest.mark.slow
def test_another_machine_is_held_to_the_limits(built, tmp_path):
    """There an engine need not repeat itself to the last bits, but nearly."""
    elsewhere = replace(built[0].machine, cpu="another")
    drift = {"built_scores": load(built[1][GOLDEN])["built_scores"] * np.float32(1 + 5e-5)}
    scrd_fast.verify_engine(planted(built, tmp_path, machine=elsewhere, golden=drift))
    refused(planted(built, tmp_path, golden=drift))
    swapped = replace(built[0].spec, mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229))
    refused(planted(built, tmp_path, machine=elsewhere, spec=swapped))


@pytest.mark.slow
def test_an_engine_compiled_again_is_held_to_itself(built, tmp_path):
    """Not to what it gave on the machine that first built it."""
    there = load(built[1][GOLDEN])["built_scores"] * np.float32(1 + 5e-5)
    path = planted(built, tmp_path, golden={"built_scores": there},
                   machine=replace(built[0].machine, cpu="another"))
    scrd_fast.rebuild_engine(path).close()
    assert scrd_fast.verify_engine(path)["score_change"] <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("golden", [
    b"", b"garbage", {"image0": None}, {"built_maps": np.zeros((8, 3, 3), np.float32)},
    {"probe_scores": np.zeros(3, np.float32)}, {"scores": np.zeros(8, bool)},
    {"maps": np.zeros((8, 64, 64))}, {"image0": np.zeros((64, 64, 3), np.float32)}])
def test_golden_images_that_are_none(built, tmp_path, golden):
    old, members = built
    if isinstance(golden, dict):
        tensors = load(members[GOLDEN]) | golden
        golden = save({name: value for name, value in tensors.items() if value is not None})
    path = write_engine_file(tmp_path / "m.scrd", old, members | {GOLDEN: golden})
    with pytest.raises(EngineFileError, match=r"m\.scrd: its golden images cannot be read"):
        scrd_fast.verify_engine(path)
