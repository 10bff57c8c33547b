"""Scoring files: a row for each image, and whatever else is made of it; files that failed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scrd_fast.data.layouts import Item
from scrd_fast.data.to_score import ToScore
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.stream import Scored
from scrd_fast.errors import ScrdError, expect
from scrd_fast.progress import Progress, silent
from scrd_fast.report.file_names import name_after
from scrd_fast.report.rows import ScoreRow, make_row
from scrd_fast.report.tables import write_table

if TYPE_CHECKING:
    from scrd_fast.report.overlays import Overlays
    from scrd_fast.report.run_folder import Add

Take = Callable[[ScoreRow, Scored | None], None]


@contextmanager
def keep_apart(
    outputs: Sequence[AbstractContextManager[Take]], errors: list[ScrdError]
) -> Iterator[Take]:
    """A call that gives what it is given to each of the outputs, of which one may fail alone.

    An output that raises a ScrdError, as on a full disk, is ended and given no more; the others go
    on, and `errors` gets it. One that cannot begin raises it.
    """
    live: dict[AbstractContextManager[Take], Take] = {}

    def end(output: AbstractContextManager[Take], error: BaseException | None) -> None:
        del live[output]
        try:
            output.__exit__(None if error is None else type(error), error,
                            None if error is None else error.__traceback__)
        except ScrdError as late:
            if error is None:  # else the first error is told
                errors.append(late)

    def take(row: ScoreRow, item: Scored | None) -> None:
        for output, call in tuple(live.items()):
            try:
                call(row, item)
            except ScrdError as error:
                errors.append(error)
                end(output, error)

    try:
        for output in outputs:
            live[output] = output.__enter__()
        yield take
    except BaseException as error:
        for output in tuple(live):
            end(output, error)
        raise
    for output in tuple(live):
        end(output, None)


def score_files(
    engine: Engine, found: ToScore, write: Callable[[ScoreRow], None], *,
    take: Take | None = None, distances: bool = False, progress: Progress = silent,
) -> dict[Path, str]:
    """Score files and write a row for each of their images, and for each file that is refused.

    take: is given every row, too, with its image, map and, where they are asked for, distances; no
    image with a file that is refused. Returns the files that were not scored, with the reasons.
    """
    failed = dict(found.refused)
    files, last = 0, None
    for item in engine.stream(found.paths, maps=take is not None, distances=distances):
        assert item.source is not None
        path = item.source.path
        known = found.items.get(path)
        row = make_row(item) if known is None else make_row(
            item, patient=known.patient, label=_label(known, item), group=known.group)
        write(row)
        if item.error is not None:
            failed[path] = item.error
        if take is not None:
            take(row, item)
        files, last = files + (path != last), path
        progress(files, len(found.paths), "scoring")
    for path, reason in found.refused.items():
        row = ScoreRow(str(path), error=reason.removeprefix(f"{path}: "))
        write(row)
        if take is not None:
            take(row, None)
    return failed


@contextmanager
def keep_run(collected: "AbstractContextManager[Add]") -> Iterator[Take]:
    """An output that keeps every row in the folder of a run, see collect_run."""
    with collected as add:
        yield lambda row, item: (add(row, None, None, None) if item is None or row.error else
                                 add(row, item.image, item.map, item.distances))


def _label(known: Item, item: Scored) -> int | None:
    """Of an image; of an anomalous file with several images nobody knows which of them are."""
    assert item.source is not None
    return None if known.label == 1 and item.source.frame is not None else known.label


def draw_overlay(drawn: "Overlays", item: Scored) -> None:
    """Add the overlay of an image of a file that was scored, named by its place and its file."""
    if item.error is not None:
        return
    assert item.source is not None
    assert item.map is not None
    frame = "" if item.source.frame is None else f"_{item.source.frame}"
    drawn.add(f"{item.index:05d}_{name_after(item.source.path)}{frame}", item.image, item.map)


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
