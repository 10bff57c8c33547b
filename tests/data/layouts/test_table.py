"""Tables: CSV, TSV and Parquet, and every row that cannot be used."""

import os
import sys

import pytest

from scrd_fast.data.layouts import read_data_set
from scrd_fast.errors import DataError, MissingExtra
from tests.data.layouts.trees import grow, told

FULL = """path,label,mask,patient,split,group
a/1.png,0,,p1,train,x
a/2.png,normal,,p2,validation,x
a/3.png,1,m/3.png,p3,test,
a/4.png,Anomalous,,,test,y
"""


@pytest.fixture
def root(tmp_path):
    return grow(tmp_path, *(f"a/{i}.png" for i in range(1, 6)), "m/3.png")


def write(root, text, name="data.csv", encoding="utf-8"):
    (root / name).write_bytes(text.encode(encoding))
    return root / name


EXPECTED = [("a/1.png", "train", 0, "x", None), ("a/2.png", "validation", 0, "x", None),
            ("a/3.png", "test", 1, None, "m/3.png"), ("a/4.png", "test", 1, "y", None)]


def test_all_columns(root):
    found = read_data_set(write(root, FULL))
    assert found.layout == "table"
    assert told(root, found.items) == EXPECTED
    assert [item.patient for item in found.items] == ["p1", "p2", "p3", None]


