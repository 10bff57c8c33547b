"""Downloads that are not as expected, and the folder that is made of one."""

import os
import shutil

import pytest

from scrd_fast.data.layouts import read_data_set
from scrd_fast.data.prepare import DATA_SETS, prepare
from scrd_fast.data.prepare.run import prepare_as
from scrd_fast.errors import DataError, InputError, OutputError
from tests.data.prepare.results import record_of, rows_of
from tests.data.prepare.trees import (
    ANOMALOUS,
    BRAIN,
    ISIC,
    NORMAL,
    RSNA,
    make_isic,
    rsna_classes,
    write_lists,
    write_picture,
)
from tests.support.pictures import read_image


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


def test_the_folder_is_open_to_those_whom_the_umask_lets_in(brain, tmp_path):
    (tmp_path / "made").mkdir()
    prepare_as(BRAIN, "brain-tumor", brain, tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "made").stat().st_mode


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
