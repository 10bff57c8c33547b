"""TensorRT plans in engine files: what they are tied to, and whose they are. Needs no TensorRT."""

import hashlib
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest

import scrd_fast
from scrd_fast.backends.registry import backend_of, choose_backend
from scrd_fast.backends.tensorrt.plan import (
    PLAN,
    PlanTies,
    TensorRtOptions,
    capability_of,
    check_plan,
    plan_differences,
    target_of,
)
from scrd_fast.backends.tensorrt.rtx import read_own
from scrd_fast.engine.engine_file import read_engine_file, write_engine_file
from scrd_fast.errors import BackendUnavailable, EngineFileError, InputError
from scrd_fast.machine import Gpu
from scrd_fast.user_records import BUILT_PLANS, is_recorded, record_line

BYTES = b"a plan"
DIGEST = hashlib.sha256(BYTES).hexdigest()


@pytest.fixture(autouse=True)
def own_record(tmp_path, monkeypatch) -> Path:
    """No test reads or writes the record of the user who runs it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "scrd_fast" / "built-plans"


GPU = Gpu("H100", (9, 0), "13.0", 91000)
PLAN_TIES = PlanTies.here("10.16.1.11", TensorRtOptions())


@pytest.fixture
def planned(small_file, tmp_path):
    """An engine file with a plan in it, and its manifest."""
    path = tmp_path / "m.scrd"
    manifest, members = read_engine_file(small_file)
    manifest = replace(manifest, backend="tensorrt", plan=PLAN_TIES,
                       machine=replace(manifest.machine, gpu=GPU))
    write_engine_file(path, manifest, {**members, PLAN: BYTES})
    return path, read_engine_file(path)[0]


def test_a_plan_is_this_users_once_it_was_built(own_record):
    assert not is_recorded(BUILT_PLANS, DIGEST)
    record_line(BUILT_PLANS, "0" * 64)
    record_line(BUILT_PLANS, DIGEST)
    assert is_recorded(BUILT_PLANS, DIGEST)
    assert not is_recorded(BUILT_PLANS, DIGEST[:-1])
    assert stat.S_IMODE(own_record.stat().st_mode) == 0o600


def test_a_plan_of_somebody_else_is_refused(planned):
    path, manifest = planned
    here = ("10.16.1.11", (9, 0))
    with pytest.raises(EngineFileError, match=r"refused: its TensorRT plan is code .*trust=True"):
        check_plan(path, GPU, PLAN_TIES, manifest.members, *here, trust=False)
    check_plan(path, GPU, PLAN_TIES, manifest.members, *here, trust=True)
    record_line(BUILT_PLANS, DIGEST)
    check_plan(path, GPU, PLAN_TIES, manifest.members, *here, trust=False)


@pytest.mark.slow
@pytest.mark.parametrize(("version", "capability", "options", "difference"), [
    ("10.16.1.11", (9, 0), {}, None),
    ("11.4.0.106", (9, 0), {}, "it was built by TensorRT 10.16.1.11, this is 11.4.0.106"),
    ("10.16.2.0", (9, 0), {}, "it was built by TensorRT 10.16.1.11, this is 10.16.2.0"),
    ("10.17.0.1", (9, 0), {"version_compatible": True}, None),
    ("10.13.0.1", (9, 0), {"version_compatible": True}, "it was built by TensorRT 10.16.1.11"),
    ("11.0.0.1", (9, 0), {"version_compatible": True}, "it was built by TensorRT 10.16.1.11"),
    ("10.16.1.11", (10, 0), {},
     "it was built for compute capability 9.0 (H100), this GPU has 10.0"),
    ("10.16.1.11", (8, 0), {"hardware_compatible": True}, None),
    ("10.16.1.11", (7, 5), {"hardware_compatible": True}, "this GPU has 7.5"),
])
def test_what_a_plan_is_tied_to(version, capability, options, difference, planned):
    plan = PlanTies.here("10.16.1.11", TensorRtOptions(**options))
    found = plan_differences(GPU, plan, version, capability)
    assert len(found) == (difference is not None)
    if difference is None:
        return
    assert difference in found[0]
    path, manifest = planned
    with pytest.raises(EngineFileError, match=re.escape(difference)) as caught:
        check_plan(path, GPU, plan, manifest.members, version, capability, trust=True)
    assert "scrd-fast build --from" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("capability", "differences"), [
    ((8, 6), []), ((12, 0), []),
    ((8, 9), ["it was built for sm86, sm120, this GPU is sm89"])])
def test_a_plan_for_several_targets(planned, capability, differences):
    """Built without a GPU, it is tied to none."""
    ties = PlanTies.here("1.7.1.116", TensorRtOptions(), ("sm86", "sm120"))
    assert plan_differences(None, ties, "1.7.1.116", capability) == differences
    path, manifest = planned
    arguments = path, None, ties, manifest.members, "1.7.1.116", capability
    if differences:
        with pytest.raises(EngineFileError, match=differences[0]):
            check_plan(*arguments, trust=True)
    else:
        check_plan(*arguments, trust=True)


def test_names_of_targets():
    for capability, name in (((8, 6), "sm86"), ((12, 0), "sm120"), ((12, 1), "sm121")):
        assert (target_of(capability), capability_of(name)) == (name, capability)


def test_a_cache_of_code_that_others_can_write_is_not_read(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    file = folder / "kernels"
    assert read_own(file) == b""
    file.write_bytes(b"code")
    file.chmod(0o600)
    assert read_own(file) == b"code"
    for place, mode in ((file, 0o620), (folder, 0o777)):
        before = stat.S_IMODE(place.stat().st_mode)
        place.chmod(mode)
        with pytest.warns(UserWarning, match=f"{place}: not read, as others than this user"):
            assert read_own(file) == b""
        place.chmod(before)
    link = folder / "link"
    link.symlink_to(file)
    with pytest.warns(UserWarning, match="not read"):
        assert read_own(link) == b""


@pytest.mark.parametrize(("gpu", "plan", "message"), [
    (None, PLAN_TIES, "its manifest does not tell what its plan was built for"),
    (GPU, None, "its manifest does not tell what its plan was built for"),
    (GPU, replace(PLAN_TIES, tensorrt="ten"), r"manifest\.plan\.tensorrt is no version")])
def test_a_manifest_that_tells_nothing_of_its_plan(planned, gpu, plan, message):
    path, manifest = planned
    with pytest.raises(EngineFileError, match=message):
        check_plan(path, gpu, plan, manifest.members, "10.16.1.11", (9, 0), trust=True)


def test_a_file_without_its_plan(planned):
    path, _ = planned
    with pytest.raises(EngineFileError, match=f"expected a member {PLAN}, got none"):
        check_plan(path, GPU, PLAN_TIES, {}, "10.16.1.11", (9, 0), trust=True)


@pytest.mark.parametrize(("options", "message"), [
    ({"workspace_gb": 0}, "tensorrt.workspace_gb: expected None or a number above 0, got 0"),
    ({"level": 6}, "tensorrt.level: expected an integer from 0 to 5, got 6"),
    ({"tail": "magic"}, "tensorrt.tail: expected 'onnx' or 'plugin', got magic"),
    ({"tail": "plugin", "hardware_compatible": True},
     "tensorrt.tail: expected 'onnx' with hardware_compatible, got plugin")])
def test_bad_options(options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        TensorRtOptions(**options)


@pytest.mark.skipif(backend_of("tensorrt").missing() is None, reason="TensorRT is installed")
def test_tensorrt_that_is_not_there(planned, small_path, tmp_path):
    """What is missing is said before anything is compiled or loaded."""
    message = "^backend 'tensorrt': "
    with pytest.raises(BackendUnavailable, match=message):
        choose_backend("tensorrt", None)
    with pytest.raises(BackendUnavailable, match=message):
        scrd_fast.build_engine(small_path, tmp_path / "other.scrd", backend="tensorrt")
    for call in (scrd_fast.load_engine, scrd_fast.rebuild_engine, scrd_fast.verify_engine):
        with pytest.raises(BackendUnavailable, match=message):
            call(planned[0])
    assert not (tmp_path / "other.scrd").exists()


@pytest.mark.slow
def test_an_engine_file_is_compiled_again(small_file, tmp_path):
    """For CPU backends, too: the golden images decide."""
    out = tmp_path / "again.scrd"
    first, _ = read_engine_file(small_file)
    with scrd_fast.rebuild_engine(small_file, out) as engine:
        assert engine.path == out
        assert engine.manifest.fidelity == first.fidelity
    with scrd_fast.load_engine(out, verify=True) as engine:
        assert engine.manifest.backend == first.backend
