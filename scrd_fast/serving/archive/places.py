"""Where files are: local paths and URLs of fsspec; copying what is not here."""

import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from scrd_fast.errors import InputError, expect

_AHEAD = 8  # files that are copied while others are scored


def is_url(place: str) -> bool:
    """Whether this is for fsspec to find, such as s3://bucket/name or zip://name::archive.zip."""
    return "://" in place


def absolute(place: str) -> str:
    """The same place for a process in another working directory."""
    return place if is_url(place) else os.path.abspath(place)


def file_system(place: str) -> tuple[Any, str]:
    """The file system of fsspec that a place is on, and its path there. InputError where there is
    none of that name, or its package is missing."""
    if not is_url(place):
        return LocalFileSystem(), absolute(place)
    try:
        return url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise InputError(f"{place}: expected a path or a URL that fsspec knows, got: {error}"
                         ) from error


def local_path(place: str) -> Path | None:
    """The path of a file on this machine; None of one elsewhere."""
    if is_url(place) and not place.startswith("file://"):
        return None
    return Path(file_system(place)[1])


def copy_file(url: str, target: Path) -> None:
    """Copy a file of any file system to a local one."""
    fs, path = file_system(url)
    fs.get_file(path, str(target))


class Copies:
    """Files as local ones: those of other file systems are copied ahead by threads, and removed
    when they were used. Leaving the `with` block removes all."""

    def __init__(self) -> None:
        #: Why files could not be copied, by the paths that were given in their stead.
        self.failed: dict[Path, str] = {}
        self._folder: Any = None  # there is none where nothing is copied
        self._pool = ThreadPoolExecutor(_AHEAD, "copy")
        self._names = count()

    def __enter__(self) -> "Copies":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._folder is not None:
            self._folder.cleanup()

    def paths(self, places: Iterable[str]) -> Iterator[Path]:
        """A local path for each place, in their order; there is no file where copying failed."""
        waiting: deque[Any] = deque()
        for place in places:
            here = local_path(place)
            if here is None and self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="scrd-archive-")
            waiting.append(here or self._pool.submit(self._copy, place))
            if len(waiting) > _AHEAD:
                yield _wait(waiting.popleft())
        while waiting:
            yield _wait(waiting.popleft())

    def fetch(self, place: str) -> Path:
        """A local path for one place; InputError where copying failed."""
        (path,) = self.paths([place])
        expect(path not in self.failed, place, "a file", self.failed.get(path))
        return path

    def remove(self, path: Path) -> None:
        """Remove a copy; another file stays."""
        if self._folder is not None and path.parent == Path(self._folder.name):
            path.unlink(missing_ok=True)

    def _copy(self, url: str) -> Path:
        # The suffix alone: a name may be a patient's.
        suffix = "".join(PurePosixPath(url.partition("::")[0]).suffixes[-2:])
        path = Path(self._folder.name) / f"{next(self._names)}{suffix}"
        try:
            copy_file(url, path)
        except Exception as error:  # each file system has its own kinds
            path.unlink(missing_ok=True)
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            self.failed[path] = f"cannot be fetched: {' '.join(reason.split())[:200]}"
        return path


def _wait(item: Any) -> Path:
    return item if isinstance(item, Path) else item.result()
