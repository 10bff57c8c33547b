"""TIFFs of several pages, stacks of ImageJ, and floating-point TIFFs."""

import io
import resource
import struct
import zlib

import cv2
import numpy as np
import pytest

from scrd_fast.errors import DataError
from tests.data.pictures.by_hand import GREY, ORDERS, RGB, UPRIGHT, pages_of, tiff
from tests.support.pictures import read_image

LAYOUTS = [ORDERS, pytest.mark.parametrize("big", [False, True], ids=["classic", "bigtiff"])]


def each_layout(test):
    for mark in LAYOUTS:
        test = mark(test)
    return test


def refused(tmp_path, data: bytes, reason: str, *args: object) -> None:
    with pytest.raises(DataError, match=reason) as error:
        pages_of(tmp_path, data, *args)
    assert str(tmp_path) not in str(error.value)


def same(got: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return len(got) == len(expected) and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


# Pages


@each_layout
def test_pages_in_their_order(tmp_path, big, order):
    pages = [GREY, 255 - RGB, RGB.astype(np.uint16) * 200, GREY[:1], np.tile(GREY, (30, 40)),
             GREY / np.float32(255)]
    tags = [{0: page, **({339: 3} if page.dtype.kind == "f" else {})} for page in pages]
    assert same(pages_of(tmp_path, tiff(*tags, order=order, big=big)), pages)


@each_layout
def test_reduced_copies_and_masks_are_no_pages(tmp_path, big, order):
    small = {0: GREY[:1, :2], 254: 1}
    mask = {256: 8, 257: 1, 258: 1, 262: 4, 254: 4, 0: b"\x0f"}
    for thumbnail in (small, {0: GREY[:1, :2], 255: 2}, mask, {**small, 339: 2}):
        for pages in ((thumbnail, {0: GREY}), ({0: GREY}, thumbnail)):
            data = tiff(*pages, order=order, big=big)
            assert same(pages_of(tmp_path, data), [GREY])
            assert np.array_equal(read_image(tmp_path / "pages.img"), GREY)
    data = tiff({0: GREY, 254: 2}, small, {0: RGB, 254: 2, 255: 3}, order=order, big=big)
    assert same(pages_of(tmp_path, data), [GREY, RGB])


def test_pages_by_another_program(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(2)
    stack = [rng.integers(0, 256, (20 + i, 30, 3)).astype(np.uint8) for i in range(5)]
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        file = io.BytesIO()
        first, *others = map(image.fromarray, stack)
        first.save(file, "TIFF", save_all=True, append_images=others, compression=compression)
        assert same(pages_of(tmp_path, file.getvalue()), stack)
    done, data = cv2.imencodemulti(".tif", [page[:, :, ::-1].copy() for page in stack])
    assert done
    assert same(pages_of(tmp_path, data.tobytes()), stack)


def test_each_page_is_turned_by_its_own_tag(tmp_path):
    data = tiff(*({0: GREY, 274: orientation} for orientation in UPRIGHT))
    assert same(pages_of(tmp_path, data), [turn(GREY) for turn in UPRIGHT.values()])


def test_a_bad_page_is_named(tmp_path):
    bad = (({0: GREY.astype(np.int16), 339: 2}, "signed integers"),
           ({0: np.dstack([RGB, GREY])}, "transparent pixels"),
           ({0: GREY.astype(np.float32), 339: 3}, r"in \[0, 1\], got values from 10 to 60"),
           ({0: GREY, 32997: 4}, "4 slices in one page"))
    for page, reason in bad:
        refused(tmp_path, tiff({0: GREY}, page, {0: GREY}), f"^page 2 of 3: expected .*{reason}")
    for page in ({0: GREY, 273: 10**6}, {0: GREY, 279: 10**6}, {0: GREY, 257: 100}):
        refused(tmp_path, tiff({0: GREY}, page), "^truncated or damaged TIFF file$")


def test_pixels_of_all_pages_are_bounded(tmp_path):
    page = {0: b"\0" * 9, 256: 10**4, 257: 10**4, 258: 8, 262: 1}
    refused(tmp_path, tiff(*[page] * 11), "^expected at most 2.30 pixels in a file, got 1100000000"
                                          " in 11 pages$")
    refused(tmp_path, tiff(*[page] * 10), "^truncated or damaged TIFF file$")


def test_directories_that_overlap_or_never_end(tmp_path):
    # Each directory begins 6 bytes behind the last, so that its own entries hold the next.
    def chain(count: int) -> bytes:
        out = b"II*\0" + struct.pack("<I", 8)
        for i in range(count):
            out += struct.pack("<HI", 0, 14 + 6 * i if i + 1 < count else 0)
        return out

    refused(tmp_path, chain(2**16 + 1), "^expected at most 65536 pages in a TIFF, got more$")
    data = bytearray(chain(50) + bytes(4000))
    for at in range(8, 8 + 6 * 50, 6):
        struct.pack_into("<H", data, at, 100)  # entries, most of them those of the next, too
    refused(tmp_path, bytes(data), "^truncated or damaged TIFF file$")
    loop = bytearray(tiff({0: GREY}, {0: GREY}))
    loop[-4:] = loop[4:8]
    refused(tmp_path, bytes(loop), "^truncated or damaged TIFF file$")


@pytest.mark.slow
def test_many_pages_take_time_by_their_number(tmp_path):
    pages = [np.full((1, 2), i % 251, np.uint8) for i in range(3000)]
    assert same(pages_of(tmp_path, tiff(*({0: page} for page in pages))), pages)


# ImageJ


def imagej(stack: np.ndarray, *, order: str = ">", strips: int = 1,
           tags: dict | None = None) -> bytes:
    """A stack (N, H, W) or (N, H, W, 3) behind the directory of its first slice."""
    part = stack[0].nbytes // strips
    page = {0: stack[0], 270: b"ImageJ=1.54f\nimages=%d\nslices=%d\n\0" % ((len(stack),) * 2),
            278: stack.shape[1] // strips, 279: (part,) * strips,
            **({339: 3} if stack.dtype.kind == "f" else {}), **(tags or {})}

    def directory(start: int) -> bytes:
        return tiff({**page, 273: tuple(start + i * part for i in range(strips))}, order=order)

    return directory(len(directory(0))) + stack.astype(stack.dtype.newbyteorder(order)).tobytes()


@ORDERS
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 4, 6, 3)])
def test_slices_behind_the_page_of_an_imagej_stack(tmp_path, shape, dtype, order):
    rng = np.random.default_rng(5)
    stack = (rng.random(shape).astype(dtype) if dtype == "float32"
             else rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype))
    data = imagej(stack, order=order)
    got = pages_of(tmp_path, data)
    assert same(got, list(stack))
    assert all(page.flags.c_contiguous and page.flags.writeable for page in got)
    turned = imagej(stack, order=order, tags={274: 6})
    assert same(pages_of(tmp_path, turned), [np.rot90(page, -1) for page in stack])
    assert same(pages_of(tmp_path, turned, turn=False), list(stack))
    refused(tmp_path, data[:-1], "^truncated or damaged TIFF file$")
    if len(shape) == 3 and dtype != "float32":
        most = np.iinfo(dtype).max
        inverted = imagej(stack, order=order, tags={262: 0})
        assert same(pages_of(tmp_path, inverted), list(most - stack))


