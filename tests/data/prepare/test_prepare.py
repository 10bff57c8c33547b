"""Preparing published data sets, on miniature downloads of the official shape."""

import csv
import json
import os
import shutil
from collections import defaultdict
from dataclasses import replace

import pytest

import scrd_fast
from scrd_fast.data.layouts import read_data_set
from scrd_fast.data.prepare import DATA_SETS, prepare
from scrd_fast.data.prepare.download import Sizes
from scrd_fast.data.prepare.run import prepare_as
from scrd_fast.errors import DataError, InputError, OutputError
from tests.data.prepare.trees import (
    ANOMALOUS,
    BRAIN,
    ISIC,
    ISIC_ON_VALIDATION,
    NORMAL,
    ORIGIN,
    RSNA,
    isic_classes,
    make_brain,
    make_isic,
    make_rsna,
    rsna_classes,
    write_lists,
    write_origin,
    write_picture,
)
from tests.support.pictures import read_image


def rows_of(out):
    with (out / "data.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def record_of(out):
    return json.loads((out / "prepared.json").read_text())


def names(rows, split, label):
    return {os.path.basename(row["path"]).partition(".")[0] for row in rows
            if (row["split"], row["label"]) == (split, str(label))}


@pytest.fixture(scope="module")
def rsna(tmp_path_factory):
    return make_rsna(tmp_path_factory.mktemp("download") / "rsna")


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("download") / "brain")


@pytest.fixture(scope="module")
def isic(tmp_path_factory):
    return make_isic(tmp_path_factory.mktemp("download") / "isic")


def test_official_counts_add_up():
    assert sum(DATA_SETS["rsna"].counts.values()) == 26684
    first, second = (sum(counts.values()) for counts in DATA_SETS["brain-tumor"].versions.values())
    assert (first, second) == (7023, 7200)
    isic = DATA_SETS["isic2018"].counts
    assert [sum(counts.values()) for counts in isic.values()] == [10015, 193, 1512]
    for name in ("rsna", "brain-tumor"):
        sizes = DATA_SETS[name].sizes
        assert sum(sizes.per_part().values()) in (5851, 2200)


def test_rsna_drawn(rsna, tmp_path):
    made = prepare_as(RSNA, "rsna", rsna, tmp_path / "out")
    rows, classes = rows_of(tmp_path / "out"), rsna_classes()
    assert list(rows[0]) == ["path", "label", "mask", "patient", "split", "group"]
    assert made.counts == {"test": {0: 4, 1: 4}, "train": {0: 8}}
    assert made.table == tmp_path / "out" / "data.csv"
    for row in rows:
        stem = os.path.basename(row["path"])[:-4]
        assert row["patient"] == stem
        assert classes[stem] == {"0": NORMAL, "1": ANOMALOUS}[row["label"]]
        assert row["group"] == (ANOMALOUS if row["label"] == "1" else "")
        assert (tmp_path / "out" / row["path"]).samefile(
            rsna / "stage_2_train_images" / f"{stem}.dcm")
    assert "not the published split: as many images, but others" in made.split
    record = record_of(tmp_path / "out")
    assert record["split"] == {"text": made.split, "seed": 0, "file": None, "sha256": None}
    assert record["images"] == {"links": 16, "copies": 0}
    assert record["download"]["found"] == dict(RSNA.counts)
    assert any("NIH ChestX-ray14" in remark for remark in record["remarks"])
    [image] = scrd_fast.read_images(tmp_path / "out" / rows[0]["path"])
    assert image.pixels.shape == (8, 8)


