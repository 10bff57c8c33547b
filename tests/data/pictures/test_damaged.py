"""Damaged files of every kind: pixels or one DataError, in little time and memory."""

import io
import random
import resource
import time
import zlib

import cv2
import numpy as np
import pytest

from scrd_fast.errors import DataError
from tests.data.pictures.by_hand import GREY, chunk, exif, jpeg, pages_of, png, tiff
from tests.data.pictures.test_tiff_pages import imagej, tiled

NOISE = np.random.default_rng(0).integers(0, 256, (24, 31, 3)).astype(np.uint8)
FRACTIONS = NOISE[:, :, 0] / np.float32(255)
EXTREMES = (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0")


def by_pillow(form: str, mode: str, **options: object) -> bytes:
    pillow = pytest.importorskip("PIL.Image")
    channels = np.dstack([cv2.resize(NOISE[:5, :5], (40, 32)), np.full((32, 40), 90, np.uint8)])
    image = (pillow.fromarray(channels, mode) if mode == "CMYK"
             else pillow.fromarray(channels[:, :, :3]).convert(mode))
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def by_opencv(image: np.ndarray, *options: int) -> bytes:
    done, data = cv2.imencode(".tif", image, options)
    assert done
    return data.tobytes()


FILES = {
    "pages": lambda: tiff({0: NOISE}, {0: FRACTIONS, 339: 3}, {0: GREY, 254: 1}, {0: GREY}),
    "bigtiff": lambda: tiff({0: GREY}, {0: FRACTIONS, 339: 3, 274: 6}, order=">", big=True),
    "imagej": lambda: imagej(np.stack([FRACTIONS] * 3)),
    "tiles": lambda: tiled(NOISE, 32),
    "deflated double": lambda: by_opencv(
        FRACTIONS.astype(np.float64), cv2.IMWRITE_TIFF_COMPRESSION, 8,
        cv2.IMWRITE_TIFF_PREDICTOR, 3),
    "lzw": lambda: by_opencv(NOISE.astype(np.uint16) * 200, cv2.IMWRITE_TIFF_COMPRESSION, 5),
    "palette tiff": lambda: by_pillow("TIFF", "P", compression="packbits"),
    "palette png": lambda: by_pillow("PNG", "P"),
    "palette bmp": lambda: by_pillow("BMP", "P"),
    "inks": lambda: by_pillow("JPEG", "CMYK"),
    "progressive": lambda: by_pillow("JPEG", "RGB", progressive=True),
    "turned jpeg": lambda: jpeg(NOISE, b"Exif\0\0" + exif(6)),
    "turned png": lambda: png(NOISE[:, :, 0], 8, 0, chunk(b"eXIf", exif(6))),
}


def damage(data: bytes, chance: random.Random) -> bytes:
    """Cut, or with a piece removed or added, or some bytes changed, most at the ends."""
    out, kind = bytearray(data), chance.random()
    at = chance.randrange(len(out))
    if kind < 0.1:
        return data[:at]
    if kind < 0.2:
        return data[:at] + data[at + chance.randrange(1, 40) :]
    if kind < 0.25:
        return data[:at] + chance.randbytes(chance.randrange(1, 30)) + data[at:]
    for _ in range(chance.choice((1, 1, 2, 6))):
        near = chance.randrange(min(300, len(out)))
        at = chance.choice((near, len(out) - 1 - near, chance.randrange(len(out))))
        with_extreme = chance.random() < 0.2
        out[at : at + 4 if with_extreme else at + 1] = (
            chance.choice(EXTREMES) if with_extreme else chance.randbytes(1))
    return bytes(out)


def with_checksums(data: bytes) -> bytes:
    """A damaged PNG whose chunks say that they are whole."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


@pytest.mark.parametrize("name", FILES)
def test_damage_gives_pixels_or_one_error(tmp_path, name):
    whole, chance = FILES[name](), random.Random(name)
    assert pages_of(tmp_path, whole)
    before, messages = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(150):
        data = damage(whole, chance)
        if name.endswith("png"):
            data = with_checksums(data)
        start = time.perf_counter()
        try:
            pages = pages_of(tmp_path, data, 10**6)
        except DataError as error:
            messages.append(str(error))
        else:
            for page in pages:
                assert page.dtype in (np.uint8, np.uint16, np.float32)
                assert page.ndim == 2 or page.shape[2:] == (3,)
                assert page.dtype != np.float32 or (page.min() >= 0 and page.max() <= 1)
        assert time.perf_counter() - start < 20
    assert len(messages) > 5
    assert all("\n" not in message for message in messages)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
