"""The engine file, model.scrd: an uncompressed zip that any tool can list.

Members: `manifest.json` (JSON, describes everything else and lists the SHA-256 of every other
member), `manifest.sha256` (its digest in hexadecimal), `network.onnx` (the portable graph),
`golden.safetensors` (probe images with the reference's scores and maps), `quantisation.json` for 8
bits, and what the backend stores for itself (`Backend.members`). The zip's comment is the SHA-256
of all that is no listed member's content, so one flipped byte anywhere is found, and each byte is
read for that once. (Before format 5 it was that of the whole.) There is no pickle; members that are
unlisted, missing or there twice are refused.

The file is mapped, not read, and may be for as long as it is loaded. Whoever replaces it should
rename another one to its place, as this package does: writing into it is found (`check_unchanged`),
but what truncates it meanwhile ends the process that maps it.
"""

import hashlib
import json
import mmap
import os
import threading
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from scrd_fast.engine.layout import COMMENT_LENGTH, digest_around, read_layout
from scrd_fast.engine.manifest import Manifest, read_manifest
from scrd_fast.errors import EngineFileError
from scrd_fast.files import Contents, as_path, atomic_write

NETWORK, GOLDEN = "network.onnx", "golden.safetensors"
_MANIFEST, _DIGEST = "manifest.json", "manifest.sha256"
_OWN = (_MANIFEST, _DIGEST)
_DIGEST_OF_ALL = 4  # the last format whose comment is the digest of the whole file
_LET_GO = 0.005  # seconds; what is read in that time stays in memory beside what is made of it


def _sha256(data: Contents) -> str:
    return hashlib.sha256(data).hexdigest()


def _text(manifest: Manifest) -> bytes:
    return json.dumps(asdict(manifest), indent=1, sort_keys=True).encode()


def manifest_digest(manifest: Manifest) -> str:
    """The SHA-256 of `manifest.json`, which stands for the whole file."""
    return _sha256(_text(manifest))


def write_engine_file(
    path: str | os.PathLike[str], manifest: Manifest, members: Mapping[str, Contents]
) -> Path:
    """Write the file atomically; the digests of `members` are put into the manifest."""
    path = Path(path)
    write_listed(path, manifest, members)
    return path


