"""The command line: every verb, its help, and its errors."""

import csv
import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec

VERBS = ("demo", "pretrain-teacher", "train", "convert", "build", "score", "export", "info",
         "verify", "calibrate", "monitor")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scrd_fast", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, its engine, and a folder of images of which one is damaged."""
    root = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    spec = ScoringSpec(input_size=64, blur_sigma=1.0)
    save_checkpoint(Checkpoint(SCRD("resnet18"), spec, ModelConfig("resnet18", "random")),
                    root / "model.safetensors")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        cv2.imwrite(str(root / "images" / f"{i}.png"), rng.integers(0, 256, (50, 70), np.uint8))
    whole = (root / "images" / "0.png").read_bytes()
    (root / "images" / "broken.png").write_bytes(whole[: len(whole) // 2])
    done = run("build", root / "model.safetensors", "--precision", "fp32", "--quiet")
    assert done.returncode == 0, done.stderr
    return root


def test_help_of_every_verb_has_an_example():
    from typer.testing import CliRunner

    from scrd_fast.cli import app

    assert all(verb in CliRunner().invoke(app, ["--help"]).output for verb in VERBS)
    for verb in VERBS:
        text = CliRunner().invoke(app, [verb, "--help"]).output
        assert "Example" in text
        assert f"scrd-fast {verb}" in text


def test_help_and_import_load_nothing_heavy():
    code = ("import sys, scrd_fast, scrd_fast.cli; heavy = {'torch', 'numpy', 'cv2', 'scipy',"
            " 'openvino', 'onnx', 'sklearn'} & set(sys.modules); print(sorted(heavy))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_build_info_verify(folder):
    manifest = json.loads(run("info", folder / "model.scrd").stdout)
    assert manifest["precision"] == "fp32"
    assert manifest["spec"]["input_size"] == 64
    done = run("verify", folder / "model.scrd")
    assert done.returncode == 0, done.stderr
    assert "reproduces" in done.stdout


def test_score_names_what_it_could_not_read(folder, tmp_path):
    out = tmp_path / "scores.csv"
    done = run("score", folder / "model.scrd", folder / "images", "--out", out, "--overlays",
               tmp_path / "overlays")
    assert done.returncode == 1
    assert "broken.png" in done.stderr
    assert "Traceback" not in done.stderr
    rows = list(csv.DictReader(out.open()))
    scores = {row["image"].rsplit("/", 1)[-1]: row["score"] for row in rows}
    assert scores["broken.png"] == ""
    assert all(float(scores[f"{i}.png"]) > 0 for i in range(3))
    assert len(list((tmp_path / "overlays").glob("*.png"))) == 3
    alone = run("score", folder / "model.scrd", folder / "images" / "1.png")
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.splitlines()[0] == "image,score"
    again = float(alone.stdout.splitlines()[1].split(",")[1])
    assert again == pytest.approx(float(scores["1.png"]), rel=1e-5)


def test_calibrate_score_monitor(folder, tmp_path):
    engine, images = tmp_path / "m.scrd", tmp_path / "images"
    engine.write_bytes((folder / "model.scrd").read_bytes())
    images.mkdir()
    rng = np.random.default_rng(1)
    for i in range(24):
        cv2.imwrite(str(images / f"{i:02d}.png"), rng.integers(0, 256, (64, 64), np.uint8))
    done = run("calibrate", engine, images, "--fpr", "0.1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"anomalous above \d\.\d+ \(conformal 0\.1\), from 24 normal", done.stdout)
    done = run("score", engine, images)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["anomalous"] for row in rows].count("1") == 1
    assert min(float(row["p_value"]) for row in rows) == 0.08  # two of 25
    done = run("monitor", engine, images)
    assert done.returncode == 0, done.stderr
    assert "24 images: no drift" in done.stdout
    for file in images.iterdir():
        cv2.imwrite(str(file), rng.integers(0, 90, (64, 64), np.uint8) // 30 * 30)
    done = run("monitor", engine, images)
    assert done.returncode == 1
    assert "not as at calibration" in done.stdout
    done = run("calibrate", engine, images)
    assert done.returncode == 2
    assert "normals: expected at least 99 images" in done.stderr
    done = run("calibrate", engine, images, "--anomalous", images, "--rule", "sensitivity",
               "--target", "0.9")
    assert done.returncode == 0, done.stderr
    assert "auroc" in done.stdout
    assert "12 normal and 12 anomalous images that did not choose it" in done.stdout


def test_train_and_pretrain(folder, tmp_path):
    small = ("--input-size", 32, "--batch-size", 2, "--quiet", "--backbone", "resnet18")
    good = [folder / "images" / f"{i}.png" for i in range(3)]
    data = tmp_path / "normals"
    data.mkdir()
    for path in good:
        (data / path.name).write_bytes(path.read_bytes())
    done = run("pretrain-teacher", data, tmp_path / "t.safetensors", "--steps", 2, *small)
    assert done.returncode == 0, done.stderr
    done = run("train", data, tmp_path / "m.safetensors", "--teacher", tmp_path / "t.safetensors",
               "--steps", 2, "--noise-share", 0.5, *small)
    assert done.returncode == 0, done.stderr
    assert "auroc_synthesised" in done.stdout
    test = tmp_path / "test"
    for name in ("good", "lesion"):
        (test / name).mkdir(parents=True)
        (test / name / "0.png").write_bytes(good[0].read_bytes())
    done = run("train", data, tmp_path / "m.safetensors", "--teacher", "random", "--steps", 1,
               "--noise-share", 0.5, "--published-test", test, *small)
    assert done.returncode == 0, done.stderr
    assert "chosen on the test set" in done.stdout


def test_export(folder, tmp_path):
    done = run("export", folder / "model.safetensors", tmp_path / "model.onnx")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.onnx").stat().st_size > 1_000_000


@pytest.mark.parametrize(("arguments", "words"), [
    (("build", "gone.safetensors"), ("gone.safetensors", "no such file")),
    (("score", "gone.scrd", "x.png"), ("gone.scrd",)),
    (("info", "gone.scrd"), ("gone.scrd",)),
    (("verify", "gone.scrd"), ("gone.scrd",)),
    (("export", "gone.safetensors", "m.onnx"), ("gone.safetensors",)),
    (("convert", "gone.pth", "m.safetensors"), ("gone.pth",)),
    (("train", "gone", "m.safetensors"), ("gone", "folder")),
    (("pretrain-teacher", "gone", "t.safetensors"), ("gone", "folder")),
    (("demo", "--precision", "int3"), ("precision", "int3")),
    (("nonsense",), ("nonsense",)),
    (("build",), ("checkpoint", "--help")),
])
def test_errors_are_short_and_exit_with_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert done.stderr.startswith("error:")
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
