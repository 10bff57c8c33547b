"""Engine files of the version before: recorded ones, which today's code still reads."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.engine.engine_file import read_engine_file
from scrd_fast.engine.manifest import FORMAT
from scrd_fast.machine import why_no_vnni
from tests.support.models import organs
from tests.support.without_training import base_only

pytest.importorskip("openvino")

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module", params=["fp32", "int8"])
def old(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("old") / f"{request.param}.scrd"
    path.write_bytes(lzma.decompress((GOLDEN / f"engine_format1_{request.param}.scrd.xz")
                                     .read_bytes()))
    return path


def test_it_is_read_as_one_of_today(old):
    manifest, members = read_engine_file(old)
    assert manifest.format == FORMAT
    assert manifest.precision == old.stem
    assert manifest.model.backbone == "resnet18"
    assert manifest.machine.cpu_capability == "avx512"
    assert manifest.fidelity.report.images == (24 if old.stem == "fp32" else 31)
    assert [each.precision for each in manifest.fidelity.candidates] == [old.stem]
    assert len(manifest.calibration.normal_scores) == 30
    assert manifest.work is None
    assert not any(name.startswith("openvino") for name in members)


@pytest.mark.slow
def test_it_scores_as_it_did(old):
    """The golden images in it hold the scores of the version that wrote it."""
    whole = scrd_fast.verify_engine(old) if old.stem == "fp32" else None
    with scrd_fast.load_engine(old) as engine:
        result = engine.score(organs(40, 64)[:4])
        assert result.p_values.shape == (4,)
    # What the version that wrote them gave for the same images, on a CPU with AVX-512 and VNNI.
    recorded = {"fp32": [0.5335374, 0.5395444, 0.51359993, 0.5316437],
                "int8": [0.5349307, 0.5373093, 0.5125344, 0.53104067]}[old.stem]
    # Eight bits are other bits on CPUs without VNNI, where sums of 8-bit weights saturate, too.
    np.testing.assert_allclose(result.scores, recorded,
                               rtol=1e-4 if whole else 4e-2 if why_no_vnni() else 2e-2)


@pytest.mark.slow
def test_compiled_again_it_scores_without_onnx(old, tmp_path):
    again = tmp_path / "again.scrd"
    with scrd_fast.load_engine(old) as engine:
        before = engine.score(organs(40, 64)[:4]).scores
    if old.stem == "fp32":  # int8's golden images are those of a CPU with VNNI
        scrd_fast.rebuild_engine(old, again).close()
        assert read_engine_file(again)[0].format == FORMAT
        assert read_engine_file(again)[0].work.weights > 1e7
        with scrd_fast.load_engine(again) as engine:
            np.testing.assert_array_equal(engine.score(organs(40, 64)[:4]).scores, before)
    done = base_only("info", old)
    assert done.returncode == 0, done.stderr
    done = base_only("bench", old)
    assert done.returncode == 2
    assert "to compile its portable graph: expected onnx, got none" in done.stderr


@pytest.mark.slow
def test_what_the_caller_has_set_changes_nothing(old):
    """Its graph is made again by PyTorch."""
    with scrd_fast.load_engine(old) as engine:
        expected = engine.score(organs(40, 64)[:4]).scores
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"), np.errstate(all="raise"):
            with scrd_fast.load_engine(old) as engine:
                np.testing.assert_array_equal(engine.score(organs(40, 64)[:4]).scores, expected)
            if old.stem == "fp32":
                scrd_fast.verify_engine(old)
    finally:
        torch.set_default_dtype(before)
