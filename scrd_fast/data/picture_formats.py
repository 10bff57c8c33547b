"""What the headers of PNG, JPEG, TIFF and BMP files say where OpenCV does not tell.

OpenCV fills in what a cut file lacks, takes the first of many pages, and leaves some pixels turned
or with another meaning than a viewer shows. `inspect` finds that in a file's bytes: what can be put
right is in the `Header` that it returns, all else is refused.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from scrd_fast.errors import DataError

FORMATS = "PNG, JPEG, TIFF or BMP"
HEAD = 32  #: So many bytes tell a file's format.
MOST_PIXELS = 2**30  #: OpenCV's limit.
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}  # the last two: BigTIFF
_ORIENTATION = 0x112
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff]")
# In compressed data a stuffed 0xFF, a fill byte or a restart is no marker.
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclass(frozen=True)
class Header:
    """What OpenCV does not say of the pixels that it decodes."""

    width: int
    height: int
    orientation: int = 1  #: EXIF's, 1 to 8, still to be applied
    inverted: bool = False  #: zero is white
    alpha: bool = True  #: a fourth channel is opacity, not padding
    grey: bool = False  #: the colour channels are one grey channel, repeated
    clear: int | None = None  #: the grey value that stands for transparent


class _Damaged(Exception):
    """A file ends early or contradicts itself."""


def format_of(head: bytes) -> str | None:
    """PNG, JPEG, TIFF or BMP by a file's first HEAD bytes; None for all else."""
    if head.startswith(_PNG):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] in _TIFF:
        return "TIFF"
    # Many a text begins with the letters BM: the size of the second header belongs to it, too.
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in (
            12, 40, 52, 56, 64, 108, 124):
        return "BMP"
    return None


def inspect(data: bytes, most_pixels: int = MOST_PIXELS) -> Header:
    """The header of a whole file; raises DataError where that is cut, damaged or not one picture,
    and where the picture has more than `most_pixels`.

    The message does not name the file, which is for the caller to do.
    """
    name = format_of(data[:HEAD])
    if name is None:
        raise DataError(f"expected a {FORMATS} file, got {'other content' if data else 'no byte'}")
    read = {"PNG": _read_png, "JPEG": _read_jpeg, "TIFF": _read_tiff, "BMP": _read_bmp}[name]
    try:
        header = read(data)
    except (struct.error, _Damaged) as error:
        raise DataError(f"truncated or damaged {name} file") from error
    if not 0 < header.width * header.height <= most_pixels:
        most = "2^30" if most_pixels == MOST_PIXELS else f"{most_pixels:,}".replace(",", " ")
        raise DataError(f"expected 1 to {most} pixels, got {header.width} x {header.height}")
    return header