def test_a_draw_depends_on_the_seed_alone(rsna, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare_as(RSNA, "rsna", rsna, tmp_path / name, seed=seed)
    moved = shutil.copytree(rsna, tmp_path / "elsewhere")
    prepare_as(RSNA, "rsna", moved, tmp_path / "d")
    a, b, c, d = ((tmp_path / name / "data.csv").read_bytes() for name in "abcd")
    assert a == b == d != c
    assert record_of(tmp_path / "a")["images_sha256"] == record_of(tmp_path / "d")["images_sha256"]


def test_no_patient_is_drawn_into_both_parts(rsna, tmp_path):
    source = shutil.copytree(rsna, tmp_path / "rsna")
    patients = write_origin(source)
    small = replace(RSNA, sizes=Sizes(5, 3, 3))
    for seed in range(12):
        made = prepare_as(small, "rsna", source, tmp_path / f"{seed}", seed=seed)
        parts = defaultdict(set)
        for row in rows_of(tmp_path / f"{seed}"):
            assert row["patient"] == patients[os.path.basename(row["path"])[:-4]]
            parts[row["patient"]].add(row["split"])
        assert made.counts == {"test": {0: 3, 1: 3}, "train": {0: 5}}
        assert all(len(each) == 1 for each in parts.values())
    (source / ORIGIN).write_text(json.dumps(json.loads((source / ORIGIN).read_text())[1:]))
    with pytest.raises(DataError, match=f"{ORIGIN}: expected every image of .*got none of 1$"):
        prepare_as(small, "rsna", source, tmp_path / "out")
    (source / ORIGIN).write_text("[1]")
    with pytest.raises(DataError, match="expected a JSON list with subset_img_id and img_id"):
        prepare_as(small, "rsna", source, tmp_path / "out")


def test_rsna_by_lists(rsna, tmp_path):
    classes = rsna_classes()
    normal = [each for each, name in classes.items() if name == NORMAL]
    anomalous = [each for each, name in classes.items() if name == ANOMALOUS]
    lists = write_lists(tmp_path / "data.json", [f"{each}.png" for each in normal[:8]],
                        [f"{each}.png" for each in normal[8:12]],
                        [f"{each}.png" for each in anomalous[2:6]])
    made = prepare_as(RSNA, "rsna", rsna, tmp_path / "out", split=lists)
    rows = rows_of(tmp_path / "out")
    assert names(rows, "train", 0) == set(normal[:8])
    assert names(rows, "test", 0) == set(normal[8:12])
    assert names(rows, "test", 1) == set(anomalous[2:6])
    assert made.split.startswith("the lists of data.json (SHA-256 ")
    assert made.split.endswith("which have as many images as the published split")
    assert record_of(tmp_path / "out")["split"]["seed"] is None

    # The lists may put a patient into both parts: then no row names him.
    source = shutil.copytree(rsna, tmp_path / "rsna")
    patients = write_origin(source)
    crossing = ({patients[each] for each in normal[:8]}
                & {patients[each] for each in (*normal[8:12], *anomalous[2:6])})
    made = prepare_as(RSNA, "rsna", source, tmp_path / "with", split=lists)
    for row in rows_of(tmp_path / "with"):
        patient = patients[os.path.basename(row["path"])[:-4]]
        assert row["patient"] == ("" if patient in crossing else patient)
    assert crossing
    assert len(read_data_set(made.table).items) == 16  # though a patient in two parts is refused
    assert any(remark.startswith(f"{len(crossing)} patients have images in both")
               for remark in made.remarks)

    other = write_lists(tmp_path / "short.json", normal[:7], normal[8:12], anomalous[2:6])
    made = prepare_as(RSNA, "rsna", rsna, tmp_path / "short", split=other)
    assert made.split.endswith("which have not as many images as the published split")


@pytest.mark.parametrize(("table", "old", "new", "reason"), [
    ("stage_2_detailed_class_info.csv", b",Lung Opacity", b",Lung opacity",
     r"row 22: expected one of the classes Normal, .* got 'Lung opacity'"),
    ("stage_2_detailed_class_info.csv", b"class", b"classes",
     r"expected the columns patientId, class, got none called class"),
    ("stage_2_detailed_class_info.csv", b",Normal", b",Normal,",
     r"row 2: expected 2 cells as in the header, got 3"),
    ("stage_2_detailed_class_info.csv", b"Normal", b"N\xffrmal", r"expected a table in UTF-8"),
    ("stage_2_detailed_class_info.csv", b"00000000-", b"f0000000-",
     r"stage_2_train_images: expected only files that a row of .* names, got 1 others"),
    ("stage_2_train_labels.csv", b",1\r\n", b",0\r\n",
     r"row 22: expected Target 1 for Lung Opacity, got '0'"),
    ("stage_2_train_labels.csv", b"00000000-", b"f0000000-", r"row 2: expected a patientId of"),
])
def test_rsna_tables_that_are_not_right(rsna, tmp_path, table, old, new, reason):
    source = shutil.copytree(rsna, tmp_path / "rsna")
    data = (source / table).read_bytes()
    assert old in data
    (source / table).write_bytes(data.replace(old, new, 1))
    with pytest.raises(DataError, match=reason) as raised:
        prepare_as(RSNA, "rsna", source, tmp_path / "out")
    assert "aaaa-4bbb" not in str(raised.value)  # nobody's ID
    assert not (tmp_path / "out").exists()


def test_two_classes_of_an_image(rsna, tmp_path):
    source = shutil.copytree(rsna, tmp_path / "rsna")
    with (source / "stage_2_detailed_class_info.csv").open("a") as file:
        file.write(f"{next(iter(rsna_classes()))},Lung Opacity\n")
    with pytest.raises(DataError, match="expected one class per patientId, got Lung Opacity and"):
        prepare_as(RSNA, "rsna", source, tmp_path / "out")


def test_brain_tumor(brain, tmp_path):
    made = prepare_as(BRAIN, "brain-tumor", brain, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert made.counts == {"test": {0: 5, 1: 6}, "train": {0: 8}}
    assert made.title.endswith("version 1")
    assert {row["group"] for row in rows} <= {"", "glioma", "meningioma"}
    assert not any("-pi_" in row["path"] or row["patient"] for row in rows)
    assert any("-no_" in row["path"] for row in rows if row["split"] == "test")
    read_image(tmp_path / "out" / rows[0]["path"])

    second = make_brain(tmp_path / "second", "version 2")
    small = replace(BRAIN, sizes=Sizes(4, 3, 3))
    made = prepare_as(small, "brain-tumor", second, tmp_path / "out2")
    assert made.title.endswith("version 2")


def test_the_same_bytes_are_never_drawn_into_both_parts(brain, tmp_path):
    source = shutil.copytree(brain, tmp_path / "brain")
    for i in range(4):  # as version 2 has them: another name, the same file
        shutil.copyfile(source / "Training/notumor" / f"Tr-no_{i:04}.jpg",
                        source / "Testing/notumor" / f"Te-no_{i:04}.jpg")
    small = replace(BRAIN, sizes=Sizes(6, 4, 4))
    for seed in range(10):
        prepare_as(small, "brain-tumor", source, tmp_path / f"{seed}", seed=seed)
        parts = defaultdict(set)
        for row in rows_of(tmp_path / f"{seed}"):
            parts[(tmp_path / f"{seed}" / row["path"]).read_bytes()].add(row["split"])
        assert all(len(each) == 1 for each in parts.values())
        assert record_of(tmp_path / f"{seed}")["duplicates"]["in_two_parts"] == []


def test_the_same_bytes_in_both_parts_of_lists_are_told(brain, tmp_path):
    source = shutil.copytree(brain, tmp_path / "brain")
    shutil.copyfile(source / "Training/notumor/Tr-no_0000.jpg",
                    source / "Testing/notumor/Te-no_0000.jpg")
    shutil.copyfile(source / "Training/glioma/Tr-gl_0000.jpg",
                    source / "Testing/notumor/Te-no_0001.jpg")
    lists = write_lists(
        tmp_path / "data.json", [f"Tr-no_{i:04}.jpg" for i in range(8)],
        [f"Te-no_{i:04}.jpg" for i in range(5)],
        [f"Tr-gl_{i:04}.jpg" for i in range(4)] + ["Te-me_0000.jpg", "Te-me_0001.jpg"])
    made = prepare_as(BRAIN, "brain-tumor", source, tmp_path / "out", split=lists)
    found = record_of(tmp_path / "out")["duplicates"]
    assert found == {
        "images": 4,
        "in_two_parts": [["Testing/notumor/Te-no_0000.jpg", "Training/notumor/Tr-no_0000.jpg"]],
        "with_two_labels": [["Testing/notumor/Te-no_0001.jpg", "Training/glioma/Tr-gl_0000.jpg"]]}
    assert "4 images have the same bytes as another" in made.remarks


def test_isic_parts_are_official(isic, tmp_path):
    made = prepare_as(ISIC, "isic2018", isic, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert made.counts == {"test": {0: 5, 1: 6}, "train": {0: 9}, "validation": {0: 3, 1: 5}}
    normal = {image for image, kind in isic_classes("Training").items() if kind == "NV"}
    assert names(rows, "train", 0) == normal
    for part in ("Validation", "Test"):
        for label in (0, 1):
            assert names(rows, part.lower(), label) == {
                image for image, kind in isic_classes(part).items() if (kind != "NV") == label}
    for row in rows:
        assert bool(row["patient"]) == (row["split"] == "train")
    lesions = [row["patient"] for row in rows if row["patient"]]
    assert len(set(lesions)) == 5  # of 9 pictures
    assert {row["group"] for row in rows if row["label"] == "1"} == {
        "MEL", "BCC", "AKIEC", "BKL", "DF", "VASC"}
    assert made.split == (
        "the official parts: train: NV of the part Training, test: all of the part Test,"
        " validation: all of the part Validation")
    assert record_of(tmp_path / "out")["split"]["seed"] is None


def test_isic_on_the_validation_part(isic, tmp_path):
    made = prepare_as(ISIC_ON_VALIDATION, "isic2018-validation", isic, tmp_path / "out")
    assert made.counts == {"test": {0: 3, 1: 5}, "train": {0: 9}}
    assert made.split.endswith("test: all of the part Validation")
    without = make_isic(tmp_path / "isic", ("Training", "Test"), lesions=False)
    made = prepare_as(ISIC, "isic2018", without, tmp_path / "out2")
    assert made.counts == {"test": {0: 5, 1: 6}, "train": {0: 9}}
    assert not any(row["patient"] for row in rows_of(tmp_path / "out2"))
    assert any("LesionGroupings" in remark for remark in made.remarks)
    # The tables may lie beside their folders.
    for part in ("Training", "Test"):
        name = f"ISIC2018_Task3_{part}_GroundTruth"
        (without / name / f"{name}.csv").rename(without / f"{name}.csv")
    assert prepare_as(ISIC, "isic2018", without, tmp_path / "out3").counts == made.counts


@pytest.mark.parametrize(("old", "new", "reason"), [
    (b"1.0,0.0,0.0,0.0,0.0,0.0,0.0", b"1.0,0.0,0.0,0.0,0.0,0.0,1.0",
     r"row 2: expected 1 for one class and 0 for the others, got 1\.0, 0\.0"),
    (b"1.0,0.0,0.0,0.0,0.0,0.0,0.0", b"0.7,0.0,0.0,0.0,0.0,0.0,0.0", r"row 2: expected 1 for one"),
    (b"ISIC_0034525", b"ISIC_0034524", r"row 3: expected each image once, got ISIC_0034524"),
    (b"VASC", b"", r"expected a column VASC, got image, mel"),
])
def test_isic_tables_that_are_not_right(isic, tmp_path, old, new, reason):
    source = shutil.copytree(isic, tmp_path / "isic")
    table = source / "ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv"
    data = table.read_bytes()
    assert old in data
    table.write_bytes(data.replace(old, new, 1))
    with pytest.raises(DataError, match=reason):
        prepare_as(ISIC, "isic2018", source, tmp_path / "out")


def test_a_lesion_that_is_not_told(isic, tmp_path):
    source = shutil.copytree(isic, tmp_path / "isic")
    table = source / "ISIC2018_Task3_Training_LesionGroupings.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-8]))
    with pytest.raises(DataError, match="expected a lesion_id of every training image"):
        prepare_as(ISIC, "isic2018", source, tmp_path / "out")


def test_a_smaller_download(rsna, brain, isic, tmp_path):
    for name, source in (("rsna", rsna), ("brain-tumor", brain), ("isic2018", isic)):
        with pytest.raises(DataError, match=r"expected the whole download, .*--partial"):
            prepare(name, source, tmp_path / name)
    source = shutil.copytree(rsna, tmp_path / "small")
    classes = rsna_classes()
    for each in list(classes)[:5] + list(classes)[20:26]:
        (source / "stage_2_train_images" / f"{each}.dcm").unlink()
    with pytest.raises(DataError, match=(
            r"stage 2, got other numbers of images: Normal: expected 20, got 15; Lung Opacity:"
            r" expected 12, got 6; prepare what there is with partial=True \(--partial\)$")):
        prepare_as(RSNA, "rsna", source, tmp_path / "out")
    made = prepare_as(RSNA, "rsna", source, tmp_path / "out", partial=True)
    assert made.counts == {"test": {0: 3, 1: 2}, "train": {0: 6}}
    assert "partial download: 24 of 35 images" in made.remarks
    assert "fewer images" in made.split
    record = record_of(tmp_path / "out")
    assert record["download"]["found"][NORMAL] == 15
    assert record["download"]["expected"][NORMAL] == 20
    assert "partial download: 24 of 35 images" in record["remarks"]

    source = shutil.copytree(isic, tmp_path / "isic")
    (source / "ISIC2018_Task3_Training_Input/ISIC_0024308.jpg").unlink()
    made = prepare_as(ISIC, "isic2018", source, tmp_path / "part", partial=True)
    assert made.counts["train"] == {0: 8}
    assert made.split.endswith(", as far as they are there")


def test_hidden_files_do_not_count(brain, tmp_path):
    source = shutil.copytree(brain, tmp_path / "brain")
    (source / "Testing/glioma/._Te-gl_0000.jpg").write_bytes(b"left by another system")
    (source / "Testing/glioma/Thumbs.db").write_bytes(b"and by a third")
    assert prepare_as(BRAIN, "brain-tumor", source, tmp_path / "out").title.endswith("version 1")


def test_a_name_that_is_no_text(brain, tmp_path):
    """What a file system of another encoding has left: it stays what it is, byte for byte."""
    source = shutil.copytree(brain, tmp_path / "brain")
    folder = source / "Training/notumor"
    for each in sorted(folder.iterdir()):
        each.rename(folder / os.fsdecode(b"\xfc" + os.fsencode(each.name)))
    made = prepare_as(BRAIN, "brain-tumor", source, tmp_path / "out")
    paths = [item.path for item in read_data_set(made.table).items]
    odd = [path for path in paths if path.parent.name == "notumor" and "Training" in path.parts]
    assert odd
    assert all(os.fsencode(path.name).startswith(b"\xfcTr-no_") for path in odd)
    assert all(path.is_file() for path in paths)


def test_a_larger_download(brain, tmp_path):
    source = shutil.copytree(brain, tmp_path / "brain")
    write_picture(source / "Testing/pituitary/more.jpg", 1000)
    for partial in (False, True):
        with pytest.raises(DataError, match=r"Testing/pituitary: expected 1, got 2$"):
            prepare_as(BRAIN, "brain-tumor", source, tmp_path / "out", partial=partial)


def test_too_little_is_left(rsna, tmp_path):
    source = shutil.copytree(rsna, tmp_path / "rsna")
    for each, name in rsna_classes().items():
        if name == ANOMALOUS:
            (source / "stage_2_train_images" / f"{each}.dcm").unlink()
    with pytest.raises(DataError, match=r"test: expected 1 images of label 1 .* got 0"):
        prepare_as(RSNA, "rsna", source, tmp_path / "out", partial=True)


def test_what_is_missing_is_said(rsna, brain, isic, tmp_path):
    with pytest.raises(DataError, match="of the unpacked download, got no such place"):
        prepare_as(RSNA, "rsna", tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match=r"stage_2_detailed_class_info\.csv in it, got none$"):
        prepare_as(RSNA, "rsna", brain, tmp_path / "out")
    with pytest.raises(DataError, match=r"it lies in .*rsna: give that folder"):
        prepare_as(RSNA, "rsna", rsna.parent, tmp_path / "out")
    with pytest.raises(DataError, match="expected Training/notumor in it, got none"):
        prepare_as(BRAIN, "brain-tumor", isic, tmp_path / "out")
    (tmp_path / "zip").mkdir()
    (tmp_path / "zip" / "archive.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"is it in archive\.zip\? Unpack it"):
        prepare_as(BRAIN, "brain-tumor", tmp_path / "zip", tmp_path / "out")
    with pytest.raises(DataError, match="expected the folder of the unpacked download, got a file"):
        prepare_as(BRAIN, "brain-tumor", tmp_path / "zip" / "archive.zip", tmp_path / "out")
    part = make_isic(tmp_path / "isic", ("Training", "Validation"))
    with pytest.raises(DataError, match=(
            r"expected ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth\.csv or"
            r" ISIC2018_Task3_Test_GroundTruth\.csv in it")):
        prepare_as(ISIC, "isic2018", part, tmp_path / "out")


def test_other_arguments(isic, brain, tmp_path):
    with pytest.raises(InputError, match="name: expected one of rsna, brain-tumor, isic2018, "):
        prepare("mnist", brain, tmp_path / "out")
    with pytest.raises(InputError, match="seed: expected an integer from 0 on, got -1"):
        prepare("brain-tumor", brain, tmp_path / "out", seed=-1)
    with pytest.raises(InputError, match="split: expected none for isic2018"):
        prepare("isic2018", isic, tmp_path / "out", split=tmp_path / "data.json")


@pytest.mark.parametrize(("content", "reason"), [
    ("{", "expected .*got no JSON"),
    ("[" * 100000, "expected .*got no JSON"),
    ("[1]", "expected .*got a list"),
    ('{"train": {"0": ["a.png"]}, "test": {"0": ["b.png"]}}',
     r'expected a list of names as "test" "1" .*got \[\'0\'\]'),
    ('{"train": {"0": [1]}, "test": {"0": ["b.png"], "1": ["c.png"]}}',
     'expected a list of names as "train" "0"'),
    ('{"train": {"0": []}, "test": {"0": ["b.png"], "1": ["c.png"]}}',
     'expected images of the list "train" / "0" in .*got none of 0'),
    ('{"train": {"0": ["a.png"]}, "test": {"0": ["a.jpg"], "1": ["c.png"]}}',
     "expected each name once, got 1 of them more often"),
], ids=["cut", "deep", "list", "without anomalous", "numbers", "empty", "twice"])
def test_split_files_of_another_shape(brain, tmp_path, content, reason):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(DataError, match=rf"data\.json: {reason}"):
        prepare_as(BRAIN, "brain-tumor", brain, tmp_path / "out", split=tmp_path / "data.json")


def test_lists_of_other_images(brain, tmp_path):
    normal, tumour = [f"Tr-no_{i:04}.jpg" for i in range(6)], ["Tr-gl_0000.jpg", "Tr-me_0001.jpg"]
    lists = write_lists(tmp_path / "a.json", [*normal[:3], "Tr-no_9.jpg"], normal[3:], tumour)
    with pytest.raises(DataError, match=(
            r'a\.json: expected an image of every name in .*\(version 1\), got none of 1 \(the'
            r' first is "train" / "0", name 4\)')):
        prepare_as(BRAIN, "brain-tumor", brain, tmp_path / "out", split=lists)
    made = prepare_as(BRAIN, "brain-tumor", brain, tmp_path / "out", split=lists, partial=True)
    assert "1 names of the lists have no image in the download" in made.remarks
    lists = write_lists(tmp_path / "b.json", normal[:3], normal[3:], [*tumour, "Tr-no_0010.jpg"])
    with pytest.raises(DataError, match=(
            '"test" / "1", name 3: expected an image of label 1, got one of notumor')):
        prepare_as(BRAIN, "brain-tumor", brain, tmp_path / "out2", split=lists)
    lists = write_lists(tmp_path / "c.json", normal[:3], normal[3:], ["Tr-pi_0000.jpg"])
    with pytest.raises(DataError, match=r'images of the list "test" / "1" in .* got none of 1'):
        prepare_as(BRAIN, "brain-tumor", brain, tmp_path / "out2", split=lists, partial=True)
    with pytest.raises(DataError, match=r"nowhere\.json: cannot be read: No such file"):
        prepare_as(BRAIN, "brain-tumor", brain, tmp_path / "out2", split=tmp_path / "nowhere.json")


def test_a_file_that_is_no_image(brain, tmp_path):
    source = shutil.copytree(brain, tmp_path / "brain")
    (source / "Training/glioma/Tr-gl_0001.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"Tr-gl_0001\.jpg: expected a picture file, got no byte"):
        prepare_as(BRAIN, "brain-tumor", source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [source]


def test_what_is_there_stays(brain, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="expected no such folder yet or an empty one"):
        prepare_as(BRAIN, "brain-tumor", brain, out)
    assert (out / "mine.txt").read_text() == "mine"
    (out / "mine.txt").unlink()
    prepare_as(BRAIN, "brain-tumor", brain, out)
    assert (out / "data.csv").exists()
    with pytest.raises(OutputError, match="expected a folder, got a file"):
        prepare_as(BRAIN, "brain-tumor", brain, out / "data.csv")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out"]


def test_copies_where_there_are_no_links(brain, tmp_path, monkeypatch):
    def refuse(code):
        def link(*paths):
            raise OSError(code, os.strerror(code))
        return link

    monkeypatch.setattr(os, "link", refuse(18))  # EXDEV: another file system
    made = prepare_as(BRAIN, "brain-tumor", brain, tmp_path / "out")
    assert "0 hard links to those of the download, 19 copies" in made.remarks[-1]
    for row in rows_of(tmp_path / "out"):
        copy = tmp_path / "out" / row["path"]
        original = brain / row["path"].removeprefix("images/")
        assert copy.read_bytes() == original.read_bytes()
        assert not copy.samefile(original)
    monkeypatch.setattr(os, "link", refuse(28))  # ENOSPC
    with pytest.raises(OutputError, match="full: cannot be written: No space left on device"):
        prepare_as(BRAIN, "brain-tumor", brain, tmp_path / "full")
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_the_folder_can_be_moved_and_outlives_the_download(brain, tmp_path):
    source = shutil.copytree(brain, tmp_path / "brain")
    prepare_as(BRAIN, "brain-tumor", source, tmp_path / "out")
    shutil.rmtree(source)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    for row in rows_of(moved):
        assert read_image(moved / row["path"]).shape == (8, 8)


def test_links_of_a_download_are_followed(brain, tmp_path):
    source = shutil.copytree(brain, tmp_path / "brain")
    folder = source / "Training/notumor"
    folder.rename(tmp_path / "stored")
    folder.mkdir()
    for each in (tmp_path / "stored").iterdir():
        (folder / each.name).symlink_to(each)
    prepare_as(BRAIN, "brain-tumor", source, tmp_path / "out")
    assert not any((tmp_path / "out" / row["path"]).is_symlink()
                   for row in rows_of(tmp_path / "out"))


def test_progress_is_told(brain, tmp_path):
    told = []
    prepare_as(BRAIN, "brain-tumor", brain, tmp_path / "out",
               progress=lambda done, total, what: told.append((done, total, what)))
    assert told[0] == (0, 0, "looking at the download")
    assert (33, 33, "reading images") in told
    assert told[-1] == (19, 19, "linking images")


def test_this_package_reads_it(rsna, brain, isic, tmp_path):
    for name, kind, source in (("rsna", RSNA, rsna), ("brain-tumor", BRAIN, brain),
                               ("isic2018", ISIC, isic)):
        made = prepare_as(kind, name, source, tmp_path / name)
        found = read_data_set(made.table)
        for part, counts in made.counts.items():
            labels = [item.label for item in found.part(part)]
            assert {label: labels.count(label) for label in set(labels)} == counts
        assert all(item.path.is_file() for item in found.items)


def test_the_verb(brain, tmp_path, monkeypatch):
    import scrd_fast.cli.prepare  # noqa: F401
    from tests.cli.commands import main

    monkeypatch.setitem(DATA_SETS, "brain-tumor", BRAIN)
    assert main("prepare", "brain-tumor", brain, tmp_path / "out", "--seed", 3, "--quiet") == 0
    assert len(rows_of(tmp_path / "out")) == 19
    assert record_of(tmp_path / "out")["split"]["seed"] == 3


def test_what_the_verb_prints(brain, tmp_path, monkeypatch, capsys):
    import scrd_fast.cli.prepare  # noqa: F401
    from tests.cli.commands import main

    monkeypatch.setitem(DATA_SETS, "brain-tumor", BRAIN)
    assert main("prepare", "brain-tumor", brain, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'out' / 'data.csv'}: Brain Tumor MRI Dataset" in printed
    assert "5 normal     6 anomalous" in printed
    assert "drawn here by seed 0, not the published split" in printed
    assert main("prepare", "brain-tumor", brain, tmp_path / "out") == 2
    assert "error: " in capsys.readouterr().err
