"""The verb evaluate: what it prints, writes and ends with."""

import csv
import json
from collections import Counter

import cv2
import numpy as np
import pytest

from scrd_fast.report.rows import read_rows
from tests.cli.commands import main
from tests.support.models import organs


@pytest.fixture
def data(tmp_path):
    """Four normal and three bright images, and one that is cut."""
    for i, image in enumerate(organs(7, 64)):
        path = tmp_path / "data" / ("good" if i < 4 else "bright") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image if i < 4 else np.minimum(image, 100) + 155)
    whole = path.read_bytes()
    (tmp_path / "data" / "good" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "data"


@pytest.mark.slow
def test_files_that_fail_are_named_and_the_others_judged(small_file, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main("evaluate", small_file, data, "--out", out, "--specificity", 0.9,
                "--patient-rule", "mean", "--seed", 7, "--quiet") == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0] == f"{data}: labelled folder"
    assert lines[1] == "figures, with intervals of 95 % by patient drawn from seed 7"
    assert lines[2] == "4 normal and 3 anomalous images, 7 patients or files:"
    assert any(line.endswith("  sensitivity at specificity 0.9") for line in lines)
    assert "no threshold: neither labelled validation images nor a calibration" in lines
    assert (out / "row.md").read_text() in told.out
    (error,) = told.err.splitlines()
    assert error.startswith(f"not scored: {data / 'good' / 'cut.png'}: ")
    assert {path.name for path in out.iterdir()} == {
        "evaluation.json", "figures.csv", "images.csv", "row.md", "failed.csv", "run.json",
        "scores.jsonl", "gallery.zip"}
    rows = list(read_rows(out / "scores.jsonl"))
    assert Counter((row.label, row.group) for row in rows if row.error is None) == {
        (0, None): 4, (1, "bright"): 3}
    assert [row.image for row in rows if row.error] == [str(data / "good" / "cut.png")]
    assert len(list(csv.reader((out / "failed.csv").open(newline="")))) == 2
    found = json.loads((out / "evaluation.json").read_text())
    assert list(found["failed"]) == [str(data / "good" / "cut.png")]
    assert (found["seed"], found["specificity"], found["patient_rule"]) == (7, 0.9, "mean")
    (data / "good" / "cut.png").unlink()
    assert main("evaluate", small_file, data, "--out", out, "--quiet") == 0
    assert (out / "failed.csv").read_text() == "file,reason\n"


@pytest.mark.slow
def test_what_cannot_be_done_is_one_line(small_file, data, tmp_path, capsys):
    taken = tmp_path / "file"
    taken.touch()
    for arguments, message in (
            ((small_file, data, "--out", taken), "--out"),
            ((small_file, data, "--specificity", 2), "specificity: expected a share"),
            ((small_file, data, "--patient-rule", "min"), "patient_rule: expected one of"),
            ((small_file, data / "good"), "expected images to test on, got a data set (folder of"
             " normal images) without: 5 images are to train or validate on"),
            ((small_file, tmp_path / "none"), "got no such place"),
            ((tmp_path / "none.scrd", data), "No such file")):
        assert main("evaluate", *arguments, "--quiet") == 2
        told = capsys.readouterr()
        (line,) = told.err.splitlines()
        assert line.startswith("error: ")
        assert message in line
        assert told.out == ""


@pytest.mark.slow
def test_figures_are_written_though_the_gallery_is_not(small_file, data, tmp_path,
                                                       run_with_file_limit):
    """As on a disk that has become full: 64 KiB is too little for the pictures alone."""
    arguments = ["evaluate", str(small_file), str(data), "--out", str(tmp_path / "out"), "--quiet"]
    code = f"""
import sys
from scrd_fast.cli import main
try:
    main({arguments})
except SystemExit as done:
    print("code", done.code)
"""
    told = run_with_file_limit(code)
    assert "4 normal and 3 anomalous images" in told
    assert told.endswith("code 2\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.json", "figures.csv", "images.csv", "row.md", "failed.csv"}


def test_without_a_gallery(small_file, data, tmp_path):
    (data / "good" / "cut.png").unlink()
    assert main("evaluate", small_file, data, "--out", tmp_path / "out", "--no-gallery",
                "--quiet") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.json", "figures.csv", "images.csv", "row.md"}


def test_volumes_without_a_patient_have_none(small_file, tmp_path):
    """What images are grouped by for the intervals is no patient."""
    nibabel = pytest.importorskip("nibabel", reason="nibabel reads NIfTI")
    for i, name in enumerate(("good", "bright")):
        (tmp_path / "data" / name).mkdir(parents=True)
        volume = organs(4, 64, seed=i).transpose(2, 1, 0).astype(np.int16)
        for k in range(2):
            nibabel.Nifti1Image(volume + 100 * i * k, np.eye(4)).to_filename(
                tmp_path / "data" / name / f"{k}.nii.gz")
    assert main("evaluate", small_file, tmp_path / "data", "--out", tmp_path / "out",
                "--quiet") == 0
    rows = list(read_rows(tmp_path / "out" / "scores.jsonl"))
    assert len(rows) == 16
    assert {row.patient for row in rows} == {None}
