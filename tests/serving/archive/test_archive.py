"""Archives on one machine: every image exactly once, whatever stops a run."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from itertools import pairwise

import fsspec
import numpy as np
import pytest

import scrd_fast
from scrd_fast.data.decode.read import read_file
from scrd_fast.errors import DataError, InputError, OutputError
from scrd_fast.serving.archive import score_archive, scoring
from scrd_fast.serving.archive.manifest import read_manifest
from scrd_fast.serving.archive.output import Output
from scrd_fast.serving.archive.watchdog import Watchdog, name_steps
from tests.cli.commands import run
from tests.serving.archive.conftest import (
    LONGER,
    ROWS,
    command,
    count_shards,
    read_results,
    read_rows,
    wait_for_shards,
    write_manifest,
)


def test_the_scores_are_those_of_the_engine(archive, engine_file, undisturbed):
    rows = read_rows(undisturbed)
    assert [row["row"] for row in rows] == list(range(400))
    assert [row["id"] for row in rows] == [f"id-{n}" for n in range(400)]
    paths = [archive.parent / str(row["path"]) for row in rows]
    with scrd_fast.load_engine(engine_file) as engine:
        expected = engine.score(paths, maps=False)
    assert sorted(expected.errors) == [50, 150, 250, 350]
    for number, row in enumerate(rows):
        if number in expected.errors:
            assert expected.errors[number] == f"{paths[number]}: {row['error']}"
            assert row["score"] is None
        else:
            assert np.float32(row["score"]) == expected.scores[number]
            weights = [row[f"weight_{k}"] for k in (1, 2, 3)]
            assert np.float32(weights).tolist() == expected.scale_weights[number].tolist()
    assert json.loads((undisturbed / "summary.json").read_text()) == {
        "files": 400, "images": 400, "failed": 4, "anomalous": None, "shards": 7}
    failed = (undisturbed / "failed.csv").read_text().splitlines()
    assert failed[0] == "id,path,frame,reason"
    assert [line.split(",")[0] for line in failed[1:]] == ["id-50", "id-150", "id-250", "id-350"]


def test_another_run_in_the_same_folder_is_refused(archive, engine_file, undisturbed, small_file,
                                                   tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    other = tmp_path / "m.csv"
    other.write_text(archive.read_text() + "more,images/000000.png\n")
    for manifest, engine, rows, what in (
            (other, engine_file, ROWS, "manifest"), (archive, small_file, ROWS, "engine"),
            (archive, engine_file, ROWS + 1, "rows"),
            (other, small_file, ROWS, "manifest and another engine")):
        with pytest.raises(InputError, match=f"--out: expected a new folder for another {what}, "):
            score_archive(str(manifest), str(engine), str(out), rows=rows)
    assert read_results(out) == read_results(undisturbed)
    with pytest.raises(InputError, match="--out: expected a folder that is empty"):
        score_archive(str(archive), str(engine_file), str(archive.parent), rows=ROWS)


def test_a_finished_run_is_not_done_again(archive, engine_file, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    before = {each: each.stat().st_mtime_ns for each in out.glob("scores/*")}
    score_archive(str(archive), str(engine_file), str(out), rows=ROWS)
    assert {each: each.stat().st_mtime_ns for each in out.glob("scores/*")} == before


def test_only_one_run_writes_to_a_folder(archive, engine_file, tmp_path):
    with Output(str(tmp_path)).lock(), pytest.raises(OutputError, match="a run that is at work"):
        score_archive(str(archive), str(engine_file), str(tmp_path), rows=ROWS)
    assert [each.name for each in tmp_path.iterdir()] == [".lock"]


def test_what_was_begun_goes_on(archive, engine_file, undisturbed, tmp_path):
    """Stopped again and again in the middle of a shard, with what a kill leaves: half of a
    temporary file, and results that are cut."""
    out = tmp_path / "out"
    listed = read_manifest(str(archive), ROWS)
    output = Output(str(out))
    shutil.copytree(undisturbed, out)
    for name in ("failed.csv", "summary.json"):
        (out / name).unlink()
    for each in out.glob("scores/*"):
        each.unlink()
    steps = []
    with scrd_fast.load_engine(engine_file) as engine:
        (rows,) = listed.read(listed.ranges[1:2])
        for stop in (20, 40, 60):
            for done in scoring.score_rows(engine, rows, output, save_seconds=0):
                steps.append(done)
                if done >= stop:
                    break
    resumed = [b for a, b in pairwise(steps) if b <= a]
    assert resumed == [16, 40]  # ends of batches of 8: at most one is done again
    (begun,) = out.glob("begun/*")
    (out / "begun" / "rows-000000000-000000063.parquet").write_bytes(begun.read_bytes()[:700])
    (out / "scores" / ".scrd-0123456789abcdef.part").write_bytes(b"PAR1")
    score_archive(str(archive), str(engine_file), str(out), rows=ROWS)
    assert read_results(out) == read_results(undisturbed)


@pytest.mark.slow
def test_a_damaged_shard_is_found_and_written_again(archive, engine_file, undisturbed, tmp_path):
    """As a file system without atomic writes may leave one."""
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    shards = sorted(out.glob("scores/*"))
    shards[2].write_bytes(shards[2].read_bytes()[:1000])
    shutil.copy(shards[1], shards[3])  # whole, but of other rows
    with pytest.raises(OutputError, match="got 2 that were damaged and are removed"):
        score_archive(str(archive), str(engine_file), str(out), rows=ROWS)
    score_archive(str(archive), str(engine_file), str(out), rows=ROWS)
    assert read_results(out) == read_results(undisturbed)


@pytest.mark.slow
def test_files_of_several_images_and_a_path_that_is_there_twice(engine_file, tmp_path):
    import cv2

    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    for name, slices in (("a", 3), ("b", 12)):
        nibabel.save(nibabel.Nifti1Image(rng.uniform(1, 9, (20, 20, slices)), np.eye(4)),
                     tmp_path / f"{name}.nii.gz")
    cv2.imwrite(str(tmp_path / "p.png"), rng.integers(0, 256, (40, 40), np.uint8))
    paths = ["a.nii.gz", "a.nii.gz", "p.png", "p.png", "none.png", "none.png", "b.nii.gz",
             "./p.png", "b.nii.gz"]
    manifest = write_manifest(tmp_path / "m.csv", paths)
    summary = score_archive(str(manifest), str(engine_file), str(tmp_path / "out"), rows=5)
    counts = {"a": 3, "b": 12, "p": 1, "n": 1}
    expected = [(row, frame if counts[kind] > 1 else None)
                for row, kind in enumerate("aappnnbpb") for frame in range(counts[kind])]
    rows = read_rows(tmp_path / "out")
    assert [(row["row"], row["frame"]) for row in rows] == expected
    assert (summary.files, summary.images, summary.failed) == (9, len(expected), 2)
    with scrd_fast.load_engine(engine_file) as engine:
        volume = engine.score([tmp_path / "b.nii.gz"], maps=False).scores
    assert [np.float32(row["score"]) for row in rows if row["row"] == 8] == pytest.approx(
        volume, rel=1e-5)  # in batches with others


@pytest.mark.slow
def test_files_that_are_elsewhere(archive, engine_file, undisturbed, tmp_path):
    """In a ZIP archive, which fsspec reads; the results in memory, as it has it, too."""
    names = [str(row["path"]) for row in read_rows(undisturbed)][:70]
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as images:
        for name in names[:-1]:
            images.write(archive.parent / name, name)
    manifest = write_manifest(tmp_path / "m.csv", [
        f"zip://{name}::{tmp_path / 'images.zip'}" for name in names] + ["nowhere://x.png"])
    memory = fsspec.filesystem("memory")
    out = f"memory://{tmp_path.name}"
    summary = score_archive(str(manifest), str(engine_file), out, rows=ROWS)
    assert (summary.files, summary.failed) == (71, 3)
    memory.get(f"/{tmp_path.name}/scores", str(tmp_path / "out" / "scores"), recursive=True)
    rows, local = read_rows(tmp_path / "out"), read_rows(undisturbed)
    assert [row["score"] for row in rows[:69]] == [row["score"] for row in local[:69]]
    assert rows[50]["error"] == local[50]["error"]
    assert str(rows[69]["error"]).startswith("cannot be fetched: ")
    assert "nowhere" in str(rows[70]["error"])
    assert Output(out).names() == {"archive.json", "failed.csv", "scores", "summary.json"}
    memory.rm(f"/{tmp_path.name}/scores/rows-000000000-000000063.parquet")
    assert score_archive(str(manifest), str(engine_file), out, rows=ROWS) == summary


@pytest.mark.slow
def test_a_dicom_series_is_not_cut(engine_file, tmp_path):
    """It is scaled as a whole, and a run that goes on inside would scale a part of it."""
    pydicom = pytest.importorskip("pydicom")
    from tests.outputs.dicom_series import write_series

    paths = [path for name in "ab" for path in write_series(
        tmp_path / name, count=12, WindowCenter=None, WindowWidth=None, SeriesInstanceUID=(
            f"1.2.{ord(name)}"))]
    for number, path in enumerate(paths):  # brighter and brighter: a part has other percentiles
        data = pydicom.dcmread(path)
        data.PixelData = (data.pixel_array // (len(paths) - number)).tobytes()
        data.save_as(path)
    names = list(map(str, paths))
    manifest = write_manifest(tmp_path / "m.csv", [*names[:6], "no_file.dcm", *names[6:]])
    listed = read_manifest(str(manifest), 1000)
    (rows,) = listed.read(listed.ranges)
    with scrd_fast.load_engine(engine_file) as engine:
        whole, stopped = (Output(str(tmp_path / name)) for name in ("whole", "stopped"))
        assert list(scoring.score_rows(engine, rows, whole)) == list(range(26))
        for done in scoring.score_rows(engine, rows, stopped, save_seconds=-scoring.LONGEST):
            assert bool(stopped.names("begun")) == (done >= 13)
            if done == 20:
                break
        assert list(scoring.score_rows(engine, rows, stopped)) == list(range(13, 26))
    assert read_rows(tmp_path / "stopped") == read_rows(tmp_path / "whole")
    scores = [row["score"] for row in read_rows(tmp_path / "whole")]
    with scrd_fast.load_engine(engine_file) as engine, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = engine.score(paths[12:18], maps=False).scores
    assert not np.allclose(part, np.float32(scores[13:19]), rtol=1e-4)  # it would be seen


@contextlib.contextmanager
def silent_server():
    """A server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept())

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection, _ in held:
            connection.close()
        thread.join()


