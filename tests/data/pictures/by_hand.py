"""Pictures written by hand, byte for byte."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from scrd_fast.data.pictures.read import read_pictures

# What turns stored pixels upright, by EXIF orientation.
UPRIGHT = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: np.rot90,
}
ORDERS = pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
GREY = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
RGB = np.stack([GREY, 2 * GREY, 255 - GREY], axis=-1)


def pages_of(folder: Path, data: bytes, *args: object, **options: object) -> list[np.ndarray]:
    """What read_pictures gives of a file with this content."""
    path = folder / "pages.img"
    path.write_bytes(data)
    return read_pictures(path, *args, **options)


def exif(orientation: int, order: str = "<", kind: str = "H") -> bytes:
    """A TIFF block of one directory, with a tag before and one behind the orientation."""
    value = struct.pack(order + kind, orientation).ljust(4, b"\0")
    tags = [struct.pack(order + "HHII", 0x100, 4, 1, 77),
            struct.pack(order + "HHI", 0x112, {"B": 1, "H": 3, "I": 4}[kind], 1) + value,
            struct.pack(order + "HHII", 0x131, 2, 9, 0)]
    return ((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
            + b"".join(tags) + bytes(4))


def jpeg(image: np.ndarray, *segments: bytes, quality: int = 100) -> bytes:
    """A JPEG (RGB or grey) with APP1 segments in front."""
    bgr = image if image.ndim == 2 else image[:, :, ::-1]
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    packed = [b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments]
    return data.tobytes()[:2] + b"".join(packed) + data.tobytes()[2:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: np.ndarray, bits: int, colour: int, *before: bytes, after: tuple[bytes, ...] = (),
        width: int | None = None) -> bytes:
    """A PNG of rows of packed samples, with chunks before and after the pixels."""
    rows = rows.astype(f">u{rows.itemsize}")
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width or rows.shape[1], len(rows), bits, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(before)
            + chunk(b"IDAT", pixels) + b"".join(after) + chunk(b"IEND", b""))


def tiff(*pages: dict, order: str = "<", big: bool = False) -> bytes:
    """Pages as {tag: value or values}; tag 0 is the pixels, an array or bytes, in one strip.

    A tag that is None is left out.
    """
    word, count = ("Q", "Q") if big else ("I", "H")
    out = bytearray(b"II" if order == "<" else b"MM")
    out += struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)
    link = len(out) - struct.calcsize(word)
    for page in pages:
        tags = dict(page)
        pixels = tags.pop(0)
        shape = np.shape(pixels)
        if not isinstance(pixels, bytes):
            samples = shape[2] if len(shape) == 3 else 1
            kind = pixels.dtype
            pixels = pixels.astype(kind.newbyteorder(order)).tobytes()
            tags = {256: shape[1], 257: shape[0], 258: (kind.itemsize * 8,) * samples,
                    262: 1 if samples == 1 else 2, 277: samples, **tags}
        tags = {259: 1, 273: len(out), 278: tags[257], 279: len(pixels), **tags}
        out += pixels + bytes(len(pixels) % 2)
        entries = b""
        tags = {tag: value for tag, value in tags.items() if value is not None}
        for tag, value in sorted(tags.items()):
            if isinstance(value, bytes):
                kind, values, packed = 2, value, value
            else:
                values = value if isinstance(value, tuple) else (value,)
                kind = 4 if tag in (256, 257, 273, 278, 279, 324, 325) else 3
                packed = struct.pack(f"{order}{len(values)}{'I' if kind == 4 else 'H'}", *values)
            if len(packed) > struct.calcsize(word):
                place, packed = len(out), packed + bytes(len(packed) % 2)
                out += packed
                packed = struct.pack(order + word, place)
            entries += (struct.pack(f"{order}HH{word}", tag, kind, len(values))
                        + packed.ljust(struct.calcsize(word), b"\0"))
        struct.pack_into(order + word, out, link, len(out))
        out += struct.pack(order + count, len(tags)) + entries
        link = len(out)
        out += bytes(struct.calcsize(word))
    return bytes(out)


def bmp(image: np.ndarray, *, size: int = 40, masks: tuple[int, ...] = (),
        palette: bytes = b"", compression: int | None = None) -> bytes:
    """A BMP of (H, W) bytes or (H, W, 3 or 4) BGR(A), bottom row first."""
    height, width = image.shape[:2]
    bits = 8 * (1 if image.ndim == 2 else image.shape[2])
    rows = [row.tobytes().ljust((width * bits + 31) // 32 * 4, b"\0") for row in image[::-1]]
    header = struct.pack("<IiiHHIIiiII", size, width, height, 1, bits,
                         (3 if masks else 0) if compression is None else compression,
                         sum(map(len, rows)), 2835, 2835, len(palette) // 4, 0)
    packed = struct.pack(f"<{len(masks)}I", *masks)
    header += packed.ljust(size - 40, b"\0") + palette
    start = 14 + len(header)
    return (b"BM" + struct.pack("<IHHI", start + sum(map(len, rows)), 0, 0, start) + header
            + b"".join(rows))
