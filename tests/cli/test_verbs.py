"""The command line: every verb, its help, and its errors."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import typer

from scrd_fast import cli
from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec
from tests.cli.commands import main, run, run_here

VERBS = tuple(typer.main.get_command(cli.app).commands)


def test_help_names_every_verb():
    from typer.testing import CliRunner

    done = CliRunner().invoke(cli.app, ["--help"])
    assert done.exit_code == 0
    assert {"demo", "pretrain-teacher", "train", "prior", "convert", "build", "export", "info",
            "verify", "bench", "score", "score-archive", "calibrate", "monitor", "evaluate",
            "reproduce", "prepare", "report", "serve", "dicom-listen",
            "dicom-status", "dicom-retry"} == set(VERBS)
    assert all(re.search(rf"^[^\w-]*{verb} ", done.output, re.MULTILINE) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_an_example(verb):
    from typer.testing import CliRunner

    done = CliRunner().invoke(cli.app, [verb, "--help"])
    assert done.exit_code == 0
    assert "Example" in done.output
    assert f"scrd-fast {verb}" in done.output


def test_help_and_import_load_nothing_heavy():
    code = ("import sys, scrd_fast, scrd_fast.cli; heavy = {'torch', 'numpy', 'cv2', 'scipy',"
            " 'openvino', 'onnx', 'sklearn'} & set(sys.modules); print(sorted(heavy))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform == "win32", reason="no times of children")
@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help")])
def test_help_is_quick(arguments):
    """Half a second of a CPU's time, which other work on the machine takes little from; PyTorch
    alone would take more. On a slow CPU, on which the libraries that write the help need most of
    that to be imported, twice what they need. The best of several, so that no disk or neighbour
    decides."""
    def seconds(*command):
        before = os.times()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        after = os.times()
        return (after.children_user + after.children_system
                - before.children_user - before.children_system)

    libraries = "import pydantic, rich.markdown, typer, typer._adapters, typer.rich_utils"
    assert any(seconds("-m", "scrd_fast", *arguments) < max(0.5, 2 * seconds("-c", libraries))
               for _ in range(5))


def test_build_info_verify(folder):
    manifest = json.loads(run_here("info", folder / "model.scrd").stdout)
    assert manifest["precision"] == "fp32"
    assert manifest["spec"]["input_size"] == 64
    done = run_here("verify", folder / "model.scrd")
    assert done.returncode == 0, done.stderr
    assert "reproduces" in done.stdout


@pytest.mark.slow
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
    (row,) = csv.DictReader(alone.stdout.splitlines())
    again = float(row["score"])
    assert again == pytest.approx(float(scores["1.png"]), rel=1e-5)


def test_score_tells_of_every_file_of_a_folder(folder, tmp_path, capsys):
    """Five images, a stack of three and one that is none; the rest is skipped in one line, or is
    the system's."""
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((40, 40), 40 * i, np.uint8))
    cv2.imwritemulti(str(tmp_path / "stack.tif"), [np.zeros((40, 40), np.uint8)] * 3)
    (tmp_path / "__MACOSX").mkdir()
    for name in ("._0.png", "__MACOSX/._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "x.svs",
                 "y.svs", "x.webp", "z.dcm"):
        (tmp_path / name).write_bytes(b"something")
    assert main("score", folder / "model.scrd", tmp_path) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1 + 5 + 3 + 1
    lines = said.err.splitlines()
    assert [line for line in lines if "skipped" in line] == [
        "warning: skipped 3 files that are no DICOM, NIfTI, PNG, JPEG, TIFF or BMP: 2 .svs, 1 .webp"
        f" ({tmp_path / 'x.svs'}, {tmp_path / 'x.webp'}, {tmp_path / 'y.svs'})"]
    assert [line for line in lines if "not scored" in line] == [
        f"not scored: {tmp_path / 'z.dcm'}: expected a DICOM, NIfTI, PNG, JPEG, TIFF or BMP file,"
        " got other content"]
    assert not any("._0" in line or "UserWarning" in line for line in lines)


