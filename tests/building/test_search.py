"""int8 whose layers were searched for, and auto, which never takes what breaks the limits."""

import time
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import scrd_fast
from scrd_fast.backends.registry import native_precisions
from scrd_fast.backends.source import Source
from scrd_fast.building import candidates
from scrd_fast.building.judge import Judge
from scrd_fast.building.ranges import BiasCorrection, measure_ranges, range_pixels
from scrd_fast.building.search import blocks, search
from scrd_fast.engine.engine_file import read_engine_file
from scrd_fast.errors import FidelityError, InputError
from scrd_fast.graph.portable import build_graph
from scrd_fast.graph.quantize import QUANTISATION, STEM, Quantisation
from scrd_fast.metrics.agreement import LIMITS, Limits, broken_limits
from scrd_fast.model.checkpoint import save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec
from tests.support.models import KEEPS_THE_LIMITS

pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif("int8" not in native_precisions("openvino"),
                                reason="OpenVINO does not compute in int8 on this CPU")


@pytest.fixture(scope="module")
def trained_path(trained, tmp_path_factory):
    return save_checkpoint(trained[0], tmp_path_factory.mktemp("search") / "model.safetensors")


@pytest.fixture(scope="module")
def start(trained):
    """Source, judge, ranges and correction of the trained model."""
    checkpoint, normals = trained
    proto = build_graph(checkpoint.model, checkpoint.spec)
    pixels = range_pixels(checkpoint.spec, normals)
    return (Source.of(proto), Judge(checkpoint, normals, lambda *_: None),
            Quantisation(measure_ranges(proto, checkpoint.spec, pixels)),
            BiasCorrection(proto, checkpoint.spec, pixels))


def run(start, limits: Limits, seconds: float = 1e6, progress=lambda *_: None):
    deadline = time.monotonic() + seconds
    return search("openvino", *start, limits, deadline=deadline, progress=progress)


@pytest.mark.parametrize(("backbone", "kind", "teacher", "student"), [
    ("resnet18", "full", 6, 6), ("resnet18", "slim", 6, 7),
    pytest.param("wide_resnet50_2", "full", 13, 13, marks=pytest.mark.slow)])
def test_blocks(backbone, kind, teacher, student):
    """The slim student's projections are one more."""
    proto = build_graph(SCRD(backbone, kind).eval(), ScoringSpec(input_size=64))
    found = blocks(proto)
    parts = [name.split("/")[1].split(".")[0] for name in found]
    assert [parts.count(p) for p in ("teacher", "bottleneck", "student")] == [teacher, 1, student]
    names = [node.name for node in proto.graph.node
             if node.op_type == "Conv" and node.name.startswith("network/")]
    covered = [sum(name.startswith(block) for block in found) for name in names]
    assert [name for name, n in zip(names, covered, strict=True) if n != 1] == [STEM]


@pytest.mark.slow
def test_as_few_blocks_as_keep_the_limits(start):
    """The tries end with the fewest that do; one fewer, or as many as were tried, does not."""
    none_kept = run(start, Limits(rank_correlation=0.9))[1].tries[0].report.score_error
    limits = Limits(rank_correlation=0.9, score_error=0.6 * none_kept)
    told = []
    quantisation, found = run(start, limits, progress=lambda *step: told.append(step[2]))
    figures = {len(each.keep): each.report for each in found.tries}
    good = {n for n, report in figures.items() if not broken_limits(report, limits)}
    kept = quantisation.keep
    assert kept[0] == STEM
    assert len(kept) == min(good) > 1
    assert len(kept) - 1 in figures
    order = sorted(found.sensitivities, key=lambda name: -found.sensitivities[name])
    assert list(kept[1:]) == order[: len(kept) - 1]
    assert any("is off by" in text for text in told)
    assert all(each.ms > 0 for each in found.tries)
    assert found.keep == kept


@pytest.mark.slow
def test_limits_that_hold_at_once(start):
    assert run(start, Limits(rank_correlation=0.9))[0].keep == (STEM,)


@pytest.mark.slow
def test_limits_that_never_hold(start):
    with pytest.raises(FidelityError, match=r"^int8: score_error: expected <= 1e-09, got .*every"):
        run(start, Limits(score_error=1e-9))


@pytest.mark.slow
def test_no_time(start):
    with pytest.raises(FidelityError, match=r"^int8: no time left after 0 tries"):
        run(start, LIMITS["int8"], seconds=0)