def test_slices_of_several_strips(tmp_path):
    stack = np.arange(96, dtype=np.uint8).reshape(4, 4, 6)
    for strips in (2, 4):
        assert same(pages_of(tmp_path, imagej(stack, strips=strips)), list(stack))


def test_pages_of_an_imagej_stack_count_where_there_are_several(tmp_path):
    described = {270: b"ImageJ=1.54f\nimages=2\nslices=2\n\0"}
    data = tiff({0: GREY, **described}, {0: 255 - GREY, **described})
    assert same(pages_of(tmp_path, data), [GREY, 255 - GREY])
    for text in (b"ImageJ=1.54f\nunit=mm\n\0", b"ImageJ=1.54f\nimages=1\n\0", b"images=3\n\0"):
        assert same(pages_of(tmp_path, tiff({0: GREY, 270: text})), [GREY])


def test_stacks_whose_slices_are_not_certain(tmp_path):
    many = {270: b"ImageJ=1.53t\nimages=3\nslices=3\n\0"}
    packed = zlib.compress(GREY.tobytes())
    for page in ({256: 3, 257: 2, 258: 8, 259: 8, 262: 1, 0: packed},
                 {0: GREY, 262: 3, 320: tuple(range(256)) * 3},
                 {256: 8, 257: 1, 258: 1, 262: 1, 0: b"\x0f"},
                 {0: GREY, 273: (8, 12), 278: 1, 279: (3, 3)},
                 {0: RGB.transpose(2, 0, 1).tobytes(), 256: 3, 257: 2, 258: (8, 8, 8), 262: 2,
                  277: 3, 284: 2, 273: (8, 14, 20), 279: (6, 6, 6)}):
        refused(tmp_path, tiff({**page, **many}), "got a TIFF of 3 slices; split it into one file")
    for images in (b"3", b"99999", b"999999999", b"9" * 6000):
        data = tiff({0: GREY, 270: b"ImageJ=1.53t\nimages=" + images + b"\n\0"})
        refused(tmp_path, data, "truncated or damaged|at most 65536 slices")


# Tiles


