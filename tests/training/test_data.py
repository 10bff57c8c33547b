"""What is trained on and validated on, of each layout that a data set may have."""

import json

import cv2
import numpy as np
import pytest

import scrd_fast
from scrd_fast.data.layouts import Item
from scrd_fast.errors import CheckpointError, DataError, InputError
from scrd_fast.model.checkpoint import read_header
from scrd_fast.training.data import labelled_test, normals_of
from scrd_fast.training.pretrain import pretrain_teacher
from tests.data.decode.dicom_by_hand import dicom, save
from tests.data.layouts.trees import grow
from tests.training.small import SMALL

MVTEC = ("train/good/a.png", "train/good/b.png", "test/good/c.png", "test/crack/d.png")
BIDS = ("sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz",
        "sub-3/anat/sub-3_T1w.nii.gz", "sub-4/anat/sub-4_T1w.nii.gz")


def write(path, text):
    path.write_text(text)
    return path


def make_table(root):
    grow(root, *(f"{letter}.png" for letter in "abcdef"))
    return write(root / "t.csv", "path,label,split\na.png,0,train\nb.png,,train\nc.png,0,"
                 "validation\nd.png,1,validation\ne.png,0,test\nf.png,1,test\n")


def make_medianomaly(root):
    grow(root, *(f"images/{letter}.png" for letter in "abcd"))
    write(root / "data.json", json.dumps({
        "train": {"0": ["a.png"], "unlabeled": {"0": ["b.png"], "1": []}},
        "test": {"0": ["c.png"], "1": ["d.png"]}}))
    return root


def make_bids(root):
    grow(root, *BIDS)
    write(root / "participants.tsv", "participant_id\tlabel\tsplit\n" + "".join(
        f"sub-{i + 1}\t{label}\t{split}\n" for i, (label, split) in enumerate(
            [(0, "train"), (0, "validation"), (0, "test"), (1, "test")])))
    return root


LAYOUTS = {
    "folder": (lambda root: grow(root, "a.png", "x/b.png"), ["a", "b"], None, None),
    "DICOM": (lambda root: grow(root, "x/1", "y/2"), ["1", "2"], None, None),
    "one file": (lambda root: grow(root, "a.png") / "a.png", ["a"], None, None),
    "MVTec": (lambda root: grow(root, *MVTEC), ["a", "b"], None, {"c": 0, "d": 1}),
    "MVTec with validation": (lambda root: grow(root, *MVTEC, "validation/good/v.png"),
                              ["a", "b"], ["v"], {"c": 0, "d": 1}),
    "BMAD": (lambda root: grow(root, "train/good/a.png", "valid/good/b.png", "valid/Ungood/c.png",
                               "test/good/d.png", "test/Ungood/e.png"),
             ["a"], ["b"], {"d": 0, "e": 1}),
    "BraTS2021": (lambda root: grow(
        root, "train/1flair1.png", "test/normal/2flair2.png", "test/tumor/3flair3.png",
        "test/annotation/3seg3.png"), ["1flair1"], None, {"2flair2": 0, "3flair3": 1}),
    "MedIAnomaly": (make_medianomaly, ["a"], None, {"c": 0, "d": 1}),
    "BIDS": (make_bids, ["sub-1_T1w"], ["sub-2_T1w"], {"sub-3_T1w": 0, "sub-4_T1w": 1}),
    "table": (make_table, ["a"], ["c"], {"e": 0, "f": 1}),
    "labelled folder": (lambda root: grow(root, "good/a.png", "sick/b.png"), None, None,
                        {"a": 0, "b": 1}),
}


def stems(paths):
    return [path.name.split(".")[0] for path in paths]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_each_layout(tmp_path, layout):
    make, trained, held, tested = LAYOUTS[layout]
    where = make(tmp_path)
    if trained is None:
        with pytest.raises(DataError, match=rf"^{where}: expected normal images to train on, got a"
                           r" data set \(labelled folder\) without"):
            normals_of(where, None, None, progress=False)
    else:
        found, validation = normals_of(where, None, None, progress=False)
        assert stems(item.path for item in found) == trained
        assert all(isinstance(item, Item) for item in found)
        assert (validation and stems(item.path for item in validation)) == held
    if tested is None:
        with pytest.raises(DataError, match=rf"^{where}: expected normal and anomalous test"):
            labelled_test(where)
    else:
        paths, labels = labelled_test(where)
        assert dict(zip(stems(paths), labels, strict=True)) == tested


@pytest.mark.parametrize(("layout", "held"), [
    ("folder", ["a", "b"]), ("MVTec", ["a", "b"]), ("MVTec with validation", ["v"]),
    ("table", ["c"]), ("labelled folder", ["a"])])
def test_a_place_to_validate_on(tmp_path, layout, held):
    """Its own validation images; else those that one would train on; else the normal ones."""
    grow(tmp_path / "data", "q.png", "r.png")
    (tmp_path / "held").mkdir()
    where = LAYOUTS[layout][0](tmp_path / "held")
    for data in (tmp_path / "data", np.zeros((3, 8, 8), np.uint8)):
        _, validation = normals_of(data, where, None, progress=False)
        assert stems(item.path for item in validation) == held


