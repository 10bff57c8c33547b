"""MVTec style: labels from folders, masks from their twin tree."""

import re

import pytest

from scrd_fast.data.layouts import read_data_set
from scrd_fast.errors import DataError
from tests.data.layouts.trees import grow, told


def test_the_published_shape(tmp_path):
    grow(tmp_path, "train/good/000.png", "train/good/001.png", "test/good/000.png",
         "test/crack/000.png", "test/crack/001.png", "test/hole/000.png",
         "ground_truth/crack/000_mask.png", "ground_truth/crack/001_mask.png",
         "ground_truth/hole/000_mask.png")
    found = read_data_set(str(tmp_path))
    assert found.layout == "MVTec style"
    assert told(tmp_path, found.items) == [
        ("test/crack/000.png", "test", 1, "crack", "ground_truth/crack/000_mask.png"),
        ("test/crack/001.png", "test", 1, "crack", "ground_truth/crack/001_mask.png"),
        ("test/good/000.png", "test", 0, None, None),
        ("test/hole/000.png", "test", 1, "hole", "ground_truth/hole/000_mask.png"),
        ("train/good/000.png", "train", 0, None, None),
        ("train/good/001.png", "train", 0, None, None)]
    assert len(found.part("train")) == 2
    assert found.part("validation") == ()


@pytest.mark.parametrize("folder", ["validation", "val", "valid", "Validation"])
def test_validation_with_and_without_subfolders(tmp_path, folder):
    grow(tmp_path / "a", "train/good/0.png", f"{folder}/0.png", f"{folder}/1.png")
    found = read_data_set(tmp_path / "a").part("validation")
    assert [item.label for item in found] == [0, 0]
    grow(tmp_path / "b", "train/good/0.png", f"{folder}/good/0.png", f"{folder}/crack/1.png")
    found = read_data_set(tmp_path / "b").part("validation")
    assert [(item.label, item.group) for item in found] == [(1, "crack"), (0, None)]


def test_images_may_be_medical_files_and_lie_deeper(tmp_path):
    grow(tmp_path, "train/NORMAL/a/1.2.840", "test/NORMAL/b/1.2.841.7", "test/lesion/c/v.nii.gz",
         "ground_truth/lesion/c/v_mask.nii.gz", "test/lesion/d/1.2.842",
         "ground_truth/lesion/d/1.2.842_mask.png")
    found = read_data_set(tmp_path)
    assert told(tmp_path, found.items) == [
        ("test/NORMAL/b/1.2.841.7", "test", 0, None, None),
        ("test/lesion/c/v.nii.gz", "test", 1, "lesion", "ground_truth/lesion/c/v_mask.nii.gz"),
        ("test/lesion/d/1.2.842", "test", 1, "lesion", "ground_truth/lesion/d/1.2.842_mask.png"),
        ("train/NORMAL/a/1.2.840", "train", 0, None, None)]


def test_masks_may_bear_the_image_s_own_name_and_be_of_normal_images(tmp_path):
    grow(tmp_path, "train/good/0.png", "test/good/0.png", "test/crack/0.jpg",
         "ground_truth/crack/0.png", "ground_truth/good/0.png")
    masks = {item.label: item.mask.name for item in read_data_set(tmp_path).part("test")}
    assert masks == {0: "0.png", 1: "0.png"}


def test_other_words_for_normal(tmp_path):
    grow(tmp_path, "train/healthy/0.png", "test/Controls/1.png", "test/tumor/2.png")
    assert [item.label for item in read_data_set(tmp_path).items] == [0, 1, 0]


def test_what_is_left_out_is_told(tmp_path):
    grow(tmp_path, "train/good/0.png", "test/good/0.png", "test/crack/0.png", "test/crack/1.png",
         "ground_truth/crack/0_mask.png", "more/0.png", "cover.png")
    (tmp_path / "readme.txt").write_text("x")
    with pytest.warns(UserWarning, match=r"skipped 1 file .*readme\.txt") as seen:
        found = read_data_set(tmp_path)
    assert seen[0].filename == __file__
    assert len(found.items) == 4
    assert [line for line in found.remarks if "left out" in line] == [
        "2 images left out, not at a place of train/good/, test/good/, test/<kind>/,"
        " ground_truth/<kind>/<image>_mask.*: cover.png, more/0.png"]
    assert "1 of 2 anomalous images without a mask: test/crack/1.png" in found.remarks


@pytest.mark.parametrize(("names", "message"), [
    (("train/good/0.png", "train/bad/0.png", "test/good/0.png"),
     r"train: expected normal images alone, in good/ .*got bad/ \(1\), good/ \(1\)"),
    (("train/0.png", "test/good/0.png"), r"train: expected normal images alone.*got \./ \(1\)"),
    (("Training/notumor/0.png", "Testing/glioma/0.png"), r"expected normal images alone.*notumor"),
    (("train/good/0.png", "test/0.png", "test/good/1.png"),
     r"test: expected images in good/ and <kind>/ alone .*got \./ \(1\), good/ \(1\)"),
    (("train/good/0.png", "val/p1/0.png"), r"val: expected images without folder.*got p1/ \(1\)"),
    (("test/crack/0.png", "ground_truth/crack/9_mask.png"),
     r"9_mask\.png: expected an image that this mask is of"),
    (("test/crack/0.png", "ground_truth/crack/0_mask.png", "ground_truth/crack/0.png"),
     r"expected one mask for an image, got "),
])
def test_a_wrong_shape_is_explained(tmp_path, names, message):
    grow(tmp_path, *names)
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}.*{message}"):
        read_data_set(tmp_path)
