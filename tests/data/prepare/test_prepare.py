"""Preparing published data sets, on miniature downloads of the official shape."""

import json
import os
import shutil
from collections import defaultdict
from dataclasses import replace

import pytest

import scrd_fast
from scrd_fast.data.layouts import read_data_set
from scrd_fast.data.prepare import DATA_SETS
from scrd_fast.data.prepare.download import Sizes
from scrd_fast.data.prepare.run import prepare_as
from scrd_fast.errors import DataError
from tests.data.prepare.results import record_of, rows_of
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
    rsna_classes,
    write_lists,
    write_origin,
)
from tests.support.pictures import read_image


def names(rows, split, label):
    return {os.path.basename(row["path"]).partition(".")[0] for row in rows
            if (row["split"], row["label"]) == (split, str(label))}


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


