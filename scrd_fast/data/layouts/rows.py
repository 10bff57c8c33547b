"""Rows of a text table (CSV, TSV): a header, then cells."""

import csv
import io
import os
import re
from collections import Counter
from pathlib import Path

from scrd_fast.errors import DataError

Row = dict[str, str]
_OTHER_BYTES = re.compile("[\udc80-\udcff]")  # as which "surrogateescape" keeps what is no UTF-8


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """The columns of a UTF-8 table, and its rows with their number as a spreadsheet counts them:
    the header is row 1.

    Comma, semicolon or tab, whichever the header has most of, separates cells. Names of columns are
    in lower case and, like cells, without spaces around. Empty rows are left out. A cell that
    is not UTF-8 is taken if it names a file, relative to the table's folder, byte for byte. Raises
    DataError that names the file and the row.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    header = text.strip().partition("\n")[0]
    lines = csv.reader(io.StringIO(text, newline=None), strict=True, skipinitialspace=True,
                       delimiter=max(",;\t", key=header.count))
    columns: list[str] = []
    rows = []
    number = 0
    try:
        for number, cells in enumerate(lines, 1):
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if any(_OTHER_BYTES.search(cell) and not os.path.isfile(path.parent / cell)
                   for cell in cells):
                raise DataError(f"{path}: expected a table in UTF-8, got another encoding; save it"
                                " as \"CSV UTF-8\"")
            if not columns:
                columns = name_columns(path, cells)
                continue
            if len(cells) != len(columns):
                raise DataError(f"{path}: row {number}: expected {len(columns)} cells as in the"
                                f" header, got {len(cells)}")
            rows.append((number, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}: row {number + 1}: expected cells separated alike, got: {error}"
                        ) from None
    if not columns:
        raise DataError(f"{path}: expected a table with a header, got an empty file")
    return columns, rows


def name_columns(path: Path, cells: list[str]) -> list[str]:
    """The columns' names as they are looked for; DataError where two are the same."""
    columns = [cell.strip().lower() for cell in cells]
    twice = [name for name, times in Counter(columns).items() if times > 1 and name]
    if twice:
        raise DataError(f"{path}: expected each column once, got {twice[0]!r} twice")
    return columns