def _read_png(data: bytes) -> Header:
    """Every chunk must be there with its right checksum, up to IEND; what follows is no matter."""
    view = memoryview(data)
    at, chunks = len(_PNG), dict[bytes, bytes]()
    while b"IEND" not in chunks:
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise _Damaged
        chunks.setdefault(kind, b"" if kind == b"IDAT" else data[at + 8 : end])
        at = end + 4
    if b"fdAT" in chunks:
        raise DataError("expected one picture, got an animated PNG; save each frame as a file")
    width, height, bits, colour = struct.unpack_from(">IIBB", chunks.get(b"IHDR", b""))
    clear = None
    if colour == 0 and b"tRNS" in chunks:
        # OpenCV widens 1, 2 and 4 bits to 8.
        (key,) = struct.unpack_from(">H", chunks[b"tRNS"])
        clear = key * (255 // (2**bits - 1) if bits < 8 else 1)
    return Header(width, height, _orientation(chunks.get(b"eXIf", b"")), grey=colour == 4,
                  clear=clear)


def _read_jpeg(data: bytes) -> Header:
    """Segment by segment to the end of the first picture, past the thumbnails inside segments.

    What follows is no matter; phones put further pictures there. A picture that begins before the
    first one's end says that this one was cut.
    """
    at, scan, frame, orientation = 2, False, None, None
    while True:
        found = _JPEG_SCAN_END.search(data, at) if scan else _JPEG_MARKER.match(data, at)
        if not found:
            raise _Damaged
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:
            break
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD8:
            raise _Damaged
        (length,) = struct.unpack_from(">H", data, at)
        end = at + length
        if marker == 0xE1:
            if orientation is None and data[at + 2 : at + 8] == b"Exif\0\0":
                orientation = _orientation(data[at + 8 : end])
        elif marker < 0xE0 and data.find(b"\xff\xd8\xff", at, end + 1) >= 0:
            raise _Damaged  # cut within a table, another picture follows
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = (marker, *struct.unpack_from(">BHH", data, at + 2))
        at, scan = end, marker == 0xDA
    if frame is None:
        raise _Damaged
    kind, bits, height, width = frame
    if bits != 8:
        raise DataError(f"expected 8 bits per channel in a JPEG, got {bits}")
    # Huffman codes take at least one bit for each block of 8 x 8: of less, most is filled in.
    if kind <= 0xC2 and width * height > 512 * len(data):
        raise _Damaged
    return Header(width, height, orientation or 1)


def _read_tiff(data: bytes) -> Header:
    """One page, in one of the layouts for which OpenCV is known to give the right pixels."""
    pages = list(_directories(data))
    if not pages:
        raise _Damaged
    page = pages[0]
    full = [one for one in pages if not one.get(254) & 1 and one.get(255) != 2] or pages
    if len(full) > 1:
        raise DataError(f"expected one picture, got a TIFF of {len(full)} pages; split it into one"
                        " file per page or slice")
    if full[0] is not page:
        raise DataError("expected the picture as first page of a TIFF, got a reduced copy")
    # ImageJ keeps large stacks behind a single page.
    stack = re.match(rb"ImageJ=.*?^images=(\d+)", page.text(270), re.S | re.M)
    slices = max(page.get(32997, 1), int(stack[1]) if stack else 1)
    if slices > 1:
        raise DataError(f"expected one picture, got a TIFF of {slices} slices; split it into one"
                        " file per slice")
    _check_tiff_layout(page)
    offsets, sizes = (324, 325) if page.get(322) else (273, 279)
    if not page.values(offsets) or any(
            start + size > len(data)
            for start, size in zip(page.values(offsets), page.values(sizes), strict=False)):
        raise _Damaged
    if page.get(259) in (8, 32946):
        _check_deflate(page, [data[start : start + size] for start, size in zip(
            page.values(offsets), page.values(sizes), strict=False)])
    # OpenCV turns TIFFs upright, and inverts all but 16 bits.
    return Header(page.get(256), page.get(257),
                  inverted=page.get(262) == 0 and page.get(258, 1) == 16)


_PHOTOMETRIC = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr",
                8: "CIELab", 9: "ICCLab", 32803: "colour filter array", 34892: "linear raw"}
# (photometric interpretation, samples): bits
_TIFF_LAYOUTS = {(0, 1): (1, 8, 16), (1, 1): (1, 8, 16), (2, 3): (8, 16), (2, 4): (8, 16),
                 (3, 1): (4, 8), (6, 3): (8,)}


def _check_tiff_layout(page: "_Directory") -> None:
    kind, samples, bits = page.get(262, -1), page.get(277, 1), set(page.values(258) or (1,))
    numbers = set(page.values(339) or (1,))
    if numbers != {1}:
        got = {2: "signed integers", 3: "floating-point numbers"}
        raise DataError("expected unsigned integers in a TIFF, got"
                        f" {got.get(max(numbers), 'numbers of an unknown kind')}")
    if len(bits) != 1 or max(bits) not in _TIFF_LAYOUTS.get((kind, samples), ()):
        raise DataError(
            "expected a TIFF in grey (1, 8 or 16 bits), RGB (8 or 16 bits, alpha allowed) or"
            f" palette colours (4 or 8 bits), got {_PHOTOMETRIC.get(kind, 'an unknown kind')},"
            f" {samples} channels of {' and '.join(map(str, sorted(bits)))} bits")
    if page.get(284, 1) != 1 and samples > 1 and bits == {16}:
        raise DataError("expected the channels of a 16-bit TIFF side by side, got one plane after"
                        " another")


