"""Tables of scores: every kind says the same, and reads back as what was written."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from scrd_fast.errors import DataError, InputError
from scrd_fast.report.rows import ScoreRow, add_results, read_rows, write_json_line
from scrd_fast.report.tables import COLUMNS, KINDS, choose_kind, open_scores

NAN = float("nan")
HOSTILE = 'a,"b"\n\r\t;=1+1 \u202e\u00e4.png'
ROWS = [
    add_results(ScoreRow("a.png", label=1, group="tumor"), np.float32(0.1), np.float32([0.2, 0.3,
                                                                                       0.5])),
    add_results(ScoreRow("v.nii", 3, "P1", "1.2", "1.2.3", "1.2.3.4", 0), np.float32(1e-7),
                np.float32([1, 0, 0]), np.float32(1 / 3), np.True_),
    add_results(ScoreRow(HOSTILE), np.float32(16777216), np.float32([1 / 3] * 3), np.float32(1),
                np.False_),
    ScoreRow("gone.png", error="expected a file, got none"),
]


def write(path, kind, rows=ROWS):
    with open_scores(path, kind) as add:
        for row in rows:
            add(row)
    return path


def cells(row):
    weights = row.scale_weights or (None,) * 3
    return [*(getattr(row, name) for name in COLUMNS[:11]), *weights, row.error]


def test_csv(tmp_path):
    with write(tmp_path / "s.csv", "csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == list(COLUMNS)
    for text, row in zip(rows, ROWS, strict=True):
        assert text == ["" if each is None else str(int(each)) if isinstance(each, bool)
                        else str(each) for each in cells(row)]
    assert np.float32(rows[0][8]) == np.float32(0.1)
    assert rows[0][8] == "0.1"  # the shortest that reads back as the same float32


def test_json_lines(tmp_path):
    path = write(tmp_path / "s.jsonl", "jsonl")
    assert list(read_rows(path)) == ROWS
    assert json.loads(path.read_text().splitlines()[1])["scale_weights"] == [1, 0, 0]


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads Parquet")
    rows = ROWS * 2500  # three groups
    found = parquet.read_table(write(tmp_path / "s.parquet", "parquet", rows))
    assert found.column_names == list(COLUMNS)
    for values, row in zip(found.to_pylist(), rows, strict=True):
        for name, expected in zip(COLUMNS, cells(row), strict=True):
            got = values[name]
            assert got == expected or np.float32(got) == np.float32(expected), name
    assert parquet.read_metadata(tmp_path / "s.parquet").num_row_groups == 3
    assert parquet.read_table(write(tmp_path / "none.parquet", "parquet", [])).num_rows == 0


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_are_no_text(tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow writes Parquet")
    row = ScoreRow(os.fsdecode(b"\xff\xfe.png"), error="none")
    path = write(tmp_path / f"s.{kind}", kind, [row])
    if kind == "csv":
        assert b"\xff\xfe.png," in path.read_bytes()  # byte for byte, as the file system has them
    elif kind == "jsonl":
        assert list(read_rows(path)) == [row]
    else:
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(path).to_pylist()[0]["image"] == r"\xff\xfe.png"


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_there_as_a_whole_or_not_at_all(tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow writes Parquet")
    path = tmp_path / "t"
    path.write_text("before")
    def write_half():
        with open_scores(path, kind) as add:
            add(ROWS[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["t"]


@pytest.mark.parametrize(("name", "as_json", "kind"), [
    (None, False, "csv"), (None, True, "jsonl"), ("a.csv", False, "csv"), ("a", False, "csv"),
    ("a.txt", False, "csv"), ("a.txt", True, "jsonl"), ("a.jsonl", False, "jsonl"),
    ("a.NDJSON", False, "jsonl"), ("a.jsonl", True, "jsonl"), ("a.parquet", False, "parquet")])
def test_the_kind_of_a_name(name, as_json, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow writes Parquet")
    assert choose_kind(None if name is None else Path(name), as_json) == kind


@pytest.mark.parametrize("name", ["a.json", "a.xlsx", "a.TSV", "a.csv.gz", "-"])
def test_names_of_other_kinds_are_refused(name):
    with pytest.raises(InputError, match="--out: expected a name that ends in"):
        choose_kind(Path(name), False)


def test_contradicting_names_are_refused():
    with pytest.raises(InputError, match="--json: expected a file of another name"):
        choose_kind(Path("a.csv"), True)


LINE = json.loads(write_json_line(ROWS[1]))


@pytest.mark.parametrize("line", [
    "", "[]", "{", '{"image": "a"}', "[" * 100_000, json.dumps(LINE | {"score": "0.5"}),
    json.dumps(LINE | {"scale_weights": [1, 2]}), json.dumps(LINE | {"more": 1}),
    json.dumps(LINE | {"score": NAN}), json.dumps(LINE | {"label": 7}),
    json.dumps(LINE | {"p_value": -5.0}), json.dumps(LINE | {"error": "both"})])
def test_lines_that_are_no_rows(tmp_path, line):
    path = tmp_path / "s.jsonl"
    path.write_text(f"{write_json_line(ROWS[0])}\n{line}\n")
    with pytest.raises(DataError, match=r"s\.jsonl: expected a row of scores in each line"):
        list(read_rows(path))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(tmp_path / "none"))
    secret = json.dumps(LINE | {"patient": ["Zebedeus"]})
    path.write_text(f"{secret}\n")
    with pytest.raises(DataError, match="patient") as error:
        list(read_rows(path))
    assert "Zebedeus" not in str(error.value) + repr(ScoreRow("a", patient="Zebedeus"))
    path.write_bytes(b'{"image": "\xff"}')
    with pytest.raises(DataError, match="expected text, got other bytes"):
        list(read_rows(path))
