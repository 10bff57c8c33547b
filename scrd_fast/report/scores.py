"""Scoring files: a row for each image, and whatever else is made of it; files that failed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scrd_fast.data.to_score import ToScore
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.stream import Scored
from scrd_fast.errors import ScrdError, expect
from scrd_fast.progress import Progress, silent
from scrd_fast.report.overlays import Overlays
from scrd_fast.report.rows import ScoreRow, make_row
from scrd_fast.report.tables import write_table

Take = Callable[[ScoreRow, Scored], None]


def score_files(
    engine: Engine, found: ToScore, write: Callable[[ScoreRow], None], *,
    take: Sequence[Take] = (), distances: bool = False, progress: Progress = silent,
) -> tuple[dict[Path, str], list[ScrdError]]:
    """Score files and write a row for each of their images, and for each file that is refused.

    take: each is given every row with its image, map and, where they are asked for, distances. One
    that raises a ScrdError, as on a full disk, is given no more: the table is worth more. Returns
    the files that were not scored, with the reasons, and those errors.
    """
    failed, errors = dict(found.refused), list[ScrdError]()
    takers, files, last = list(take), 0, None
    for item in engine.stream(found.paths, maps=bool(takers), distances=distances):
        assert item.source is not None
        path = item.source.path
        known = found.items.get(path)
        row = make_row(item) if known is None else make_row(
            item, patient=known.patient, label=known.label, group=known.group)
        write(row)
        if item.error is not None:
            failed[path] = item.error
        for each in tuple(takers):
            try:
                each(row, item)
            except ScrdError as error:
                takers.remove(each)
                errors.append(error)
        files, last = files + (path != last), path
        progress(files, len(found.paths), "scoring")
    for path, reason in found.refused.items():
        write(ScoreRow(str(path), error=reason.removeprefix(f"{path}: ")))
    return failed, errors


def draw_overlay(drawn: Overlays, item: Scored) -> None:
    """Add the overlay of an image of a file that was scored, named by its place and its file."""
    if item.error is not None:
        return
    assert item.source is not None
    assert item.map is not None
    frame = "" if item.source.frame is None else f"_{item.source.frame}"
    drawn.add(f"{item.index:05d}_{item.source.path.stem}{frame}", item.image, item.map)


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
