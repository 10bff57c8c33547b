"""Two halves: what scores needs numpy, OpenVINO and our C++; what trains and builds needs PyTorch,
ONNX and SciPy. Here the first half works where the second cannot be imported."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import scrd_fast
from scrd_fast.backends.registry import native_precisions
from scrd_fast.data.decode.find import find_files
from tests.support.models import KEEPS_THE_LIMITS, organs
from tests.support.without_training import base_only

pytest.importorskip("openvino", reason="the first half scores by OpenVINO")

SCORE = """
import sys
from tests.support.without_training import forbid_training
forbid_training()
import numpy as np
import scrd_fast
path, images, out = sys.argv[1:]
images = np.load(images)
with scrd_fast.load_engine(path, verify=True) as engine:
    result = engine.score(images)
    pending = engine.submit([images[0], images[1].astype(np.float32) / 255])
    streamed = [item.score for item in engine.stream(images[:3])]
np.savez(out, scores=result.scores, maps=result.maps, weights=result.scale_weights,
         mixed=pending.result().scores, streamed=streamed)
"""
PRECISIONS = [pytest.param(p, marks=pytest.mark.slow if p == "bf16" else ())
              for p in ("fp32", "bf16", "int8") if p in native_precisions("openvino")]


@pytest.fixture(scope="module", params=PRECISIONS)
def built(request, trained, tmp_path_factory):
    """An engine file of a precision."""
    from scrd_fast.model.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("halves")
    checkpoint, normals = trained
    path = save_checkpoint(checkpoint, folder / "model.safetensors")
    scrd_fast.build_engine(path, folder / "m.scrd", device="cpu", precision=request.param,
                           images=normals, keep=KEEPS_THE_LIMITS, buckets=(1, 8),
                           limits=scrd_fast.Limits()).close()
    return folder / "m.scrd"


@pytest.mark.slow
def test_the_same_bits(built, tmp_path):
    images = organs(11, 80, seed=2)
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run([sys.executable, "-c", SCORE, str(built), str(tmp_path / "images.npy"),
                           str(tmp_path / "out.npz")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with scrd_fast.load_engine(built) as engine, np.load(tmp_path / "out.npz") as found:
        here = engine.score(images)
        np.testing.assert_array_equal(found["scores"], here.scores)
        np.testing.assert_array_equal(found["maps"], here.maps)
        np.testing.assert_array_equal(found["weights"], here.scale_weights)
        np.testing.assert_array_equal(
            found["mixed"], engine.score([images[0], images[1].astype(np.float32) / 255]).scores)
        np.testing.assert_array_equal(
            found["streamed"], [item.score for item in engine.stream(images[:3])])


@pytest.fixture(scope="module")
def place(small_file, tmp_path_factory):
    """An engine file and a folder of pictures."""
    import cv2

    folder = tmp_path_factory.mktemp("place")
    shutil.copy(small_file, folder / "m.scrd")
    (folder / "images").mkdir()
    for i, image in enumerate(organs(30, 64)):
        cv2.imwrite(str(folder / "images" / f"{i:02}.png"), image)
    return folder


@pytest.mark.slow
def test_every_verb_of_the_first_half(place, tmp_path):
    engine, images = place / "m.scrd", place / "images"
    done = base_only("calibrate", engine, images, "--fpr", 0.1)
    assert done.returncode == 0, done.stderr
    done = base_only("score", engine, images, "--out", tmp_path / "s.csv", "--overlays",
                     tmp_path / "overlays")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "overlays").iterdir())) == 30
    with open(tmp_path / "s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with scrd_fast.load_engine(engine) as here:
        expected = here.score(find_files(str(images)).paths)
    assert [np.float32(row["score"]) for row in rows] == expected.scores.tolist()
    assert [np.float32(row["p_value"]) for row in rows] == expected.p_values.tolist()
    done = base_only("monitor", engine, images)
    assert done.returncode == 0, done.stderr
    done = base_only("info", engine)
    assert json.loads(done.stdout)["precision"] == "fp32"
    done = base_only("bench", engine, "--seconds", 1)
    assert done.returncode == 0, done.stderr
    assert "images" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [
    ("train", "images", "m.safetensors"), ("pretrain-teacher", "images", "t.safetensors"),
    ("build", "m.safetensors"), ("build", "--from", "m.scrd"),
    ("export", "m.safetensors", "m.onnx"), ("convert", "m.pth", "m.safetensors"),
    ("verify", "m.scrd"), ("demo",)], ids=lambda a: " ".join(a[:2]))
def test_a_verb_of_the_second_half_says_which_extra_it_needs(place, tmp_path, arguments):
    (tmp_path / "m.pth").write_bytes(b"PK")
    (tmp_path / "m.safetensors").write_bytes(bytes(8))
    (tmp_path / "m.scrd").write_bytes((place / "m.scrd").read_bytes())
    (tmp_path / "images").symlink_to(place / "images")
    done = base_only(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "pip install 'scrd-fast[train]'" in done.stderr


@pytest.mark.slow
def test_scoring_loads_nothing_of_the_second_half(place, tmp_path):
    """Where everything is installed, too: it would take the time and the memory."""
    code = ("import sys; from scrd_fast.cli import main\n"
            "try: main()\n"
            "finally: print(sorted({'torch', 'onnx', 'scipy'} & set(sys.modules)))")
    done = subprocess.run(
        [sys.executable, "-c", code, "score", str(place / "m.scrd"), str(place / "images"),
         "--out", str(tmp_path / "s.csv")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_names_of_the_second_half():
    code = ("from tests.support.without_training import forbid_training; forbid_training()\n"
            "import scrd_fast\n"
            "print(scrd_fast.load_engine.__name__)\n"
            "try: scrd_fast.build_engine\n"
            "except scrd_fast.ScrdError as error: print(error)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "load_engine", "scrd_fast.build_engine: expected onnx, got none; what trains and builds"
        " comes with: pip install 'scrd-fast[train]'"]
