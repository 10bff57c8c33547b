"""TIFF: its pages, in the layouts for which OpenCV is known to give the right pixels."""

import re
import zlib
from collections.abc import Iterable
from dataclasses import replace

from scrd_fast.data.pictures.directory import MOST_DIRECTORIES, Directory, read_directories
from scrd_fast.data.pictures.header import Damaged, Header, RawPixels
from scrd_fast.errors import DataError

ORIENTATION = 274
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _KIND, _SAMPLES = 256, 257, 258, 259, 262, 277
_DESCRIPTION = 270
_STRIP_OFFSETS, _STRIP_ROWS, _STRIP_SIZES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_SIZES = 322, 323, 324, 325
_PLANAR, _NUMBERS, _DEPTH = 284, 339, 32997
_UNSIGNED, _FLOAT = 1, 3
_REDUCED, _MASK = 1, 4  # bits of tag 254
_SMALL_TILE = 2**26  # bytes; for larger ones the picture must be large, too

_KINDS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr",
          8: "CIELab", 9: "ICCLab", 32803: "colour filter array", 34892: "linear raw"}
# (photometric interpretation, samples): bits
_INTEGERS = {(0, 1): (1, 8, 16), (1, 1): (1, 8, 16), (2, 3): (8, 16), (2, 4): (8, 16),
             (3, 1): (4, 8), (6, 3): (8,)}
_FLOATS = {(1, 1): (32, 64), (2, 3): (32, 64), (2, 4): (32, 64)}


def read_tiff(data: bytes) -> list[Header]:
    """The pages of a TIFF in their order, without reduced copies and masks.

    Raises Damaged, and DataError for a page of another layout. Where the pixels of pages lie is
    looked at by check_pixels.
    """
    pages = list(read_directories(data))
    if not pages:
        raise Damaged
    full = [page for page in pages
            if not page.get(254) & (_REDUCED | _MASK) and page.get(255) != 2] or pages
    if len(full) == 1:
        return _read_slices(data, full[0])
    headers = []
    for number, page in enumerate(full):
        try:
            headers.append(_read_page(page))
        except DataError as error:
            raise DataError(f"page {number + 1} of {len(full)}: {error}") from error
    return headers


def _read_page(page: Directory) -> Header:
    if page.get(_DEPTH, 1) > 1:
        raise DataError(f"expected pages, got a TIFF of {page.get(_DEPTH)} slices in one page;"
                        " split it into one file per slice")
    _check_layout(page)
    told = page.values(ORIENTATION)
    # OpenCV turns TIFFs upright, and inverts all but 16 bits.
    return Header(page.get(_WIDTH), page.get(_HEIGHT),
                  orientation=told[0] if len(told) == 1 and 1 <= told[0] <= 8 else 1, turned=True,
                  inverted=page.get(_KIND) == 0 and page.get(_BITS, 1) == 16,
                  directory=page.begins)


def _check_layout(page: Directory) -> None:
    kind, samples = page.get(_KIND, -1), page.get(_SAMPLES, 1)
    bits = set(page.values(_BITS) or (1,))
    numbers = set(page.values(_NUMBERS) or (_UNSIGNED,))
    if numbers not in ({_UNSIGNED}, {_FLOAT}):
        raise DataError("expected unsigned integers or floating-point numbers in a TIFF, got"
                        f" {'signed integers' if 2 in numbers else 'numbers of another kind'}")
    layouts = _INTEGERS if numbers == {_UNSIGNED} else _FLOATS
    if len(bits) != 1 or max(bits) not in layouts.get((kind, samples), ()):
        raise DataError(
            "expected a TIFF in grey (1, 8 or 16 bits), RGB (8 or 16 bits, alpha allowed), palette"
            " colours (4 or 8 bits), or floating-point grey or RGB (32 or 64 bits, zero is black),"
            f" got {_KINDS.get(kind, 'an unknown kind')}, {samples} channels of"
            f" {' and '.join(map(str, sorted(bits)))} bits"
            + (" in floating point" if numbers == {_FLOAT} else ""))
    if page.get(_PLANAR, 1) != 1 and samples > 1 and max(bits) > 8:
        raise DataError(f"expected the channels of a TIFF of {max(bits)} bits side by side, got one"
                        " plane after another")


