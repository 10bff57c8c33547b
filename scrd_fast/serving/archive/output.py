"""What an archive run writes: a shard for each range of rows, and what was begun of others.

    archive.json    what these results are of; another run is refused
    scores/         shards: rows-000000000-000000999.parquet, the results of rows 0 to 999
    begun/          files of the same names: the results of their first rows, until all are there
    failed.csv, summary.json    when all is done

The name of a shard says which rows it holds, and it is written whole. So the names that are there
are all that a run needs to go on, and two that write the same shard replace each other's.
"""

import fcntl
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scrd_fast.errors import OutputError, expect
from scrd_fast.files import atomic_write, writing
from scrd_fast.report.tables import COLUMNS, make_schema
from scrd_fast.serving.archive.places import file_system, local_path

#: What `scrd-fast score` tells of an image, without what a manifest does not know.
RESULTS = tuple(name for name in COLUMNS if name not in (
    "image", "patient", "study", "series", "instance", "label", "group"))
RESULT_SCHEMA = make_schema(RESULTS)
#: Of a shard. row: the place in the manifest, from 0.
SCHEMA = pa.schema([("row", pa.int64()), ("id", pa.string()), ("path", pa.string()),
                    *RESULT_SCHEMA])
ABOUT, SCORES, BEGUN, SUMMARY, FAILED = (
    "archive.json", "scores", "begun", "summary.json", "failed.csv")

Range = tuple[int, int]  # its first row, and the one after its last


def shard_name(range_: Range) -> str:
    first, end = range_
    return f"rows-{first:09d}-{end - 1:09d}.parquet"


def make_table(rows: Sequence[Sequence[Any]], schema: Any) -> Any:
    """A pyarrow.Table of rows, the fields of the schema in each."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.Table.from_arrays([pa.array(column, field.type) for column, field in zip(
        columns, schema, strict=True)], schema=schema)


class Output:
    """The folder of an archive run, local or on another file system of fsspec."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._fs, self._root = file_system(place)
        self.local = local_path(place)

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of a local folder, and remove what a run that was killed was writing.

        Raises OutputError where another run is at work. Elsewhere there are no locks: two runs do
        the work twice, with the same results.
        """
        if self.local is None:
            yield
            return
        with writing(self.place):
            self.local.mkdir(parents=True, exist_ok=True)
            file = (self.local / ".lock").open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OutputError(f"{self.place}: expected a folder that no run is writing to, got"
                                  " one of a run that is at work") from error
            for folder in (".", SCORES, BEGUN):
                for left in (self.local / folder).glob(".scrd-*.part"):
                    left.unlink(missing_ok=True)
            yield

    def names(self, folder: str = "") -> set[str]:
        """Of the files in a folder; none where there is no such folder."""
        self._fs.invalidate_cache()  # others may write there
        try:
            found = self._fs.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return set()
        # Some file systems list a folder as if it were in itself.
        return {Path(each).name for each in found
                if each.strip("/") != self._at(folder).strip("/")}

    @contextmanager
    def put(self, name: str) -> Iterator[Path]:
        """A local path to write to; its file is `name`, whole, when the block ends well."""
        if self.local is not None:
            with atomic_write(self.local / name) as path:
                yield path
            return
        with tempfile.TemporaryDirectory(prefix="scrd-archive-") as folder:
            path = Path(folder) / "file"
            yield path
            with writing(f"{self.place}/{name}"):
                self._fs.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(self._at(name), path.read_bytes())

    def write_rows(self, folder: str, range_: Range, rows: list[tuple[Any, ...]]) -> None:
        """Write a file of results, the fields of SCHEMA in each."""
        name = f"{folder}/{shard_name(range_)}"
        with self.put(name) as path:
            pq.write_table(make_table(rows, SCHEMA), path)

    def read_rows(self, folder: str, range_: Range, columns: list[str] | None = None) -> Any:
        """The pyarrow.Table of a file of results, None where there is none.

        One that is not whole, as a file system without atomic writes may leave it, is removed.
        """
        name = f"{folder}/{shard_name(range_)}"
        try:
            with self._fs.open(self._at(name), "rb") as file:
                return pq.read_table(file, columns=columns)
        except FileNotFoundError:
            return None
        except pa.ArrowException:
            self._fs.rm_file(self._at(name))
            return None

    def remove(self, folder: str, range_: Range) -> None:
        """Remove a file of results; there may be none."""
        name = f"{folder}/{shard_name(range_)}"
        if shard_name(range_) in self.names(folder):
            self._fs.rm_file(self._at(name))

    def claim(self, about: dict[str, Any]) -> None:
        """Begin a run, or go on with one that wrote the same `about`; InputError for another."""
        found = {name for name in self.names() if not name.startswith(".")}
        if ABOUT not in found:
            expect(not found, "--out", "a folder that is empty, or one of this run", self.place)
            with self.put(ABOUT) as path:
                path.write_text(json.dumps(about, indent=1) + "\n")
            return
        with self._fs.open(self._at(ABOUT), "r") as file:
            before = json.load(file)
        differ = [name for name in about if before.get(name) != about[name]]
        expect(not differ, "--out", f"a new folder for another {' and another '.join(differ)}",
               f"{self.place}, begun with {', '.join(str(before.get(name)) for name in differ)}")
