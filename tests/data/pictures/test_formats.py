"""Containers written by hand: pixels are what a viewer shows, or the file is refused by name."""

import io
import re
import resource
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from cv2.utils import logging

from scrd_fast.data.pictures.formats import HEAD, format_of
from scrd_fast.errors import DataError
from tests.data.pictures.by_hand import (
    GREY,
    ORDERS,
    RGB,
    UPRIGHT,
    bmp,
    chunk,
    exif,
    jpeg,
    pages_of,
    png,
    tiff,
)
from tests.support.pictures import read_image

# Orientation


@ORDERS
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_jpeg_is_turned_as_exif_says(read, orientation, order):
    y, x = np.indices((40, 56))
    stored = np.stack([4 * x, 6 * y, np.full_like(x, 30)], axis=-1).astype(np.uint8)
    plain = read(jpeg(stored))
    turned = read(jpeg(stored, b"Exif\0\0" + exif(orientation, order)))
    assert np.array_equal(turned, UPRIGHT[orientation](plain))
    assert turned.flags.c_contiguous
    # What OpenCV itself shows, where it is asked for 8 bits in colour.
    data = np.frombuffer(jpeg(stored, b"Exif\0\0" + exif(orientation, order)), np.uint8)
    assert np.array_equal(turned, cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1])


@ORDERS
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_png_is_turned_as_exif_says(read, orientation, dtype, order):
    stored = GREY.astype(dtype) * (257 if dtype == "uint16" else 1)
    block = chunk(b"eXIf", exif(orientation, order))
    upright = UPRIGHT[orientation](stored)
    bits = 8 * stored.itemsize
    assert np.array_equal(read(png(stored, bits, 0, block)), upright)
    assert np.array_equal(read(png(stored, bits, 0, after=(block,))), upright)


@ORDERS
@pytest.mark.parametrize("big", [False, True], ids=["classic", "bigtiff"])
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "rgb"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_tiff_is_turned_as_its_tag_says(read, orientation, dtype, colour, big, order):
    stored = (RGB if colour else GREY).astype(dtype) * (257 if dtype == "uint16" else 1)
    got = read(tiff({0: stored, 274: orientation}, order=order, big=big))
    assert got.dtype == stored.dtype
    assert np.array_equal(got, UPRIGHT[orientation](stored))


def test_orientation_of_other_types_and_nonsense(read):
    for kind in "BHI":
        assert read(jpeg(RGB, b"Exif\0\0" + exif(6, ">", kind))).shape == (3, 2, 3)
    for block in (exif(0), exif(9), exif(6)[:9], exif(6)[:20], b"", b"nonsense" * 5,
                  b"II*\0\xff\xff\xff\x7f"):
        assert read(jpeg(RGB, b"Exif\0\0" + block)).shape == (2, 3, 3)
    # The first block counts; XMP has the same marker.
    assert read(jpeg(RGB, b"http://ns.adobe.com/xap/1.0/\0<x/>", b"Exif\0\0" + exif(8),
                     b"Exif\0\0" + exif(1))).shape == (3, 2, 3)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pixels_as_stored_whatever_exif_says(tmp_path, orientation):
    segment = b"Exif\0\0" + exif(orientation)
    plain = pages_of(tmp_path, jpeg(RGB))
    assert np.array_equal(pages_of(tmp_path, jpeg(RGB, segment), turn=False), plain)
    block = chunk(b"eXIf", exif(orientation))
    (got,) = pages_of(tmp_path, png(GREY, 8, 0, block), turn=False)
    assert np.array_equal(got, GREY)
    fractions = RGB.astype(np.float32) / 255
    for stored in (GREY, RGB, RGB.astype(np.uint16) * 257, fractions, fractions[:, :, 0]):
        numbers = {339: 3} if stored.dtype.kind == "f" else {}
        data = tiff({0: stored, 274: orientation, **numbers}, {0: stored[:1], **numbers})
        first, second = pages_of(tmp_path, data, turn=False)
        assert np.array_equal(first, stored)
        assert np.array_equal(second, stored[:1])
        assert first.flags.c_contiguous
        assert np.array_equal(pages_of(tmp_path, data)[0], UPRIGHT[orientation](stored))


# JPEG


