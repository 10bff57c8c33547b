"""What PNG, JPEG, TIFF and BMP files say of their pictures where OpenCV does not tell.

OpenCV fills in what a cut file lacks, takes the first of many pages, and leaves some pixels turned
or with another meaning than a viewer shows. `inspect` finds that in a file's bytes: what can be put
right is in the `Header`s that it returns, all else is refused.
"""

import re
import struct
import zlib

from scrd_fast.data.decode.image import MOST_IN_ALL, MOST_PIXELS
from scrd_fast.data.pictures.directory import SIGNATURES, read_directories
from scrd_fast.data.pictures.header import Damaged, Header
from scrd_fast.data.pictures.tiff import ORIENTATION, check_pixels, read_tiff
from scrd_fast.errors import DataError

FORMATS = "PNG, JPEG, TIFF or BMP"
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
HEAD = 32  #: So many bytes tell a file's format.
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_SCANS = 500  # Each takes the time of a whole picture, and may be of a few bytes.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff]")
# In compressed data a stuffed 0xFF, a fill byte or a restart is no marker.
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def format_of(head: bytes) -> str | None:
    """PNG, JPEG, TIFF or BMP by a file's first HEAD bytes; None for all else."""
    if head.startswith(_PNG):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] in SIGNATURES:
        return "TIFF"
    # Many a text begins with the letters BM: the size of the second header belongs to it, too.
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in (
            12, 40, 52, 56, 64, 108, 124):
        return "BMP"
    return None


def inspect(data: bytes, most_pixels: int = MOST_PIXELS) -> list[Header]:
    """The headers of a whole file's pictures, more than one only for a TIFF of several pages.

    Raises DataError where the file is cut, damaged or of a kind that is not read, where a picture
    has no pixel or more than `most_pixels`, and where all together have more than 2^30. The message
    does not name the file, which is for the caller to do.
    """
    name = format_of(data[:HEAD])
    if name is None:
        raise DataError(f"expected a {FORMATS} file, got {'other content' if data else 'no byte'}")
    try:
        headers = read_tiff(data) if name == "TIFF" else [_READERS[name](data)]
        _check_sizes(headers, most_pixels)
        for header in headers:
            check_pixels(data, header)
    except (struct.error, OverflowError, Damaged) as error:
        raise DataError(f"truncated or damaged {name} file") from error
    return headers


def _check_sizes(headers: list[Header], most_pixels: int) -> None:
    for header in headers:
        pixels = header.width * header.height
        if not 0 < pixels <= most_pixels:
            most = f"{most_pixels:,}".replace(",", " ")
            raise DataError(f"expected 1 to {most} pixels, got {header.width} x {header.height}"
                            + ("; the rule's most_megapixels (--most-megapixels) allows more"
                               if pixels else ""))
    pixels = sum(header.width * header.height for header in headers)
    if pixels > MOST_IN_ALL:
        raise DataError(f"expected at most 2^30 pixels in a file, got {pixels} in {len(headers)}"
                        " pages")


def _read_png(data: bytes) -> Header:
    """Every chunk must be there with its right checksum, up to IEND; what follows is no matter."""
    view = memoryview(data)
    at, chunks = len(_PNG), dict[bytes, bytes]()
    while b"IEND" not in chunks:
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise Damaged
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
    at, scan, scans, frame, orientation = 2, False, 0, None, None
    while True:
        found = _JPEG_SCAN_END.search(data, at) if scan else _JPEG_MARKER.match(data, at)
        if not found:
            raise Damaged
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:
            break
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD8:
            raise Damaged
        (length,) = struct.unpack_from(">H", data, at)
        end = at + length
        if marker == 0xE1:
            if orientation is None and data[at + 2 : at + 8] == b"Exif\0\0":
                orientation = _orientation(data[at + 8 : end])
        elif marker < 0xE0 and data.find(b"\xff\xd8\xff", at, end + 1) >= 0:
            raise Damaged  # cut within a table, another picture follows
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = (marker, *struct.unpack_from(">BHH", data, at + 2))
        at, scan = end, marker == 0xDA
        scans += scan
        if scans > _MOST_SCANS:
            raise DataError(f"expected at most {_MOST_SCANS} scans in a JPEG, got more")
    if frame is None:
        raise Damaged
    kind, bits, height, width = frame
    if bits != 8:
        raise DataError(f"expected 8 bits per channel in a JPEG, got {bits}")
    # Huffman codes take at least one bit for each block of 8 x 8: of less, most is filled in.
    if kind <= 0xC2 and width * height > 512 * len(data):
        raise Damaged
    return Header(width, height, orientation or 1)


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
        raise Damaged
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
        told = next(read_directories(exif)).get(ORIENTATION, 1)
    except (struct.error, OverflowError, Damaged, StopIteration):
        return 1  # what viewers do
    return told if 1 <= told <= 8 else 1


_READERS = {"PNG": _read_png, "JPEG": _read_jpeg, "BMP": _read_bmp}
