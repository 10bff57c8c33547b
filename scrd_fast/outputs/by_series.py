"""Results of scoring, held until all of a DICOM series, or of another file, are there."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from scrd_fast.data.decode.image import Source
from scrd_fast.data.layouts.tree import count, name_some
from scrd_fast.engine.stream import Scored
from scrd_fast.errors import DataError

#: The unique identifier of a series, or the path of a file that names none.
Group = str | Path
_SHARED = ("study", "series", "patient")


def group_files(paths: Iterable[Path], sources: Mapping[Path, Source]) -> dict[Path, Group]:
    """What each file belongs to, in their order; sources: what series.read_sources says of them."""
    return {path: (path in sources and sources[path].series) or path for path in paths}


@contextmanager
def collect_by_series(
    groups: Mapping[Path, Group], write: Callable[[Group, list[Scored]], None]
) -> Iterator[Callable[[Scored], None]]:
    """A call that takes the results of files one after the other, those too that are errors, and
    gives `write` all of a group once the last of its files is through.

    groups: see group_files, of all files that are scored, in their order. Groups whose files do not
    follow each other are held side by side until they are complete. Where `write` raises, all that
    is held is dropped: nothing more may be given, and the end of the block writes no half series.
    """
    ends = {group: path for path, group in groups.items()}
    held: dict[Group, list[Scored]] = {}
    current: Path | None = None

    def finish(group: Group) -> None:
        try:
            write(group, held.pop(group))
        except BaseException:
            held.clear()
            raise

    def take(item: Scored) -> None:
        nonlocal current
        assert item.path is not None
        last, current = current, item.path
        if last is not None and last != current and ends[groups[last]] == last:
            finish(groups[last])
        held.setdefault(groups[current], []).append(item)

    yield take
    for group in tuple(held):
        finish(group)


def check_shared(told: Sequence[tuple[Path, Sequence[object]]]) -> None:
    """Raise DataError for a file that is not of the first one's study, series and patient, which
    each file tells in this order."""
    first, wanted = told[0]
    for path, found in told:
        for name, one, other in zip(_SHARED, wanted, found, strict=True):
            if one != other:
                raise DataError(f"{path}: expected the {name} of {first}, got another")


def tell_shared(reasons: Mapping[str, Iterable[Path]]) -> list[str]:
    """A line for each reason with the number of the files that it goes for, three of them by name;
    the reason alone where it goes for none more than for others."""
    lines = []
    for reason, files in reasons.items():
        paths = list(dict.fromkeys(files))
        lines.append(f"{reason}: {count(len(paths), 'file')} ({name_some(None, paths)})"
                     if paths else reason)
    return lines
