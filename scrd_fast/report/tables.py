"""Tables as files and on standard output: CSV, JSON lines, Parquet."""

import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scrd_fast.errors import MissingExtra, OutputError, expect
from scrd_fast.files import atomic_write
from scrd_fast.report.rows import ScoreRow, write_json_line

Row = Sequence[Any]
KINDS = ("csv", "jsonl", "parquet")

_WEIGHTS = ("weight_1", "weight_2", "weight_3")
#: Of a table of scores: the fields of ScoreRow, its scale weights each on its own.
COLUMNS = ("image", "frame", "patient", "study", "series", "instance", "label", "group", "score",
           "p_value", "anomalous", *_WEIGHTS, "error")
_OTHERS = ("json", "tsv", "xls", "xlsx", "ods", "pq", "feather", "arrow", "gz", "zip")
_GROUP = 4096  # rows that Parquet keeps together, and that wait in memory


@contextmanager
def _open_lines(out: Path | None) -> Iterator[Callable[[str], None]]:
    """A call that writes a line: to a file, which is there when all are written, or to standard
    output at once.

    The names of files are there byte for byte, as the file system has them, whatever the encoding
    of the terminal.
    """
    with ExitStack() as stack:
        if out is None:
            sys.stdout.flush()
            file: Any = sys.stdout.buffer
        else:
            file = stack.enter_context(open(stack.enter_context(atomic_write(out)), "wb"))

        def write(line: str) -> None:
            file.write(os.fsencode(line + "\n"))
            if out is None:
                file.flush()

        yield write


@contextmanager
def open_table(out: Path | None) -> Iterator[Callable[[Row], None]]:
    """A call that writes a row of CSV to a file, or where there is none to standard output."""
    with _open_lines(out) as write:
        # With this terminator both of its characters are quoted where they are part of a name.
        line = SimpleNamespace(write=lambda text: write(text.removesuffix("\r\n")))
        yield csv.writer(line, lineterminator="\r\n").writerow


def write_table(rows: Iterable[Row], out: Path | None) -> None:
    """All rows at once, see `open_table`."""
    with open_table(out) as write:
        for row in rows:
            write(row)


def choose_kind(out: Path | None, as_json: bool) -> str:
    """Which of KINDS a table of scores is: by the end of its name, .jsonl or .parquet, else CSV.

    as_json: it is JSON lines whatever its name. Raises InputError and MissingExtra.
    """
    named = "" if out is None else out.suffix.lower().removeprefix(".")
    expect(named not in _OTHERS and out != Path("-"), "--out", "a name that ends in .csv, .jsonl,"
           " .ndjson or .parquet, or no --out for standard output", out)
    kind = "jsonl" if as_json or named == "ndjson" else named if named in KINDS else "csv"
    expect(not (as_json and named in ("csv", "parquet")), "--json",
           "a file of another name than .csv or .parquet", out)
    if kind == "parquet":
        _import_parquet()
    return kind


@contextmanager
def open_scores(out: Path | None, kind: str) -> Iterator[Callable[[ScoreRow], None]]:
    """A call that writes a row of a table of scores: to a file, which is there when all are
    written, or as CSV or JSON lines to standard output at once. kind: one of KINDS."""
    expect(kind in KINDS, "kind", f"one of {KINDS}", repr(kind))
    if kind == "jsonl":
        with _open_lines(out) as write_line:
            yield lambda row: write_line(write_json_line(row))
    elif kind == "csv":
        with open_table(out) as write:
            write(COLUMNS)
            yield lambda row: write([_show(each) for each in list_cells(row)])
    else:
        expect(out is not None, "out", "a file for a Parquet table", "none")
        assert out is not None
        with _open_parquet(out) as write_row:
            yield write_row


def list_cells(row: ScoreRow, columns: Sequence[str] = COLUMNS) -> list[Any]:
    """What a row has in these of COLUMNS."""
    values = vars(row) | dict(zip(_WEIGHTS, row.scale_weights or (None,) * 3, strict=True))
    return [values[name] for name in columns]


def make_schema(columns: Sequence[str] = COLUMNS) -> Any:
    """The pyarrow.Schema of these of COLUMNS; raises MissingExtra."""
    pa = _import_parquet()
    kinds = {"frame": pa.int32(), "label": pa.int8(), "anomalous": pa.bool_()} | dict.fromkeys(
        ("score", "p_value", *_WEIGHTS), pa.float32())
    return pa.schema([(name, kinds.get(name, pa.string())) for name in columns])


def _show(value: Any) -> Any:
    """Nothing where there is no value, 1 and 0 for true and false."""
    return "" if value is None else int(value) if isinstance(value, bool) else value


def _import_parquet() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("Parquet tables need pyarrow: pip install 'scrd-fast[tables]'"
                           ) from error
    return pyarrow


@contextmanager
def _open_parquet(out: Path) -> Iterator[Callable[[ScoreRow], None]]:
    """Bytes of paths that are no UTF-8, which Parquet's texts are, are written as \\xNN."""
    pa = _import_parquet()
    schema = make_schema()
    held: list[list[Any]] = []

    def write_group(writer: Any) -> None:
        columns = [list(column) for column in zip(*held, strict=True)] or [[] for _ in COLUMNS]
        arrays = [pa.array(map(_make_text, column), each.type)
                  for column, each in zip(columns, schema, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        held.clear()

    with atomic_write(out) as temporary:
        try:
            with pa.parquet.ParquetWriter(temporary, schema) as writer:
                def write(row: ScoreRow) -> None:
                    held.append(list_cells(row))
                    if len(held) == _GROUP:
                        write_group(writer)

                yield write
                write_group(writer)
        except pa.ArrowException as error:
            raise OutputError(f"{out}: cannot be written: {error}") from error


def _make_text(value: Any) -> Any:
    return value.encode(errors="surrogateescape").decode(errors="backslashreplace") if isinstance(
        value, str) else value
