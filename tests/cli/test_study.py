"""The whole path on the command line, from a study's files to DICOM objects, figures and a page.

And what `score --dicom` refuses before any work."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")
pytest.importorskip("highdicom", reason="highdicom writes the objects")
pytest.importorskip("nibabel", reason="nibabel reads the maps")
pytest.importorskip("jinja2", reason="Jinja2 makes the page")

import highdicom
import nibabel
import pydicom

from tests.cli.commands import main
from tests.cli.dicom_patients import (
    OPTIONS,
    SIDE,
    SLICES,
    name_nobody,
    write_patients,
    write_table,
)


@pytest.mark.slow
def test_from_a_study_to_objects_figures_and_a_page(tmp_path, capsys):
    root = write_patients(tmp_path)
    table, study = write_table(root / "set.csv"), root / "tree" / "series_3"
    model, engine = tmp_path / "m.safetensors", tmp_path / "m.scrd"
    assert main("train", table, model, "--intensity", "window", "--window", "brain", *OPTIONS) == 0
    assert main("build", model, "--precision", "fp32", "--quiet") == 0
    assert main("calibrate", engine, table, "--fpr", 0.1, "--quiet") == 0
    told = capsys.readouterr()
    assert name_nobody(told.out, told.err)
    out = {name: tmp_path / name for name in ("dicom", "maps", "overlays", "run", "scores.csv")}
    assert main("score", engine, study, "--dicom", out["dicom"], "--maps", out["maps"],
                "--overlays", out["overlays"], "--run", out["run"], "--out", out["scores.csv"],
                "--uid-root", "1.2.826.0.1", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    with out["scores.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["image"]).name for row in rows] == [f"IM{k:04}" for k in range(SLICES)]
    assert main("info", engine) == 0
    check_objects(out["dicom"], out["maps"], rows,
                  json.loads(capsys.readouterr().out)["calibration"]["maps"])
    assert len(list(out["overlays"].glob("*.png"))) == SLICES

    assert main("evaluate", engine, table, "--out", tmp_path / "results", "--quiet") == 0
    with (tmp_path / "results" / "images.csv").open(newline="") as file:
        judged = list(csv.DictReader(file))
    assert [each["score"] for each in judged] == [each["score"] for each in rows]
    for run in (out["run"], tmp_path / "results"):
        page = tmp_path / f"{run.name}.html"
        assert main("report", run, page) == 0
        assert page.read_bytes().startswith(b"<!doctype html>")
        assert name_nobody(page.read_bytes())
    told = capsys.readouterr()
    assert name_nobody(told.out, told.err)


def check_objects(folder, maps, rows, learned):
    """They say what the table and the NIfTI volume say, as the calibration reads it."""
    found = {}
    for path in sorted(folder.iterdir()):
        made = pydicom.dcmread(path)
        assert (made.StudyInstanceUID, made.PatientID) == ("1.2.4.2", "Canopus")
        assert made.SOPInstanceUID.startswith("1.2.826.0.1.")
        found.setdefault(path.name.partition("-")[0], []).append(made)
    assert {kind: len(made) for kind, made in found.items()} == {
        "pm": 1, "seg": 2, "sc": SLICES, "sr": 1}
    (heat,), (report,) = found["pm"], found["sr"]
    (volume,) = maps.glob("*.nii.gz")
    image = nibabel.load(volume)
    heights = [group.PlanePositionSequence[0].ImagePositionPatient[2]
               for group in heat.PerFrameFunctionalGroupsSequence]
    assert sorted(heights) == [5 * k for k in range(SLICES)]
    values = np.frombuffer(heat.FloatPixelData, np.float32).reshape(SLICES, SIDE, SIDE)
    values = values[np.argsort(heights)]
    np.testing.assert_array_equal(image.affine[2], [0, 0, 5, 0])  # the lowest slice first
    np.testing.assert_array_equal(values, np.asarray(image.dataobj).transpose(2, 1, 0))
    (window,) = heat.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence
    low, high = learned["scale"]
    assert float(window.WindowCenter) == pytest.approx((low + high) / 2, rel=1e-6)
    assert float(window.WindowWidth) == pytest.approx(high - low, rel=1e-6)
    by_kind = {made.SegmentationType: made for made in found["seg"]}
    fraction = highdicom.seg.Segmentation.from_dataset(by_kind["FRACTIONAL"])
    binary = highdicom.seg.Segmentation.from_dataset(by_kind["BINARY"])
    instances = [f"1.2.3.2.{k}" for k in range(SLICES)]
    np.testing.assert_array_equal(
        binary.get_pixels_by_source_instance(instances, assert_missing_frames_are_empty=True)[
            ..., 0], values > np.float32(learned["pixel_threshold"]))
    np.testing.assert_allclose(
        fraction.get_pixels_by_source_instance(instances, assert_missing_frames_are_empty=True)[
            ..., 0], np.clip((values - low) / (high - low), 0, 1), atol=0.51 / 255)
    groups = highdicom.sr.ComprehensiveSR.from_dataset(
        report).content.get_image_measurement_groups()
    for k, (row, group) in enumerate(zip(rows, groups, strict=True)):
        score, p_value = (each.value for each in group.get_measurements())
        assert (np.float32(score), np.float32(p_value)) == (
            np.float32(row["score"]), np.float32(row["p_value"]))
        (decision,) = group.get_qualitative_evaluations()
        assert decision.value.value == ("anomalous" if row["anomalous"] == "1" else "not-anomalous")
        (source,) = group.source_images
        assert source.referenced_sop_instance_uid == f"1.2.3.2.{k}"


# --- before any work ------------------------------------------------------------------------------

def refuse(capsys, *options):
    """What is said of options with which no engine is even looked for."""
    assert main("score", "no.scrd", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.dcm"
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(("options", "message"), [
    (("--objects", "pm,nii"), "error: --objects: expected some of ('pm', 'seg', 'sc', 'sr'), got"),
    (("--objects", ""), "error: --objects: expected some of"),
    (("--uid-root", "3.1"), "error: --uid-root: expected numbers with dots between")])
def test_options_of_objects(image, tmp_path, capsys, options, message):
    assert refuse(capsys, image, "--dicom", tmp_path / "out", *options).startswith(message)
    assert list(tmp_path.iterdir()) == [image]


def test_a_folder_of_objects_that_cannot_be_written(image, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert refuse(capsys, image, "--dicom", tmp_path / "out").startswith(
        f"error: --dicom: {tmp_path / 'out'}: cannot be written: ")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder where not even root may write")
def test_a_read_only_folder_of_objects(image, capsys):
    assert refuse(capsys, image, "--dicom", "/proc").startswith(
        "error: --dicom: /proc: cannot be written: ")


def test_objects_without_highdicom(image, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert "pip install 'scrd-fast[outputs]'" in refuse(capsys, image, "--dicom", tmp_path / "out")