def test_images_to_validate_on_are_others(tmp_path, images):
    where = grow(tmp_path / "data", *MVTEC, "validation/good/v.png")
    array = np.zeros((3, 8, 8), np.uint8)
    assert normals_of(where, array, None, progress=False)[1] is array
    assert normals_of(array, None, None, progress=False) == (array, None)
    with pytest.raises(DataError, match=r"a\.png: expected other images to validate on than those"
                       " to train on, got this one in both"):
        normals_of(where, where / "train", None, progress=False)
    write(tmp_path / "sick.csv", "path,label,split\ndata/test/crack/d.png,1,validation\n")
    with pytest.raises(DataError, match=r"sick\.csv: expected normal images to validate on, got a"
                       r" data set \(table\) without"):
        normals_of(where, tmp_path / "sick.csv", None, progress=False)
    with pytest.raises(InputError, match="patient_from: expected None unless data is the path"):
        scrd_fast.train(images, tmp_path / "m.safetensors", patient_from="x", **SMALL)


def test_what_was_recognised_is_told(tmp_path, capsys):
    where = grow(tmp_path, *MVTEC, "validation/good/v.png")
    normals_of(where, None, None, progress=True)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"{where}: MVTec style: 2 files to train on, 1 files to validate on"
    assert told[1].startswith(f"{where}: no file tells its patient")
    normals_of(where, grow(tmp_path.with_name("other"), "x.png"), None, progress=True)
    assert "2 files to train on, others to validate on" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path, images):
    """24 pictures of six patients, whose numbers are in the names."""
    for i, image in enumerate(images):
        path = tmp_path / "images" / f"P{i % 6}_{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(path), image)
    return tmp_path / "images"


def seen_by(out):
    return read_header(out.with_suffix(".state.safetensors"), "training state")["images"]


@pytest.mark.slow
def test_patients_of_paths_are_held_out_and_known_when_resumed(folder, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    options = SMALL | {"steps": 1, "patient_from": r"(P\d)_"}
    first = scrd_fast.train(folder, out, **options)
    assert seen_by(out)["data"].keys() == {"count", "digest", "patients"}
    scrd_fast.train(folder, out, resume=True, **options | {"steps": 2})
    message = r"expected the images that this run was started with, got others: data: 24 as before"
    for other in (r"P\d_(\d\d)", r"(P[0-4])_", None):
        with pytest.raises(CheckpointError, match=message):
            scrd_fast.train(folder, out, resume=True, **options | {
                "steps": 3, "patient_from": other})
    # The figure is of other held-out images where each file is a patient.
    alone = scrd_fast.train(folder, tmp_path / "n.safetensors", **options | {"patient_from": None})
    assert first.metrics["history"] != alone.metrics["history"]
    assert "patients" not in seen_by(tmp_path / "n.safetensors")["data"]


@pytest.mark.slow
def test_unknown_patients_are_not_one_patient(folder, tmp_path):
    """Those of the first expression that are not found are four others of the second one."""
    out = tmp_path / "m.safetensors"
    scrd_fast.train(folder, out, patient_from=r"(P[1-5])_", **SMALL | {"steps": 1})
    with pytest.raises(CheckpointError, match="data: 24 as before"):
        scrd_fast.train(folder, out, patient_from=r"(P\d)_", resume=True, **SMALL | {"steps": 2})


@pytest.mark.slow
def test_validation_images_of_the_data_set_are_used(folder, tmp_path):
    """Of a table that says so, as of two folders."""
    names = sorted(path.name for path in folder.iterdir())
    rows = [f"{name},0,{'validation' if name[1] == '5' else 'train'}" for name in names]
    write(folder / "data.csv", "\n".join(["path,label,split", *rows]) + "\n")
    options = SMALL | {"steps": 2}
    first = scrd_fast.train(folder, tmp_path / "a.safetensors", **options)
    assert {name: each["count"] for name, each in seen_by(tmp_path / "a.safetensors").items()} == {
        "data": 20, "validation": 4}
    kept, held = ([folder / name for name in names if (name[1] == "5") == last]
                  for last in (False, True))
    second = scrd_fast.train(kept, tmp_path / "b.safetensors", validation=held, **options)
    assert first.metrics == second.metrics
    assert seen_by(tmp_path / "a.safetensors") == seen_by(tmp_path / "b.safetensors")


def test_a_patient_of_two_places_is_refused(tmp_path):
    pytest.importorskip("pydicom", reason="pydicom reads DICOM")
    ramp = np.arange(1600, dtype=np.int16).reshape(40, 40)
    for where, patients in (("data", "ABC"), ("held", "DB")):
        (tmp_path / where).mkdir()
        for patient in patients:
            save(dicom(ramp, PatientID=f"Patient{patient}", WindowCenter=800, WindowWidth=1600),
                 tmp_path / where / patient)
    out = tmp_path / "m.safetensors"
    with pytest.raises(DataError, match=r"^validation: expected images of other patients than data"
                       r" has, got some of patient 'PatientB' in both"):
        scrd_fast.train(tmp_path / "data", out, validation=tmp_path / "held", **SMALL)
    with pytest.raises(DataError, match=r"^test: expected images of other patients than data has"):
        scrd_fast.train(tmp_path / "data", out, selection="published_test", **SMALL, test=(
            sorted((tmp_path / "held").iterdir()), np.array([0, 1])))
    assert not out.exists()


def test_a_teacher_of_a_data_set_has_seen_its_training_images(tmp_path, images):
    for i, name in enumerate(MVTEC):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), images[i])
    out = pretrain_teacher(tmp_path, tmp_path / "t.safetensors", input_size=32, batch_size=2,
                           steps=1, progress=False, noise=SMALL["noise"])
    assert read_header(out, "teacher")["teacher"] == "pretrained for 1 steps on 2 images"
    with pytest.raises(DataError, match="expected normal images to train on"):
        pretrain_teacher(grow(tmp_path / "set", "good/a.png", "sick/b.png"), out, progress=False)