def test_bytes_behind_a_jpeg_do_not_matter(read):
    whole, other = jpeg(RGB), jpeg(255 - RGB)
    plain = read(whole)
    for behind in (b"\0", bytes(20_000), b"\xff" * 5000, other, bytes(4000) + other,
                   other[: len(other) // 2]):
        assert np.array_equal(read(whole + behind), plain)


def test_a_cut_jpeg_before_another_is_refused(refused):
    rng = np.random.default_rng(0)
    whole = jpeg(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8))
    scan = whole.index(b"\xff\xda")
    for cut in (*range(2, scan, 7), *range(scan, len(whole) - 1, 53)):
        refused(whole[:cut] + whole, "")
        refused(whole[:cut] + bytes(5000), "")
    table = whole.index(b"\xff\xdb") + 69
    for cut in range(table - 67, table + 2):
        refused(whole[:cut] + whole, "truncated or damaged JPEG file")
    refused(whole[:-1], "truncated or damaged JPEG file")
    refused(whole[:-2] + jpeg(RGB), "truncated or damaged JPEG file")


def test_progressive_jpeg_with_restarts(read, refused):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8), (90, 70))
    done, data = cv2.imencode(".jpg", image, [
        cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2])
    assert done
    whole = data.tobytes()
    assert whole.count(b"\xff\xda") > 3
    assert b"\xff\xd0" in whole
    assert np.array_equal(read(whole + bytes(9000)), cv2.imdecode(data, 1)[:, :, ::-1])
    for scan in [found.start() for found in re.finditer(b"\xff\xda", whole)][1:]:
        refused(whole[:scan] + whole, "truncated or damaged JPEG file")


def test_jpeg_of_very_many_scans(read, refused):
    done, data = cv2.imencode(".jpg", RGB, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    assert done
    whole = data.tobytes()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    count = whole.count(b"\xff\xda")
    assert read(whole[:-2] + (500 - count) * last + whole[-2:]).shape == RGB.shape
    refused(whole[:-2] + (501 - count) * last + whole[-2:], "expected at most 500 scans in a JPEG")


@pytest.mark.parametrize("marker", [True, False], ids=["adobe", "unmarked"])
@pytest.mark.parametrize("stored", ["CMYK", "YCCK"])
def test_jpeg_of_four_inks(read, stored, marker):
    """As print shops send it, inks inverted, which Pillow assumes without Adobe's marker, too."""
    image = pytest.importorskip("PIL.Image")
    codecs = pytest.importorskip("imagecodecs")
    inks = np.random.default_rng(3).integers(0, 256, (8, 8, 4)).astype(np.uint8)
    inks = cv2.resize(inks, (40, 56))
    data = codecs.jpeg8_encode(inks, colorspace="CMYK", outcolorspace=stored, level=95)
    at = data.index(b"\xff\xee")
    assert data[at + 4 :].startswith(b"Adobe")
    if not marker:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    _compare_with_pillow(image, read, data, 2)


def test_jpeg_of_four_inks_by_pillow(read):
    image = pytest.importorskip("PIL.Image")
    inks = np.stack([np.full((16, 16), v, np.uint8) for v in (200, 100, 30, 60)], axis=-1)
    for options in ({}, {"progressive": True}):
        file = io.BytesIO()
        image.fromarray(inks, "CMYK").save(file, "JPEG", quality=100, **options)
        got = _compare_with_pillow(image, read, file.getvalue(), 2)
        # The inks multiply.
        expected = (255 - inks[..., :3].astype(int)) * (255 - 60) // 255
        assert np.abs(got - expected).max() <= 2


def _compare_with_pillow(image, read, data: bytes, tolerance: int) -> np.ndarray:
    got = read(data).astype(int)
    with image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB")).astype(int)
    assert np.abs(got - expected).max() <= tolerance
    assert expected.std() > 0
    return got


@pytest.mark.parametrize(("form", "options"), [
    ("PNG", {}), ("PNG", {"bits": 4}), ("PNG", {"bits": 1}), ("BMP", {}), ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "packbits"})])
