"""The scripts in examples/ do what they show, each in a process of its own."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import scrd_fast
from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from tests.golden import trained_resnet18
from tests.support.models import organs

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run([sys.executable, str(EXAMPLES / script), *map(str, arguments)],
                          capture_output=True, text=True, check=False, timeout=300,
                          env=os.environ | {"PYTHONPATH": places})


def write(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        cv2.imwrite(str(folder / f"{i:02d}.png"), image)
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    checkpoint = save_checkpoint(
        Checkpoint(trained_resnet18.recorded(), trained_resnet18.SPEC,
                   ModelConfig("resnet18", "random")), folder / "model.safetensors")
    # One batch size: scores are then the same bits whatever else is scored with them.
    with scrd_fast.build_engine(checkpoint, device="cpu", precision="fp32",
                                buckets=(1,)) as built:
        yield built


def test_train_and_build(tmp_path):
    normals = write(tmp_path / "normals", organs(8, 64))
    held_out = write(tmp_path / "held-out", organs(4, 64, seed=1))
    done = run("train_and_build.py", normals, held_out, tmp_path / "results", "--size", 32,
               "--steps", 1, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    results = tmp_path / "results"
    names = ("teacher.safetensors", "model.safetensors", "model.scrd")
    assert {*names} <= {path.name for path in results.iterdir()}
    assert done.stdout.startswith("AUROC against synthetic anomalies: ")
    assert done.stdout.splitlines()[-1] == f"{results / 'model.scrd'}: computes in fp32"
    with scrd_fast.load_engine(results / "model.scrd") as loaded:
        assert loaded.spec.input_size == 32
        assert np.isfinite(loaded.score(organs(2, 64, seed=2)).scores).all()


def test_score_folder(engine, tmp_path):
    images = organs(5, 64, seed=3)
    folder = write(tmp_path / "images", images)
    whole = (folder / "00.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    done = run("score_folder.py", engine.path, folder, tmp_path / "scores.csv")
    assert done.returncode == 1  # one image is broken
    assert done.stdout == f"{tmp_path / 'scores.csv'}: 5 of 6 images scored\n"
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["image"]).name for row in rows] == [*(f"{i:02d}.png" for i in range(5)),
                                                        "broken.png"]
    wanted = engine.score(images, maps=False).scores
    assert [np.float32(row["score"]) for row in rows[:5]] == wanted.tolist()
    assert rows[0]["p_value"] == rows[0]["anomalous"] == rows[0]["error"] == ""
    assert rows[5]["score"] == ""
    assert "broken.png" in rows[5]["error"]


def test_calibrate_and_monitor(engine, tmp_path):
    engine_file = tmp_path / "model.scrd"  # a copy: the calibration is kept in it
    engine_file.write_bytes(engine.path.read_bytes())
    held_out = write(tmp_path / "held-out", organs(24, 64, seed=4))
    recent = organs(20, 64, seed=5)
    recent[0, 24:40, 24:40] = 255  # nothing that training has seen
    done = run("calibrate_and_monitor.py", engine_file, held_out, write(tmp_path / "new", recent))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 22
    with scrd_fast.load_engine(engine_file) as calibrated:
        wanted = calibrated.score(recent, maps=False)
        assert lines[0] == f"anomalous above {calibrated.decisions.threshold:.6g}"
    for i, line in enumerate(lines[1:21]):
        assert line == (f"{tmp_path / 'new' / f'{i:02d}.png'}: score {wanted.scores[i]:.6g},"
                        f" p-value {wanted.p_values[i]:.3f}, anomalous: {wanted.anomalous[i]}")
    assert wanted.anomalous[0]
    assert lines[21] == "no drift"


def test_share_one_engine(engine, tmp_path):
    images = organs(6, 64, seed=6)
    done = run("share_one_engine.py", engine.path, write(tmp_path / "images", images))
    assert done.returncode == 0, done.stderr
    wanted = engine.score(images, maps=False).scores
    rows = [line.split(",") for line in done.stdout.splitlines()]
    assert [Path(row[0]).name for row in rows] == [f"{i:02d}.png" for i in range(6)]
    for row, score in zip(rows, wanted, strict=True):
        assert [np.float32(cell) for cell in row[1:]] == [score] * 3


def test_every_example_is_tested_linked_and_short():
    scripts = sorted(path.name for path in EXAMPLES.glob("*.py"))
    for page in ("README.md", "docs/guide.md", "tests/test_examples.py"):
        assert all(name in (ROOT / page).read_text() for name in scripts)
    assert all(len((EXAMPLES / name).read_text().splitlines()) <= 40 for name in scripts)