def test_calibrate_score_monitor(folder, tmp_path):
    engine, images = tmp_path / "m.scrd", tmp_path / "images"
    engine.write_bytes((folder / "model.scrd").read_bytes())
    images.mkdir()
    rng = np.random.default_rng(1)
    for i in range(24):
        cv2.imwrite(str(images / f"{i:02d}.png"), rng.integers(0, 256, (64, 64), np.uint8))
    done = run_here("calibrate", engine, images, "--fpr", "0.1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"anomalous above \d\.\d+ \(conformal 0\.1\), from 24 normal", done.stdout)
    done = run_here("score", engine, images)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["anomalous"] for row in rows].count("1") == 1
    assert min(float(row["p_value"]) for row in rows) == 0.08  # two of 25
    done = run_here("monitor", engine, images)
    assert done.returncode == 0, done.stderr
    assert "24 images: no drift" in done.stdout
    for file in images.iterdir():
        cv2.imwrite(str(file), rng.integers(0, 90, (64, 64), np.uint8) // 30 * 30)
    done = run_here("monitor", engine, images)
    assert done.returncode == 1
    assert "not as at calibration" in done.stdout
    done = run_here("calibrate", engine, images)
    assert done.returncode == 2
    assert "normals: expected at least 99 images" in done.stderr
    done = run_here("calibrate", engine, images, "--anomalous", images, "--rule", "sensitivity",
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
    for name in ("._0.png", ".DS_Store", "slice.svs"):
        (data / name).write_bytes(b"something")
    done = run_here("pretrain-teacher", data, tmp_path / "t.safetensors", "--steps", 2, *small)
    assert done.returncode == 0, done.stderr
    # The command that it names, word by word, in a smaller size.
    command = done.stdout.partition("use it with: scrd-fast ")[2].split()
    command[command.index("model.safetensors")] = tmp_path / "m.safetensors"
    done = run_here(*command, "--steps", 2, "--noise-share", 0.5, "--batch-size", 2, "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: skipped 1 file that is no DICOM, NIfTI, PNG, JPEG,"
                                  " TIFF or BMP: 1 .svs (")
    assert "auroc_synthesised" in done.stdout
    test = tmp_path / "test"
    for name in ("good", "lesion"):
        (test / name).mkdir(parents=True)
        (test / name / "0.png").write_bytes(good[0].read_bytes())
    done = run_here("train", data, tmp_path / "m.safetensors", "--teacher", "random", "--steps", 1,
               "--noise-share", 0.5, "--published-test", test, *small)
    assert done.returncode == 0, done.stderr
    assert "chosen on the test set" in done.stdout


@pytest.mark.slow
def test_train_resumes_and_leaves_out_what_is_damaged(folder, tmp_path):
    from typer.testing import CliRunner

    def train(steps, *more):
        return CliRunner().invoke(cli.app, [
            "train", str(folder / "images"), str(out), "--teacher", "random", "--steps", str(steps),
            "--noise-share", "0.5", "--input-size", "32", "--batch-size", "2", "--quiet",
            "--backbone", "resnet18", *more])

    out = tmp_path / "m.safetensors"
    assert re.search(r"1 of 4 images .*broken\.png: .*--skip-bad", str(train(1).exception))
    with pytest.warns(UserWarning, match=r"broken\.png"), pytest.warns(
            UserWarning, match="nothing to resume; begins with step 1"):
        done = train(1, "--resume", "--skip-bad")
    assert done.exit_code == 0, done.exception
    assert "complete" not in done.output
    done = train(1, "--resume", "--skip-bad")
    assert done.exit_code == 0, done.exception
    assert "m.safetensors: complete: 1 steps are done; give more --steps to go on" in done.output
    assert "best at step 1" in done.output
    with pytest.warns(UserWarning, match=r"broken\.png"):
        done = train(2, "--resume", "--skip-bad")
    assert done.exit_code == 0, done.exception
    assert "best at step" in done.output


@pytest.mark.parametrize(("verb", "more"), [
    ("train", ("--teacher", "random")), ("pretrain-teacher", ())])
def test_a_warning_is_one_line(folder, tmp_path, verb, more, capfd):
    assert main(verb, folder / "images", tmp_path / "m.safetensors", "--skip-bad", "--steps", 1,
                "--input-size", 32, "--batch-size", 2, "--quiet", "--backbone", "resnet18",
                "--noise-share", 0.5, *more) == 0
    assert re.fullmatch(r"warning: data: 1 of 4 images cannot be used and are left out:"
                        r" [^\n]*broken\.png[^\n]*\n", capfd.readouterr().err)


def test_export(folder, tmp_path):
    done = run_here("export", folder / "model.safetensors", tmp_path / "model.onnx")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.onnx").stat().st_size > 1_000_000


@pytest.mark.parametrize(("arguments", "words"), [
    (("build", "gone.safetensors"), ("gone.safetensors", "no such file")),
    (("score", "gone.scrd", "x.png"), ("x.png", "got no such place")),
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
    done = run_here(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert done.stderr.startswith("error:")
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_build_tells_of_the_calibration(folder, tmp_path, capfd):
    engine = tmp_path / "m.scrd"
    shutil.copy(folder / "model.scrd", engine)
    shutil.copytree(folder / "images", tmp_path / "images",
                    ignore=lambda *_: ["broken.png"])
    build = ("build", folder / "model.safetensors", "--out", engine, "--precision", "fp32",
             "--quiet")
    assert main("calibrate", engine, tmp_path / "images", "--fpr", "0.5", "--quiet") == 0
    assert main(*build) == 0
    out, err = capfd.readouterr()
    assert "calibration kept" in out
    assert err == ""
    torch.manual_seed(1)
    spec = ScoringSpec(input_size=64, blur_sigma=1.0)
    other = save_checkpoint(Checkpoint(SCRD("resnet18"), spec, ModelConfig("resnet18", "random")),
                            tmp_path / "other.safetensors")
    assert main("build", other, *build[2:]) == 0
    out, err = capfd.readouterr()
    assert "calibration kept" not in out
    assert re.fullmatch(r"warning: [^\n]*m\.scrd: the calibration [^\n]* is dropped: it is of"
                        r" another model; calibrate again with: [^\n]*\n", err)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP tells its settings")
@pytest.mark.parametrize(("given", "policy", "spins"), [
    ({}, "PASSIVE", "3000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", "30000000000"),
    ({"GOMP_SPINCOUNT": "7"}, "PASSIVE", "7")])
def test_threads_without_work_sleep_soon(given, policy, spins):
    """Two processes on the same cores would else wait for each other most of the time."""
    code = ("import scrd_fast.cli\ntry: scrd_fast.cli.main(['--version'])\n"
            "except SystemExit: import torch")
    left = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env=left | given | {"OMP_DISPLAY_ENV": "VERBOSE"}, check=True)
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
