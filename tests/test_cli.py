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

VERBS = tuple(typer.main.get_command(cli.app).commands)


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

    assert all(verb in CliRunner().invoke(cli.app, ["--help"]).output for verb in VERBS)
    for verb in VERBS:
        text = CliRunner().invoke(cli.app, [verb, "--help"]).output
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


def test_score_tells_of_every_file_of_a_folder(folder, tmp_path, capsys):
    """Six images, of which one is a stack; the rest is skipped in one line, or is the system's."""
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((40, 40), 40 * i, np.uint8))
    cv2.imwritemulti(str(tmp_path / "stack.tif"), [np.zeros((40, 40), np.uint8)] * 3)
    (tmp_path / "__MACOSX").mkdir()
    for name in ("._0.png", "__MACOSX/._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "x.dcm",
                 "y.dcm", "x.webp"):
        (tmp_path / name).write_bytes(b"something")
    assert main("score", folder / "model.scrd", tmp_path) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 7
    lines = said.err.splitlines()
    assert [line for line in lines if "skipped" in line] == [
        "warning: skipped 3 files that are no PNG, JPEG, TIFF or BMP: 2 .dcm, 1 .webp"
        f" ({tmp_path / 'x.dcm'}, {tmp_path / 'x.webp'}, {tmp_path / 'y.dcm'})"]
    assert [line for line in lines if "not scored" in line] == [
        f"not scored: {tmp_path / 'stack.tif'}: expected one picture, got a TIFF of 3 pages; split"
        " it into one file per page or slice"]
    assert not any("._0" in line or "UserWarning" in line for line in lines)


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
    for name in ("._0.png", ".DS_Store", "slice.dcm"):
        (data / name).write_bytes(b"something")
    done = run("pretrain-teacher", data, tmp_path / "t.safetensors", "--steps", 2, *small)
    assert done.returncode == 0, done.stderr
    done = run("train", data, tmp_path / "m.safetensors", "--teacher", tmp_path / "t.safetensors",
               "--steps", 2, "--noise-share", 0.5, *small)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: skipped 1 file that is no PNG, JPEG, TIFF or BMP: 1"
                                  " .dcm (")
    assert "auroc_synthesised" in done.stdout
    test = tmp_path / "test"
    for name in ("good", "lesion"):
        (test / name).mkdir(parents=True)
        (test / name / "0.png").write_bytes(good[0].read_bytes())
    done = run("train", data, tmp_path / "m.safetensors", "--teacher", "random", "--steps", 1,
               "--noise-share", 0.5, "--published-test", test, *small)
    assert done.returncode == 0, done.stderr
    assert "chosen on the test set" in done.stdout


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


def main(*arguments: object) -> int:
    """Without a process of its own."""
    from scrd_fast.cli import main

    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return ended.value.code


NAMES = [b"M\xfcller.png", "Müller ä.png".encode(), b"[bold]b[red].png", b'=1+1,"q".png',
         b"a\nb.png", b"a\rb.png", b"x" * 251 + b".png", "ü".encode() * 125 + b"x.png"]


@pytest.mark.parametrize("encoding", [
    {"PYTHONIOENCODING": "utf-8:strict"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}])
def test_any_file_name(folder, tmp_path, encoding):
    """Names are in the table byte for byte, whatever the terminal's encoding."""
    images = tmp_path / "images"
    images.mkdir()
    image = (folder / "images" / "0.png").read_bytes()
    for name in NAMES:
        (images / os.fsdecode(name)).write_bytes(image)
    (images / os.fsdecode(b"br\xf6ken.png")).write_bytes(b"none")
    command = [sys.executable, "-m", "scrd_fast", "score", folder / "model.scrd", images]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LC_")} | encoding
    told = []
    for more in ((), ("--out", tmp_path / "s.csv", "--overlays", tmp_path / "overlays")):
        done = subprocess.run([*command, *more], capture_output=True, check=False, timeout=300,
                              env=environment)
        assert done.returncode == 1  # one file is broken
        assert b"Traceback" not in done.stderr
        assert b"not scored: " in done.stderr
        told.append(done.stdout)
    assert told[0] == (tmp_path / "s.csv").read_bytes()
    assert told[1] == b""
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    found = {os.path.basename(row["image"]).encode("utf-8", "surrogateescape"): row["score"]
             for row in rows}
    assert {name for name, score in found.items() if score} == set(NAMES)
    assert found[b"br\xf6ken.png"] == ""
    assert len(os.listdir(tmp_path / "overlays")) == len(NAMES)


