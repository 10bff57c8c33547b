"""Manifests: what is read, what is refused, in how much memory."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from scrd_fast.errors import DataError
from scrd_fast.serving.archive.manifest import read_manifest

HEAD = b"id,path\n"
BAD = {
    "gone": (None, "cannot be read: No such file or directory"),
    "empty": (b"", "Empty CSV file"),
    "no_rows": (HEAD, "at least one row below the header, got none"),
    "other_columns": (b"name,path\na,b\n", "the columns id and path, got none for id; the file has"
                                           " name, path"),
    "column_twice": (b"id,path,Id\na,b,c\n", "each column once, got 'id' twice"),
    "no_id": (HEAD + b"a,x\n,y\n", "in each row, each in one line, got 1 of 2 rows without: row 3"),
    "no_path": (HEAD + b"a,x\nb,\nc,\n", "got 2 of 3 rows without: row 3, 4"),
    "open_quote": (HEAD + b"a,x\nb,\"y\nc,z\n", "each in one line, got 1 of 2 rows without: row 3"),
    "twice": (HEAD + b"a,x\nb,y\na,z\n", "an id of its own in each row, got 1 of 3 rows with an"
                                         " earlier one's: row 4 has that of row 2"),
    "many_twice": (HEAD + b"a,x\n" * 1000, "got 999 of 1000 rows with an earlier one's: row 3 has"
                                           " that of row 2, row 4 has that of row 2, row 5 has that"
                                           " of row 2, row 6 has that of row 2, row 7 has that of"
                                           " row 2, and so on"),
    "torn": (HEAD + b"a,x\nb,y,Doe^Jane\nc\n", "as many cells in each row as the header has, got"
                                               " others in 2 rows: row 3, 4"),
    "latin": (HEAD + "a,ü.png\n".encode("latin-1"), "invalid UTF8 data"),
    "cut_parquet": (b"PAR1abc", "a file that is none, or is damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_manifest_is_one_line(tmp_path, name):
    data, words = BAD[name]
    path = tmp_path / "m.csv"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError) as refused:
        read_manifest(str(path), 10)
    text = str(refused.value)
    assert text.startswith(f"{path}: ")
    assert words in text
    assert "\n" not in text
    assert "Doe" not in text


def write_parquet(place: Path, **columns: list[object]) -> Path:
    parquet.write_table(pa.table(columns), place, row_group_size=3)
    return place


@pytest.mark.parametrize(("columns", "words"), [
    ({"id": ["a"]}, "got none for path"),
    ({"id": ["a", None], "path": ["x", "y"]}, "got 1 of 2 rows without: row 2"),
    ({"id": [1, 2, 1, 3], "path": list("wxyz")}, "row 3 has that of row 1")])
def test_a_bad_parquet_is_one_line(tmp_path, columns, words):
    path = write_parquet(tmp_path / "m.parquet", **columns)
    with pytest.raises(DataError, match=words):
        read_manifest(str(path), 10)


def read_all(path: Path, rows: int) -> list[tuple[int, list[str], list[str]]]:
    manifest = read_manifest(str(path), rows)
    return [(each.first, each.ids, each.paths) for each in manifest.read(manifest.ranges)]


def test_csv_and_parquet_give_the_same_rows(tmp_path):
    ids, paths = list(map(str, range(10))), [f"i {n}, ü.png" for n in range(10)]
    text = tmp_path / "m.csv"
    lines = [f"\"{path}\",x,{name}\r\n" for path, name in zip(paths, ids, strict=True)]
    text.write_bytes(("\ufeffPath,other, ID\r\n" + "\r\n".join(lines)).encode())
    table = write_parquet(tmp_path / "m.parquet", other=[0.5] * 10, id=list(range(10)), path=paths)
    expected = [(first, ids[first:first + 4], paths[first:first + 4]) for first in (0, 4, 8)]
    assert read_all(text, 4) == read_all(table, 4) == expected


def test_parts_of_it_are_read(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("id,path\n" + "".join(f"{n},{n}.png\n" for n in range(200_000)))
    manifest = read_manifest(str(path), 7)
    assert manifest.count == 200_000
    wanted = [(70_000, 70_007), (199_997, 200_000)]
    found = list(manifest.read(wanted))
    assert [each.ids for each in found] == [list(map(str, range(*each))) for each in wanted]
    assert found[0].places[0] == str(tmp_path / "70000.png")


def test_places(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("id,path\na,x.png\nb,/y.png\nc,s3://z/z.png\n")
    manifest = read_manifest(str(path), 10)
    (rows,) = manifest.read(manifest.ranges)
    assert rows.places == [str(tmp_path / "x.png"), "/y.png", "s3://z/z.png"]


def test_a_series_stays_together(tmp_path):
    path = tmp_path / "m.csv"
    series = "aabbbbb" + " " * 3 + "ccc"
    path.write_text("id,path,series\n" + "".join(
        f"{n},{n}.png,{each.strip()}\n" for n, each in enumerate(series)))
    manifest = read_manifest(str(path), 3)
    assert manifest.starts.tolist() == [0, 7, 10, 13]
    assert read_manifest(str(path), 13).starts.tolist() == [0, 13]
    path.write_text("id,path,series\n" + "".join(f"{n},{n}.png,a\n" for n in range(13)))
    assert read_manifest(str(path), 3).starts.tolist() == [0, 13]
    path.write_text(path.read_text().replace(",a", ","))
    assert [each.ids for each in manifest.read(manifest.ranges)] == [
        list(map(str, range(*each))) for each in ((0, 7), (7, 10), (10, 13))]


@pytest.mark.parametrize("change", ["", "10,x\n"])
def test_a_manifest_that_changes_meanwhile(tmp_path, change):
    path = tmp_path / "m.csv"
    path.write_text("id,path\n" + "".join(f"{n},x\n" for n in range(10)))
    manifest = read_manifest(str(path), 3)
    text = path.read_text()
    path.write_text(text + change if change else text[:-4])
    with pytest.raises(DataError, match="expected the manifest as it was at first"):
        list(manifest.read(manifest.ranges))


MEASURE = """
import sys
from scrd_fast.serving.archive.manifest import read_manifest
found = read_manifest(sys.argv[1], 1000)
rows = sum(len(each.ids) for each in found.read(set(found.ranges[-100:])))
high = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(found.count, rows, high.split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of memory")
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_ten_million_rows_take_bounded_memory(tmp_path, kind):
    peaks = []
    for count in (10**6, 10**7):
        path = tmp_path / f"{count}.{kind}"
        if kind == "csv":
            with path.open("w") as file:
                file.write("id,path\n")
                file.writelines(f"im{n},images/{n}.png\n" for n in range(count))
        else:
            parquet.write_table(pa.table({
                "id": pa.array(range(count)), "path": pa.array(f"images/{n}.png"
                                                               for n in range(count))}), path)
        done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True,
                              text=True, check=True)
        found, rows, peak = map(int, done.stdout.split())
        assert (found, rows) == (count, 100_000)
        peaks.append(peak * 1024)
        print(f"{count} rows, {kind}: peak {peak / 1024:.0f} MiB")
    # Hashes, and while they are put together a second time; the rest does not grow, but for what
    # the allocators keep.
    assert peaks[1] - peaks[0] < 16 * 9 * 10**6 + 2**27