def _check_deflate(page: "_Directory", parts: list[bytes]) -> None:
    """OpenCV fills in what is damaged or missing in TIFFs of 8 bits."""
    row = (page.get(256) * page.get(277, 1) * page.get(258, 1) + 7) // 8
    missing = 0 if page.get(262) == 6 else row * page.get(257)  # colour may be of half resolution
    for part in parts:
        stream = zlib.decompressobj()
        try:
            while not stream.eof:
                pixels = stream.decompress(part, 2**20)
                if not pixels and not stream.eof:
                    raise _Damaged
                part, missing = stream.unconsumed_tail, missing - len(pixels)
        except zlib.error as error:
            raise _Damaged from error
    if missing > 0:
        raise _Damaged


def _read_bmp(data: bytes) -> Header:
    start, size, width, height, _, bits, compression = struct.unpack_from("<4xIIiiHHI", data, 6)
    if size < 40:
        raise DataError("expected a Windows bitmap, got one of OS/2")
    packed = (compression, bits) in ((1, 8), (2, 4))  # run lengths
    plain = (compression == 0 and bits in (1, 4, 8, 24, 32)) or (compression, bits) == (3, 32)
    if not packed and not plain:
        raise DataError("expected a BMP of 1, 4, 8, 24 or 32 bits per pixel, got"
                        f" {bits} bits with compression {compression}")
    if plain and start + (width * bits + 31) // 32 * 4 * abs(height) > len(data):
        raise _Damaged
    alpha = size >= 56
    if compression == 3:
        red, green, blue = struct.unpack_from("<III", data, 54)
        bytewise = {0xFF << shift for shift in (0, 8, 16, 24)}
        # Before the header had room for them OpenCV does not read the masks.
        if not {red, green, blue} <= bytewise or (
                not alpha and (red, green, blue) != (0xFF0000, 0xFF00, 0xFF)):
            raise DataError("expected a BMP of 8 bits per channel, got the masks"
                            f" {red:x}, {green:x}, {blue:x}")
    return Header(width, abs(height), alpha=alpha)


def _orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, which is a TIFF without a picture; 1 where none is told."""
    try:
        told = next(_directories(exif)).get(_ORIENTATION, 1)
    except (struct.error, _Damaged, StopIteration):
        return 1  # what viewers do
    return told if 1 <= told <= 8 else 1


def _directories(data: bytes) -> Iterator["_Directory"]:
    """The directories of a TIFF file in their order."""
    order, big = _TIFF.get(data[:4], ""), b"+" in data[2:4]
    if not order:
        raise _Damaged
    pointer, count = (order + "Q", order + "Q") if big else (order + "I", order + "H")
    (at,) = struct.unpack_from(pointer, data, 8 if big else 4)
    seen = set[int]()
    while at:
        if at in seen:
            raise _Damaged
        seen.add(at)
        (entries,) = struct.unpack_from(count, data, at)
        at += struct.calcsize(count)
        width = 20 if big else 12
        if at + entries * width > len(data):
            raise _Damaged
        yield _Directory(data, order, {
            struct.unpack_from(order + "H", data, at + i * width)[0]: at + i * width
            for i in range(entries)})
        (at,) = struct.unpack_from(pointer, data, at + entries * width)


_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}


class _Directory:
    """The tags of one page, of which the numbers and texts are read when asked for."""

    def __init__(self, data: bytes, order: str, entries: dict[int, int]) -> None:
        self._data, self._order, self._entries = data, order, entries

    def _place(self, tag: int) -> tuple[int, int, int]:
        """Type and count of a tag's values, and where they lie."""
        data, order, at = self._data, self._order, self._entries[tag]
        big = b"+" in data[2:4]
        kind, count = struct.unpack_from(order + ("HQ" if big else "HI"), data, at + 2)
        at += 12 if big else 8
        room = 8 if big else 4
        if count * struct.calcsize(_INTEGERS.get(kind, "B")) > room:
            (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, at)
        return kind, count, at

    def values(self, tag: int) -> tuple[int, ...]:
        """The integers of a tag; none where it is not there."""
        if tag not in self._entries:
            return ()
        kind, count, at = self._place(tag)
        if kind not in _INTEGERS or count > len(self._data):
            raise _Damaged
        return struct.unpack_from(f"{self._order}{count}{_INTEGERS[kind]}", self._data, at)

    def get(self, tag: int, default: int = 0) -> int:
        """The first integer of a tag."""
        return next(iter(self.values(tag)), default)

    def text(self, tag: int) -> bytes:
        """The bytes of a tag; none where it is not there."""
        if tag not in self._entries:
            return b""
        _, count, at = self._place(tag)
        return self._data[at : at + count]
