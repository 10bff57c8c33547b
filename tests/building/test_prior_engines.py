"""A prior in every backend: the engine's map is the reference's."""

from dataclasses import replace

import numpy as np
import pytest

import scrd_fast
from scrd_fast import _native
from scrd_fast.engine.engine_file import read_engine_file
from scrd_fast.model.checkpoint import load_checkpoint, save_checkpoint
from scrd_fast.model.reference import score_images
from scrd_fast.spec import Prior
from tests.building.test_cross_build import UNJUDGED, needs_rtx
from tests.engine.test_engine import MAP, SCORE
from tests.support.models import EACH_BACKEND, pictures
from tests.support.priors import random_prior

PRIORS = {"normal map": random_prior(6), "both": random_prior(3, (0.2, 0.6)),
          "foreground": Prior(foreground=(0.3, 0.5))}


@pytest.fixture(scope="module", params=PRIORS)
def judged(request, small, tmp_path_factory):
    """A checkpoint with a prior, and where it is."""
    checkpoint = replace(small, spec=replace(small.spec, prior=PRIORS[request.param]))
    return checkpoint, save_checkpoint(
        checkpoint, tmp_path_factory.mktemp("prior") / "model.safetensors")


def check(checkpoint, scores, maps, images):
    expected, _ = score_images(checkpoint.model, checkpoint.spec, images)
    wanted, wanted_maps = expected.score(checkpoint.spec).numpy(), expected.map.numpy()
    assert np.abs(maps - wanted_maps).max() <= MAP * np.ptp(wanted_maps)
    assert np.abs(scores - wanted).max() <= SCORE * np.abs(wanted).max()


def test_checkpoint_keeps_it(judged):
    checkpoint, path = judged
    assert load_checkpoint(path).spec == checkpoint.spec


@pytest.mark.slow
@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_engine_gives_the_references_map(judged, backend, tmp_path):
    if backend == "openvino":
        pytest.importorskip("openvino")
    checkpoint, path = judged
    images = pictures(7, 64)
    with scrd_fast.build_engine(path, tmp_path / "m.scrd", backend=backend, precision="fp32",
                                buckets=(1, 4)) as engine:
        for isa in _native.isas():
            before = _native.isa()
            _native.set_isa(isa)
            try:
                result = engine.score(images)
            finally:
                _native.set_isa(before)
            check(checkpoint, result.scores, result.maps, images)
    with scrd_fast.load_engine(tmp_path / "m.scrd", verify=True) as engine:
        assert engine.spec == checkpoint.spec
        one_by_one = np.concatenate([engine.score(image[None]).scores for image in images])
        assert np.abs(one_by_one - result.scores).max() <= SCORE * np.abs(result.scores).max()


def test_exported_graph_gives_the_references_map(judged, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnxruntime extra")
    checkpoint, path = judged
    session = onnxruntime.InferenceSession(
        str(scrd_fast.export_onnx(path, tmp_path / "m.onnx")), providers=["CPUExecutionProvider"])
    images = pictures(3, 64)
    scores, maps = session.run(["score", "map"], {"images": images})
    check(checkpoint, scores, maps, images)


@pytest.mark.slow
@needs_rtx
def test_nvidias_builder_takes_it(judged, tmp_path):
    checkpoint, path = judged
    out = scrd_fast.cross_build(path, tmp_path / "m.scrd", targets=("sm86",), precision="fp16",
                                buckets=(1,), limits=UNJUDGED)
    assert read_engine_file(out)[0].spec == checkpoint.spec