def test_palettes_are_the_colours_that_pillow_shows(read, form, options):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(4)
    colours = 2 ** options.get("bits", 8)
    picture = image.fromarray(rng.integers(0, colours, (31, 45)).astype(np.uint8), "P")
    picture.putpalette(rng.integers(0, 256, 3 * colours).astype(np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, form, **options)
    assert _compare_with_pillow(image, read, file.getvalue(), 0).shape == (31, 45, 3)


def test_jpeg_of_twelve_bits(refused):
    data = bytearray(jpeg(GREY))
    data[data.index(b"\xff\xc0") + 4] = 12
    refused(bytes(data), "expected 8 bits per channel in a JPEG, got 12")


# PNG


def test_png_of_few_bits(read):
    row = np.array([[0b00011011, 0b11100100]], np.uint8)
    assert read(png(row, 1, 0, width=16)).tolist() == [
        [255 * int(bit) for bit in f"{0b0001101111100100:016b}"]]
    assert read(png(row, 2, 0, width=8)).tolist() == [[0, 85, 170, 255, 255, 170, 85, 0]]
    assert read(png(row, 4, 0, width=4)).tolist() == [[17, 187, 238, 68]]
    palette = chunk(b"PLTE", bytes(range(10, 22)))
    colours = [[10, 11, 12], [13, 14, 15], [16, 17, 18], [19, 20, 21]]
    assert read(png(row, 2, 3, palette, width=8)).tolist() == [colours + colours[::-1]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_opaque_alpha_of_a_png_is_dropped(read, refused, dtype):
    most, bits = np.iinfo(dtype).max, 8 * np.dtype(dtype).itemsize
    rgb, grey = RGB.astype(dtype) * (most // 255), GREY.astype(dtype) * (most // 255)
    for image, colour in ((rgb, 6), (grey[..., None], 4)):
        alpha = np.full((*grey.shape, 1), most, dtype)
        rows = np.concatenate([image, alpha], -1)
        got = read(png(rows.reshape(2, -1), bits, colour, width=3))
        assert got.dtype == image.dtype
        assert np.array_equal(got, image if colour == 6 else grey)
        rows[1, 2, -1] = most - 1
        refused(png(rows.reshape(2, -1), bits, colour, width=3), "expected an opaque image")


def test_transparent_colours_of_a_png(read, refused):
    def key(*values: int) -> bytes:
        return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))

    assert np.array_equal(read(png(GREY, 8, 0, key(11))), GREY)
    refused(png(GREY, 8, 0, key(20)), "grey value 20 is transparent")
    refused(png(GREY.astype(np.uint16) * 257, 16, 0, key(20 * 257)), "expected an opaque image")
    refused(png(np.array([[0x12]], np.uint8), 4, 0, key(2), width=2), "grey value 34")
    flat = RGB.reshape(2, -1)
    assert np.array_equal(read(png(flat, 8, 2, key(1, 2, 3), width=3)), RGB)
    refused(png(flat, 8, 2, key(*map(int, RGB[0, 0])), width=3), "expected an opaque image")
    palette = chunk(b"PLTE", bytes(range(10, 16)))
    index = np.array([[0, 1, 1]], np.uint8)
    opaque = read(png(index, 8, 3, palette, chunk(b"tRNS", b"\xff")))
    assert opaque.tolist() == [[[10, 11, 12], [13, 14, 15], [13, 14, 15]]]
    refused(png(index, 8, 3, palette, chunk(b"tRNS", b"\x80")), "expected an opaque image")


def test_bytes_behind_a_png_do_not_matter(read, refused):
    whole = png(GREY, 8, 0)
    for behind in (b"\0", bytes(9000), whole, whole[:30]):
        assert np.array_equal(read(whole + behind), GREY)
    refused(whole[:-12] + whole, "truncated or damaged PNG file")


def test_animated_png(read, refused):
    def control(number: int) -> bytes:
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 3, 2, 0, 0, 1, 10, 0, 0))

    def frames(count: int) -> bytes:
        return chunk(b"acTL", struct.pack(">II", count, 0))

    second = chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(bytes(8)))
    refused(png(GREY, 8, 0, frames(2), control(0), after=(control(1), second)), "animated PNG")
    refused(png(GREY, 8, 0, frames(1), after=(control(0), second)), "animated PNG")
    assert np.array_equal(read(png(GREY, 8, 0, frames(1), control(0))), GREY)


# BMP


def test_bmp_masks_and_padding(read, refused):
    bgr = RGB[:, :, ::-1]
    padded = np.dstack([bgr, np.full_like(GREY, 7)])
    blue_first = (0xFF0000, 0xFF00, 0xFF)
    assert np.array_equal(read(bmp(bgr)), RGB)
    assert np.array_equal(read(bmp(padded)), RGB)
    assert np.array_equal(read(bmp(padded, masks=blue_first)), RGB)
    assert np.array_equal(read(bmp(padded, size=56, masks=(*blue_first, 0))), RGB)
    assert np.array_equal(read(bmp(padded, size=124, masks=(0xFF, 0xFF00, 0xFF0000, 0))), bgr)
    with_alpha = (*blue_first, 0xFF000000)
    refused(bmp(padded, size=108, masks=with_alpha), "expected an opaque image")
    padded[:, :, 3] = 255
    assert np.array_equal(read(bmp(padded, size=108, masks=with_alpha)), RGB)
    refused(bmp(padded, masks=(0xFF, 0xFF00, 0xFF0000)), "got the masks ff, ff00, ff0000")
    refused(bmp(padded, size=56, masks=(0x3FF00000, 0xFFC00, 0x3FF, 0)), "got the masks 3ff00000")


def test_palette_bmp(read):
    grey = b"".join(bytes([v, v, v, 0]) for v in range(255, -1, -1))
    assert np.array_equal(read(bmp(GREY, palette=grey)), 255 - GREY)
    colour = b"".join(bytes([v, 255 - v, 3, 0]) for v in range(256))
    assert np.array_equal(read(bmp(GREY, palette=colour)),
                          np.stack([np.full_like(GREY, 3), 255 - GREY, GREY], -1))