def test_numbers_read_back_equal(tmp_path):
    from scrd_fast.engine.engine import Result
    from scrd_fast.report.scores import table_rows, write_table

    scores = np.array([0.1, np.nextafter(np.float32(0.1), np.float32(1)), 1e-30, 1.5e20, 0.0,
                       1 / 3, 16777216, np.nan], np.float32)
    p_values = np.float32(1) / np.arange(1, 9, dtype=np.float32)
    result = Result(scores, None, np.zeros((8, 3), np.float32), p_values, scores > 1)
    names = [f"{i}.png" for i in range(8)]
    write_table(table_rows(names, result), tmp_path / "s.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [np.float32(row["score"]) for row in rows[:7]] == scores[:7].tolist()
    assert [np.float32(row["p_value"]) for row in rows[:7]] == p_values[:7].tolist()
    assert [row["anomalous"] for row in rows] == ["0", "0", "0", "1", "0", "0", "1", ""]
    assert rows[0]["score"] == "0.1"
    assert rows[7] == {"image": "7.png", "score": "", "p_value": "", "anomalous": ""}


@pytest.fixture
def places(folder, tmp_path):
    """Arguments of verbs with an output that cannot be written: a name in braces per place."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    normals = tmp_path / "normals"
    normals.mkdir()
    for i in range(3):
        shutil.copy(folder / "images" / f"{i}.png", normals)
    (tmp_path / "model.pth").touch()
    return {"engine": folder / "model.scrd", "model": folder / "model.safetensors",
            "normals": normals, "below": tmp_path / "file" / "new", "folder": tmp_path / "folder",
            "pth": tmp_path / "model.pth", "free": tmp_path / "free", "long": "x" * 243}


@pytest.mark.parametrize("line", [
    "score {engine} {normals} --out {folder}",
    "score {engine} {normals} --out {below}/s.csv",
    "score {engine} {normals} --out {engine}",
    "score {engine} {normals} --out {normals}/1.png",
    "score {engine} {normals} --out /proc/s.csv",
    "score {engine} {normals} --out {free} --overlays {normals}/1.png",
    "score {engine} {normals} --out {free} --overlays {below}",
    "train {normals} {folder} --teacher random",
    "train {normals} {below}/m.safetensors --teacher random",
    "train {normals} {long}.safetensors --teacher random",  # its state has a longer name
    "train {normals} {free} --teacher random --tensorboard {pth}",
    "train {normals} {model} --teacher {model}",
    "pretrain-teacher {normals} {folder}",
    "build {model} --out {folder}",
    "build {model} --out {model}",
    "build {model} --out {free} --report {folder}",
    "build {model} --out {free} --report {model}",
    "build {model} --out {free} --report {free}",
    "build --from {engine} --out {below}",
    "export {model} {below}.onnx",
    "convert {pth} {folder}",
    "convert {pth} {pth}",
    "bench {engine} --json {folder}",
    "bench {engine} --json {engine}",
    "demo --out {pth}",
    "demo --out {below}",
])
def test_outputs_are_checked_before_the_work(places, tmp_path, line, capfd, monkeypatch):
    """Each of these would else work for seconds to hours first; nothing is left or changed."""
    monkeypatch.chdir(tmp_path)
    roots = (tmp_path, places["engine"].parent)
    before = {p: p.read_bytes() for root in roots for p in root.rglob("*") if p.is_file()}
    assert main(*(part.format(**places) for part in line.split())) == 2
    out, err = capfd.readouterr()
    assert re.fullmatch(r"error: [^\n]+: (cannot be written: [^\n]+|expected another file[^\n]+)\n",
                        err), err
    assert out == ""
    after = {p: p.read_bytes() for root in roots for p in root.rglob("*") if p.is_file()}
    assert before == after


def test_a_table_is_written_though_overlays_are_not(folder, tmp_path, capfd, monkeypatch):
    """As on a disk that has become full."""
    from scrd_fast.report import overlays

    monkeypatch.setattr(overlays, "_LONGEST", 400)
    name = "x" * 251 + ".png"
    (tmp_path / name).write_bytes((folder / "images" / "0.png").read_bytes())
    assert main("score", folder / "model.scrd", tmp_path / name, "--out", tmp_path / "s.csv",
                "--overlays", tmp_path / "overlays") == 2
    assert "File name too long" in capfd.readouterr().err
    assert len(list(csv.DictReader((tmp_path / "s.csv").open()))) == 1


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


def without_progress(text: str) -> str:
    """What a slow machine tells of its progress is neither error nor result."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"loading|exporting|scoring", line))


def shell(line: str, **places: object) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m scrd_fast {line.format(**places)}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False,
                          timeout=300)


