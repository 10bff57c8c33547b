"""Writing DICOM objects beside scoring, series by series."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scrd_fast.data.decode.series import read_sources
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.stream import Scored
from scrd_fast.errors import DataError, ScrdError
from scrd_fast.files import writing
from scrd_fast.outputs.dicom.write import OBJECTS, check_options, write_dicom


@contextmanager
def collect_dicom(
    folder: Path, engine: Engine, paths: Sequence[Path], notes: list[str], *,
    objects: Collection[str] = OBJECTS, uid_root: str | None = None,
) -> Iterator[Callable[[Scored], None]]:
    """A call that takes the results of files one after the other, those too that are errors, and
    writes the DICOM objects of each series once all of its files are through; see write_dicom.

    folder: is made; its files are of all series and studies, as no two have one name. paths: all
    files that are scored, in their order. Series whose files do not follow each other are held side
    by side until they are complete. notes: gets lines, each with the name of a file, that say what
    has no objects, or not all of them, and why: what is no DICOM file, what write_dicom notes, and
    its DataError of a series, after which the others go on. Raises what else write_dicom raises.
    """
    check_options(objects, uid_root)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    series = {path: source.series or str(path) for path, source in read_sources(paths).items()}
    ends = {series[path]: path for path in paths if path in series}
    held: dict[str, list[Scored]] = {}
    current: Path | None = None

    def write(name: str) -> None:
        items = held.pop(name)
        try:
            written = write_dicom(items, engine, folder, objects=objects, uid_root=uid_root)
        except DataError as error:
            notes.append(f"{error}; its series lacks DICOM objects")
        except ScrdError:
            held.clear()  # whoever goes on without objects may give no more of the others
            raise
        else:
            notes.extend(f"{items[0].path}: {note}" for note in written.notes)

    def take(item: Scored) -> None:
        nonlocal current
        path = item.path
        assert path is not None
        if current in series and current != path and ends[series[current]] == current:
            write(series[current])
        current = path
        if path in series:
            held.setdefault(series[path], []).append(item)
        elif item.error is None:
            notes.append(f"{path}: no DICOM objects: expected a DICOM file, got another")

    yield take
    for name in list(held):
        write(name)
