"""Scores of image files as a CSV table, with overlays on request."""

import csv
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from scrd_fast.data.images import read_image
from scrd_fast.engine.engine import FILES, Engine, Result, join
from scrd_fast.files import atomic_write
from scrd_fast.report.overlays import write_overlays


def table_rows(
    names: list[str], result: Result, labels: list[str] | None = None
) -> list[list[Any]]:
    """Rows with a header: image, label where known, score, and where the engine is calibrated
    p_value and anomalous, 1 or 0.

    What an image that could not be read has no value for stays empty.
    """
    optional = {"p_value": result.p_values, "anomalous": result.anomalous}
    known = {name: values for name, values in optional.items() if values is not None}
    rows: list[list[Any]] = [["image", *(["label"] if labels else []), "score", *known]]
    for i, name in enumerate(names):
        read = bool(np.isfinite(result.scores[i]))
        cells = [f"{result.scores[i]:.6f}",
                 *(f"{float(values[i]):.4g}" for values in known.values())]
        rows.append([name, *([labels[i]] if labels else []),
                     *(cells if read else [""] * len(cells))])
    return rows


def write_table(rows: list[list[Any]], out: Path | None) -> None:
    """Rows as CSV to a file, atomically, or to standard output."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    if out is None:
        sys.stdout.write(text.getvalue())
        return
    with atomic_write(out) as temporary:
        temporary.write_text(text.getvalue())


def score_files(
    engine: Engine, paths: list[Path], *, out: Path | None, overlays: Path | None
) -> list[str]:
    """Score files, write table and overlays; returns why each unreadable file was left out."""
    from rich.console import Console
    from rich.progress import track

    parts: list[Result] = []
    errors: list[str] = []
    for start in track(range(0, len(paths), FILES), description="scoring",
                       console=Console(stderr=True), transient=True):
        part = engine.score(paths[start : start + FILES], maps=overlays is not None)
        errors += part.errors.values()
        if overlays is not None and part.maps is not None:
            read = [i for i in range(len(part.scores)) if i not in part.errors]
            if read:
                names = [f"{start + i:05d}_{paths[start + i].stem}" for i in read]
                write_overlays(overlays, names, [read_image(paths[start + i]) for i in read],
                               part.maps[read])
        parts.append(part)
    joined = join(parts)
    write_table(table_rows([str(p) for p in paths], joined), out)
    return errors
