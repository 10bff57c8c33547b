"""Which layout a place has: folders without a published shape, and what is refused."""

import os
import subprocess
import sys

import pytest

from scrd_fast.data.layouts import SPLITS, Item, read_data_set
from scrd_fast.errors import DataError, InputError
from tests.data.layouts.trees import grow, save_dicom, told


@pytest.mark.parametrize("normal", ["good", "normal", "Healthy", "control", "controls",
                                    "healthy_controls", "Healthy-Volunteers"])
def test_a_labelled_folder(tmp_path, normal):
    grow(tmp_path, f"{normal}/b.png", f"{normal}/sub/a.png", "lesion/c.tif", "tumour/d.jpg",
         "._x.png", "__MACOSX/good/b.png")
    found = read_data_set(tmp_path)
    assert found.layout == "labelled folder"
    assert sorted((item.path.relative_to(tmp_path).as_posix(), item.label)
                  for item in found.items) == sorted([
        (f"{normal}/b.png", 0), (f"{normal}/sub/a.png", 0), ("lesion/c.tif", 1),
        ("tumour/d.jpg", 1)])
    assert {item.split for item in found.items} == {"test"}
    assert [item.group for item in found.items] == [
        None if item.label == 0 else item.path.parent.name for item in found.items]


def test_a_loose_image_has_no_label(tmp_path):
    grow(tmp_path, "NORMAL/a.png", "lesion/b.png", "c.png")
    with pytest.raises(DataError, match=r"expected all images in subfolders.*got c\.png"):
        read_data_set(tmp_path)


@pytest.mark.parametrize("names", [
    ("a.png", "b.tif"), ("p1/a.png", "p2/b.nii.gz", "c"), ("good/a.png", "good/b.png")])
def test_without_a_layout_all_are_normal(tmp_path, names):
    grow(tmp_path, *names)
    found = read_data_set(tmp_path)
    assert found.layout == "folder of normal images"
    assert told(tmp_path, found.items) == [(name, "train", 0, None, None) for name in sorted(names)]
    assert f"no labels: {len(names)} files taken as normal" in found.remarks


def test_a_dicom_folder_tells_its_patients(tmp_path):
    for i, patient in enumerate(("A", "A", "B", None)):
        save_dicom(tmp_path / f"study{i // 2}" / f"1.2.{i}", patient)
    found = read_data_set(tmp_path)
    assert found.layout == "DICOM folder"
    assert [item.patient for item in found.items][:3] == ["A", "A", "B"]
    assert found.items[3].patient.startswith("1.2.826")  # the study's
    assert {(item.label, item.split) for item in found.items} == {(0, "train")}
    assert any(line.startswith("1 of 4 files tell a DICOM study or series, but no Patient ID: each")
               for line in found.remarks)
    assert "A" not in repr(found.items[0]).replace(str(tmp_path), "")


def test_one_file(tmp_path):
    grow(tmp_path, "v.nii.gz")
    found = read_data_set(tmp_path / "v.nii.gz")
    assert (found.layout, len(found.items), found.items[0].label) == ("one file", 1, 0)


def test_a_file_named_like_an_image_is_not_dropped(tmp_path):
    """An empty file, or the link of one that was not fetched, is a fault that reading names."""
    grow(tmp_path, "train/good/0.png", "test/crack/0.png")
    (tmp_path / "train/good/1.png").touch()
    (tmp_path / "train/good/2.png").symlink_to(tmp_path / "not fetched")
    assert len(read_data_set(tmp_path).part("train")) == 3


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    grow(tmp_path, "train/good/0.png", "test/crack/0.png")
    listing = os.scandir

    def refuse(folder):
        if str(folder).endswith("good"):
            raise PermissionError(13, "Permission denied")
        return listing(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, who may read all
    with pytest.raises(DataError, match=r"train/good: expected a folder that can be read"):
        read_data_set(tmp_path)


@pytest.mark.parametrize("names", [
    ("bottle/train/good/0.png", "bottle/test/crack/0.png", "cable/train/good/0.png"),
    ("x/good/0.png", "x/crack/0.png"), ("x/test/Ungood/img/0.png",)])
def test_a_folder_of_data_sets_is_not_a_folder_of_normal_images(tmp_path, names):
    grow(tmp_path, *names)
    with pytest.raises(DataError, match=r"expected one data set, got a folder that holds (bottle|x)"
                                        r".*give that folder"):
        read_data_set(tmp_path)


@pytest.mark.filterwarnings("ignore:skipped 1 file")
def test_nor_one_of_sets_with_a_table(tmp_path):
    grow(tmp_path, "RSNA/images/0.png")
    (tmp_path / "RSNA/data.json").write_text("{}")
    with pytest.raises(DataError, match="got a folder that holds RSNA"):
        read_data_set(tmp_path)


@pytest.mark.parametrize("names", [
    ("benign/a.png", "tumor/b.png"), ("site1/Tumour/a.png", "site1/rest/b.png"), ("notumor/a.png",),
    ("strokes/1", "others/2"), ("abnormal/a.png", "b.png"), ("Ungood/a.png",),
    ("defects/a.png", "intact/b.png")])
def test_nor_one_of_folders_named_as_anomalies(tmp_path, names):
    grow(tmp_path, *names)
    with pytest.raises(DataError, match=r"expected normal images, .*got folders that are named as"
                                        r" anomalies are: \w+/ \(1\); give the folder of normal"):
        read_data_set(tmp_path)


@pytest.mark.parametrize("folder", ["patients", "cases", "P1_case2", "controls"])
def test_folders_that_may_hold_anything_are_no_anomalies(tmp_path, folder):
    """Nor is a file's name, or that of the folder that was given."""
    where = grow(tmp_path / "lesions", f"{folder}/a.png", f"{folder}/tumor.tif")
    assert [item.label for item in read_data_set(where).items] == [0, 0]


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: expected a folder, a table .*no such place"):
        read_data_set(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"a\.txt: expected a folder, a table .*got another file"):
        read_data_set(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"expected DICOM, NIfTI, PNG.* files below it, got none"):
        read_data_set(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe: expected a folder.*got something else"):
        read_data_set(tmp_path / "pipe")
    with pytest.raises(InputError, match="where: expected a path, got int"):
        read_data_set(3)


def test_parts(tmp_path):
    found = read_data_set(grow(tmp_path, "a.png"))
    assert [len(found.part(split)) for split in SPLITS] == [1, 0, 0]
    with pytest.raises(InputError, match=r"split: expected one of .*got 'val'"):
        found.part("val")
    assert Item(tmp_path).split in SPLITS


def test_it_imports_without_what_it_does_not_need(tmp_path):
    code = """
import sys
banned = {"pydicom", "nibabel", "pyarrow", "torch", "scipy", "onnx"}
class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in banned:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Ban())
from scrd_fast.data.layouts import read_data_set
print(len(read_data_set(sys.argv[1]).items), "cv2" in sys.modules)
"""
    grow(tmp_path, "train/good/0.png", "test/crack/0.png")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True,
                          text=True, check=False)
    assert done.stdout.split() == ["2", "False"], done.stderr