@pytest.mark.slow
def test_an_engine_in_int8(trained, trained_path, tmp_path):
    _, normals = trained
    path = tmp_path / "m.scrd"
    # So short a training leaves scores so close together that on one CPU nearly every block had to
    # be kept for the default 0.005.
    limits = replace(LIMITS["int8"], flipped=0.02)
    with scrd_fast.build_engine(trained_path, path, backend="openvino", precision="int8",
                                images=normals, buckets=(1,), limits=limits) as engine:
        scores = engine.score(normals[:9]).scores
        fidelity = engine.manifest.fidelity
        used = engine.manifest.precision_used["convolutions"]
    assert fidelity.limits == limits
    assert fidelity.report.flipped <= limits.flipped
    assert fidelity.report.rank_correlation >= limits.rank_correlation
    assert fidelity.search.keep[0] == STEM
    # OpenVINO names the type of a layer's input: "i8" where the CPU has int8 tiles (AMX).
    assert used.get("u8", 0) + used.get("i8", 0) >= 3
    manifest, members = read_engine_file(path)
    assert Quantisation.from_bytes(members[QUANTISATION]).keep == fidelity.search.keep
    with scrd_fast.load_engine(path, verify=True) as engine:
        np.testing.assert_array_equal(engine.score(normals[:9]).scores, scores)
    with scrd_fast.rebuild_engine(path, tmp_path / "again.scrd") as engine:
        np.testing.assert_array_equal(engine.score(normals[:9]).scores, scores)
    # What a search found can be given, and is judged all the same.
    keep = manifest.fidelity.search.keep
    with scrd_fast.build_engine(trained_path, tmp_path / "kept.scrd", backend="openvino",
                                precision="int8", images=normals, keep=keep,
                                buckets=(1,), limits=limits) as engine:
        np.testing.assert_array_equal(engine.score(normals[:9]).scores, scores)
        assert engine.manifest.fidelity.search is None
    with pytest.raises(InputError, match=r"^keep: expected beginnings"):
        scrd_fast.build_engine(trained_path, path, backend="openvino", precision="int8",
                               images=normals, keep=["teacher"])
    with pytest.raises(InputError, match=r"^images: expected normal images to calibrate int8 on"):
        scrd_fast.build_engine(trained_path, path, backend="openvino", precision="int8")


def spoilt(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with one layer of the student off by 3 %."""
    bad = onnx.ModelProto()
    bad.CopyFrom(proto)
    (weight,) = [w for w in bad.graph.initializer if w.name == "student.layer3.1.conv2.weight"]
    weight.CopyFrom(numpy_helper.from_array(
        numpy_helper.to_array(weight) * np.float32(1.03), weight.name))
    return bad


@pytest.mark.slow
@pytest.mark.parametrize("planted", [
    ("bf16",), ("int8",), ("bf16", "int8"), ("fp32", "bf16", "int8")], ids="+".join)
def test_auto_never_takes_what_breaks_the_limits(trained, trained_path, tmp_path, monkeypatch,
                                                 planted):
    make = candidates.make_runner

    def bad(backend, request):
        source = request.source
        if request.precision in planted:
            source = Source.of(spoilt(source.proto), source.quantisation
                               if request.precision == "int8" else None)
        return make(backend, replace(request, source=source))

    monkeypatch.setattr(candidates, "make_runner", bad)
    out = tmp_path / "m.scrd"

    def build():
        return scrd_fast.build_engine(trained_path, out, backend="openvino", images=trained[1],
                                      keep=KEEPS_THE_LIMITS, buckets=(1,))

    if "fp32" in planted:
        with pytest.raises(FidelityError) as caught:
            build()
        for precision in native_precisions("openvino"):
            assert f"{precision}: " in str(caught.value)
        assert not out.exists()
        return
    with build() as engine:
        manifest = engine.manifest
    assert manifest.precision not in planted
    table = {row.precision: row for row in manifest.fidelity.candidates}
    assert table.keys() == set(native_precisions("openvino"))
    for precision, row in table.items():
        assert row.why_not is not None or row.ms is not None, row
        if precision in planted:
            assert "expected" in row.why_not
    times = {p: row.ms for p, row in table.items() if row.ms is not None}
    assert times[manifest.precision] == min(times.values())


@pytest.mark.slow
def test_a_spent_budget(trained, trained_path, tmp_path):
    """What comes first is built all the same; nothing else is tried."""
    with scrd_fast.build_engine(trained_path, tmp_path / "m.scrd", backend="openvino",
                                images=trained[1], buckets=(1,), budget=1e-3) as engine:
        rows = engine.manifest.fidelity.candidates
    assert rows[-1].precision == "int8"
    assert rows[-1].why_not == "not tried: the budget of 0.001 s is spent"
    with pytest.raises(InputError, match=r"^budget: expected seconds above 0"):
        scrd_fast.build_engine(trained_path, tmp_path / "m.scrd", budget=0)


@pytest.mark.slow
def test_int8_of_a_wide_resnet(tmp_path, capsys):
    """Trained on the demo's images for a short while; about ten minutes."""
    pytest.importorskip("nilearn", reason="needs the demo extra")
    from scrd_fast import demo

    normal, held = (demo.make_images(demo.subjects(part, 0), demo.SLICES).images
                    for part in ("train", "validation"))
    options = {"backbone": "wide_resnet50_2", "input_size": 128, "seed": 0, "progress": False,
               "precision": demo.training_precision()}
    teacher = scrd_fast.pretrain_teacher(normal, tmp_path / "teacher.safetensors", steps=300,
                                         batch_size=8, **options)
    scrd_fast.train(normal, tmp_path / "model.safetensors", validation=held, teacher=str(teacher),
                    **options, **demo.TRAIN | {"batch_size": 12})
    with scrd_fast.build_engine(tmp_path / "model.safetensors", backend="openvino",
                                precision="int8", images=held) as engine:
        found, report = engine.manifest.fidelity.search, engine.manifest.fidelity.report
    with capsys.disabled():
        print(f"\nkept: {found.keep}; " + "; ".join(
            f"{len(t.keep)} kept: {t.ms:.1f} ms, {t.report.flipped:.2%} flipped"
            for t in found.tries))
    assert report.flipped <= LIMITS["int8"].flipped
    assert report.rank_correlation >= LIMITS["int8"].rank_correlation
    assert report.auroc_change <= LIMITS["int8"].auroc_change
    assert len(found.keep) <= 8, "most of the network is quantised"
