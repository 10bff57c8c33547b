"""Patients: where they are found, and splits that never part one."""

import numpy as np
import pytest

from scrd_fast.data.decode.find import read_images
from scrd_fast.data.layouts import read_data_set, split_by_patient
from scrd_fast.errors import DataError, InputError
from tests.data.decode.dicom_by_hand import dicom, save
from tests.data.layouts.trees import grow, save_dicom


def test_an_expression_finds_patients_in_paths(tmp_path):
    grow(tmp_path, "p1/a.png", "p1/b.png", "p2/a.png")
    assert [item.patient for item in read_data_set(tmp_path, patient_from=r"^([^/]+)/").items] == [
        "p1", "p1", "p2"]
    assert [item.patient for item in read_data_set(tmp_path, patient_from=r"p\d").items] == [
        "p1", "p1", "p2"]
    found = read_data_set(tmp_path, patient_from=r"p(1)|x")
    assert [item.patient for item in found.items] == ["1", "1", None]
    assert found.remarks[-1].startswith("1 of 3 files tell no patient")
    assert read_data_set(tmp_path).remarks[-1].startswith("no file tells its patient")


def test_it_counts_before_all_else(tmp_path):
    save_dicom(tmp_path / "x1" / "a", "P1")
    save_dicom(tmp_path / "y1" / "b", "P2")
    assert [item.patient for item in read_data_set(tmp_path, patient_from=r"x\d").items] == [
        "x1", "P2"]
    (tmp_path / "t.csv").write_text("path,patient\nx1/a,Q\ny1/b,\n")
    assert [item.patient for item in read_data_set(tmp_path / "t.csv").items] == ["Q", "P2"]
    found = read_data_set(tmp_path / "t.csv", patient_from=r"[xy]\d")
    assert [item.patient for item in found.items] == ["x1", "y1"]


@pytest.mark.parametrize(("pattern", "message"), [
    ("(", r"a regular expression, got '\(': missing \)"),
    ("zzz", r"the patient of at least one file, got 'zzz', which finds nothing in p1/a\.png"),
    ("(z)?", "the patient of at least one file"),
    (3, "a regular expression, or None, got int"),
])
def test_an_expression_that_does_not_do(tmp_path, pattern, message):
    grow(tmp_path, "p1/a.png")
    with pytest.raises(InputError, match=f"patient_from: expected .*{message}"):
        read_data_set(tmp_path, patient_from=pattern)


@pytest.mark.parametrize("kind", ["expression", "dicom", "table"])
def test_a_patient_in_two_splits_is_refused(tmp_path, kind):
    grow(tmp_path, "train/good/P7_1.png", "train/good/P8_1.png", "test/crack/P7_2.png")
    where, pattern = tmp_path, None
    if kind == "expression":
        pattern = r"(P\d)_"
    elif kind == "dicom":
        for name in ("train/good/P7_1.png", "test/crack/P7_2.png"):
            save_dicom(tmp_path / name, "P7")
    else:
        where = tmp_path / "t.csv"
        where.write_text("path,patient,split\ntrain/good/P7_1.png,P7,train\n"
                         "test/crack/P7_2.png,P7,test\n")
    with pytest.raises(DataError) as caught:
        read_data_set(where, patient_from=pattern)
    for part in ("'P7'", "split t", "P7_1.png", "P7_2.png", "--patient-from"):
        assert part in str(caught.value)
    assert "P8" not in str(caught.value)


    apart = read_data_set(where, patient_from=pattern, apart=False)
    assert sorted(item.split for item in apart.items if item.patient == "P7") == ["test", "train"]


