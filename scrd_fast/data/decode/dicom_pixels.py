"""A DICOM file's pixels as they are stored: what its header says, and its frames."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.dicom_codecs import CODECS, decode_frame, move_bits
from scrd_fast.data.decode.image import check_size
from scrd_fast.data.decode.quiet import one_line
from scrd_fast.errors import DataError
from scrd_fast.spec import MOST_MEGAPIXELS

if TYPE_CHECKING:
    from pydicom import Dataset

MEDICAL = "pip install 'scrd-fast[medical]'"
DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT, _EXPLICIT, _BIG = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_NATIVE = (_IMPLICIT, _EXPLICIT, _BIG, DEFLATED)
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_OTHER_COLOURS = ("none", "HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB",
                  *_COLOURS, *_GREY)  # that may be named; what else a file says may be anything


@dataclass(frozen=True)
class Header:
    """What the Image Pixel module (PS3.3 C.7.6.3) says, checked.

    allocated, stored and high are bits; frames is 1 for one picture. syntax is a transfer syntax,
    made out for files that do not name one.
    """

    syntax: str
    rows: int
    columns: int
    frames: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    colour: str
    planar: int

    def limits(self) -> tuple[int, int]:
        """The smallest and largest value that the stored bits can hold."""
        if self.signed:
            return -(2 ** (self.stored - 1)), 2 ** (self.stored - 1) - 1
        return 0, 2**self.stored - 1


def read_meta(dataset: "Dataset") -> "Dataset":
    """The meta header of a data set; an empty one where a file has none."""
    from pydicom.dataset import FileMetaDataset

    return getattr(dataset, "file_meta", None) or FileMetaDataset()


def read_texts(item: "Dataset", keyword: str) -> tuple[str, ...]:
    """The values of an element as texts; none where it is not there or does not parse."""
    try:
        value = item.get(keyword)
    except Exception:  # a damaged value; errors of libraries may quote it
        return ()
    if value is None or value == "":
        return ()
    return tuple(map(str, value if _is_many(value) else [value]))


def read_numbers(item: "Dataset", keyword: str) -> tuple[float, ...]:
    """The values of an element as floats; DataError where one is no finite number."""
    try:
        value = item.get(keyword)
        found = () if value is None or value == "" else tuple(
            float(each) for each in (value if _is_many(value) else [value]))
    except Exception as error:
        raise DataError(f"{keyword} is no number") from error
    if not np.isfinite(found).all():
        raise DataError(f"{keyword} is not finite")
    return found


def _is_many(value: object) -> bool:
    from pydicom.multival import MultiValue

    return isinstance(value, MultiValue | list | tuple)


def read_whole(item: "Dataset", keyword: str, default: int | None = None) -> int:
    """One integer of an element; DataError where there is none and no default."""
    found = read_numbers(item, keyword)
    if not found and default is not None:
        return default
    if len(found) != 1 or found[0] != int(found[0]):
        raise DataError(f"expected one integer as {keyword}, got {len(found)} values"
                        if len(found) != 1 else f"{keyword} is no integer")
    return int(found[0])


def read_header(dataset: "Dataset", most_megapixels: int = MOST_MEGAPIXELS) -> Header:
    """The header of a data set, whose pixels need not be read yet."""
    syntax = _find_syntax(dataset)
    rows, columns = read_whole(dataset, "Rows"), read_whole(dataset, "Columns")
    frames = read_whole(dataset, "NumberOfFrames", 1) or 1  # some write 0 for one picture
    check_size(columns, rows, frames, most_megapixels)
    samples = read_whole(dataset, "SamplesPerPixel", 1)
    colour = " ".join(read_texts(dataset, "PhotometricInterpretation")) or "none"
    known = {1: _GREY, 3: _COLOURS}.get(samples, ())
    if colour not in known:
        named = colour if colour in _OTHER_COLOURS else "another"
        raise DataError(f"expected a photometric interpretation of {', '.join(_GREY + _COLOURS)}"
                        f" with 1 or 3 samples, got {named} with {samples}")
    allocated = read_whole(dataset, "BitsAllocated")
    stored = read_whole(dataset, "BitsStored", allocated)
    high = read_whole(dataset, "HighBit", stored - 1)
    if allocated not in (1, 8, 16, 32) or not 1 <= stored <= allocated or (
            not stored - 1 <= high < allocated):
        raise DataError("expected 1, 8, 16 or 32 bits allocated that hold the bits stored, got"
                        f" {stored} bits up to bit {high} of {allocated}")
    signed = read_whole(dataset, "PixelRepresentation", 0)
    planar = read_whole(dataset, "PlanarConfiguration", 0)
    if signed not in (0, 1) or planar not in (0, 1):
        raise DataError("expected a pixel representation and planar configuration of 0 or 1, got"
                        f" {signed} and {planar}")
    return Header(syntax, rows, columns, frames, samples, allocated, stored, high, bool(signed),
                  colour, planar)


def _find_syntax(dataset: "Dataset") -> str:
    named = read_texts(read_meta(dataset), "TransferSyntaxUID")
    if named:
        return named[0]
    # A file without meta header is not compressed, for nothing would say how.
    implicit, little = dataset.original_encoding
    if implicit:
        return _IMPLICIT
    return _EXPLICIT if little else _BIG


def check_syntax(header: Header) -> None:
    """Raise DataError that names the transfer syntax and the package where none here reads it."""
    from pydicom.uid import UID

    if header.syntax in _NATIVE:
        return
    name = UID(header.syntax).name
    if header.syntax not in CODECS:
        known = name if name != header.syntax else re.sub(r"[^0-9.]", "", name)[:64]
        raise DataError(f"expected a transfer syntax that a package reads, got {known}, which none"
                        " does that works with pydicom")
    if not find_spec("imagecodecs"):
        raise DataError(f"imagecodecs, which reads {name}, is not installed: {MEDICAL}")


def iterate_stored(dataset: "Dataset", header: Header) -> Iterator[NDArray[Any]]:
    """The stored values of each frame: integers (H, W), or (H, W, 3) in RGB.

    Bits that are not used are cleared, signs extended. Raises DataError where bytes are missing,
    where nothing decodes them, and where a decoder gives one value for all pixels of a stream that
    carries more.
    """
    check_syntax(header)
    data = dataset.get("PixelData")
    if not data:
        raise DataError("holds no byte of pixel data")
    if header.syntax in _NATIVE:
        yield from _iterate_native(dataset, header, data)
    else:
        yield from _iterate_compressed(dataset, header, data)


def _iterate_native(dataset: "Dataset", header: Header, data: bytes) -> Iterator[NDArray[Any]]:
    # Two neighbours share their colour in YBR_FULL_422.
    shared = header.colour == "YBR_FULL_422"
    bits = header.rows * header.columns * header.frames * header.allocated * (
        2 if shared else header.samples)
    if len(data) < (bits + 7) // 8:
        raise DataError(f"cut, or its header lies: expected {(bits + 7) // 8} bytes of pixels, got"
                        f" {len(data)}")
    if dataset["PixelData"].is_undefined_length:
        raise DataError("names a transfer syntax without compression, got compressed pixels")
    try:
        swapped = header.allocated == 8 and header.syntax == _BIG
        whole = header.samples == 1 and header.allocated >= 8 and not swapped
        yield from (_view_frames if whole else _unpack_frames)(dataset, header, data)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"the pixels do not decode: {one_line(error)}") from error


def _view_frames(dataset: "Dataset", header: Header, data: bytes) -> Iterator[NDArray[Any]]:
    """Of one channel of whole bytes: values one after the other, which are not copied."""
    kind = f"{'>' if header.syntax == _BIG else '<'}{'i' if header.signed else 'u'}"
    shape = header.frames, header.rows, header.columns
    for stored in np.frombuffer(data, f"{kind}{header.allocated // 8}",
                                math.prod(shape)).reshape(shape):
        yield move_bits(stored, header)


def _unpack_frames(dataset: "Dataset", header: Header, data: bytes) -> Iterator[NDArray[Any]]:
    """Of packed bits, of colours in any order, of bytes that are swapped."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    begin_at_0 = header.high + 1 == header.stored
    frames = get_decoder(UID(header.syntax)).iter_array(
        data, rows=header.rows, columns=header.columns, number_of_frames=header.frames,
        samples_per_pixel=header.samples, bits_allocated=header.allocated,
        bits_stored=header.stored, pixel_representation=int(header.signed),
        photometric_interpretation=header.colour, planar_configuration=header.planar,
        pixel_keyword="PixelData", pixel_vr=dataset["PixelData"].VR, allow_excess_frames=False,
        correct_unused_bits=begin_at_0)
    for stored, _ in frames:
        yield stored if begin_at_0 else move_bits(stored, header)


def _iterate_compressed(dataset: "Dataset", header: Header, data: bytes) -> Iterator[NDArray[Any]]:
    from pydicom.encaps import generate_frames

    tables = [dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    count = 0
    try:
        for stream in generate_frames(data, number_of_frames=header.frames,
                                      extended_offsets=tuple(tables) if all(tables) else None):
            if count == header.frames:
                break
            yield decode_frame(stream, header, count)
            count += 1
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"the compressed pixels are cut or damaged: {one_line(error)}") from error
    if count < header.frames:
        raise DataError(f"cut, or its header lies: expected {header.frames} frames, got {count}")
