"""Engine files for GPUs that are not here: what they say, and what is refused."""

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.backends.tensorrt.flavour import TENSORRT_RTX
from scrd_fast.backends.tensorrt.plan import PLAN, TensorRtOptions
from scrd_fast.backends.torch_network import TorchNetwork
from scrd_fast.building.ranges import measure_quantisation
from scrd_fast.engine.engine_file import read_engine_file, write_engine_file
from scrd_fast.errors import BackendUnavailable, FidelityError, InputError, ScrdError
from scrd_fast.graph.portable import build_graph, network_graph
from scrd_fast.graph.precision import in_precision
from scrd_fast.graph.quantize import quantise
from scrd_fast.metrics.agreement import Limits
from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, load_checkpoint, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.ops.preprocess import to_pixels
from scrd_fast.progress import silent
from scrd_fast.reference.preprocess import normalise
from scrd_fast.spec import ScoringSpec
from tests.cli.commands import run
from tests.support.models import pictures

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX is not installed: pip install -e '.[tensorrt-rtx]'")
TARGETS = ("sm86", "sm89", "sm120")
UNJUDGED = Limits()  # untrained weights rank images by chance


@pytest.fixture(autouse=True)
def own_record(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def built(small_path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cross") / "m.scrd"
    return scrd_fast.cross_build(small_path, out, targets=TARGETS, precision="fp16",
                                 buckets=(1, 4), limits=UNJUDGED)


@pytest.mark.slow
@needs_rtx
def test_one_file_for_three_targets(built):
    manifest, members = read_engine_file(built)
    assert (manifest.backend, manifest.precision) == ("tensorrt_rtx", "fp16")
    assert manifest.plan.targets == TARGETS
    assert manifest.buckets == (1, 4)
    assert manifest.fidelity.emulated
    assert manifest.machine.gpu is None
    assert len(members[PLAN]) > 2**20
    report = manifest.fidelity.report
    assert 0 < report.score_error < 0.01, "rounded to 11 bits, and still the model"


@pytest.mark.slow
@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_info_lists_the_targets_and_opening_says_that_there_is_no_gpu(built):
    assert json.loads(run("info", built).stdout)["plan"]["targets"] == list(TARGETS)
    message = f"{built}: it runs on GPUs of sm86, sm89, sm120, and here none can be used: "
    for call in (scrd_fast.load_engine, scrd_fast.verify_engine):
        with pytest.raises(BackendUnavailable, match=f"^{re.escape(message)}"):
            call(built)


@pytest.mark.slow
@needs_rtx
def test_the_command_line(small_path, tmp_path):
    """What is judged on generated images is few for untrained weights: fp32, whose order holds."""
    out = tmp_path / "m.scrd"
    told = run("build", small_path, "--out", out, "--for", "sm86,sm120", "--precision", "fp32",
               "--quiet").stdout
    assert "tensorrt_rtx fp32" in told
    assert "for sm86, sm120; judged by its arithmetic on the CPU, not on a GPU" in told
    assert read_engine_file(out)[0].plan.targets == ("sm86", "sm120")


@needs_rtx
@pytest.mark.parametrize(("options", "error", "message"), [
    ({"targets": ("sm86", "sm75")}, BackendUnavailable, "target 'sm75': TensorRT for RTX mult"),
    ({"targets": ("sm90",)}, BackendUnavailable, "target 'sm90': .* does not compile for Hopper"),
    ({"targets": ("sm86", "sm86")}, InputError, r"targets: expected one or more of \('sm80', "),
    ({"targets": ()}, InputError, r"targets: expected one or more of"),
    ({"targets": ("rtx4090",)}, InputError, r"targets: expected one or more of"),
    ({"targets": TARGETS, "precision": "fp8"}, BackendUnavailable,
     "precision 'fp8': compute capability 8.9 or later is needed, target sm86 is below; leave it"),
    ({"tensorrt": TensorRtOptions(stripped=True)}, BackendUnavailable, "tensorrt.stripped: Tensor"),
    ({"tensorrt": TensorRtOptions(tail="plugin")}, BackendUnavailable, "tensorrt.tail: TensorRT f"),
    ({"tensorrt": TensorRtOptions(version_compatible=True)}, BackendUnavailable,
     "tensorrt.version_compatible: TensorRT for RTX has no plans with True; leave it at False"),
    ({"tensorrt": TensorRtOptions(hardware_compatible=True)}, BackendUnavailable,
     "tensorrt.hardware_compatible: TensorRT for RTX has no plans"),
    ({"backend": "openvino"}, BackendUnavailable, "backend 'openvino': it compiles for the ma"),
    ({"backend": "tensorrt"}, BackendUnavailable, "backend 'tensorrt': it compiles for the mac"),
    ({"backend": "magic"}, InputError, "backend: expected one of"),
    ({"precision": "int4"}, InputError, "precision: expected one of"),
    ({"precision": "int8"}, InputError, "images: expected normal images to calibrate int8 on"),
    ({"buckets": (4, 8)}, InputError, "buckets: expected at most"),
])
def test_what_cannot_be_compiled(small_path, tmp_path, options, error, message):
    out = tmp_path / "m.scrd"
    with pytest.raises(error, match=f"^{message}") as caught:
        scrd_fast.cross_build(small_path, out, **{"targets": ("sm86",), **options})
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_without_the_library():
    """Looked for by another name, it is as if it were not there."""
    elsewhere = replace(TENSORRT_RTX, module="no_such_module")
    assert elsewhere.missing() == (
        "TensorRT for RTX is not installed; pip install 'scrd-fast[tensorrt-rtx]'")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_the_emulation_is_the_precisions_arithmetic(trained, precision):
    """Against half precision as PyTorch computes it on CPUs. The first layers are the same but
    where sums in another order round to another number; after twenty of them the distances are no
    longer the same, and off by as much."""
    checkpoint, normals = trained
    spec = checkpoint.spec
    proto = build_graph(checkpoint.model, spec)
    network = network_graph(proto, spec)
    if precision == "int8":
        chosen, _ = measure_quantisation(proto, spec, normals[:4], keep=None, int8_weight=127.0,
                                         progress=silent)
        graph, base = quantise(network, precision, chosen), "fp16"
    else:
        graph, base = in_precision(network, precision), precision
    inputs = normalise(to_pixels(normals[:4], spec), spec)
    emulated, real = TorchNetwork(graph, base, emulate=True), TorchNetwork(graph, base)
    with torch.no_grad():
        first = [[value.float() for _, _, value in islice(each.values(inputs), 4)]
                 for each in (emulated, real)]
    for ours, theirs in zip(*first, strict=True):
        assert float((ours == theirs).float().mean()) >= 0.99
        assert float((ours - theirs).abs().max()) <= 0.01 * float(theirs.abs().max())
    exact = TorchNetwork(network, "fp32").run(inputs)[:3]
    for ours, theirs, right in zip(emulated.run(inputs)[:3], real.run(inputs)[:3], exact,
                                   strict=True):
        off, other = (float((each - right).square().mean().sqrt()) for each in (ours, theirs))
        assert off > 0
        assert 0.5 * other <= off <= 2 * other


def emulated_file(small_file: Path, out: Path, **golden: Any) -> Path:
    """A CPU's engine that says it was judged by an emulation alone."""
    manifest, members = read_engine_file(small_file)
    if golden:
        from safetensors.numpy import load, save

        members["golden.safetensors"] = save(load(members["golden.safetensors"]) | golden)
    fidelity = replace(manifest.fidelity, emulated=True)
    return write_engine_file(out, replace(manifest, fidelity=fidelity), members)


@pytest.mark.slow
def test_the_first_load_replays_the_golden_images(small_file, tmp_path):
    """What was built without a GPU was never judged on one; the rule is the file's, not the GPU's,
    so a CPU's shows it."""
    good = emulated_file(small_file, tmp_path / "good.scrd")
    record = tmp_path / "state" / "scrd_fast" / "judged-engines"
    for _ in range(2):
        scrd_fast.load_engine(good).close()
        assert len(record.read_text().split()) == 1, "judged once"
    bad = emulated_file(small_file, tmp_path / "bad.scrd",
                        scores=np.full(8, 123.0, np.float32))
    with pytest.raises(FidelityError, match="this machine does not reproduce the golden images"):
        scrd_fast.load_engine(bad)
    assert len(record.read_text().split()) == 1


def test_where_nothing_can_be_recorded_it_is_judged_each_time(small_file, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="will be judged again the next time it is loaded"):
        scrd_fast.load_engine(emulated_file(small_file, tmp_path / "m.scrd")).close()


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Random weights of the usual size. (The recorded ones overflow in fp16.)"""
    torch.manual_seed(0)
    return save_checkpoint(
        Checkpoint(SCRD("wide_resnet50_2").eval(), ScoringSpec(input_size=64),
                   ModelConfig("wide_resnet50_2", "random")),
        tmp_path_factory.mktemp("wide") / "model.safetensors")


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_wide_resnet(wide, tmp_path, precision):
    """Seconds and megabytes of plans for 256 px are in docs/performance.md."""
    targets = ("sm89", "sm120") if precision == "fp8" else TARGETS
    out = scrd_fast.cross_build(wide, tmp_path / "m.scrd", targets=targets, buckets=(1, 8, 32),
                                precision=precision, images=pictures(8, 64), limits=UNJUDGED)
    manifest, members = read_engine_file(out)
    assert manifest.plan.targets == targets
    assert len(members[PLAN]) > 100 * 2**20


@needs_rtx
@pytest.mark.slow
def test_an_overflow_is_named_before_anything_is_compiled(large_path, tmp_path):
    """These weights are too large for fp16; the emulation overflows where a GPU would."""
    with pytest.raises(FidelityError, match="fp16: values that are not finite, first in layer"):
        scrd_fast.cross_build(large_path, tmp_path / "m.scrd", targets=("sm86",), precision="fp16",
                              limits=UNJUDGED)


@pytest.mark.slow
@needs_rtx
def test_auto_takes_the_first_that_keeps_the_limits(small_path, tmp_path):
    """Nothing keeps these but float32."""
    out = scrd_fast.cross_build(small_path, tmp_path / "m.scrd", targets=("sm86",), buckets=(1,),
                                limits=Limits(score_error=1e-5))
    manifest, _ = read_engine_file(out)
    assert manifest.precision == "fp32"
    assert [each.precision for each in manifest.fidelity.candidates] == ["fp16", "bf16", "fp32"]
    assert all(each.why_not for each in manifest.fidelity.candidates[:2])
    with pytest.raises(ScrdError, match="no precision keeps the fidelity limits: fp16: score"):
        scrd_fast.cross_build(small_path, tmp_path / "n.scrd", targets=("sm86",),
                              limits=Limits(score_error=1e-12))
    assert not (tmp_path / "n.scrd").exists()
    assert load_checkpoint(small_path).spec == manifest.spec
