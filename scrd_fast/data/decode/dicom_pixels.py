"""A DICOM file's pixels as they are stored: transfer syntaxes, compressed streams, bits.

pydicom drives the packages that decompress. Which of them reads a syntax is fixed here, so that a
file gives the same pixels wherever the same packages are installed.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.image import check_size
from scrd_fast.data.decode.quiet import one_line
from scrd_fast.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

MEDICAL = "pip install 'scrd-fast[medical]'"
DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT, _EXPLICIT, _BIG = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_NATIVE = (_IMPLICIT, _EXPLICIT, _BIG, DEFLATED)
_RLE = "1.2.840.10008.1.2.5"
# By which package each is read: pydicom's names of those that it drives, and imagecodecs. GDCM,
# pylibjpeg-libjpeg and pylibjpeg-rle would read them, too. But damaged streams make GDCM end the
# process and pylibjpeg-rle panic, and pylibjpeg-libjpeg has the licence GPL-3.0.
_PLUGINS = {
    "1.2.840.10008.1.2.4.50": "imagecodecs",
    "1.2.840.10008.1.2.4.51": "imagecodecs",
    "1.2.840.10008.1.2.4.57": "imagecodecs",
    "1.2.840.10008.1.2.4.70": "imagecodecs",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
    _RLE: "pydicom",
}
# Of which kind a JPEG's or JPEG-LS's frame is: markers of ITU T.81 and T.87.
_FRAMES = {"1.2.840.10008.1.2.4.50": (0xFFC0,),
           "1.2.840.10008.1.2.4.51": (0xFFC0, 0xFFC1),
           "1.2.840.10008.1.2.4.57": (0xFFC3,), "1.2.840.10008.1.2.4.70": (0xFFC3,),
           "1.2.840.10008.1.2.4.80": (0xFFF7,), "1.2.840.10008.1.2.4.81": (0xFFF7,)}
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_J2K = b"\xff\x4f\xff\x51"
# Where all pixels are the same, the part of a stream that carries them repeats its codes, and is
# no longer than this when deflated: 256 bytes, a 200th of it (deflate leaves a 1000th of the
# longest repetition), and a byte for 50 000 pixels (JPEG 2000 counts its blocks).
_TRIVIAL, _OF_STREAM, _OF_PIXELS = 256, 200, 50_000


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


def read_header(dataset: "Dataset") -> Header:
    """The header of a data set, whose pixels need not be read yet."""
    syntax = _find_syntax(dataset)
    rows, columns = read_whole(dataset, "Rows"), read_whole(dataset, "Columns")
    frames = read_whole(dataset, "NumberOfFrames", 1)
    check_size(columns, rows, frames)
    samples = read_whole(dataset, "SamplesPerPixel", 1)
    colour = " ".join(read_texts(dataset, "PhotometricInterpretation")) or "none"
    known = {1: _GREY, 3: _COLOURS}.get(samples, ())
    if colour not in known:
        raise DataError(f"expected a photometric interpretation of {', '.join(_GREY + _COLOURS)}"
                        f" with 1 or 3 samples, got {colour[:20]} with {samples}")
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
    if header.syntax not in _PLUGINS:
        raise DataError(f"expected a transfer syntax that a package reads, got {name}, which none"
                        " does that works with pydicom")
    if not _is_there(header.syntax):
        raise DataError(f"{_PLUGINS[header.syntax]}, which reads {name}, is not installed:"
                        f" {MEDICAL}")


def _is_there(syntax: str) -> bool:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    if _PLUGINS[syntax] == "imagecodecs":
        return find_spec("imagecodecs") is not None
    return _PLUGINS[syntax] in get_decoder(UID(syntax)).available_plugins


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


def _options(header: Header, **others: Any) -> dict[str, Any]:
    return {"rows": header.rows, "columns": header.columns, "number_of_frames": header.frames,
            "samples_per_pixel": header.samples, "bits_allocated": header.allocated,
            "bits_stored": header.stored, "pixel_representation": int(header.signed),
            "photometric_interpretation": header.colour, "pixel_keyword": "PixelData",
            "planar_configuration": header.planar, "allow_excess_frames": False, **others}


def _iterate_native(dataset: "Dataset", header: Header, data: bytes) -> Iterator[NDArray[Any]]:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    # Two neighbours share their colour in YBR_FULL_422.
    shared = header.colour == "YBR_FULL_422"
    bits = header.rows * header.columns * header.frames * header.allocated * (
        2 if shared else header.samples)
    if len(data) < (bits + 7) // 8:
        raise DataError(f"cut, or its header lies: expected {(bits + 7) // 8} bytes of pixels, got"
                        f" {len(data)}")
    shifted = header.high + 1 - header.stored
    options = _options(header, pixel_vr=dataset["PixelData"].VR,
                       correct_unused_bits=not shifted)
    if dataset["PixelData"].is_undefined_length:
        raise DataError("names a transfer syntax without compression, got compressed pixels")
    try:
        frames = get_decoder(UID(header.syntax)).iter_array(data, **options)
        for stored, _ in frames:
            yield _shift(stored, header) if shifted else stored
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"the pixels do not decode: {one_line(error)}") from error


def _iterate_compressed(dataset: "Dataset", header: Header, data: bytes) -> Iterator[NDArray[Any]]:
    from pydicom.encaps import generate_frames

    tables = [dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    count = 0
    try:
        for stream in generate_frames(data, number_of_frames=header.frames,
                                      extended_offsets=tuple(tables) if all(tables) else None):
            if count == header.frames:
                break
            yield _decompress(stream, header, count)
            count += 1
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"the compressed pixels are cut or damaged: {one_line(error)}") from error
    if count < header.frames:
        raise DataError(f"cut, or its header lies: expected {header.frames} frames, got {count}")


def _decompress(stream: bytes, header: Header, frame: int) -> NDArray[Any]:
    from pydicom.uid import UID

    carries = stream
    if header.syntax != _RLE:
        carries = stream[_check_stream(stream, header, frame):]
    decode = _decode_jpeg if _PLUGINS[header.syntax] == "imagecodecs" else _decode_by_pydicom
    name = UID(header.syntax).name
    try:
        stored = decode(stream, header)
    except Exception as error:
        raise DataError(f"frame {frame} does not decode as {name}: {one_line(error)}") from error
    same = stored.size > 1 and bool((stored == stored[0, 0]).all())
    if same and not _is_trivial(carries, header.rows * header.columns):
        raise DataError(f"frame {frame} does not decode as {name}: all pixels are the same, but the"
                        " stream carries more")
    return stored


def _decode_by_pydicom(stream: bytes, header: Header) -> NDArray[Any]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    shifted = header.syntax == _RLE and header.high + 1 > header.stored
    options = _options(header, number_of_frames=1, **(
        {"correct_unused_bits": False} if shifted else {}))
    stored, _ = get_decoder(UID(header.syntax)).as_array(
        encapsulate([stream]), index=0, decoding_plugin=_PLUGINS[header.syntax], **options)
    return _shift(stored, header) if shifted else stored


def _decode_jpeg(stream: bytes, header: Header) -> NDArray[Any]:
    """JPEG of ITU T.81, with loss or without, of 8 to 16 bits, by libjpeg-turbo."""
    import imagecodecs
    from pydicom.pixels import convert_color_space

    colour = header.samples == 3
    # The same on both sides: libjpeg-turbo shall not guess, for DICOM says what is coded.
    space = "YCBCR" if colour else None
    found = imagecodecs.jpeg8_decode(stream, colorspace=space, outcolorspace=space)
    if found.shape != (header.rows, header.columns, 3)[:3 if colour else 2]:
        raise ValueError(f"decoded as {found.shape}")
    if colour and _is_ybr(stream, header):
        return convert_color_space(found, "YBR_FULL", "RGB")
    wide = f"{header.allocated // 8}"
    stored = found.astype(f"u{wide}")
    # Streams are unsigned; the sign is the highest bit stored.
    left = header.allocated - header.stored
    return (stored << left).view(f"i{wide}" if header.signed else f"u{wide}") >> left


def _is_ybr(stream: bytes, header: Header) -> bool:
    """Whether the colours coded are YBR: by the stream where that says so, else by the header."""
    jfif = False
    for marker, start, end in _segments(stream):
        if marker in _FRAMES[header.syntax] and stream[start + 6:end:3].upper() == b"RGB":
            return False
        jfif |= marker == 0xFFE0 and stream.startswith(b"JFIF", start)
    return jfif or header.colour != "RGB"


def _is_trivial(carries: bytes, pixels: int) -> bool:
    most = _TRIVIAL + len(carries) // _OF_STREAM + pixels // _OF_PIXELS
    return len(zlib.compress(carries, 9)) <= most


def _shift(stored: NDArray[Any], header: Header) -> NDArray[Any]:
    """Bits that do not begin at bit 0 (HighBit above BitsStored - 1, retired but allowed)."""
    # Left until the highest bit is the sign, then right, which extends it.
    left = header.allocated - 1 - header.high
    return (stored << left) >> (header.allocated - header.stored)


def _check_stream(stream: bytes, header: Header, frame: int) -> int:
    """Compare a JPEG, JPEG-LS or JPEG 2000 stream with the header, before a decoder takes memory
    for what the stream says; returns where in it the coded pixels begin."""
    try:
        height, width, channels, start = _read_j2k(stream) if _J2K in stream[:4096] else (
            _read_jpeg(stream, _FRAMES.get(header.syntax, ()), header.allocated))
    except (struct.error, ValueError) as error:
        raise DataError(f"the stream of frame {frame} is cut or damaged") from error
    # JPEG may tell the height at the end.
    if (height or header.rows, width, channels) != (header.rows, header.columns, header.samples):
        raise DataError(f"expected {header.rows} x {header.columns} x {header.samples} as the"
                        f" header says, got a stream of {height} x {width} x {channels} as frame"
                        f" {frame}")
    if stream.rfind(b"\xff\xd9", start) < 0:
        raise DataError(f"the stream of frame {frame} is cut: its end is missing")
    return start


def _read_j2k(stream: bytes) -> tuple[int, int, int, int]:
    """Height, width and channels by the SIZ segment (ISO 15444-1 A.5.1), the first tile's place."""
    at = stream.index(_J2K) + 4
    right, bottom, left, top = struct.unpack_from(">IIII", stream, at + 4)
    (channels,) = struct.unpack_from(">H", stream, at + 36)
    return bottom - top, right - left, channels, stream.index(b"\xff\x90", at)


def _read_jpeg(stream: bytes, kinds: tuple[int, ...],
               allocated: int) -> tuple[int, int, int, int]:
    """Height, width and channels by the frame's segment (ITU T.81 B.2.2), which must be one of
    `kinds` and of a precision that fits, and the scan's place."""
    size, at = list[int](), 0
    for marker, start, end in _segments(stream):
        if (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)) or (
                marker == 0xFFF7):
            precision, *size = struct.unpack_from(">BHHB", stream, start)
            if marker not in kinds or not 2 <= precision <= allocated:
                raise ValueError
        at = end
    height, width, channels = size  # ValueError where no frame came before
    return height, width, channels, at


def _segments(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """The marker of each segment up to the first scan's, and where its content begins and ends."""
    at = 2
    if stream[:2] != b"\xff\xd8":
        raise ValueError
    marker = 0
    while marker != 0xFFDA:
        marker, length = struct.unpack_from(">HH", stream, at)
        if marker == 0xFFFF:  # fill
            at += 1
            continue
        if marker < 0xFFC0:
            raise ValueError
        yield marker, at + 4, at + 2 + length
        at += 2 + length