@pytest.mark.slow
def test_the_watchdog_names_what_is_waited_for(engine_file, tmp_path, capfd):
    with silent_server() as port:
        url = f"ftp://127.0.0.1:{port}/x.png"
        manifest = write_manifest(tmp_path / "m.csv", [url])
        listed = read_manifest(str(manifest), 10)
        (rows,) = listed.read(listed.ranges)

        def work():
            with scrd_fast.load_engine(engine_file) as engine:
                results.extend(scoring.score_rows(engine, rows, Output(str(tmp_path / "out"))))

        results: list[int] = []
        thread = threading.Thread(target=work)
        with Watchdog(seconds=0.2):
            thread.start()
            lines: list[str] = []
            end = time.monotonic() + 60
            while len(lines) < 2 and time.monotonic() < end:
                lines += [line for line in capfd.readouterr().err.splitlines() if url in line]
                time.sleep(0.05)
    thread.join()
    assert len(lines) == 2
    assert all(line.startswith("nothing moved for ") and line.endswith(f"fetching {url}")
               for line in lines)
    assert results == [0, 1]  # the connection is gone: a row with the reason


@pytest.mark.slow
def test_the_watchdog_is_quiet_while_something_moves(capfd):
    with Watchdog(lambda: "something", seconds=1.5) as watchdog:
        for _ in range(40):
            watchdog.move()
            time.sleep(0.05)
        assert capfd.readouterr().err == ""
        began = time.monotonic()
        time.sleep(3.5)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].endswith("; waits for: something")
    assert len(lines) <= 1 + np.log2((time.monotonic() - began) / 1.4)  # ever more seldom


