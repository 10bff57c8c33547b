"""A manifest: the images of an archive, as a table of ids and paths that is read in parts."""

import hashlib
import posixpath
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv
from pyarrow.parquet import ParquetFile

from scrd_fast.errors import DataError, expect
from scrd_fast.serving.archive.places import absolute, file_system, is_url

COLUMNS = ("id", "path")
SERIES = "series"  # the column that may be there besides
_PARQUET = b"PAR1"
_PART = 2**16  # rows of Parquet that are read together
_LISTED = 5  # rows that an error names
_CONFIRMED = 100  # hashes that occur twice, of which the ids are compared


@dataclass(frozen=True)
class Rows:
    """Rows of a manifest that one shard holds the results of.

    first: how many rows come before them. folder: what relative paths begin at.
    """

    first: int
    ids: list[str]
    paths: list[str]
    folder: str

    @property
    def places(self) -> list[str]:
        """The files: local paths and URLs."""
        return [path if is_url(path) else posixpath.join(self.folder, path) for path in self.paths]

    def __str__(self) -> str:
        return f"rows {self.first} to {self.first + len(self.ids) - 1}"


@dataclass(frozen=True, eq=False)
class Manifest:
    """A manifest that can be used; made by `read_manifest`.

    digest: SHA-256 of the file. starts: the first row of each shard, and the number of all rows:
    int64, (shards + 1,).
    """

    place: str
    digest: str
    starts: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Of rows."""
        return int(self.starts[-1])

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The first row of each shard, and the one after its last."""
        return list(pairwise(self.starts.tolist()))

    def read(self, wanted: Collection[tuple[int, int]]) -> Iterator[Rows]:
        """The rows of those `ranges`, in their order; DataError where the file has changed."""
        folder = posixpath.dirname(absolute(self.place))
        ids: list[str] = []
        paths: list[str] = []
        ranges = iter(self.ranges)
        first, end = next(ranges)
        done = False
        for _, part in _read(self.place):
            ids += part["id"].to_pylist()
            paths += part["path"].to_pylist()
            while not done and len(ids) >= end - first:
                size = end - first
                if (first, end) in wanted:
                    yield Rows(first, ids[:size], paths[:size], folder)
                del ids[:size], paths[:size]
                first, end = next(ranges, (end, end))
                done = first == end
        if ids or not done:
            raise DataError(f"{self.place}: expected the manifest as it was at first, got one with"
                            " another number of rows")


def read_manifest(place: str, rows: int) -> Manifest:
    """Look through all of a manifest: CSV or Parquet, a local path or a URL of fsspec.

    rows: how many of them a shard takes. Neighbours that have the same text in a column `series`
    are in one shard, which may then be larger. What is held in memory is 8 bytes a row and a part
    of the file. Raises InputError for `rows`, and DataError, one line for the first of these: no
    such file, no table, columns that are missing, rows without id or path, ids that occur twice.
    """
    expect(1 <= rows <= 10**6, "rows", "from 1 to 1000000 in a shard", rows)
    counted, starts, series = 0, [0], None
    hashes: list[NDArray[np.int64]] = []
    bad = _Numbers()
    for number, part in _read(place):
        for row in _find_bad(part):
            bad.add(number + row)
        if SERIES not in part.schema.names:
            starts += range(starts[-1] + rows, counted + len(part), rows)
        else:
            for row, name in enumerate(part[SERIES].to_pylist(), counted):
                if row - starts[-1] >= rows and not (name and name == series):
                    starts.append(row)
                series = name
        # Python's own, of 64 bits, which nobody can foresee.
        hashes.append(np.fromiter(map(hash, part["id"].to_pylist()), np.int64, len(part)))
        counted += len(part)
    if not counted:
        raise DataError(f"{place}: expected at least one row below the header, got none")
    if bad.count:
        raise DataError(f"{place}: expected an id and a path in each row, each in one line, got"
                        f" {bad.count} of {counted} rows without: {bad}")
    _check_twice(place, hashes)
    return Manifest(place, _digest(place), np.array([*starts, counted]))


