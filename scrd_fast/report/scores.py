"""Scores of image files as a CSV table, with overlays on request."""

import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from scrd_fast.engine.engine import Engine, Result
from scrd_fast.engine.stream import Scored
from scrd_fast.errors import ScrdError, expect
from scrd_fast.files import atomic_write
from scrd_fast.progress import Progress, silent
from scrd_fast.report.overlays import Overlays, collect_overlays

Row = Sequence[Any]


def _header(*, framed: bool = False, labelled: bool = False, calibrated: bool) -> Row:
    return ["image", *(["frame"] if framed else []), *(["label"] if labelled else []), "score",
            *(["p_value", "anomalous"] if calibrated else [])]


def _row(names: Sequence[str], score: Any, p_value: Any, anomalous: Any) -> Row:
    """What the image is, by one cell or more, and what was found.

    Numbers are the shortest that read back as the same float32; what an image that could not be
    read has no value for stays empty.
    """
    cells = [str(score), *([] if p_value is None else [str(p_value), str(int(anomalous))])]
    return [*names, *(cells if np.isfinite(score) else [""] * len(cells))]


def table_rows(
    names: list[str], result: Result, labels: list[str] | None = None
) -> Iterable[Row]:
    """Rows with a header: image, label where known, score, and where the engine is calibrated
    p_value and anomalous, 1 or 0."""
    yield _header(labelled=labels is not None, calibrated=result.p_values is not None)
    for i, name in enumerate(names):
        yield _row([name] if labels is None else [name, labels[i]], result.scores[i],
                   None if result.p_values is None else result.p_values[i],
                   None if result.anomalous is None else result.anomalous[i])


@contextmanager
def open_table(out: Path | None) -> Iterator[Callable[[Row], None]]:
    """A call that writes a row of CSV: to a file, which is there when all are written, or to
    standard output at once.

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
            file.write(os.fsencode(line.removesuffix("\r\n") + "\n"))
            if out is None:
                file.flush()

        # With this terminator both of its characters are quoted where they are part of a name.
        yield csv.writer(SimpleNamespace(write=write), lineterminator="\r\n").writerow


def write_table(rows: Iterable[Row], out: Path | None) -> None:
    """All rows at once, see `open_table`."""
    with open_table(out) as write:
        for row in rows:
            write(row)


def score_files(
    engine: Engine, paths: Sequence[Path], *, out: Path | None, overlays: Path | None,
    refused: Mapping[Path, str] | None = None, each: Callable[[Scored], None] | None = None,
    progress: Progress = silent,
) -> dict[Path, str]:
    """Score files, write table and overlays; returns the files that were not scored, and why.

    The table's column "frame" is the number of an image in a file of several. refused: files that
    are not to be scored, and why; they have a row, too. each: is given every image that was
    scored, with its map. Overlays are drawn once the table is written.
    """
    failed = dict(refused or {})
    files = 0
    with ExitStack() as stack:
        drawn: Overlays | None = None
        not_drawn: ScrdError | None = None
        if overlays is not None:
            drawn = stack.enter_context(collect_overlays(overlays))
        with open_table(out) as write:
            write(_header(framed=True, calibrated=engine.decisions is not None))
            last = None
            for item in engine.stream(paths, maps=drawn is not None or each is not None):
                assert item.source is not None
                frame = item.source.frame
                write(_row([str(item.path), "" if frame is None else str(frame)], item.score,
                           item.p_value, item.anomalous))
                if item.error is not None:
                    failed[item.source.path] = item.error
                elif each is not None:
                    each(item)
                if item.error is None and drawn is not None and not_drawn is None:
                    assert item.map is not None
                    try:
                        drawn.add(_name_overlay(item), item.image, item.map)
                    except ScrdError as error:  # a full disk: the table is worth more
                        not_drawn = error
                files, last = files + (item.path != last), item.path
                progress(files, len(paths), "scoring")
            for path in refused or ():
                calibrated = engine.decisions is not None
                write(_row([str(path), ""], np.nan, np.nan if calibrated else None, False))
        if not_drawn is not None:
            raise not_drawn
        if drawn is not None:
            progress(0, 1, "drawing overlays")
            drawn.write()
    return failed


def _name_overlay(item: Scored) -> str:
    assert item.source is not None
    frame = "" if item.source.frame is None else f"_{item.source.frame}"
    return f"{item.index:05d}_{item.source.path.stem}{frame}"


_FAILED = ("file", "reason")


def check_failed(out: Path) -> None:
    """Raise InputError where a file of another kind is in the place of the table of failed ones."""
    try:
        with out.open("rb") as file:
            found = file.readline(100).strip()
    except OSError:  # there is none, or writing it says why it cannot be
        return
    expect(found in (b"", ",".join(_FAILED).encode()), str(out), "none, or a table of files that"
           " failed before; --failed names another place", "another file")


def write_failed(failed: Mapping[Path, str], out: Path) -> None:
    """The files that were not scored as CSV: file, reason. Without such a file only replaces an
    older table, which would tell of other files."""
    if failed or out.exists():
        write_table([_FAILED, *([str(path), reason.removeprefix(f"{path}: ")]
                                for path, reason in failed.items())], out)