def tiled(image: np.ndarray, side: int) -> bytes:
    """A page in square tiles, those at the border padded with noise."""
    height, width = image.shape[:2]
    rows, columns = -(-height // side), -(-width // side)
    padded = np.random.default_rng(7).integers(
        0, 200, (rows * side, columns * side, *image.shape[2:])).astype(image.dtype)
    padded[:height, :width] = image
    pixels = b"".join(padded[y : y + side, x : x + side].tobytes()
                      for y in range(0, height, side) for x in range(0, width, side))
    samples = image[0, 0].size
    size, count = side * side * samples * image.itemsize, rows * columns
    return tiff({0: pixels, 256: width, 257: height, 258: (8 * image.itemsize,) * samples,
                 262: 1 if samples == 1 else 2, 277: samples, 273: None, 278: None, 279: None,
                 322: side, 323: side, 324: tuple(8 + i * size for i in range(count)),
                 325: (size,) * count, **({339: 3} if image.dtype.kind == "f" else {})})


def test_tiles(tmp_path):
    for shape in ((40, 50), (40, 50, 3), (5, 7)):
        for image in (fractions(shape), (fractions(shape) * 255).astype(np.uint8),
                      (fractions(shape) * 65535).astype(np.uint16)):
            data = tiled(image, 32)
            assert same(pages_of(tmp_path, data), [image])
    for tags in ({324: 10**6}, {325: 10**6}):
        page = tiff({0: GREY, 322: 16, 323: 16, 324: 8, 325: 6, **tags})
        refused(tmp_path, page, "^truncated or damaged TIFF file$")


def test_tiles_much_larger_than_the_picture(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for tile in ((2**14, 2**13), (2**16 - 1, 2**16 - 1)):
        page = {0: GREY, 273: None, 278: None, 279: None, 322: tile[0], 323: tile[1], 324: (8,),
                325: (6,)}
        refused(tmp_path, tiff(page), "^expected tiles as large as the picture at most, got"
                                      f" {tile[0]} x {tile[1]} for 3 x 2$")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


# Floating point


def fractions(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    image = np.random.default_rng(6).random(shape).astype(dtype)
    image.flat[:2] = 0, 1
    return image


@each_layout
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3)])
def test_floating_point(tmp_path, shape, dtype, big, order):
    image = fractions(shape, dtype)
    (got,) = pages_of(tmp_path, tiff({0: image, 339: 3}, order=order, big=big))
    assert got.dtype == np.float32
    assert np.array_equal(got, image.astype(np.float32))
    bits = (8 * image.itemsize,) * image[0, 0].size
    page = {256: 9, 257: 7, 258: bits, 259: 8, 262: 1 if image.ndim == 2 else 2, 277: len(bits),
            339: (3,) * len(bits),
            0: zlib.compress(image.astype(image.dtype.newbyteorder(order)).tobytes())}
    (got,) = pages_of(tmp_path, tiff(page, order=order, big=big))
    assert np.array_equal(got, image.astype(np.float32))


@pytest.mark.parametrize("predictor", [1, 2, 3])
@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
def test_compressed_floating_point(tmp_path, compression, predictor):
    image = fractions((40, 50, 3))
    done, data = cv2.imencode(".tif", image[:, :, ::-1], [
        cv2.IMWRITE_TIFF_COMPRESSION, compression, cv2.IMWRITE_TIFF_PREDICTOR, predictor,
        cv2.IMWRITE_TIFF_ROWSPERSTRIP, 7])
    assert done
    assert same(pages_of(tmp_path, data.tobytes()), [image])


def test_floating_point_by_another_program(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    image, file = fractions((30, 40)), io.BytesIO()
    pillow.fromarray(image).save(file, "TIFF")
    assert same(pages_of(tmp_path, file.getvalue()), [image])


def test_alpha_in_floating_point(tmp_path):
    image = np.dstack([fractions((4, 5, 3)), np.ones((4, 5), np.float32)])
    assert same(pages_of(tmp_path, tiff({0: image, 338: 2, 339: 3})), [image[:, :, :3]])
    for value in (0.5, 2, np.nan):
        image[1, 2, 3] = value
        refused(tmp_path, tiff({0: image, 338: 2, 339: 3}), "expected an opaque image")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("value", "reason"), [
    (np.nan, "expected finite .* replace them"), (np.inf, "expected finite"),
    (-np.inf, "expected finite"), (-0.25, r"got values from -0\.25 to 1; map one fixed range"),
    (255.5, r"in \[0, 1\], got values from 0 to 255\.5; map one fixed range to \[0, 1\] in all")])
def test_floating_point_outside_of_its_range(tmp_path, dtype, value, reason):
    image = fractions((4, 5), dtype)
    image[2, 3] = value
    refused(tmp_path, tiff({0: image, 339: 3}), reason)
