"""DICOM from the headers' patients to figures: train, build, calibrate and evaluate."""

import csv
import json

import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")

from scrd_fast.engine.engine_file import read_engine_file
from scrd_fast.model.checkpoint import load_checkpoint, read_header
from scrd_fast.spec import DecodingRule
from scrd_fast.training import loop
from tests.cli.commands import main
from tests.cli.dicom_patients import (
    OPTIONS,
    PATIENTS,
    SLICES,
    name_nobody,
    write_patients,
    write_table,
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_patients(tmp_path_factory.mktemp("dicom"))


@pytest.fixture
def watched(monkeypatch):
    """Whose images are trained on, and whose are validated on, by training."""
    seen = {"train": [], "validation": []}

    class Batches(loop.Batches):
        def __init__(self, images, chosen, *arguments, **more):
            seen["train"] += [images.patients[place] for place in chosen]
            super().__init__(images, chosen, *arguments, **more)

    def validate(images, places, *arguments):
        seen["validation"] += [images.patients[place] for place in places]
        return normal_validation(images, places, *arguments)

    normal_validation = loop.normal_validation
    monkeypatch.setattr(loop, "Batches", Batches)
    monkeypatch.setattr(loop, "normal_validation", validate)
    return seen


def names_nobody(capsys, *paths):
    """Neither what was printed nor a file has a patient's name."""
    told = capsys.readouterr()
    assert name_nobody(told.out, told.err)
    for path in paths:
        assert name_nobody(path.read_bytes()), path
    return told


def test_of_a_folder_whole_patients_are_held_out(tree, watched, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    assert main("train", tree / "tree", out, "--validation-share", 0.3, *OPTIONS[:-1]) == 0
    held = set(watched["validation"])
    assert len(held) == 1
    assert sorted(watched["train"]) == sorted(SLICES * [*PATIENTS.keys() - held])
    assert sorted(watched["validation"]) == SLICES * [*held]
    state = out.with_suffix(".state.safetensors")
    told = names_nobody(capsys, out, state)
    assert "DICOM folder: 36 files to train on, some of them held out" in told.err
    assert "auroc_synthesised" in told.out
    assert read_header(state, "training state")["images"]["data"].keys() == {
        "count", "digest", "patients"}


@pytest.mark.slow
def test_from_files_to_figures(tree, watched, tmp_path, capsys):
    table = write_table(tree / "set.csv")
    model, engine, results = (tmp_path / name for name in ("m.safetensors", "m.scrd", "results"))
    assert main("train", table, model, "--intensity", "window", "--window", "brain", *OPTIONS) == 0
    assert watched == {"train": SLICES * ["Aldebaran"], "validation": SLICES * ["Betelgeuse"]}
    assert load_checkpoint(model).spec.decoding == DecodingRule(intensity="window", window="brain")
    assert main("build", model, "--precision", "fp32", "--images", tree / "tree" / "series_1",
                "--quiet") == 0
    assert read_engine_file(engine)[0].spec == load_checkpoint(model).spec
    assert main("calibrate", engine, table, "--fpr", 0.1, "--quiet") == 0
    assert "from 12 normal images" in names_nobody(capsys, model, engine).out
    assert main("evaluate", engine, table, "--out", results, "--quiet") == 0
    # The table of scores tells whose each image is, as nothing else does.
    told = names_nobody(capsys, *(
        path for path in results.iterdir() if path.name != "scores.jsonl"))
    assert "6 normal and 6 anomalous images, 1 patients or files:" in told.out
    assert "from the calibration" in told.out
    with (results / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"].rpartition("/")[2], row["label"]) for row in rows] == [
        (f"IM{k:04}", str(int(k >= SLICES // 2))) for k in range(SLICES)]
    assert main("score", engine, tree / "tree" / "series_3") == 0
    told = capsys.readouterr()
    assert name_nobody(told.err)
    scored = list(csv.DictReader(told.out.splitlines()))
    assert {row["patient"] for row in scored} == {"Canopus"}
    assert [(row["score"], row["p_value"]) for row in rows] == [
        (row["score"], row["p_value"]) for row in scored]
    found = json.loads((results / "evaluation.json").read_text())
    assert (found["layout"], found["precision"], found["failed"]) == ("table", "fp32", {})
    assert found["parts"][0]["figures"]["auroc"]["interval"] is None  # one patient


@pytest.mark.parametrize("verb", ["train", "calibrate", "evaluate"])
def test_a_patient_in_two_parts_is_refused(tree, small_file, tmp_path, capsys, verb):
    table = write_table(tree / f"{verb}.csv", series_1_7="test")
    arguments = {"train": (table, tmp_path / "m.safetensors", *OPTIONS),
                 "calibrate": (small_file, table), "evaluate": (small_file, table)}
    assert main(verb, *arguments[verb]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "expected all images of patient 'Aldebaran' in split train, as " in line
    assert "IM0007: " in line
    assert "got this one in test" in line
    assert not list(tmp_path.iterdir())


def test_a_patient_who_is_trained_and_validated_on_is_refused(tree, tmp_path, capsys):
    """Of two folders, which no data set puts together."""
    where = tree / "tree"
    assert main("train", where / "series_1", tmp_path / "m.safetensors", "--validation", where,
                *OPTIONS) == 2
    assert "in both" in capsys.readouterr().err
    again = tmp_path / "again"
    again.mkdir()
    (again / "1").write_bytes((where / "series_1" / "IM0001").read_bytes())
    assert main("train", where, tmp_path / "m.safetensors", "--validation", again, *OPTIONS) == 2
    assert ("validation: expected images of other patients than data has, got some of patient"
            " 'Aldebaran' in both") in capsys.readouterr().err
