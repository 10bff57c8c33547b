"""TIFFs written by hand: pixels are what a viewer shows, or the file is refused by name."""

import struct
import zlib

import numpy as np
import pytest

from tests.data.pictures.by_hand import GREY, ORDERS, RGB, tiff
from tests.support.pictures import read_image


@ORDERS
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_tiff_whose_zero_is_white(read, dtype, order):
    most = np.iinfo(dtype).max
    shown = GREY.astype(dtype) * (most // 255)
    got = read(tiff({0: most - shown, 262: 0}, order=order))
    assert got.dtype == shown.dtype
    assert np.array_equal(got, shown)
    compressed = zlib.compress((most - shown).astype(np.dtype(dtype).newbyteorder(order)).tobytes())
    page = {256: 3, 257: 2, 258: 8 * shown.itemsize, 259: 8, 262: 0, 274: 6, 0: compressed}
    assert np.array_equal(read(tiff(page, order=order)), np.rot90(shown, -1))


def test_tiff_of_one_bit(read):
    page = {256: 8, 257: 1, 258: 1, 0: b"\x0f"}
    assert read(tiff({**page, 262: 1})).tolist() == [[0] * 4 + [255] * 4]
    assert read(tiff({**page, 262: 0})).tolist() == [[255] * 4 + [0] * 4]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("extra", [0, 1, 2], ids=["unspecified", "associated", "unassociated"])
def test_alpha_of_a_tiff(read, refused, dtype, extra):
    most = np.iinfo(dtype).max
    rgb = RGB.astype(dtype) * (most // 255)
    image = np.dstack([rgb, np.full(rgb.shape[:2], most, dtype)])
    assert np.array_equal(read(tiff({0: image, 338: extra})), rgb)
    image[0, 1, 3] = most // 2
    refused(tiff({0: image, 338: extra}), "expected an opaque image")


def test_palette_tiff(read, refused):
    ramp = tuple(range(256))
    colours = tuple(257 * v for v in (*ramp, *ramp[::-1], *ramp))
    got = read(tiff({0: GREY, 262: 3, 320: colours}))
    assert np.array_equal(got, np.stack([GREY, 255 - GREY, GREY], -1))
    four = {256: 4, 257: 1, 258: 4, 262: 3, 0: b"\x1b\x1b", 320: tuple(range(0, 65536, 4096)) * 3}
    assert read(tiff(four))[0, :, 0].tolist() == [16, 176, 16, 176]
    refused(tiff({256: 8, 257: 1, 258: 1, 262: 3, 0: b"\x0f", 320: (0, 9, 0, 60000, 0, 80)}),
            "got palette, 1 channels of 1 bits")


@pytest.mark.parametrize(
    ("page", "reason"),
    [({0: GREY.astype(np.float16), 339: 3}, "1 channels of 16 bits in floating point"),
     ({0: GREY.astype(np.float32), 339: 3, 262: 0}, "zero is black"),
     ({0: RGB.astype(np.float32), 339: 3, 284: 2}, "TIFF of 32 bits side by side"),
     ({0: GREY.astype(np.complex64), 339: 6}, "numbers of another kind"),
     ({0: GREY.astype(np.int16), 339: 2}, "signed integers"),
     ({0: GREY, 339: 2}, "signed integers"),
     ({0: GREY.astype(np.uint32)}, "got grey, 1 channels of 32 bits"),
     ({0: bytes(9), 256: 3, 257: 2, 258: 12, 262: 1}, "got grey, 1 channels of 12 bits"),
     ({0: bytes(4), 256: 4, 257: 2, 258: 4, 262: 1}, "got grey, 1 channels of 4 bits"),
     ({0: np.dstack([RGB, GREY]), 262: 5}, "got CMYK, 4 channels of 8 bits"),
     ({0: RGB, 262: 8}, "got CIELab"),
     ({0: RGB, 262: 1}, "got grey, 3 channels of 8 bits"),
     ({0: np.dstack([GREY, GREY]), 262: 1, 338: 2}, "got grey, 2 channels of 8 bits"),
     ({0: np.dstack([RGB, RGB])}, "got RGB, 6 channels"),
     ({0: RGB, 258: (8, 8, 16)}, "3 channels of 8 and 16 bits"),
     ({0: GREY, 262: 32803}, "got colour filter array"),
     ({0: bytes(6), 256: 3, 257: 2, 258: 8}, "got an unknown kind"),
     ({0: RGB.astype(np.uint16), 284: 2}, "got one plane after another")],
)
def test_tiff_of_other_kinds(refused, page, reason):
    refused(tiff(page), reason)


def test_planes_of_an_8_bit_tiff(read):
    planes = RGB.transpose(2, 0, 1).tobytes()
    page = {0: planes, 256: 3, 257: 2, 258: (8, 8, 8), 262: 2, 277: 3, 284: 2,
            273: (8, 14, 20), 279: (6, 6, 6)}
    assert np.array_equal(read(tiff(page)), RGB)


@ORDERS
def test_damaged_tiff(refused, order):
    whole = tiff({0: GREY}, order=order)
    for cut in range(len(whole)):
        refused(whole[:cut], "")
    for page in ({0: GREY, 273: 10**6}, {0: GREY, 279: 10**6}, {0: GREY, 257: 100}):
        refused(tiff(page, order=order), "damaged")
    loop = bytearray(tiff({0: GREY}, {0: GREY}, order=order))
    (first,) = struct.unpack_from(order + "I", loop, 4)
    loop[-4:] = struct.pack(order + "I", first)
    refused(bytes(loop), "truncated or damaged TIFF file")


def test_damaged_deflate_in_a_tiff(read, refused):
    image = np.random.default_rng(0).integers(0, 9, (40, 50)).astype(np.uint8)

    def deflated(pixels: bytes, compression: int = 8) -> bytes:
        return tiff({256: 50, 257: 40, 258: 8, 259: compression, 262: 1, 0: pixels})

    packed = zlib.compress(image.tobytes())
    for compression in (8, 32946):
        assert np.array_equal(read(deflated(packed + b"x", compression)), image)
        for at in range(0, len(packed), 17):
            damaged = packed[:at] + bytes([packed[at] ^ 0x10]) + packed[at + 1 :]
            refused(deflated(damaged, compression), "truncated or damaged TIFF file")
        refused(deflated(packed[:-5], compression), "truncated or damaged TIFF file")
        refused(deflated(zlib.compress(image[1:].tobytes()), compression),
                "truncated or damaged TIFF file")


def test_tiff_with_the_pixels_last(refused, tmp_path):
    """As many programs write it: a cut takes pixels, and leaves the directory whole."""
    pillow = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(0).integers(0, 256, (50, 60), np.uint8)
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        path = tmp_path / "a.tif"
        pillow.fromarray(image).save(path, compression=compression)
        assert read_image(path).shape == (50, 60)
        data = path.read_bytes()
        refused(data[: len(data) // 2], "")
        refused(data[:-9], "")
