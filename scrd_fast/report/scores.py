"""Scores of image files as a CSV table, with overlays on request."""

import csv
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from scrd_fast.data.images import read_image
from scrd_fast.engine.engine import FILES, Engine, Result, join
from scrd_fast.errors import ScrdError
from scrd_fast.files import atomic_write
from scrd_fast.progress import Progress, silent
from scrd_fast.report.overlays import write_overlays


def table_rows(
    names: list[str], result: Result, labels: list[str] | None = None
) -> list[list[Any]]:
    """Rows with a header: image, label where known, score, and where the engine is calibrated
    p_value and anomalous, 1 or 0.

    Numbers are the shortest that read back as the same float32. What an image that could not be
    read has no value for stays empty.
    """
    anomalous = None if result.anomalous is None else result.anomalous.astype(np.uint8)
    optional = {"p_value": result.p_values, "anomalous": anomalous}
    known = {name: values for name, values in optional.items() if values is not None}
    rows: list[list[Any]] = [["image", *(["label"] if labels else []), "score", *known]]
    for i, name in enumerate(names):
        read = bool(np.isfinite(result.scores[i]))
        cells = [str(result.scores[i]), *(str(values[i]) for values in known.values())]
        rows.append([name, *([labels[i]] if labels else []),
                     *(cells if read else [""] * len(cells))])
    return rows


def write_table(rows: list[list[Any]], out: Path | None) -> None:
    """Rows as CSV to a file, atomically, or to standard output.

    The names of files are there byte for byte, as the file system has them, whatever the encoding
    of the terminal.
    """
    lines: list[str] = []
    # With this terminator both of its characters are quoted where they are part of a name.
    csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n").writerows(rows)
    table = os.fsencode("".join(line.removesuffix("\r\n") + "\n" for line in lines))
    if out is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(table)
        sys.stdout.buffer.flush()
        return
    with atomic_write(out) as temporary:
        temporary.write_bytes(table)


def score_files(
    engine: Engine, paths: list[Path], *, out: Path | None, overlays: Path | None,
    progress: Progress = silent,
) -> list[str]:
    """Score files, write table and overlays; returns why each unreadable file was left out.

    An overlay that cannot be written ends the drawing; it is raised once the table is written.
    """
    parts: list[Result] = []
    errors: list[str] = []
    not_drawn: ScrdError | None = None
    for start in range(0, len(paths), FILES):
        draw = overlays is not None and not_drawn is None
        part = engine.score(paths[start : start + FILES], maps=draw)
        errors += part.errors.values()
        read = [i for i in range(len(part.scores)) if i not in part.errors]
        if overlays is not None and part.maps is not None and read:
            names = [f"{start + i:05d}_{paths[start + i].stem}" for i in read]
            try:
                write_overlays(overlays, names, [read_image(paths[start + i]) for i in read],
                               part.maps[read])
            except ScrdError as error:
                not_drawn = error
        parts.append(part)
        progress(min(start + FILES, len(paths)), len(paths), "scoring")
    joined = join(parts)
    write_table(table_rows([str(p) for p in paths], joined), out)
    if not_drawn is not None:
        raise not_drawn
    return errors