class _Numbers:
    """Numbers of rows: how many, and the first of them, which its text names."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[int] = []

    def add(self, number: int) -> None:
        self.count += 1
        if len(self._first) < _LISTED:
            self._first.append(number)

    def __str__(self) -> str:
        more = f" and {self.count - _LISTED} more" if self.count > _LISTED else ""
        return f"row {', '.join(map(str, self._first))}{more}"


def _find_bad(part: Any) -> list[int]:
    """Which rows of a part cannot be used. A quote that is never closed takes the lines behind it
    into its cell."""
    bad = np.zeros(len(part), bool)
    for name in COLUMNS:
        cells = part[name]
        for test in (pc.equal(cells, ""), pc.match_substring(cells, "\n")):
            bad |= test.to_numpy(zero_copy_only=False)
    return np.flatnonzero(bad).tolist()


def _check_twice(place: str, parts: list[NDArray[np.int64]]) -> None:
    """Raise DataError where ids occur twice; their hashes, which this sorts, say where to look."""
    hashes = np.concatenate(parts)
    parts.clear()
    hashes.sort()
    again = hashes[1:][hashes[1:] == hashes[:-1]]
    if not len(again):
        return
    looked_for = set(again[:_CONFIRMED].tolist())
    seen: dict[str, int] = {}
    pairs: list[str] = []
    for number, part in _read(place):
        for row, name in enumerate(part["id"].to_pylist(), number):
            if hash(name) in looked_for and seen.setdefault(name, row) != row:
                pairs.append(f"row {row} has that of row {seen[name]}")
                if len(pairs) == _LISTED:
                    break
        if len(pairs) == _LISTED:
            break
    if pairs:
        raise DataError(f"{place}: expected an id of its own in each row, got {len(again)} of"
                        f" {len(hashes)} rows with an earlier one's: {', '.join(pairs)}"
                        + (", and so on" if len(again) > len(pairs) else ""))


def _digest(place: str) -> str:
    fs, path = file_system(place)
    with fs.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(place: str) -> Iterator[tuple[int, Any]]:
    """Parts of the table: the number of the first row, and a pyarrow.RecordBatch of the columns in
    use as texts, "" where there is none.

    Numbers are those of a spreadsheet: the header of a CSV is row 1, and empty lines do not count;
    Parquet's rows begin with 1.
    """
    try:
        fs, path = file_system(place)
        with fs.open(path, "rb") as file:
            is_parquet = file.read(len(_PARQUET)) == _PARQUET
            file.seek(0)
            yield from _read_parquet(place, file) if is_parquet else _read_csv(place, fs, path)
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error.strerror or type(error).__name__}"
                        ) from error
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{place}: expected a manifest in UTF-8 CSV or Parquet, got a file that is"
                        f" none, or is damaged: {reason}") from error


def _read_parquet(place: str, file: Any) -> Iterator[tuple[int, Any]]:
    with ParquetFile(file, pre_buffer=False, buffer_size=2**20) as table:
        columns = _choose(place, table.schema_arrow.names)
        number = 1
        for part in table.iter_batches(_PART, columns=list(columns.values())):
            yield number, pa.RecordBatch.from_arrays(
                [pc.fill_null(part[name].cast(pa.string()), "") for name in columns.values()],
                names=list(columns))
            number += len(part)


def _read_csv(place: str, fs: Any, path: str) -> Iterator[tuple[int, Any]]:
    torn = _Numbers()

    def note(row: Any) -> str:
        torn.add(row.number)
        return "skip"

    def read(file: Any, **convert: Any) -> Any:
        return csv.open_csv(
            file, read_options=csv.ReadOptions(use_threads=False),
            parse_options=csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            convert_options=csv.ConvertOptions(strings_can_be_null=False, **convert))

    with fs.open(path, "rb") as file:
        columns = _choose(place, read(file).schema.names)
    torn = _Numbers()
    number = 2
    with fs.open(path, "rb") as file:
        for part in read(file, include_columns=list(columns.values()),
                         column_types=dict.fromkeys(columns.values(), pa.string())):
            yield number, part.rename_columns(list(columns))
            number += len(part)
    if torn.count:
        raise DataError(f"{place}: expected as many cells in each row as the header has, got others"
                        f" in {torn.count} rows: {torn}")


def _choose(place: str, names: list[str]) -> dict[str, str]:
    """The names of the columns in use, as they are looked for and as the file has them."""
    found: dict[str, str] = {}
    for name in names:
        wanted = name.strip().lower()
        if wanted in (*COLUMNS, SERIES):
            if wanted in found:
                raise DataError(f"{place}: expected each column once, got {wanted!r} twice")
            found[wanted] = name
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise DataError(f"{place}: expected the columns {' and '.join(COLUMNS)}, got none for"
                        f" {' and '.join(missing)}; the file has {', '.join(names)[:200]}")
    return found
