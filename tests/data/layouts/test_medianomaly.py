"""MedIAnomaly: data.json beside images/, and its two sets that have folders instead."""

import json

import pytest

from scrd_fast.data.layouts import read_data_set
from scrd_fast.errors import DataError
from tests.data.layouts.trees import grow, told

TABLE = {"train": {"0": ["a.png", "b.png"], "unlabeled": {"0": ["c.png"], "1": ["d.png"]}},
         "test": {"0": ["e.png"], "1": ["f.png"]}}


@pytest.fixture
def root(tmp_path):
    return grow(tmp_path, *(f"images/{name}.png" for name in "abcdef"))


def write(root, table):
    (root / "data.json").write_text(table if isinstance(table, str) else json.dumps(table))


@pytest.mark.filterwarnings("ignore:skipped 1 file")
def test_the_published_shape(root):
    write(root, TABLE)
    found = read_data_set(root)
    assert found.layout == "MedIAnomaly"
    assert told(root, found.items) == [
        ("images/a.png", "train", 0, None, None), ("images/b.png", "train", 0, None, None),
        ("images/e.png", "test", 0, None, None), ("images/f.png", "test", 1, None, None)]
    assert any("2 images left out, for data.json" in line and "images/c.png, images/d.png" in line
               for line in found.remarks)


@pytest.mark.filterwarnings("ignore:skipped 1 file")
@pytest.mark.parametrize(("table", "message"), [
    ("{", "expected .*got no JSON"),
    ("[" * 100_000, "expected .*got no JSON"),
    ([1], "got a list"),
    ({**TABLE, "test": {"0": []}}, r"a list of names as \"test\" \"1\" .*got \['0'\]"),
    ({"test": TABLE["test"]}, r"a list of names as \"train\" \"0\" .*got \['test'\]"),
    ({**TABLE, "train": {"0": [1]}}, r"a list of names as \"train\" \"0\""),
    ({**TABLE, "train": {"0": ["../a.png"]}}, r"names of files in images/, got '\.\./a\.png'"),
    ({**TABLE, "train": {"0": ["/etc/a.png"]}}, "names of files in images/"),
    ({**TABLE, "train": {"0": [""]}}, "names of files in images/"),
    ({**TABLE, "train": {"0": ["a.png", "x.png"]}},
     r"expected 4 images in images/, got all but 1: x\.png"),
    ({**TABLE, "train": {"0": ["a.png", "e.png"]}},
     r'each name once, got e\.png in "train" "0" and "test" "0"'),
])
def test_a_wrong_table_is_explained(root, table, message):
    write(root, table)
    with pytest.raises(DataError, match=rf"data\.json: .*{message}"):
        read_data_set(root)


@pytest.mark.filterwarnings("ignore:skipped 1 file")
def test_another_name_for_the_folder_of_images_is_explained(root):
    (root / "images").rename(root / "train_png_512")
    write(root, TABLE)
    with pytest.raises(DataError, match=r"the folder images/ beside data\.json, got train_png_512"):
        read_data_set(root)
    write(root, {"something": "else"})
    assert read_data_set(root).layout == "folder of normal images"
    write(root, "{")
    assert read_data_set(root).layout == "folder of normal images"


def test_brats2021(tmp_path):
    grow(tmp_path, "train/B_00000_flair_60.png", "test/normal/B_00001_flair_60.png",
         "test/tumor/B_00002_flair_60.png", "test/annotation/B_00002_seg_60.png")
    found = read_data_set(tmp_path)
    assert found.layout == "BraTS2021 of MedIAnomaly"
    assert told(tmp_path, found.items) == [
        ("test/normal/B_00001_flair_60.png", "test", 0, None, None),
        ("test/tumor/B_00002_flair_60.png", "test", 1, "tumor",
         "test/annotation/B_00002_seg_60.png"),
        ("train/B_00000_flair_60.png", "train", 0, None, None)]
    grow(tmp_path, "test/tumour/B_00003_flair_60.png")
    with pytest.raises(DataError, match=r"test: expected normal/, tumor/ and annotation/ .*tumour"):
        read_data_set(tmp_path)


def isic(root, part, classes):
    """Images of one part whose classes are these, in their order, and the table."""
    name = f"ISIC2018_Task3_{part}"
    names = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    grow(root, *(f"{name}_Input/ISIC_{part[0]}{i}.jpg" for i in range(len(classes))))
    rows = [",".join(["image", *names])]
    rows += [",".join([f"ISIC_{part[0]}{i}", *("1.0" if name == each else "0.0" for name in names)])
             for i, each in enumerate(classes)]
    path = root / f"{name}_GroundTruth" / f"{name}_GroundTruth.csv"
    path.parent.mkdir()
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.filterwarnings("ignore:skipped")
def test_isic_2018(tmp_path):
    isic(tmp_path, "Training", ["NV", "MEL", "NV"])
    isic(tmp_path, "Validation", ["NV", "DF"])
    table = isic(tmp_path, "Test", ["BKL", "NV"])
    found = read_data_set(tmp_path)
    assert found.layout == "ISIC 2018 task 3"
    assert [(item.path.name, item.split, item.label, item.group) for item in found.items] == [
        ("ISIC_T0.jpg", "test", 1, "BKL"), ("ISIC_T1.jpg", "test", 0, None),
        ("ISIC_T0.jpg", "train", 0, None), ("ISIC_T2.jpg", "train", 0, None),
        ("ISIC_V0.jpg", "validation", 0, None), ("ISIC_V1.jpg", "validation", 1, "DF")]
    assert "1 image of Training left out, for they are anomalous" in found.remarks
    text = table.read_text()
    table.write_text(text.replace("1.0", "0.0", 1))
    with pytest.raises(DataError, match=r"GroundTruth\.csv: row 2: expected 1 for one class"):
        read_data_set(tmp_path)
    table.write_text(text + text.splitlines()[-1] + "\n")
    with pytest.raises(DataError, match=r"row 4: expected each image once, got ISIC_T1 again"):
        read_data_set(tmp_path)
    table.write_text(text.splitlines()[0])
    with pytest.raises(DataError, match=r"GroundTruth\.csv: expected rows below the header"):
        read_data_set(tmp_path)
    table.write_text(text.replace("VASC", "VAS"))
    with pytest.raises(DataError, match=r"expected a column VASC, got image, mel"):
        read_data_set(tmp_path)
    table.unlink()
    with pytest.raises(DataError, match=r"expected ISIC2018_Task3_Test_GroundTruth/.*no such file"):
        read_data_set(tmp_path)
