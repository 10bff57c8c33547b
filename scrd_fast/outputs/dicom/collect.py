"""Writing DICOM objects beside scoring, series by series."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from scrd_fast.data.decode.image import Source
from scrd_fast.data.decode.series import read_sources
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.stream import Scored
from scrd_fast.errors import DataError
from scrd_fast.files import writing
from scrd_fast.outputs.by_series import Group, collect_by_series, group_files, tell_shared
from scrd_fast.outputs.dicom.write import OBJECTS, check_options, write_dicom

_NOT_DICOM = "no DICOM objects of what is no DICOM file"


@contextmanager
def collect_dicom(
    folder: Path, engine: Engine, paths: Sequence[Path], notes: list[str], *,
    objects: Collection[str] = OBJECTS, uid_root: str | None = None,
    sources: Mapping[Path, Source] | None = None,
) -> Iterator[Callable[[Scored], None]]:
    """A call that takes the results of files one after the other, those too that are errors, and
    writes the DICOM objects of each series once all of its files are through; see write_dicom.

    folder: is made; its files are of all series and studies, as no two have one name. paths: all
    files that are scored, in their order. Series whose files do not follow each other are held side
    by side until they are complete. notes: gets lines that say what has no objects, or not all of
    them, and why: one for each series that write_dicom raises a DataError of, after which the
    others go on; and, when the block ends, one for each other reason, with the number of files and
    three of their names. sources: what read_sources says of `paths`, where it is read already.
    Raises what else write_dicom raises; then nothing more may be given, and no half series is
    written.
    """
    check_options(objects, uid_root)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    known = read_sources(paths) if sources is None else sources
    shared = defaultdict[str, list[Path]](list)

    def write(group: Group, items: list[Scored]) -> None:
        path = items[0].path
        assert path is not None
        if path not in known:
            if any(item.error is None for item in items):
                shared[_NOT_DICOM].append(path)
            return
        try:
            written = write_dicom(items, engine, folder, objects=objects, uid_root=uid_root)
        except DataError as error:
            notes.append(f"{error}; its series has no DICOM objects")
        else:
            for reason, files in written.notes.items():
                shared[reason] += files

    try:
        with collect_by_series(group_files(paths, known), write) as take:
            yield take
    finally:
        notes += tell_shared(shared)
