"""What every official download has: files where they belong, tables to read, counts to check."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scrd_fast.data.layouts.rows import read_rows as rows_of_table
from scrd_fast.data.pictures.formats import HEAD, format_of
from scrd_fast.errors import DataError


@dataclass(frozen=True)
class Entry:
    """An image that may become part of the data set.

    path: relative to the download's folder. label: 0 normal, 1 anomalous. group: its class as the
    download calls it. split: where the download itself divides its images, else "".
    """

    path: Path
    label: int
    group: str
    patient: str | None = field(default=None, repr=False)
    split: str = ""


@dataclass(frozen=True)
class Download:
    """version: which of the known ones, by its counts. found, expected: images by class. whole: how
    many entries of each label the whole download has. tables: the files that labels and patients
    come from. remarks: what a user should know, one line each."""

    version: str
    found: Mapping[str, int]
    expected: Mapping[str, int]
    whole: Mapping[int, int]
    tables: tuple[Path, ...]
    entries: tuple[Entry, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """How many images a published split has: normal ones to train on, and both kinds to test."""

    train: int
    test_normal: int
    test_anomalous: int

    def per_part(self) -> dict[tuple[str, int], int]:
        """Map (split, label) to the number of images."""
        return {("train", 0): self.train, ("test", 0): self.test_normal,
                ("test", 1): self.test_anomalous}


def find(source: Path, *names: str) -> Path:
    """The first of `names`, paths below the folder `source`, that is there.

    Raises DataError that says what was expected where, and where it lies instead if that is near.
    """
    if not source.is_dir():
        raise DataError(f"{source}: expected the folder of the unpacked download, got"
                        f" {'a file' if source.exists() else 'no such place'}")
    for name in names:
        if (source / name).exists():
            return source / name
    hint = ""
    children = _list(source)
    archives = [name for name in children if name.endswith(".zip")]
    if archives:
        hint = f"; is it in {', '.join(archives[:3])}? Unpack it"
    for name in names:
        inside = [each for each in children if (source / each / name).exists()]
        if inside:
            hint = f"; it lies in {source / inside[0]}: give that folder"
    raise DataError(f"{source}: expected {' or '.join(names)} in it, got none{hint}")


def list_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Map the stems of the files in a folder with that suffix, in any case, to their paths."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of {suffix} files, got a file")
    return {Path(name).stem: folder / name for name in _list(folder)
            if Path(name).suffix.lower() == suffix}


def _list(folder: Path) -> list[str]:
    """The names in a folder, sorted, but for hidden ones."""
    try:
        with os.scandir(folder) as listing:
            return sorted(entry.name for entry in listing if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error


def is_picture(head: bytes) -> bool:
    """Whether a file begins as a PNG, JPEG, TIFF or BMP does, whatever it is called."""
    return format_of(head[:HEAD]) is not None


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table with a header, of which `columns` are taken; see rows.read_rows.

    Raises DataError naming the file, and the row (the header's is 1) where one is at fault.
    """
    found, rows = rows_of_table(path)
    missing = [name for name in columns if name.lower() not in found]
    if missing:
        raise DataError(f"{path}: expected the columns {', '.join(columns)}, got none called"
                        f" {', '.join(missing)}")
    if not rows:
        raise DataError(f"{path}: expected rows below the header, got none")
    return [{name: row[name.lower()] for name in columns} for _, row in rows]



def check_named(folder: Path, files: Collection[str], known: Collection[str], table: Path) -> None:
    """Raise DataError where a folder holds files that no row of its table names."""
    unknown = sum(stem not in known for stem in files)
    if unknown:
        raise DataError(f"{folder}: expected only files that a row of {table} names, got {unknown}"
                        " others")


def find_version(
    source: Path, versions: Mapping[str, Mapping[str, int]], found: Mapping[str, int],
    partial: bool,
) -> str:
    """Which of the known versions of a download this is, by its number of images per class.

    With `partial`, one that has at least as many images of every class. Raises DataError that
    tells expected and found counts of the classes that differ.
    """
    for version, counts in versions.items():
        if found == counts or (partial and all(found[name] <= counts[name] for name in counts)):
            return version
    version = min(versions, key=lambda each: sum(abs(count - found[name])
                                                 for name, count in versions[each].items()))
    differing = [f"{name}: expected {count}, got {found[name]}"
                 for name, count in versions[version].items() if found[name] != count]
    missing = any(found[name] < count for name, count in versions[version].items())
    advice = "; prepare what there is with partial=True (--partial)" if missing and not partial \
        else ""
    raise DataError(f"{source}: expected the whole download, {version}, got other numbers of"
                    f" images: {'; '.join(differing)}{advice}")