@pytest.mark.slow
def test_the_verb(longer, engine_file, undisturbed, tmp_path):
    out = tmp_path / "out"
    for signal_, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        started = count_shards(out)
        process = subprocess.Popen(command(longer, engine_file, out, "--quiet"), text=True,
                                   stderr=subprocess.PIPE)
        wait_for_shards(process, out, started + 1)
        process.send_signal(signal_)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
    assert said == "stopped: the same command goes on\n"
    done = subprocess.run(command(longer, engine_file, out), capture_output=True, text=True,
                          check=False)
    count = 400 * LONGER
    assert (done.returncode, done.stdout) == (
        1, f"{out}: {count} files, {count} images, {count // 100} not scored\n"), done.stderr
    assert [row["id"] for row in read_rows(out)] == [f"id-{number}" for number in range(count)]
    assert [row["score"] for row in read_rows(out)] == LONGER * [
        row["score"] for row in read_rows(undisturbed)]


@pytest.mark.parametrize(("more", "words"), [
    (("--actors", 2), "--actors: expected --ray with it, got none"),
    (("--ray", "local", "--trust"), "--trust: expected no --ray with it"),
    (("--rows", 0), "--rows")])
def test_options_that_do_not_fit(archive, engine_file, tmp_path, more, words):
    done = run(*command(archive, engine_file, tmp_path / "out", *more)[3:])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_places_that_are_not_there(archive, engine_file, tmp_path):
    for manifest, engine, kind in ((tmp_path / "m.csv", engine_file, DataError),
                                   (archive, tmp_path / "m.scrd", scrd_fast.ScrdError),
                                   (archive, "nowhere://m.scrd", InputError),
                                   ("nowhere://m.csv", engine_file, InputError)):
        with pytest.raises(kind) as refused:
            score_archive(str(manifest), str(engine), str(tmp_path / "out"), rows=ROWS)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_watchdog_tells_reading_from_scoring(engine_file, tmp_path):
    """While a large volume is read, and while a large batch is in the network."""
    nibabel = pytest.importorskip("nibabel")
    path = tmp_path / "large.nii.gz"
    values = np.random.default_rng(0).integers(0, 999, (256, 256, 100), np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    with scrd_fast.load_engine(engine_file) as engine:
        def look(work: Callable[[], object]) -> set[str]:
            thread = threading.Thread(target=work)
            thread.start()
            seen = set()
            while thread.is_alive():
                seen.add(name_steps())
                time.sleep(0.002)
            return seen

        read = look(lambda: read_file(path, engine.spec.decoding))
        scored = look(lambda: engine.submit(np.zeros((400, 64, 64), np.uint8), maps=False).result())
    assert f"reading {path}" in read
    assert "the engine" in scored
    assert name_steps() == "nothing that it knows of"


WITHOUT = """
import sys
from tests.support.without_training import forbid_training
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
forbid_training()
from scrd_fast.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("without", "more", "said"), [
    ("ray", (), ""),
    ("ray", ("--ray", "local"), "error: --ray: expected ray, got none; what works on Ray comes"
                                " with: pip install 'scrd-fast[ray]'\n"),
    ("fsspec", (), "error: score-archive: expected fsspec, got none; what scores archives comes"
                   " with: pip install 'scrd-fast[archive]'\n")])
def test_what_is_needed(archive, engine_file, undisturbed, tmp_path, without, more, said):
    """One machine scores without Ray and without what trains."""
    out = tmp_path / "out"
    run_ = command(archive, engine_file, out, "--quiet", *more)
    done = subprocess.run([sys.executable, "-c", WITHOUT, without, *run_[3:]], text=True,
                          capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (2 if said else 1, said)
    assert out.exists() == (not said)
    assert said or read_results(out) == read_results(undisturbed)