@pytest.mark.parametrize(("line", "says"), [
    ("info {engine} >/dev/full", "No space left on device"),
    ("info {engine} >&-", "Bad file descriptor"),
    ("--help >/dev/full", "No space left on device"),
    ("--version >&-", "Bad file descriptor"),
    ("score {engine} {image} >/dev/full", "No space left on device"),
    ("export {model} {out}.onnx >&-", "Bad file descriptor"),
])
def test_output_that_nobody_gets_is_an_error(folder, tmp_path, line, says):
    if "/dev/full" in line and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    done = shell(line, engine=folder / "model.scrd", model=folder / "model.safetensors",
                 image=folder / "images" / "0.png", out=tmp_path / "m")
    assert done.returncode == 2
    assert re.fullmatch(rf"error: (standard output: cannot be written: )?{says}",
                        without_progress(done.stderr).strip())  # the longer where it is buffered
    assert done.stdout == ""
    if "export" in line:  # what it was asked for is there
        assert (tmp_path / "m.onnx").stat().st_size > 1_000_000


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_file_is_written_though_streams_are_closed(folder, tmp_path, closed):
    done = shell("score {engine} {image} --out {out} " + closed, engine=folder / "model.scrd",
                 image=folder / "images" / "0.png", out=tmp_path / "s.csv")
    assert done.returncode == 0
    assert done.stdout + without_progress(done.stderr) == ""
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert len(rows) == 1
    assert float(rows[0]["score"]) > 0


@pytest.mark.parametrize("arguments", [("info", "model.scrd"), ("--help",),
                                       ("score", "model.scrd", "images/0.png")])
def test_a_broken_pipe_is_quiet(folder, arguments):
    """As of `scrd-fast info model.scrd | true`."""
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as pipe:
        done = subprocess.run([sys.executable, "-m", "scrd_fast", *arguments], stdout=pipe,
                              stderr=subprocess.PIPE, text=True, cwd=folder, check=False,
                              timeout=300)
    assert done.returncode == 141
    assert without_progress(done.stderr) == ""


def test_an_interrupt_is_one_word(folder, capfd, monkeypatch):
    from scrd_fast.engine import engine_file as file

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(file, "describe", interrupted)
    assert main("info", folder / "model.scrd") == 130
    assert capfd.readouterr().err == "interrupted\n"


def test_an_error_of_the_system_is_one_line(folder, capfd, monkeypatch):
    from scrd_fast.engine import engine_file as file

    def full(path: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(file, "describe", full)
    assert main("info", "m.scrd") == 2
    assert capfd.readouterr().err == "error: m.scrd: No space left on device\n"


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
