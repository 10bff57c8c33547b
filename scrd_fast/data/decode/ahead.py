"""Files one after the other, decoded ahead by threads, and scaled series by series."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from scrd_fast.data.decode.image import DecodedImage, Unscaled
from scrd_fast.data.decode.intensity import find_limits
from scrd_fast.data.decode.read import FileRead, read_file
from scrd_fast.errors import DataError
from scrd_fast.machine import count_cores
from scrd_fast.spec import DecodingRule

# The codecs let go of the interpreter's lock; what is parsed in Python does not.
THREADS = count_cores()
AHEAD = 2 * THREADS  # files that are read while the results of another are used
AHEAD_BYTES = 2**28  # of all of them but one, as they are stored: a volume may be as large as many


@dataclass(frozen=True)
class Decoded:
    """What a file gave: its images, or why there are none.

    images: their pixels are float32 in [0, 1]; of pictures, what the file holds, in uint8, uint16
    or float32 in [0, 1]. remarks: what a user should know besides, naming the file.
    """

    path: Path
    images: tuple[DecodedImage, ...] = ()
    error: str | None = None
    remarks: tuple[str, ...] = ()


def decode_ahead(items: Iterable[Any], rule: DecodingRule) -> Iterator[Any]:
    """A Decoded for each path of `items`, in their order; what is no path comes back as it is.

    Threads read up to AHEAD files, or AHEAD_BYTES of them, beyond the one that is given out. What
    takes a whole series to be scaled waits for its end, which is where a file of another series
    follows: so much is in memory. A file that comes after the end of its series is an error; one
    that cannot be read ends none.
    """
    return _scale(_read_ahead(items, rule), rule)


def decode_file(path: Path, rule: DecodingRule) -> Decoded:
    """What a file gives that is its own series."""
    (found,) = _scale([read_file(path, rule)], rule)
    assert isinstance(found, Decoded)
    return found


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep what files leave, up to twice the largest block ever freed, for the next ones.

    Else it goes back to the system after each file, and each page of the next is mapped anew: 1.3
    of 2.5 ms that an uncompressed file of 512 x 512 takes.
    """
    np.empty(2**24, np.uint8)


def _read_ahead(items: Iterable[Any], rule: DecodingRule) -> Iterator[Any]:
    waiting: deque[tuple[Any, int]] = deque()  # with the sizes of files
    pool: ThreadPoolExecutor | None = None
    try:
        for item in items:
            if isinstance(item, Path):
                if pool is None:
                    _keep_freed_memory()
                    pool = ThreadPoolExecutor(THREADS, "decode")
                size = _size(item)
                while waiting and sum(each for _, each in waiting) + size > AHEAD_BYTES:
                    yield _wait(waiting.popleft()[0])
                waiting.append((pool.submit(read_file, item, rule), size))
            elif waiting:
                waiting.append((item, 0))
            else:
                yield item
            if len(waiting) > AHEAD:
                yield _wait(waiting.popleft()[0])
        while waiting:
            yield _wait(waiting.popleft()[0])
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # reading it says why
        return 0


def _wait(item: Any) -> Any:
    return item.result() if isinstance(item, Future) else item


def _scale(found: Iterable[Any], rule: DecodingRule) -> Iterator[Any]:
    held: list[FileRead] = []
    ended: set[str] = set()
    for each in found:
        if held and not _may_belong(each, held[0]):
            ended.add(_name_series(held[0]))
            yield from _scale_series(held, rule)
            held = []
        if held:
            held.append(each)
        elif not isinstance(each, FileRead):
            yield each
        elif not _waits(each):
            yield _as_decoded(each)
        elif _name_series(each) in ended:
            yield Decoded(each.path, error=f"{each.path}: expected the files of a series one after"
                          " the other, as percentiles are taken of all of them, got others in"
                          " between; give their folder")
        else:
            held.append(each)
    if held:
        yield from _scale_series(held, rule)


def _as_decoded(read: FileRead) -> Decoded:
    ready = tuple(each for each in read.images if isinstance(each, DecodedImage))
    return Decoded(read.path, ready, read.error, read.remarks)


def _waits(read: FileRead) -> bool:
    return not all(isinstance(each, DecodedImage) for each in read.images)


def _name_series(read: FileRead) -> str:
    return read.images[0].source.series or str(read.path)


def _may_belong(item: Any, first: FileRead) -> bool:
    """Whether an item is of the series of `first`, or a file that does not tell: one that is cut
    lies among the slices whose series goes on behind it."""
    return isinstance(item, FileRead) and (
        item.error is not None or _name_series(item) == _name_series(first))


def _scale_series(files: list[FileRead], rule: DecodingRule) -> Iterator[Decoded]:
    """The files of one series, of which the first waits, scaled by the percentiles of all of its
    pixels; among them others that do not wait, or cannot be read."""
    first, error, remarks = files[0].path, "", []
    waiting: list[Unscaled] = [each for read in files for each in read.images
                               if not isinstance(each, DecodedImage)]
    try:
        values = np.concatenate([each.values().astype(np.float32) for each in waiting])
        low, high = find_limits(values, rule.percentiles, "pixels of its series")
        del values
    except DataError as reason:
        error = str(reason)
    except MemoryError:
        error = "its series does not fit into memory"
    if any(each.names_no_window() for each in waiting):
        others = sum(map(_waits, files)) - 1
        more = f" and {others} more name" if others else " names"
        remarks.append(f"{first}{more} no window: scaled by the percentiles of the series; a rule"
                       " with a window of your own keeps what they hide")
    for read in files:
        if not _waits(read):
            yield _as_decoded(read)
        elif error:
            yield Decoded(read.path, (), f"{read.path}: {error}")
        else:
            yield Decoded(
                read.path, tuple(each if isinstance(each, DecodedImage) else each.between(low, high)
                                 for each in read.images),
                remarks=(*read.remarks, *(remarks if read is files[0] else ())))