def write_listed(path: Path, manifest: Manifest, members: Mapping[str, Contents]) -> Manifest:
    """The same; returns the manifest as it is in the file."""
    manifest = replace(manifest, members={n: _sha256(data) for n, data in members.items()})
    text = _text(manifest)
    everything = {_MANIFEST: text, _DIGEST: _sha256(text).encode(), **members}
    with atomic_write(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, data in everything.items():
                # A fixed date: the same content gives the same bytes.
                archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
            archive.comment = b"0" * COMMENT_LENGTH
        with open(temporary, "rb+") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            digest = digest_around(data, _listed(read_layout(file, data)))
        with open(temporary, "rb+") as file:
            file.seek(-COMMENT_LENGTH, os.SEEK_END)
            file.write(digest.encode())
    return manifest


def _listed(places: Mapping[str, slice]) -> list[slice]:
    """Of the members whose digests the manifest lists."""
    return [place for name, place in places.items() if name not in _OWN]


class _State(NamedTuple):
    """Which file this is, and what changes when somebody writes into it."""

    file: tuple[int, int]
    size: int
    written: int

    @classmethod
    def of(cls, found: os.stat_result) -> "_State":
        return cls((found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns)


class EngineFile:
    """An engine file that is there to be read: its manifest, and its members where they lie.

    The members are as the manifest lists them once `check` has been called; what is around them is
    checked already. members: memoryviews of bytes, which keep the file mapped.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises EngineFileError with one clear line."""
        self.path = as_path(path, "path")
        try:
            self.manifest = self._open()
        except EngineFileError as error:
            raise EngineFileError(f"{self.path}: {error}") from error

    def _open(self) -> Manifest:
        try:
            with open(self.path, "rb") as file:
                if file.read(2) != b"PK":
                    raise EngineFileError("expected an engine file (.scrd), got another kind of"
                                          " file")
                self._absolute = self.path.absolute()
                self._state = _State.of(os.fstat(file.fileno()))
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                data = memoryview(self._map)
                places = read_layout(file, data)
        except OSError as error:
            raise EngineFileError(
                f"expected an engine file, got {error.strerror}; build one with:"
                " scrd-fast build CHECKPOINT"
            ) from error
        contents = {name: data[place] for name, place in places.items()}
        manifest, format_ = _read_manifest(*(bytes(contents.pop(name, b"")) for name in _OWN))
        if set(contents) != set(manifest.members):
            raise EngineFileError(f"refused: expected the members {sorted(manifest.members)},"
                                  f" got {sorted(contents)}")
        left_out = [] if format_ <= _DIGEST_OF_ALL else _listed(places)
        if digest_around(data, left_out).encode() != data[-COMMENT_LENGTH:]:
            raise EngineFileError("damaged or truncated: its digest does not match")
        self.members = contents
        return manifest

    def check(self) -> None:
        """Raise EngineFileError unless the members are those that the manifest lists."""
        for name, content in self.members.items():
            if _sha256(content) != self.manifest.members[name]:
                raise EngineFileError(f"{self.path}: {name}: its digest does not match the"
                                      " manifest")

    def check_unchanged(self) -> None:
        """Raise EngineFileError where somebody has written into the file since it was opened.

        Another file in its place changes nothing.
        """
        try:
            now = _State.of(os.stat(self._absolute))
        except OSError:  # gone, but for those that have it open
            return
        if now.file == self._state.file and now != self._state:
            raise EngineFileError(f"{self.path}: was written into while it is loaded; load it again"
                                  " (a new file that is renamed to its place changes nothing)")

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Check the members while the block uses them, and let go of what was read of the file.

        What a damaged member makes of the block is never its error: that is the digest's.
        """
        done = threading.Event()
        with ThreadPoolExecutor(2) as pool:
            checked = pool.submit(self.check)
            pool.submit(self._let_go, done)
            try:
                yield
            except Exception:
                checked.result()
                raise
            finally:
                done.set()
            checked.result()
        self._let_go_now()

    def _let_go(self, done: threading.Event) -> None:
        while not done.wait(_LET_GO):
            self._let_go_now()

    def _let_go_now(self) -> None:
        """Pages of the file need not stay in this process: the system still has them."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def read_engine_file(path: str | os.PathLike[str]) -> tuple[Manifest, dict[str, bytes]]:
    """Manifest and members, read into memory; every digest is checked.

    Raises EngineFileError with one clear line.
    """
    file = open_checked(path)
    return file.manifest, {name: bytes(content) for name, content in file.members.items()}


def open_checked(path: str | os.PathLike[str]) -> EngineFile:
    """An engine file of which every digest is right; raises EngineFileError with one clear line."""
    file = EngineFile(path)
    file.check()
    return file


def _read_manifest(text: bytes, digest: bytes) -> tuple[Manifest, int]:
    """The manifest, as one of today's format, and the format that it was written in."""
    if not text or _sha256(text).encode() != digest:
        raise EngineFileError(f"{_MANIFEST} is missing or does not match its digest")
    try:
        values = json.loads(text)
        return read_manifest(values), values["format"]
    except EngineFileError:
        raise
    except (ValueError, RecursionError) as error:  # what JSON raises, and InputError
        raise EngineFileError(f"{_MANIFEST} does not fit: {error}") from error


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of an engine file as JSON-ready values, but for the numbers of a normal map:
    of them it tells how many characters they take, some 300 000."""
    told = asdict(open_checked(path).manifest)
    prior = told["spec"]["prior"]
    if prior is not None and prior["values"]:
        prior["values"] = f"{len(prior['values'])} characters, left out here"
    return told
