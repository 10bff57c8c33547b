"""What the command line writes: any names, places that cannot be written, streams that end."""

import csv
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.cli.commands import main

NAMES = [b"M\xfcller.png", "Müller ä.png".encode(), b"[bold]b[red].png", b'=1+1,"q".png',
         b"a\nb.png", b"a\rb.png", b"x" * 251 + b".png", "ü".encode() * 125 + b"x.png"]


@pytest.mark.slow
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
    from scrd_fast.report.rows import ScoreRow, add_results
    from scrd_fast.report.tables import open_scores

    scores = np.array([0.1, np.nextafter(np.float32(0.1), np.float32(1)), 1e-30, 1.5e20, 0.0,
                       1 / 3, 16777216], np.float32)
    p_values = np.float32(1) / np.arange(1, 8, dtype=np.float32)
    weights = np.random.default_rng(0).dirichlet([1, 1, 1], 7).astype(np.float32)
    with open_scores(tmp_path / "s.csv", "csv") as write:
        for i, score in enumerate(scores):
            write(add_results(ScoreRow(f"{i}.png"), score, weights[i], p_values[i], score > 1))
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [np.float32(row["score"]) for row in rows] == scores.tolist()
    assert [np.float32(row["p_value"]) for row in rows] == p_values.tolist()
    assert [[np.float32(row[f"weight_{k}"]) for k in (1, 2, 3)] for row in rows] == weights.tolist()
    assert [row["anomalous"] for row in rows] == ["0", "0", "0", "1", "0", "0", "1"]
    assert rows[0]["score"] == "0.1"


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def without_progress(text: str) -> str:
    """What a slow machine tells of its progress is neither error nor result."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"loading|exporting|scoring", line))


def shell(line: str, **places: object) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m scrd_fast {line.format(**places)}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False,
                          timeout=300)


@pytest.mark.slow
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


@pytest.mark.slow
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
