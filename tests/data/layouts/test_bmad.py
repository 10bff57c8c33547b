"""BMAD: sets with img/ and label/, and sets without."""

import pytest

from scrd_fast.data.layouts import read_data_set
from scrd_fast.errors import DataError
from tests.data.layouts.trees import grow, told


@pytest.mark.parametrize("masks", ["label", "anomaly_mask"])
def test_a_set_with_masks(tmp_path, masks):
    grow(tmp_path, "train/good/img/00003_60.png", "valid/good/img/00025_99.png",
         "valid/Ungood/img/00124_60.png", f"valid/Ungood/{masks}/00124_60.png",
         "test/good/img/00000_96.png", f"test/good/{masks}/00000_96.png",
         "test/Ungood/img/00002_60.png", f"test/Ungood/{masks}/00002_60.png")
    found = read_data_set(tmp_path)
    assert found.layout == "BMAD"
    assert told(tmp_path, found.items) == [
        ("test/Ungood/img/00002_60.png", "test", 1, None, f"test/Ungood/{masks}/00002_60.png"),
        ("test/good/img/00000_96.png", "test", 0, None, f"test/good/{masks}/00000_96.png"),
        ("train/good/img/00003_60.png", "train", 0, None, None),
        ("valid/Ungood/img/00124_60.png", "validation", 1, None,
         f"valid/Ungood/{masks}/00124_60.png"),
        ("valid/good/img/00025_99.png", "validation", 0, None, None)]


def test_a_set_without_masks(tmp_path):
    grow(tmp_path, "train/good/1000.png", "valid/good/1080.png", "valid/Ungood/1000.png",
         "test/good/1000.png", "test/Ungood/100.png")
    found = read_data_set(tmp_path)
    assert found.layout == "BMAD"
    assert [(item.split, item.label, item.mask) for item in found.items] == [
        ("test", 1, None), ("test", 0, None), ("train", 0, None), ("validation", 1, None),
        ("validation", 0, None)]
    assert not [line for line in found.remarks if "mask" in line]


def test_patients_are_found_in_its_names(tmp_path):
    grow(tmp_path, "train/good/img/00003_60.png", "train/good/img/00003_61.png",
         "test/Ungood/img/00002_60.png", "test/Ungood/label/00002_60.png")
    found = read_data_set(tmp_path, patient_from=r"/(\d+)_\d+\.png$")
    assert [item.patient for item in found.items] == ["00002", "00003", "00003"]


@pytest.mark.parametrize(("more", "message"), [
    ("train/Ungood/0.png", r"train: expected good/ alone .*got Ungood/ \(1\), good/ \(1\)"),
    ("test/other/0.png", r"test: expected good/ and Ungood/ .*got Ungood/ \(1\), other/ \(1\)"),
    ("test/0.png", r"test: expected good/ and Ungood/ .*got \./ \(1\), Ungood/ \(1\)"),
    ("test/Ungood/label/9.png", r"9\.png: expected an image that this mask is of"),
])
def test_a_wrong_shape_is_explained(tmp_path, more, message):
    grow(tmp_path, "train/good/img/0.png", "test/Ungood/img/1.png", more)
    with pytest.raises(DataError, match=message):
        read_data_set(tmp_path)