def test_other_and_cut_bmp(refused):
    refused(bmp(RGB, compression=4), "got 24 bits with compression 4")
    sixteen = bytearray(bmp(RGB))
    struct.pack_into("<H", sixteen, 28, 16)
    refused(bytes(sixteen), "got 16 bits")
    os2 = b"BM" + struct.pack("<IHHIIHHHH", 34, 0, 0, 26, 12, 1, 2, 1, 24) + bytes(8)
    refused(os2, "got one of OS/2")
    whole = bmp(RGB)
    for cut in range(2, len(whole)):
        refused(whole[:cut], "")
    refused(whole[:-1], "truncated or damaged BMP file")


# All


def bombs() -> dict[str, bytes]:
    """Small files that claim to be large."""
    found = {}
    for side, what in ((100_000, "more"), (32_000, "most")):
        found[f"png {what}"] = png(np.zeros((1, 1), np.uint8), 8, 0).replace(
            chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
            chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)))
        found[f"tiff {what}"] = tiff({0: GREY, 256: side, 257: side})
        large = bytearray(bmp(RGB))
        struct.pack_into("<ii", large, 18, side, side)
        found[f"bmp {what}"] = bytes(large)
        large = bytearray(jpeg(GREY))
        struct.pack_into(">HH", large, large.index(b"\xff\xc0") + 5, min(side, 65_500),
                         min(side, 65_500))
        found[f"jpeg {what}"] = bytes(large)
    return found


@pytest.mark.parametrize("name", bombs())
def test_small_files_that_claim_to_be_large(refused, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(bombs()[name], "")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_more_pixels_than_allowed(tmp_path):
    assert pages_of(tmp_path, png(GREY, 8, 0), 6)[0].shape == (2, 3)
    for data in (png(GREY, 8, 0), jpeg(GREY), bmp(RGB), tiff({0: GREY}),
                 tiff({0: GREY[:1]}, {0: GREY})):
        with pytest.raises(DataError, match=r"expected 1 to 5 pixels, got 3 x 2; .*megapixels"):
            pages_of(tmp_path, data, 5)


def test_an_image_larger_than_memory(tmp_path):
    """Whole and honest, and still a typed error."""
    path = tmp_path / "large.png"
    path.write_bytes(png(np.zeros((10_000, 1_250), np.uint8), 1, 0, width=10_000))
    code = (
        "import resource, sys, cv2\n"
        "from tests.support.pictures import read_image\n"
        "from scrd_fast.errors import DataError\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))\n"
        "try:\n"
        "    read_image(sys.argv[1])\n"
        "except DataError as error:\n"
        "    print(error)\n")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True,
                          check=True)
    assert done.stdout.startswith(f"{path}: ")
    assert "emory" in done.stdout or "allocate" in done.stdout


def test_formats_are_told_by_content():
    assert format_of(png(GREY, 8, 0)[:HEAD]) == "PNG"
    assert format_of(jpeg(RGB)[:HEAD]) == "JPEG"
    assert format_of(bmp(RGB)[:HEAD]) == "BMP"
    for order in "<>":
        for big in (False, True):
            assert format_of(tiff({0: GREY}, order=order, big=big)[:HEAD]) == "TIFF"
    for other in (b"", b"BM", b"BMI,age\n22,64\n23,50\n", b"GIF89a" + bytes(30),
                  b"RIFF\x20\0\0\0WEBPVP8 ", bytes(128) + b"DICM", b"II", b"\xff\xd8"):
        assert format_of(other[:HEAD]) is None


def test_other_formats_are_refused(refused):
    for suffix in (".webp", ".jp2", ".pgm", ".gif"):
        image = np.zeros((64, 64, 3) if suffix != ".pgm" else (64, 64), np.uint8)
        done, data = cv2.imencode(suffix, image)
        assert done
        refused(data.tobytes(), "expected a DICOM, NIfTI, PNG, JPEG, TIFF or BMP file")


def test_opencv_is_silent_and_its_log_level_is_kept(tmp_path, capfd):
    """However many threads meet bad files."""
    rng = np.random.default_rng(0)
    paths: list[Path] = []
    for i in range(40):
        noise = rng.integers(0, 65536, (64, 64)).astype(np.uint16)
        paths.append(tmp_path / f"{i}.tif")
        paths[-1].write_bytes(tiff({0: noise, 259: 5}))  # which is no LZW

    def refusal(path: Path) -> bool:
        with pytest.raises(DataError, match="OpenCV cannot decode"):
            read_image(path)
        return True

    level = logging.getLogLevel()
    assert level != logging.LOG_LEVEL_SILENT
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(refusal, paths))
    assert logging.getLogLevel() == level
    assert capfd.readouterr() == ("", "")
