"""A table that names the images: CSV, TSV or Parquet, with a row for each."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scrd_fast.data.layouts.items import SPLITS, Found, Item, choose_split
from scrd_fast.data.layouts.rows import Row, name_columns, read_rows
from scrd_fast.data.layouts.tree import SPLIT_FOLDERS
from scrd_fast.errors import DataError, MissingExtra

SUFFIXES = (".csv", ".tsv", ".parquet")
COLUMNS = ("path", "label", "mask", "patient", "split", "group")
PARQUET = b"PAR1"  # the first bytes of such a file
_LABELS = {"": None, "0": 0, "0.0": 0, "normal": 0, "good": 0,
           "1": 1, "1.0": 1, "anomalous": 1, "abnormal": 1, "anomaly": 1}
_LISTED = 10  # bad rows are named one by one, up to so many


def read(where: Path) -> Found:
    """The images of a table; paths are relative to its folder.

    path: the column that must be there. label: 0 or 1, normal or anomalous, or empty. split: one of
    SPLITS in each row; without the column, items.choose_split decides. mask, patient and group may
    be empty. Raises DataError that names the rows, by number, that cannot be used, and MissingExtra
    for Parquet without pyarrow.
    """
    columns, rows = _read_parquet(where) if is_parquet(where) else read_rows(where)
    if "path" not in columns:
        raise DataError(f"{where}: expected a column path (and any of {', '.join(COLUMNS[1:])}),"
                        f" got {', '.join(columns)}")
    if not rows:
        raise DataError(f"{where}: expected at least one row below the header, got none")
    labels = [_LABELS.get(row.get("label", "").lower()) for _, row in rows]
    split = None if "split" in columns else choose_split(labels)
    items, reasons, first = [], [], dict[str, int]()
    for number, row in rows:
        reason = _find_fault(where.parent, row, split is None)
        path = where.parent / row["path"]
        if not reason and first.setdefault(os.path.abspath(path), number) != number:
            reason = f"path: the file of row {first[os.path.abspath(path)]} again: {row['path']!r}"
        if reason:
            reasons.append(f"row {number}: {reason}")
            continue
        items.append(_read_item(where.parent, row, split))
    if reasons:
        more = f"; and {len(reasons) - _LISTED} more" if len(reasons) > _LISTED else ""
        raise DataError(f"{where}: {len(reasons)} of {len(rows)} rows cannot be used:"
                        f" {'; '.join(reasons[:_LISTED])}{more}")
    return Found(items, _remark(columns, split))


def find_in(folder: Path) -> Path | None:
    """The table that lies in a folder as `data.csv`, if it has a column path: what the folders
    mean is then for it to say."""
    where = folder / "data.csv"
    if not where.is_file():
        return None
    with where.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline(10_000)
    return where if "path" in re.split(r"[\s\"]*[,;\t\n][\s\"]*", f",{header.lower()},") else None


def is_parquet(where: Path) -> bool:
    with where.open("rb") as file:
        return file.read(len(PARQUET)) == PARQUET


def _find_fault(folder: Path, row: Row, told: bool) -> str:
    """What is wrong with a row, or ""."""
    if not row["path"]:
        return "path: expected a file, got an empty cell"
    for column in ("path", "mask"):
        name = row.get(column, "")
        if name and not os.path.isfile(folder / name):
            kind = "a folder" if os.path.isdir(folder / name) else "no such file"
            return f"{column}: expected a file, got {kind}: {name!r}"
    if row.get("label", "").lower() not in _LABELS:
        return f"label: expected 0, 1, normal, anomalous or nothing, got {row['label']!r}"
    if told and row["split"].lower() not in SPLIT_FOLDERS:
        return f"split: expected one of {', '.join(SPLITS)}, got {row['split']!r}"
    if told and SPLIT_FOLDERS[row["split"].lower()] == "train" and (
            _LABELS[row.get("label", "").lower()] == 1):
        return "label: expected a normal image in split train, got an anomalous one"
    return ""


def _read_item(folder: Path, row: Row, split: str | None) -> Item:
    return Item(folder / row["path"], _LABELS[row.get("label", "").lower()],
                folder / row["mask"] if row.get("mask") else None, row.get("patient") or None,
                split or SPLIT_FOLDERS[row["split"].lower()], row.get("group") or None)


def _remark(columns: Iterable[str], split: str | None) -> list[str]:
    others = [name for name in columns if name not in COLUMNS]
    remarks = [f"columns not used: {', '.join(others)}"] if others else []
    if split == "test":
        remarks.append("no column split: all images are for testing, for some are anomalous")
    return remarks


def _read_parquet(where: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """As rows.read_rows, of a Parquet file; rows count from 1, for there is no header."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{where}: expected pyarrow, got none; Parquet tables need it:"
                           " pip install 'scrd-fast[tables]'") from error
    try:
        with ParquetFile(where) as file:
            names = file.schema_arrow.names
            columns = name_columns(where, names)
            used = {column: name for column, name in zip(columns, names, strict=True)
                    if column in COLUMNS}  # others may hold the images themselves
            cells = file.read(columns=list(used.values())).to_pydict()
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: expected a Parquet table, got a file that is cut or damaged:"
                        f" {reason}") from error
    texts = {column: [_as_text(cell) for cell in cells[name]] for column, name in used.items()}
    rows = [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]
    return columns, list(enumerate(rows, 1))


def _as_text(cell: Any) -> str:
    """A cell as it would stand in a CSV; null and NaN are empty."""
    return "" if cell is None or cell != cell else str(cell).strip()