@pytest.mark.parametrize("text", [
    FULL.replace(",", ";"), FULL.replace(",", "\t"), FULL.replace("\n", "\r\n"),
    FULL.replace("\n", "\r"),
    FULL.replace(",", " , "), FULL.replace("path,label,mask", "PATH, Label ,MASK"),
    "\n" + FULL + "\n,,,,,\n", '"path","label","mask","patient","split","group"'
    + FULL[FULL.index("\n"):].replace("a/1.png", '"a/1.png"'), FULL.rstrip("\n")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_is_forgiven(root, text, encoding):
    found = read_data_set(write(root, text, encoding=encoding))
    assert told(root, found.items) == EXPECTED


@pytest.mark.filterwarnings("ignore:skipped 1 file")
def test_in_a_folder_the_table_says_what_the_folders_mean(root):
    write(root, FULL)
    assert told(root, read_data_set(root).items) == EXPECTED
    write(root, "name,age\na/1.png,3\n")
    assert read_data_set(root).layout == "folder of normal images"
    write(root, '"Path"; "label"\na/1.png;0\n')
    assert read_data_set(root).layout == "table"


def test_a_path_is_enough_and_may_be_absolute_or_hold_commas(root):
    grow(root, "a/b,c.png")
    table = write(root, f'path\n"a/b,c.png"\n{root / "a/1.png"}\n')
    found = read_data_set(table)
    assert told(root, found.items) == [("a/b,c.png", "train", None, None, None),
                                       ("a/1.png", "train", None, None, None)]


def test_without_splits_labels_of_both_kinds_are_to_test_on(root):
    found = read_data_set(write(root, "path,label,age\na/1.png,0,3\na/3.png,1,4\n"))
    assert {item.split for item in found.items} == {"test"}
    assert "columns not used: age" in found.remarks
    assert any(line.startswith("no column split") for line in found.remarks)
    found = read_data_set(write(root, "path,label\na/1.png,0\na/3.png,\n"))
    assert [(item.split, item.label) for item in found.items] == [("train", 0), ("train", None)]


@pytest.mark.parametrize(("labels", "train", "validation"), [
    (",", ["1.png"], ["2.png", "3.png"]), ("0,", [], ["2.png"]), ("1,", [], []),
    ("1,0", [], ["3.png"])])
def test_without_a_label_an_image_is_normal_only_where_none_has_one(
        root, labels, train, validation):
    first, second = labels.split(",")
    found = read_data_set(write(root, "path,label,split\na/1.png,,train\n"
                                f"a/2.png,{first},validation\na/3.png,{second},validation\n"))
    assert [item.path.name for item in found.normals("train")] == train
    assert [item.path.name for item in found.normals("validation")] == validation
    assert any("have no label" in line for line in found.remarks) == (labels != ",")


@pytest.mark.parametrize(("row", "reason"), [
    ("a/9.png,0,,,train,", r"row 3: path: expected a file, got no such file: 'a/9\.png'"),
    ("a,0,,,train,", r"row 3: path: expected a file, got a folder: 'a'"),
    (",0,,,train,", r"row 3: path: expected a file, got an empty cell"),
    ("a/5.png,2,,,train,", r"row 3: label: expected 0, 1, normal, .*got '2'"),
    ("a/5.png,0,m/9.png,,train,", r"row 3: mask: expected a file, got no such file: 'm/9\.png'"),
    ("a/5.png,0,,,later,", r"row 3: split: expected one of train, .*got 'later'"),
    ("a/5.png,0,,,,", r"row 3: split: expected one of train, .*got ''"),
    ("a/5.png,1,,,train,", r"row 3: label: expected a normal image in split train"),
    ("a/../a/1.png,0,,,train,", r"row 3: path: the file of row 2 again"),
])
def test_rows_that_cannot_be_used_are_named(root, row, reason):
    lines = FULL.splitlines()
    table = write(root, "\n".join([*lines[:2], row, *lines[2:]]))
    with pytest.raises(DataError, match=rf"^{root}/data\.csv: 1 of 5 rows .*: {reason}"):
        read_data_set(table)


def test_many_bad_rows_are_counted(root):
    table = write(root, "path\n" + "".join(f"no/{i}.png\n" for i in range(30)))
    with pytest.raises(DataError, match=r"30 of 30 rows .*row 11: .*; and 20 more$"):
        read_data_set(table)


@pytest.mark.parametrize(("text", "reason"), [
    ("", "got an empty file"), ("\n \n", "got an empty file"),
    ("path,label\n", "at least one row below the header"),
    ("file,label\na/1.png,0\n", r"a column path \(and any of label, .*got file, label"),
    ("path,label,Label\na/1.png,0,0\n", "each column once, got 'label' twice"),
    ("path,label\na/1.png,0\na/2.png\n", "row 3: expected 2 cells as in the header, got 1"),
    ("path,label\na/1.png,0,0\n", "row 2: expected 2 cells as in the header, got 3"),
    ('path,label\n"a/1.png,0\n', "row 2: expected cells separated alike, got: unexpected end"),
    ("path,label\na/1.png,\0\n", "row 2: "),
])
def test_tables_that_are_none(root, text, reason):
    with pytest.raises(DataError, match=rf"data\.csv: .*{reason}"):
        read_data_set(write(root, text))


def test_another_encoding_is_named(root):
    for text, encoding in ((FULL, "utf-16"), (FULL.replace("y\n", "\xfcbel\n"), "latin-1"),
                           (FULL.replace("a/1", "a/\xfc"), "latin-1")):
        with pytest.raises(DataError, match="expected a table in UTF-8, got another encoding"):
            read_data_set(write(root, text, encoding=encoding))


def test_a_name_that_is_no_text_is_one(root):
    """What a file system of another encoding has left."""
    name = os.fsdecode(b"a/\xfcbel.png")
    (root / "a/1.png").rename(root / name)
    (root / "data.csv").write_bytes(os.fsencode(FULL.replace("a/1.png", name)))
    assert read_data_set(root / "data.csv").items[0].path == root / name


def test_rows_count_as_a_spreadsheet_counts_them(root):
    """A cell of two lines is in one row; an empty row is one."""
    table = write(root, 'path,group\n\n"a/1.png","x\ny"\na/9.png,z\n')
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used: row 4: path: "):
        read_data_set(table)


def test_parquet_needs_an_extra(root, monkeypatch):
    for name in [*sys.modules]:
        if name.partition(".")[0] == "pyarrow":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (root / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtra, match=r"data\.parquet: .*pip install 'scrd-fast\[tables\]'"):
        read_data_set(root / "data.parquet")


def test_parquet(root):
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads Parquet")
    from pyarrow import parquet

    table = pa.table({
        "Path": ["a/1.png", "a/2.png", "a/3.png", "a/4.png"], "label": [0.0, 0.0, 1.0, 1.0],
        "mask": [None, None, "m/3.png", None], "patient": ["p1", "p2", "p3", None],
        "split": ["train", "validation", "test", "test"], "group": ["x", "x", None, "y"],
        "pixels": [b"1"] * 4})
    parquet.write_table(table, root / "data.parquet")
    found = read_data_set(root / "data.parquet")
    assert told(root, found.items) == EXPECTED
    assert [item.patient for item in found.items] == ["p1", "p2", "p3", None]
    assert "columns not used: pixels" in found.remarks
    parquet.write_table(pa.table({"path": ["a/1.png", "a/9.png"], "label": [0, None]}),
                        root / "no_suffix")
    with pytest.raises(DataError, match=r"row 2: path: expected a file, got no such file"):
        read_data_set(root / "no_suffix")
    whole = (root / "data.parquet").read_bytes()
    (root / "data.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"data\.parquet: expected a Parquet table, got a"):
        read_data_set(root / "data.parquet")
