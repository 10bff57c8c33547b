"""`scrd-fast score` on what an archive holds: a row for each image, reasons for files without."""

import csv
import shutil

import cv2
import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")
pytest.importorskip("nibabel", reason="nibabel reads NIfTI")

import nibabel

import scrd_fast
from scrd_fast.report.overlays import overlay
from scrd_fast.report.rows import read_rows
from scrd_fast.report.tables import COLUMNS
from tests.cli.commands import main, run
from tests.data.decode.dicom_by_hand import dicom, save
from tests.support.models import organs

WINDOW = {"WindowCenter": 128, "WindowWidth": 256}


def read(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def read_scores(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def archive(tmp_path):
    """Pictures, a series, a volume; a slice that is cut, a file of no byte, a copy."""
    root = tmp_path / "archive"
    (root / "ct").mkdir(parents=True)
    body = organs(6, 48).astype(np.int16)
    for i in range(4):
        save(dicom(body[i], SeriesInstanceUID="1.2.3", ImagePositionPatient=[0, 0, -i],
                   ImageOrientationPatient=[1, 0, 0, 0, 1, 0], **WINDOW), root / "ct" / f"{i}.dcm")
    shutil.copy(root / "ct" / "1.dcm", root / "ct" / "copy.dcm")
    cut = root / "ct" / "2.dcm"
    cut.write_bytes(cut.read_bytes()[:-500])
    (root / "empty.dcm").write_bytes(b"")
    cv2.imwrite(str(root / "picture.png"), organs(1, 60, seed=9)[0])
    nibabel.Nifti1Image(body[:3].transpose(2, 1, 0), np.diag([-1, -1, 2, 1.0])).to_filename(
        root / "volume.nii.gz")
    return root


def expected_failures(root):
    return {
        str(root / "ct" / "2.dcm"): "cut, or its header lies: expected 4608 bytes of pixels, got"
                                    " 4108",
        str(root / "ct" / "copy.dcm"): f"is the object that {root / 'ct' / '1.dcm'} is, by its SOP"
                                       " instance UID",
        str(root / "empty.dcm"): "expected a DICOM, NIfTI, PNG, JPEG, TIFF or BMP file, got no"
                                 " byte"}


def test_a_mixed_folder(folder, archive, tmp_path, capfd):
    out = tmp_path / "out" / "scores.csv"
    out.parent.mkdir()
    assert main("score", folder / "model.scrd", archive, "--out", out) == 1
    rows = read_scores(out)
    assert list(rows[0]) == list(COLUMNS)
    names = [str(archive / "ct" / f"{i}.dcm") for i in (3, 2, 1, 0)]
    assert [[row["image"], row["frame"]] for row in rows] == [
        *([name, ""] for name in names), [str(archive / "empty.dcm"), ""],
        [str(archive / "picture.png"), ""],
        *([str(archive / "volume.nii.gz"), str(i)] for i in range(3)),
        [str(archive / "ct" / "copy.dcm"), ""]]
    failures = expected_failures(archive)
    assert {row["image"]: row["error"] for row in rows if not row["score"]} == failures
    assert {row["series"] for row in rows if row["score"]} == {"1.2.3", ""}
    assert all(row["patient"] == "P1" for row in rows if row["series"])
    assert all(sum(float(row[f"weight_{k}"]) for k in (1, 2, 3)) == pytest.approx(1)
               for row in rows if row["score"])
    header, *reasons = read(out.with_name("failed.csv"))
    assert header == ["file", "reason"]
    assert dict(reasons) == failures
    assert len(reasons) == 3
    told = capfd.readouterr().err
    for name, reason in failures.items():
        assert f"not scored: {name}: {reason}\n" in told
    assert not any(word in told for word in ("Zebedeus", "P1", "Traceback"))
    good = [row for row in rows if row["score"]]
    paths = list(dict.fromkeys(row["image"] for row in good))
    with scrd_fast.load_engine(folder / "model.scrd") as engine:
        assert [np.float32(row["score"]) for row in good] == engine.score(paths).scores.tolist()


@pytest.mark.slow
def test_failures_elsewhere_and_on_standard_output(folder, archive, tmp_path):
    done = run("score", folder / "model.scrd", archive, "--failed", tmp_path / "why.csv")
    assert done.returncode == 1
    assert done.stdout.count("\n") == 11
    assert dict(read(tmp_path / "why.csv")[1:]) == expected_failures(archive)
    assert not list(tmp_path.rglob("failed.csv"))
    out = tmp_path / "scores.csv"
    assert main("score", folder / "model.scrd", archive, "--out", out, "--failed",
                tmp_path / "b" / "why.csv") == 1
    assert read(tmp_path / "b" / "why.csv") == read(tmp_path / "why.csv")
    assert out.read_text() == done.stdout
    assert not list(tmp_path.rglob("failed.csv"))


@pytest.mark.slow
def test_an_old_table_of_failures_does_not_stay(folder, archive, tmp_path):
    out, failed = tmp_path / "scores.csv", tmp_path / "failed.csv"
    assert main("score", folder / "model.scrd", archive, "--out", out) == 1
    assert len(read(failed)) == 4
    assert main("score", folder / "model.scrd", archive / "picture.png", "--out", out) == 0
    assert read(failed) == [["file", "reason"]]
    assert len(read(out)) == 2
    failed.unlink()
    assert main("score", folder / "model.scrd", archive / "picture.png", "--out", out) == 0
    assert not failed.exists()  # nothing to tell, and nothing that would tell of other files


@pytest.mark.parametrize("options", [
    ("--out", "failed.csv"), ("--out", "a.csv", "--failed", "a.csv"),
    ("--out", "a.csv", "--failed", "./b/../a.csv")])
def test_one_file_cannot_hold_both_tables(folder, archive, tmp_path, options, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main("score", folder / "model.scrd", archive, *options) == 2
    assert "error: --failed: expected another file than --out, got" in capfd.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_outputs_are_no_inputs(folder, archive, capfd):
    """Not even a file that is refused."""
    copy = archive / "ct" / "copy.dcm"
    whole = copy.read_bytes()
    for option in ("--out", "--failed"):
        assert main("score", folder / "model.scrd", archive, option, copy) == 2
        assert "expected another file than those that are read" in capfd.readouterr().err
    assert copy.read_bytes() == whole


@pytest.mark.parametrize("content", [None, "text.txt"])
def test_an_empty_folder(folder, tmp_path, content, capfd):
    (tmp_path / "empty").mkdir()
    if content:
        (tmp_path / "empty" / content).write_text("none")
    out = tmp_path / "scores.csv"
    assert main("score", folder / "model.scrd", tmp_path / "empty", "--out", out) == 2
    told = capfd.readouterr().err
    assert told.startswith(f"error: {tmp_path / 'empty'}: expected DICOM, NIfTI, PNG, JPEG, TIFF"
                           " or BMP files below it, got none")
    assert not out.exists()


def test_nothing_can_be_read(folder, tmp_path):
    """Each file has a row and a reason; there is still a table."""
    (tmp_path / "a.dcm").write_bytes(b"")
    out = tmp_path / "out.csv"
    assert main("score", folder / "model.scrd", tmp_path / "a.dcm", tmp_path / "gone.nii",
                "--out", out) == 1
    assert [row["score"] for row in read_scores(out)] == ["", ""]
    assert dict(read(tmp_path / "failed.csv")[1:])[str(tmp_path / "gone.nii")] == (
        "cannot be read: No such file or directory")


def test_overlays_of_slices(folder, archive, tmp_path):
    """Beside each map what the network saw, in 8 bits; files of several images have one each."""
    out = tmp_path / "overlays"
    assert main("score", folder / "model.scrd", archive, "--out", tmp_path / "s.csv",
                "--overlays", out) == 1
    assert sorted(path.name for path in out.iterdir()) == [
        "00000_3.png", "00002_1.png", "00003_0.png", "00005_picture.png",
        "00006_volume_0.png", "00007_volume_1.png", "00008_volume_2.png"]
    for name, path, place in (("00000_3", "ct/3.dcm", 0), ("00007_volume_1", "volume.nii.gz",
                                                           1)):
        drawn = cv2.imread(str(out / f"{name}.png"))
        shown = scrd_fast.read_images(archive / path)[place].pixels
        assert drawn.shape == (48, 96, 3)
        np.testing.assert_array_equal(drawn[:, :48], np.rint(shown * 255)[..., None].repeat(3, 2))
        heat = drawn[:, 48:].astype(int) - drawn[:, :48]
        # From the median of all maps on there is colour.
        assert 0.02 < (np.abs(heat).max(axis=2) > 0).mean() < 1


@pytest.mark.slow
def test_a_calibrated_engine_leaves_cells_of_refused_files_empty(folder, archive, tmp_path):
    """Also of a file that was left out before it was read."""
    engine = tmp_path / "model.scrd"
    shutil.copy(folder / "model.scrd", engine)
    normals = tmp_path / "normals"
    normals.mkdir()
    for i, each in enumerate(organs(20, 48, seed=3)):
        cv2.imwrite(str(normals / f"{i:02d}.png"), each)
    assert main("calibrate", engine, normals, "--fpr", "0.1", "--quiet") == 0
    assert main("score", engine, archive, "--out", tmp_path / "s.csv") == 1
    failures = expected_failures(archive)
    for row in read_scores(tmp_path / "s.csv"):
        empty = not any(row[name] for name in ("score", "p_value", "anomalous", "weight_1"))
        assert empty == (row["image"] in failures) == bool(row["error"])
        assert row["image"] in failures or row["anomalous"] in ("0", "1")


@pytest.mark.slow
def test_kinds_of_tables(folder, archive, tmp_path):
    """One and the same rows as CSV, JSON lines and Parquet; JSON lines on standard output, too."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads Parquet")
    for name in ("s.csv", "s.jsonl", "s.parquet"):
        assert main("score", folder / "model.scrd", archive, "--out", tmp_path / name,
                    "--quiet") == 1
    rows = list(read_rows(tmp_path / "s.jsonl"))
    for row, text, values in zip(rows, read_scores(tmp_path / "s.csv"),
                                 parquet.read_table(tmp_path / "s.parquet").to_pylist(),
                                 strict=True):
        assert row.image == text["image"] == values["image"]
        assert text["score"] == ("" if row.score is None else str(row.score))
        assert row.score == (values["score"] and pytest.approx(values["score"], rel=1e-7))
        assert (row.error or "") == text["error"] == (values["error"] or "")
    done = run("score", folder / "model.scrd", archive, "--json", "--quiet")
    assert done.stdout == (tmp_path / "s.jsonl").read_text()
    assert main("score", folder / "model.scrd", archive, "--json", "--out",
                tmp_path / "t.csv") == 2
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.slow
def test_quiet_and_verbose(folder, archive):
    quiet, verbose = (run("score", folder / "model.scrd", archive / "picture.png", option)
                      for option in ("--quiet", "--verbose"))
    assert quiet.returncode == verbose.returncode == 0
    assert quiet.stdout == verbose.stdout
    assert quiet.stderr == ""
    for told in ("resnet18, 64 px, openvino fp32", "files are read by: intensity",
                 "not calibrated", "1 files in "):
        assert told in verbose.stderr


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_overlays_on_the_calibrations_colours_or_their_own(folder, tmp_path, own):
    """A normal image looks calm beside one with a bright spot, unless each has its own colours."""
    engine, normals, seen = (tmp_path / name for name in ("m.scrd", "normals", "seen"))
    shutil.copy(folder / "model.scrd", engine)
    for place, seed in ((normals, 3), (seen, 4)):
        place.mkdir()
        for i, each in enumerate(organs(20 if place == normals else 4, 48, seed=seed)):
            cv2.imwrite(str(place / f"{i:02d}.png"), each)
    assert main("calibrate", engine, normals, "--fpr", "0.05", "--quiet") == 0
    out = tmp_path / "overlays"
    assert main("score", engine, seen, "--out", tmp_path / "s.csv", "--overlays", out,
                *(["--own-scale"] if own else [])) == 0
    shares = []
    with scrd_fast.load_engine(engine) as loaded:
        low, high = loaded.decisions.maps.scale
        for i, item in enumerate(loaded.stream(sorted(seen.iterdir()))):
            drawn = cv2.imread(str(out / f"{i:05d}_{i:02d}.png"))
            shares.append((drawn[:, 48:] != drawn[:, :48]).any(axis=2).mean())
            if not own:
                image = np.asarray(item.image)
                wanted = overlay(image, item.map, low, high)
                np.testing.assert_array_equal(drawn[:, 48:, ::-1], wanted)
    assert (min(shares) > 0.3) if own else (max(shares) < 0.3)


def test_somebodys_own_failed_csv_stays(folder, tmp_path, capfd):
    own = tmp_path / "failed.csv"
    own.write_text("exam,mark\nphysics,5\n")
    assert main("score", folder / "model.scrd", folder / "images" / "1.png", "--out",
                tmp_path / "s.csv") == 2
    assert "a table of files that failed before; --failed names another place" in (
        capfd.readouterr().err)
    assert own.read_text() == "exam,mark\nphysics,5\n"
    assert main("score", folder / "model.scrd", folder / "images" / "1.png", "--out",
                tmp_path / "s.csv", "--failed", tmp_path / "why.csv") == 0


@pytest.mark.slow
def test_maps_are_written_by_file_and_series(folder, archive, tmp_path, capfd):
    """A picture has no place in the patient: it is scored, and the reason is told."""
    import nibabel

    out = tmp_path / "maps"
    assert main("score", folder / "model.scrd", archive, "--out", tmp_path / "s.csv", "--maps",
                out) == 1
    said = capfd.readouterr().err
    assert "no map of what does not tell where it lies in the patient" in said
    written = sorted(path.name for path in out.glob("*.nii.gz"))
    assert written
    for name in written:
        assert np.isfinite(nibabel.load(out / name).get_fdata()).any()
    assert (out / "dataset_description.json").exists()
    assert main("score", folder / "model.scrd", archive, "--out", tmp_path / "s.csv", "--maps",
                tmp_path / "npz", "--maps-format", "npz") == 1
    assert len(list((tmp_path / "npz").glob("*.npz"))) > len(written)


@pytest.mark.parametrize(("options", "says"), [
    (("--own-scale",), "--own-scale: expected --overlays with it"),
    (("--maps-format", "npz"), "--maps-format: expected --maps with it"),
    (("--objects", "sr"), "--objects: expected --dicom with it"),
    (("--uid-root", "1.2"), "--uid-root: expected --dicom with it"),
    (("--maps", "m", "--maps-format", "bogus"), "--maps-format: expected one of"),
    (("--dicom", "d", "--objects", "pm,bogus"), "--objects: expected some of"),
    (("--dicom", "d", "--uid-root", "x"), "--uid-root: expected numbers with dots"),
    (("--out", "s.xlsx"), "--out: expected a name that ends in")])
def test_options_that_would_do_nothing_or_not_what_they_say(folder, tmp_path, options, says, capfd,
                                                            monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main("score", folder / "model.scrd", folder / "images", *options) == 2
    assert f"error: {says}" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_labels_of_a_table(folder, archive, tmp_path):
    """Of an anomalous file with several images nobody knows which of them are; of a normal one all
    are normal."""
    shutil.copy(archive / "volume.nii.gz", archive / "other.nii.gz")
    table = archive / "data.csv"
    table.write_text("path,label,group,patient\npicture.png,1,spot,A\nvolume.nii.gz,1,spot,B\n"
                     "other.nii.gz,0,,C\n")
    assert main("score", folder / "model.scrd", archive, "--out", tmp_path / "s.csv") == 0
    rows = [(row["patient"], row["label"], row["group"])
            for row in read_scores(tmp_path / "s.csv")]
    assert sorted(set(rows)) == [("A", "1", "spot"), ("B", "", "spot"), ("C", "0", "")]


def test_a_run_has_the_files_that_failed(folder, archive, tmp_path):
    assert main("score", folder / "model.scrd", archive, "--run", tmp_path / "run", "--out",
                tmp_path / "s.jsonl", "--failed", tmp_path / "why.csv") == 1
    assert (tmp_path / "run" / "scores.jsonl").read_bytes() == (tmp_path / "s.jsonl").read_bytes()
    (tmp_path / "run" / "evaluation.json").write_text("{}")
    assert main("score", folder / "model.scrd", archive / "picture.png", "--run",
                tmp_path / "run") == 2
