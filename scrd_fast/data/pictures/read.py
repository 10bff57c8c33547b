"""Reading PNG, JPEG, TIFF and BMP into arrays, bit depth kept."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.pictures.directory import set_first_directory
from scrd_fast.data.pictures.formats import MOST_PIXELS, Header, inspect
from scrd_fast.errors import DataError


def read_pictures(
    path: Path, most_pixels: int = MOST_PIXELS, turn: bool = True,
) -> list[NDArray[Any]]:
    """The pictures of a PNG, JPEG, TIFF or BMP file: a TIFF's pages in their order, else one.

    Each is (H, W) or, in RGB order, (H, W, 3); uint8, uint16, or float32 in [0, 1] from a TIFF of
    floating-point numbers. The content decides of which format a file is, not its name. The pixels
    are what a viewer shows, without colour management: turned as EXIF says unless `turn` is False,
    inverted where zero is white, inks and palettes as their colours, an alpha channel dropped where
    all is opaque.

    Raises DataError, without the path, among others for files that are cut, though decoders would
    fill in the missing part, for real transparency, for animations, for floating-point numbers
    outside [0, 1], and, before memory is taken, for pictures of more than `most_pixels` and files
    of more than 2^30 pixels.
    """
    data = _read_bytes(path)
    headers = inspect(data, most_pixels)
    stored = np.frombuffer(data, np.uint8)
    if headers[0].directory is not None:
        stored = stored.copy()  # _decode writes into it
        del data
    pages = []
    for number, header in enumerate(headers):
        try:
            pages.append(_as_shown(_decode(stored, header), header, turn))
        except DataError as error:
            if len(headers) == 1:
                raise
            raise DataError(f"page {number + 1} of {len(headers)}: {error}") from error
    return pages


def _read_bytes(path: Path) -> bytes:
    try:
        # Opening a pipe may wait for ever, and a device may have no end.
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise DataError("cannot be read: not a file but a pipe, socket or device")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


_lock, _decoding, _level = Lock(), 0, 0


@contextmanager
def _silent_opencv() -> Iterator[None]:
    """No log of OpenCV while any thread is in here; its level is the process's."""
    global _decoding, _level
    from cv2.utils import logging

    with _lock:
        if _decoding == 0:
            _level = logging.getLogLevel()
            logging.setLogLevel(logging.LOG_LEVEL_SILENT)
        _decoding += 1
    try:
        yield
    finally:
        with _lock:
            _decoding -= 1
            if _decoding == 0:
                logging.setLogLevel(_level)


def _decode(stored: NDArray[np.uint8], header: Header) -> NDArray[Any]:
    """The pixels of one picture of a file, colour as BGR."""
    import cv2

    if header.raw is not None:
        raw = header.raw
        count = header.width * header.height * raw.samples
        pixels = stored[raw.start :][: count * np.dtype(raw.dtype).itemsize].view(raw.dtype)
        shape = (header.height, header.width, raw.samples)
        return pixels.astype(pixels.dtype.newbyteorder("=")).reshape(shape)[:, :, ::-1]
    if header.directory is not None:
        set_first_directory(stored, header.directory)
    try:
        with _silent_opencv():  # the errors below say it all
            image = cv2.imdecode(stored, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f"not an image that OpenCV can decode: {error.err}") from error
    if image is None:
        raise DataError("damaged, or of a kind that OpenCV cannot decode")
    if image.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise DataError(f"expected 8 or 16 bits per channel or floats, got {image.dtype}")
    size = (header.height, header.width)
    if image.shape[:2] != (size[::-1] if header.turned and header.orientation >= 5 else size):
        raise DataError("damaged: its pixels are not as many as its header says")
    return image


def _as_shown(image: NDArray[Any], header: Header, turn: bool) -> NDArray[Any]:
    """Decoded pixels (BGR, as stored) as a viewer shows them, in RGB."""
    floats = image.dtype.kind == "f"
    most = 1 if floats else np.iinfo(image.dtype).max
    if image.ndim == 3 and image.shape[2] == 4:
        if header.alpha and (image[:, :, 3] != most).any():
            raise DataError("expected an opaque image, got one with transparent pixels; save it"
                            " without alpha channel")
        image = image[:, :, :3]
    if header.clear is not None and (image == header.clear).any():
        raise DataError(f"expected an opaque image, got one whose grey value {header.clear} is"
                        " transparent; save it without transparency")
    if image.ndim == 3:
        image = image[:, :, 0] if header.grey or image.shape[2] == 1 else _swap_colours(image)
    if floats:
        image = _as_fractions(image)
    if header.inverted:
        image = most - image
    if turn and not header.turned:
        image = _turn(image, header.orientation)
    elif header.turned and not turn:
        image = _turn(image, {6: 8, 8: 6}.get(header.orientation, header.orientation))  # back
    return np.ascontiguousarray(image)


_SERIAL = 65536  # pixels; of more, OpenCV would wake threads of its own beside those that decode


def _swap_colours(image: NDArray[Any]) -> NDArray[Any]:
    """BGR as RGB, by OpenCV: 0.02 ms of 512 x 512 pixels, where NumPy's copy takes 0.9."""
    import cv2

    swapped = image[:, :, ::-1]
    if swapped.flags.c_contiguous or image.dtype == np.float64:
        return swapped
    image = np.ascontiguousarray(image)
    swapped = np.empty_like(image)
    rows = max(1, _SERIAL // image.shape[1])
    for start in range(0, len(image), rows):
        part = slice(start, start + rows)
        cv2.cvtColor(image[part], cv2.COLOR_BGR2RGB, dst=swapped[part])
    return swapped


def _as_fractions(image: NDArray[Any]) -> NDArray[np.float32]:
    """Floating-point pixels as float32, which have to be in [0, 1]."""
    low, high = image.min(), image.max()
    if not np.isfinite([low, high]).all():
        raise DataError("expected finite floating-point pixels, got NaN or infinity; replace them,"
                        " the same way in all images")
    if low < 0 or high > 1:
        raise DataError(f"expected floating-point pixels in [0, 1], got values from {low:g} to"
                        f" {high:g}; map one fixed range to [0, 1] in all images, or save them as"
                        " 8 or 16 bits")
    return image.astype(np.float32)


def _turn(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """What was stored in an orientation of EXIF, 1 to 8, upright."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image
