"""Reading image files into arrays, bit depth kept, and finding them in folders."""

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_PNG = b"\x89PNG\r\n\x1a\n"


def _png_is_whole(data: bytes) -> bool:
    """Every chunk there with a right checksum, up to IEND: a decoder fills in what is missing."""
    at = len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(data):
            return False
        if zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return False
        if kind == b"IEND":
            return True
        at = end + 4
    return False


def read_image(path: str | os.PathLike[str]) -> NDArray[Any]:
    """One image as uint8 or uint16 (H, W) or (H, W, 3) in RGB order.

    Raises DataError naming the file and the reason; a truncated PNG or JPEG is refused, though
    decoders would fill in the missing part.
    """
    import cv2
    from cv2.utils import logging

    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    truncated = (data.startswith(_PNG) and not _png_is_whole(data)) or (
        data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-4096:]
    )
    if truncated:
        raise DataError(f"{path}: truncated or damaged image file")
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)  # the error below says it all
    try:
        buffer = np.frombuffer(data, np.uint8)
        image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED) if buffer.size else None
    except cv2.error:
        image = None
    finally:
        logging.setLogLevel(level)
    if image is None:
        raise DataError(f"{path}: not an image that OpenCV can decode (PNG, JPEG, TIFF, BMP)")
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: expected 8 or 16 bits per channel, got {image.dtype}")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim == 3 and image.shape[2] != 3:
        raise DataError(f"{path}: expected one or three channels, got {image.shape[2]}")
    return image if image.ndim == 2 else np.ascontiguousarray(image[:, :, ::-1])


def is_paths(value: object) -> bool:
    """Whether `value` is one path (of a folder or file), or a list of paths."""
    one = value[0] if isinstance(value, list) and value else value
    return isinstance(one, str | os.PathLike)


def list_images(where: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The image files below a folder (sorted), one file, or the given paths in their order.

    Raises DataError where there is none.
    """
    if not isinstance(where, str | os.PathLike):
        paths = [Path(p) for p in where]
        if not paths:
            raise DataError("images: expected at least one path, got an empty list")
        return paths
    root = Path(where)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of images or an image file, got no such place")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"{root}: expected image files {SUFFIXES} below it, got none")
    return files


def read_images(
    where: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[NDArray[Any]]:
    """All images of a folder or list of paths; raises DataError naming the first bad file."""
    return [read_image(path) for path in list_images(where)]