@pytest.mark.parametrize("shared", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_study_in_two_splits_is_refused(tmp_path, shared):
    """Where no Patient ID is told the study stands for the patient, as in decoding; else the
    series."""
    for name in ("train/good/1", "train/good/2", "test/crack/3"):
        elements = {"PatientID": None, "StudyInstanceUID": None,
                    "SeriesInstanceUID": f"9.{name[-1]}", shared: "1.2.3.4",
                    "WindowCenter": 8, "WindowWidth": 16}
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save(dicom(np.arange(16, dtype=np.int16).reshape(4, 4), **elements), path)
    with pytest.raises(DataError, match=r"expected all images of one DICOM study, or series, that"
                       r" tells no Patient ID in split t.*--patient-from") as caught:
        read_data_set(tmp_path)
    assert "1.2.3.4" not in str(caught.value)
    found = read_data_set(tmp_path, apart=False)
    assert [item.patient for item in found.items] == ["1.2.3.4"] * 3
    assert {image.source.whose for item in found.items for image in read_images(item.path)} == {
        "1.2.3.4"}
    assert found.remarks[-1].startswith("3 of 3 files tell a DICOM study or series, but no Patient")
    (tmp_path / "test/crack/3").rename(tmp_path / "train/good/3")
    assert len(read_data_set(tmp_path).items) == 3


@pytest.mark.parametrize("count", [2, 3, 10, 57, 1000])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
def test_without_patients_each_image_is_one(count, share):
    """The draw of the releases before: a run that they began can be gone on with."""
    for seed in range(10):
        wanted = min(max(1, round(count * share)), count - 1)
        order = np.random.Generator(np.random.Philox(key=[seed, 2**63])).permutation(count)
        stay, held = split_by_patient([None] * count, share, seed)
        np.testing.assert_array_equal(held, np.sort(order[:wanted]))
        np.testing.assert_array_equal(stay, np.sort(order[wanted:]))
        assert stay.dtype == held.dtype == np.int64


def test_no_patient_is_parted():
    rng = np.random.default_rng(5)
    for seed in range(300):
        size = int(rng.integers(2, 200))
        known = rng.integers(0, rng.integers(1, 30) + 1, size)
        patients = [None if rng.random() < 0.1 else f"p{each}" for each in known]
        if len(set(patients) - {None}) + patients.count(None) < 2:
            continue
        share = float(rng.uniform(0.02, 0.5))
        stay, out = split_by_patient(patients, share, seed)
        assert sorted([*stay, *out]) == list(range(size))
        assert 0 < len(out) < size
        named = [{patients[i] for i in part} - {None} for part in (stay, out)]
        assert not named[0] & named[1]
        again = split_by_patient(patients, share, seed)
        np.testing.assert_array_equal(out, again[1])


def test_about_the_share_is_held_out():
    """Of 100 patients with 1 to 20 images, at most half a patient more or less than asked."""
    sizes = np.random.default_rng(0).integers(1, 21, 100)
    patients = [f"p{i}" for i, size in enumerate(sizes) for _ in range(size)]
    drawn = set()
    for seed in range(50):
        out = split_by_patient(patients, 0.1, seed)[1]
        assert abs(len(out) - 0.1 * len(patients)) <= 10
        drawn.add(tuple(out))
    assert len(drawn) == 50


def test_patients_too_large_for_the_share():
    patients = ["a"] * 50 + ["b"] * 40 + ["c"] * 60
    for seed in range(5):
        stay, out = split_by_patient(patients, 0.1, seed)
        assert {patients[i] for i in out} == {"b"}
        assert len(stay) == 110


@pytest.mark.parametrize("patients", [[], [None], ["a"], ["a"] * 9])
def test_one_patient_cannot_be_split(patients):
    with pytest.raises(InputError, match=r"data: expected images of at least two patients .*"
                                         r"validation images, or .*--patient-from.*, got [01]"):
        split_by_patient(patients, 0.1, 1)


@pytest.mark.parametrize(("share", "seed"), [(0, 1), (1, 1), (float("nan"), 1), (0.1, -1)])
def test_arguments_are_checked(share, seed):
    with pytest.raises(InputError, match=r"^(share|seed): expected"):
        split_by_patient([None, None], share, seed)
