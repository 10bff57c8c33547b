"""The directories of TIFF files, which are EXIF blocks as well: their tags and values."""

import struct
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from scrd_fast.data.pictures.header import Damaged
from scrd_fast.errors import DataError

#: First bytes and byte order; the last two are BigTIFF.
SIGNATURES = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
MOST_DIRECTORIES = 2**16
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}


class Directory:
    """The tags of one page, of which the numbers and texts are read when asked for."""

    def __init__(self, data: bytes, at: int) -> None:
        """The directory that begins at a byte of a file; raises Damaged where it is cut."""
        self.begins = at
        self.order = SIGNATURES.get(data[:4], "")
        self._data, self._big = data, _is_big(data)
        if not self.order:
            raise Damaged
        count, width = ("Q", 20) if self._big else ("H", 12)
        (entries,) = struct.unpack_from(self.order + count, data, at)
        first = at + struct.calcsize(self.order + count)
        self.ends = first + entries * width
        if self.ends > len(data):
            raise Damaged
        self._entries: dict[int, int] = {}
        for place in range(first, self.ends, width):
            # Of a tag that stands there twice libtiff takes the first.
            self._entries.setdefault(struct.unpack_from(self.order + "H", data, place)[0], place)

    def place(self, tag: int) -> tuple[int, int, int]:
        """Type and count of a tag's values, and where they lie; the tag must be there."""
        data, order, at = self._data, self.order, self._entries[tag]
        kind, count = struct.unpack_from(order + ("HQ" if self._big else "HI"), data, at + 2)
        at += 12 if self._big else 8
        room = 8 if self._big else 4
        if count * struct.calcsize(_INTEGERS.get(kind, "B")) > room:
            (at,) = struct.unpack_from(order + ("Q" if self._big else "I"), data, at)
        return kind, count, at

    def values(self, tag: int) -> tuple[int, ...]:
        """The integers of a tag; none where it is not there."""
        if tag not in self._entries:
            return ()
        kind, count, at = self.place(tag)
        if kind not in _INTEGERS or count > len(self._data):
            raise Damaged
        return struct.unpack_from(f"{self.order}{count}{_INTEGERS[kind]}", self._data, at)

    def get(self, tag: int, default: int = 0) -> int:
        """The first integer of a tag."""
        return next(iter(self.values(tag)), default)

    def text(self, tag: int) -> bytes:
        """The bytes of a tag; none where it is not there."""
        if tag not in self._entries:
            return b""
        _, count, at = self.place(tag)
        return self._data[at : at + count]


def _is_big(data: bytes) -> bool:
    return b"+" in data[2:4]


def read_directories(data: bytes) -> Iterator[Directory]:
    """The directories of a TIFF file in their order; raises Damaged, and DataError for too many."""
    big, order = _is_big(data), SIGNATURES.get(data[:4], "")
    if not order:
        raise Damaged
    pointer = order + ("Q" if big else "I")
    (at,) = struct.unpack_from(pointer, data, 8 if big else 4)
    seen, length = set[int](), 0
    while at:
        if at in seen:
            raise Damaged
        seen.add(at)
        if len(seen) > MOST_DIRECTORIES:
            raise DataError(f"expected at most {MOST_DIRECTORIES} pages in a TIFF, got more")
        directory = Directory(data, at)
        length += directory.ends - at
        if length > len(data):
            raise Damaged  # directories that overlap
        yield directory
        (at,) = struct.unpack_from(pointer, data, directory.ends)


def set_first_directory(data: NDArray[Any], at: int) -> None:
    """Make the directory at a byte the first of a TIFF file (uint8, changed in place).

    OpenCV finds one page after another, from the first on: this way each costs the same.
    """
    head = data[:4].tobytes()
    big = _is_big(head)
    struct.pack_into(SIGNATURES[head] + ("Q" if big else "I"), data.data, 8 if big else 4, at)
