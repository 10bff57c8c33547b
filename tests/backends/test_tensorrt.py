"""TensorRT on a GPU; what every backend does is in test_engine and test_scorer."""

from functools import partial

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.backends.tensorrt.plan import PLAN, TensorRtOptions
from scrd_fast.engine.engine_file import read_engine_file, write_engine_file
from scrd_fast.errors import EngineBuildError, EngineFileError, InputError, NotFiniteError
from scrd_fast.metrics.agreement import Limits
from scrd_fast.model.reference import score_images
from tests.support.models import needs, pictures

pytestmark = needs("tensorrt")
UNJUDGED = Limits()  # untrained weights rank images by chance


@pytest.fixture(autouse=True)
def own_record(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.parametrize("options", [
    TensorRtOptions(), TensorRtOptions(stripped=True), TensorRtOptions(tail="plugin"),
    TensorRtOptions(version_compatible=True, hardware_compatible=True, level=0)],
    ids=["default", "stripped", "plugin", "compatible"])
def test_fp32_is_the_reference_and_loads_again(small, small_path, tmp_path, options):
    images = pictures(5, 64)
    reference, _ = score_images(small.model, small.spec, images)
    expected = reference.score(small.spec).numpy()
    with scrd_fast.build_engine(small_path, tmp_path / "m.scrd", backend="tensorrt",
                                precision="fp32", buckets=(1, 4), tensorrt=options) as engine:
        built = engine.score(images)
        assert np.abs(built.scores - expected).max() <= 1e-4 * np.abs(expected).max()
    with scrd_fast.load_engine(tmp_path / "m.scrd", verify=True) as engine:
        np.testing.assert_array_equal(engine.score(images).scores, built.scores)


@pytest.mark.parametrize(("precision", "options"), [
    ("fp16", TensorRtOptions()), ("bf16", TensorRtOptions()), ("int8", TensorRtOptions()),
    ("int8", TensorRtOptions(stripped=True))], ids=["fp16", "bf16", "int8", "int8 stripped"])
def test_lower_precisions_follow(small, small_path, tmp_path, precision, options):
    images = pictures(16, 64)
    reference, _ = score_images(small.model, small.spec, images)
    expected = reference.score(small.spec).numpy()
    with scrd_fast.build_engine(small_path, tmp_path / "m.scrd", backend="tensorrt",
                                precision=precision, images=images, limits=UNJUDGED,
                                tensorrt=options) as engine:
        scores = engine.score(images).scores
        layers = engine.layers()
    assert np.abs(scores - expected).max() <= 0.05 * np.abs(expected).max()
    assert len({layer["name"] for layer in layers}) == len(layers) > 10
    assert sum(layer["ms"] for layer in layers) > 0


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_values_that_are_not_finite_are_an_error(small_path, tmp_path, precision):
    images = torch.rand(3, 64, 64, 3)
    images[1, 30, 31, 0] = float("nan")
    with scrd_fast.build_engine(small_path, tmp_path / "m.scrd", backend="tensorrt",
                                precision=precision, images=pictures(16, 64),
                                limits=UNJUDGED) as engine:
        with pytest.raises(NotFiniteError, match="image 1"):
            engine.score(images.cuda())
        assert np.isfinite(engine.score(images[:1]).scores).all()


def test_a_plan_of_somebody_else_or_a_broken_one(small_path, tmp_path, monkeypatch):
    path = tmp_path / "m.scrd"
    scrd_fast.build_engine(small_path, path, backend="tensorrt", precision="fp32").close()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    with pytest.raises(EngineFileError, match="refused: its TensorRT plan is code"):
        scrd_fast.load_engine(path)
    scrd_fast.load_engine(path, trust=True).close()
    manifest, members = read_engine_file(path)
    write_engine_file(path, manifest, members | {PLAN: members[PLAN][:1000]})
    with pytest.raises(EngineFileError, match="does not load it"):
        scrd_fast.load_engine(path, trust=True)
    with scrd_fast.rebuild_engine(path) as engine:
        assert engine.score(pictures(1, 64)).scores.shape == (1,)
    scrd_fast.load_engine(path).close()


def test_int8_needs_images(small_path, tmp_path):
    with pytest.raises(InputError, match=r"^images: expected normal images to calibrate int8 on"):
        scrd_fast.build_engine(small_path, tmp_path / "m.scrd", backend="tensorrt",
                               precision="int8")
    assert not (tmp_path / "m.scrd").exists()


def test_little_workspace_is_an_engine_or_one_error(small_path, tmp_path):
    """Whether there are kernels that need none is TensorRT's to know."""
    build = partial(scrd_fast.build_engine, small_path, tmp_path / "m.scrd", backend="tensorrt",
                    precision="fp32", tensorrt=TensorRtOptions(workspace_gb=1e-9))
    error = None
    try:
        build().close()
    except EngineBuildError as raised:
        error = str(raised)
    assert (error is None) == (tmp_path / "m.scrd").exists()
    assert error is None or "workspace_gb is 1e-09" in error


def test_an_interrupted_build_is_no_build(small_path, tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total, what):
        if what.startswith("TensorRT: "):
            raise Stop

    with pytest.raises(Stop):
        scrd_fast.build_engine(small_path, tmp_path / "m.scrd", backend="tensorrt",
                               precision="fp32", progress=stop)
    assert not (tmp_path / "m.scrd").exists()
