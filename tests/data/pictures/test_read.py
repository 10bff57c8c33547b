"""Reading image files: bit depth and channel order kept, broken files refused by name."""

import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from scrd_fast.errors import DataError
from tests.support.pictures import read_image


def picture(dtype: str = "uint8", colour: bool = True, side: int = 37) -> np.ndarray:
    rng = np.random.default_rng(1)
    shape = (side, side + 14, 3) if colour else (side, side + 14)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def smooth_picture() -> np.ndarray:
    """What JPEG keeps: a red ramp to the right, a green one downwards, little blue."""
    y, x = np.indices((48, 64))
    return np.stack([x * 4, y * 5, np.full_like(x, 20)], axis=-1).astype(np.uint8)


def write(path: Path, image: np.ndarray, *options: int) -> Path:
    """Write an RGB or grey image with OpenCV, which wants BGR."""
    assert cv2.imwrite(str(path), image if image.ndim == 2 else image[:, :, ::-1], options)
    return path


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "grey"])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", "uint8"), (".png", "uint16"), (".tif", "uint8"), (".tiff", "uint16"),
     (".bmp", "uint8")],
)
def test_lossless_files_keep_every_bit(tmp_path, suffix, colour, dtype):
    image = picture(dtype, colour)
    got = read_image(write(tmp_path / f"image{suffix}", image))
    assert got.dtype == image.dtype
    assert got.shape == image.shape or (suffix == ".bmp" and got.shape == (*image.shape, 3))
    assert np.array_equal(got, image if got.ndim == image.ndim else np.stack([image] * 3, -1))
    assert got.flags.c_contiguous


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg_in_rgb_order(tmp_path, suffix):
    got = read_image(write(tmp_path / f"image{suffix}", smooth_picture(),
                           cv2.IMWRITE_JPEG_QUALITY, 100))
    assert got.dtype == np.uint8
    assert got.shape == (48, 64, 3)
    # JPEG rounds, and halves the resolution of colour: a few grey levels on a ramp of 5.
    assert np.abs(got.astype(int) - smooth_picture()).max() <= 12


def test_grey_jpeg(tmp_path):
    got = read_image(write(tmp_path / "image.jpg", smooth_picture()[:, :, 0]))
    assert got.shape == (48, 64)


def test_one_pixel(tmp_path):
    pixel = np.array([[[1, 200, 30]]], np.uint8)
    assert read_image(write(tmp_path / "a.png", pixel)).tolist() == [[[1, 200, 30]]]


def test_the_suffix_does_not_matter(tmp_path):
    write(tmp_path / "image.png", picture())
    (tmp_path / "image.png").rename(tmp_path / "image.jpg")
    assert np.array_equal(read_image(tmp_path / "image.jpg"), picture())


def refused(path: Path, reason: str = "") -> None:
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{reason}"):
        read_image(path)


@pytest.mark.parametrize("kept", [0.05, 0.4, 0.8, 0.99])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("side", [37, 200])
def test_truncated_files(tmp_path, side, suffix, kept):
    whole = write(tmp_path / f"whole{suffix}", picture(side=side)).read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(kept * len(whole))])
    refused(path)


def test_truncated_jpeg_with_a_thumbnail(tmp_path):
    """The thumbnail ends with the marker that also ends the picture."""
    whole = write(tmp_path / "whole.jpg", picture()).read_bytes()
    thumbnail = write(tmp_path / "small.jpg", picture(side=4)).read_bytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    full, cut = tmp_path / "full.jpg", tmp_path / "cut.jpg"
    data = whole[:2] + segment + whole[2:]
    full.write_bytes(data)
    assert np.array_equal(read_image(full), read_image(tmp_path / "whole.jpg"))
    cut.write_bytes(data[: -len(whole) // 3])
    refused(cut)


def test_every_damaged_byte_of_a_png(tmp_path):
    """Each chunk has a checksum, so no flipped byte gives another picture."""
    whole = write(tmp_path / "whole.png", picture(side=3)).read_bytes()
    path = tmp_path / "damaged.png"
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 0x10
        path.write_bytes(data)
        refused(path)


def test_png_whose_pixels_end_early(tmp_path):
    """Whole chunks with right checksums around too few rows: a decoder fills in the rest."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (struct.pack(">I", len(data)) + kind + data
                + struct.pack(">I", zlib.crc32(kind + data)))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    for rows in (8, 3):
        pixels = zlib.compress(bytes([0] + [200] * 8) * rows)
        path = tmp_path / f"{rows}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels)
                         + chunk(b"IEND", b""))
    assert np.array_equal(read_image(tmp_path / "8.png"), np.full((8, 8), 200))
    refused(tmp_path / "3.png")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"not an image" * 50, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9",
                b"II*\0" + bytes(40), b"BM" + bytes(60), bytes(1000)],
)
def test_garbage(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    refused(path)


def test_missing_file_and_folder(tmp_path):
    refused(tmp_path / "none.png", "cannot be read: No such file")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png", "cannot be read: ")