def _read_slices(data: bytes, page: Directory) -> list[Header]:
    """The picture of a single page, behind which ImageJ keeps the further ones of a large stack."""
    header = _read_page(page)
    described = re.match(rb"ImageJ=.*?^images=(\d{1,9})", page.text(_DESCRIPTION), re.S | re.M)
    count = int(described[1]) if described else 1
    if count <= 1:
        return [header]
    offsets, sizes = page.values(_STRIP_OFFSETS), page.values(_STRIP_SIZES)
    bits, samples = page.get(_BITS, 1), page.get(_SAMPLES, 1)
    size = header.width * header.height * samples * bits // 8
    together = len(offsets) == len(sizes) > 0 and sum(sizes) >= size and all(
        place + length == following
        for place, length, following in zip(offsets, sizes, offsets[1:], strict=False))
    if (page.get(_COMPRESSION, 1) != 1 or page.get(_PLANAR, 1) != 1 or page.get(_KIND) == 3
            or bits == 1 or not together or not size):
        raise DataError("expected slices without compression and palette behind the page of an"
                        f" ImageJ stack, got a TIFF of {count} slices; split it into one file per"
                        " slice")
    if count > MOST_DIRECTORIES:
        raise DataError(f"expected at most {MOST_DIRECTORIES} slices in a TIFF, got {count}")
    start, end = offsets[0], offsets[0] + count * size
    text = page.place(_DESCRIPTION)[2]
    if end > len(data) or (start < page.ends and page.begins < end) or start <= text < end:
        raise Damaged
    kind = f"{page.order}{'f' if page.get(_NUMBERS, 1) == _FLOAT else 'u'}{bits // 8}"
    plain = replace(header, turned=False, directory=None, inverted=page.get(_KIND) == 0)
    return [replace(plain, raw=RawPixels(start + number * size, kind, samples))
            for number in range(count)]


def check_pixels(data: bytes, header: Header) -> None:
    """Raise Damaged where pixels of a page are missing, which OpenCV fills in for 8 bits."""
    if header.directory is None:
        return
    page = Directory(data, header.directory)
    samples, bits = page.get(_SAMPLES, 1), page.get(_BITS, 1)
    row = (header.width * samples * bits + 7) // 8
    missing = 0 if page.get(_KIND) == 6 else row * header.height  # colour may be of half resolution
    tiled = bool(page.get(_TILE_WIDTH))
    if tiled:
        width, height = page.get(_TILE_WIDTH), page.get(_TILE_HEIGHT)
        part = (width * samples * bits + 7) // 8 * height
        if part > max(_SMALL_TILE, 4 * row * header.height):
            raise DataError(f"expected tiles as large as the picture at most, got {width} x"
                            f" {height} for {header.width} x {header.height}")
    else:
        part = row * min(page.get(_STRIP_ROWS, header.height), header.height)
    offsets = page.values(_TILE_OFFSETS if tiled else _STRIP_OFFSETS)
    sizes = page.values(_TILE_SIZES if tiled else _STRIP_SIZES)
    places = list(zip(offsets, sizes, strict=False))
    if not offsets or any(start + size > len(data) for start, size in places):
        raise Damaged
    if page.get(_COMPRESSION, 1) == 1 and sum(sizes) < missing:
        raise Damaged
    if page.get(_COMPRESSION) in (8, 32946):
        _check_deflate((data[start : start + size] for start, size in places), part, missing)


def _check_deflate(streams: Iterable[bytes], part: int, missing: int) -> None:
    """Raise Damaged where a stream is not whole, as far as its `part` bytes that are decoded, or
    where all together give less bytes than are `missing`."""
    for packed in streams:
        stream, length = zlib.decompressobj(), 0
        try:
            while not stream.eof and length <= part:
                pixels = stream.decompress(packed, 2**20)
                if not pixels and not stream.eof:
                    raise Damaged
                packed, length = stream.unconsumed_tail, length + len(pixels)
        except zlib.error as error:
            raise Damaged from error
        missing -= length
    if missing > 0:
        raise Damaged
