"""Paths from users, and writing files so that a reader never sees half of one."""

import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scrd_fast.errors import OutputError, expect, fail

Contents = bytes | memoryview  # of a file or a part of it; a view where it is mapped
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_PREFIX, _SUFFIX = ".scrd-", ".part"  # of temporary files; not the name: it may be as long as any


def as_path(value: Any, argument: str) -> Path:
    """The path in a str, bytes or PathLike; raises InputError for anything else."""
    try:
        path = os.fsdecode(value)
    except TypeError:
        fail(argument, "a path", type(value).__name__)
    if "\0" in path:
        fail(argument, "a path", repr(path))
    return Path(path)


def _place(path: Path, *, folder: bool) -> Path:
    """Where `path` leads through symbolic links; raises OSError where another kind of thing is."""
    real = Path(os.path.realpath(path))
    try:
        mode = real.stat().st_mode
    except FileNotFoundError:
        return real
    if folder and not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, "expected a folder, got a file")
    if not folder and stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "expected a file, got a folder")
    if not folder and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "expected a file, got a device or a pipe")
    return real


def check_name(name: str, argument: str) -> None:
    """Raise InputError unless a model can be called so by every server, and a folder for it."""
    expect(_NAME.fullmatch(name) is not None, argument,
           "a name of letters, digits, '_', '-' and '.'", repr(name[:60]))


def is_path(value: Any) -> bool:
    """Whether this is what `as_path` takes."""
    return isinstance(value, str | bytes | os.PathLike)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise OutputError, which begins with `path`, for what the file system refuses inside."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it into place when the block ends well.

    A symbolic link stays one: what it points to is replaced. Where the block or the disk fails the
    sibling is removed and an older file at `path` stays as it was. Raises OutputError for what the
    file system refuses.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        with writing(path):
            real = _place(path, folder=False)
            real.parent.mkdir(parents=True, exist_ok=True)
            # Named before it is there, so that an interrupt at any moment leaves none.
            temporary = real.parent / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
            # The system takes the umask off; asking for it would set it, for all threads.
            number = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            mode = stat.S_IMODE(os.fstat(number).st_mode)
            os.close(number)
            temporary.chmod(0o600)  # half of a file is nobody else's
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)
            os.replace(temporary, real)
            temporary = None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(
    path: str | os.PathLike[str], argument: str, *, folder: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Raise OutputError unless `path` can be written, as far as that can be told before the work.

    folder: it is a folder, to put files in. inputs: files that are read: InputError where `path` is
    one of them. A file is tried in the nearest folder that exists, and nothing stays behind.
    """
    path = Path(path)
    with writing(f"{argument}: {path}"):
        real = _place(path, folder=folder)
        for other in inputs if real.exists() else ():
            if Path(other).exists() and real.samefile(other):
                fail(argument, "another file than those that are read", str(path))
        existing, missing = real if folder else real.parent, [] if folder else [real.name]
        while not os.path.lexists(existing):
            existing, missing = existing.parent, [existing.name, *missing]
        for name in missing:  # each must be one that this file system can hold
            with suppress(FileNotFoundError):
                os.lstat(existing / name)
        with tempfile.NamedTemporaryFile(prefix=_PREFIX, suffix=_SUFFIX, dir=existing):
            pass
