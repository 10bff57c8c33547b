"""One compressed DICOM frame as stored values, by imagecodecs.

A stream is compared with the file's header before a codec sees it, for codecs take memory for
what a stream says. They let other threads run meanwhile.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.quiet import one_line
from scrd_fast.errors import DataError

if TYPE_CHECKING:
    from scrd_fast.data.decode.dicom_pixels import Header

_RLE = "1.2.840.10008.1.2.5"
# Of which kind a JPEG's or JPEG-LS's frame is: markers of ITU T.81 and T.87.
_FRAMES = {"1.2.840.10008.1.2.4.50": (0xFFC0,),
           "1.2.840.10008.1.2.4.51": (0xFFC0, 0xFFC1),
           "1.2.840.10008.1.2.4.57": (0xFFC3,), "1.2.840.10008.1.2.4.70": (0xFFC3,),
           "1.2.840.10008.1.2.4.80": (0xFFF7,), "1.2.840.10008.1.2.4.81": (0xFFF7,)}
_YBR = ("YBR_FULL", "YBR_FULL_422")
_MOST_RUN = 64  # bytes out of a byte of RLE: 128 out of two
_J2K = b"\xff\x4f\xff\x51"
_COD, _COC, _SOT, _SOD = 0xFF52, 0xFF53, 0xFF90, 0xFF93  # markers of ISO 15444-1
_LEAST_TILE = 14  # bytes: the segment SOT and the marker SOD
# Where all pixels are the same, the part of a stream that carries them repeats its codes, and is
# no longer than this when deflated: 256 bytes, a 200th of it (deflate leaves a 1000th of the
# longest repetition), and a byte for 50 000 pixels (JPEG 2000 counts its blocks).
_TRIVIAL, _OF_STREAM, _OF_PIXELS = 256, 200, 50_000


@dataclass(frozen=True)
class _Stream:
    """What a stream says of itself; its coded pixels begin at `start`."""

    height: int
    width: int
    channels: int
    precision: int
    start: int


def decode_frame(stream: bytes, header: "Header", frame: int) -> NDArray[Any]:
    """The stored values of frame number `frame`: integers (H, W), or (H, W, 3) in RGB.

    Signs are extended. Raises DataError where the stream and the header contradict each other,
    where the stream is cut or damaged, and where all pixels are the same although the stream
    carries more.
    """
    from pydicom.uid import UID

    said = _check_stream(stream, header, frame)
    name = UID(header.syntax).name
    try:
        stored = CODECS[header.syntax].decode(stream, header, said)
        if stored.shape != (header.rows, header.columns, 3)[:3 if header.samples == 3 else 2]:
            raise ValueError(f"decoded as {stored.shape}")
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"frame {frame} does not decode as {name}: {one_line(error)}") from error
    same = stored.size > 1 and bool((stored == stored[0, 0]).all())
    if same and not _is_trivial(stream[said.start:], header.rows * header.columns):
        raise DataError(f"frame {frame} does not decode as {name}: all pixels are the same, but the"
                        " stream carries more")
    return stored


def move_bits(stored: NDArray[Any], header: "Header") -> NDArray[Any]:
    """Values out of the bits up to HighBit, which need not be BitsStored - 1 (retired but allowed):
    bits that are not used are cleared, or a sign extended over them."""
    if header.stored == header.allocated:
        return stored
    least, most = header.limits()
    if header.high + 1 == header.stored and least <= stored.min() and stored.max() <= most:
        return stored  # a tenth of the time
    # Left until the highest bit is the sign, then right, which extends it.
    left = header.allocated - 1 - header.high
    return (stored << left) >> (header.allocated - header.stored)


def _is_trivial(carries: bytes, pixels: int) -> bool:
    most = _TRIVIAL + len(carries) // _OF_STREAM + pixels // _OF_PIXELS
    return len(zlib.compress(carries, 9)) <= most


# --- what a stream says -----------------------------------------------------------------------

def _check_stream(stream: bytes, header: "Header", frame: int) -> _Stream:
    try:
        said = CODECS[header.syntax].read(stream, header)
    except (struct.error, ValueError) as error:
        raise DataError(f"the stream of frame {frame} is cut or damaged") from error
    if (said.height, said.width, said.channels) != (header.rows, header.columns, header.samples):
        raise DataError(f"expected {header.rows} x {header.columns} x {header.samples} as the"
                        f" header says, got a stream of {said.height} x {said.width} x"
                        f" {said.channels} as frame {frame}")
    if header.syntax != _RLE and stream.rfind(b"\xff\xd9", said.start) < 0:
        raise DataError(f"the stream of frame {frame} is cut: its end is missing")
    return said


def _read_rle(stream: bytes, header: "Header") -> _Stream:
    """RLE says nothing of its size but how many segments it has (PS3.5 G.5)."""
    begins = _read_segments(stream)
    expected = header.samples * header.allocated // 8
    if len(begins) != expected:
        raise DataError(f"expected a stream of {expected} segments, got {len(begins)}")
    shortest = min(b - a for a, b in pairwise([*begins, len(stream)]))
    if shortest * _MOST_RUN < header.rows * header.columns:
        raise ValueError
    return _Stream(header.rows, header.columns, header.samples, header.allocated, begins[0])


def _read_segments(stream: bytes) -> list[int]:
    count, *places = struct.unpack_from("<16I", stream)
    begins = list(places[:count])
    if not 1 <= count <= 15 or begins[0] < 64 or any(
            a >= b for a, b in pairwise([*begins, len(stream)])):
        raise ValueError
    return begins


def _read_j2k(stream: bytes, header: "Header") -> _Stream:
    """By the SIZ segment (ISO 15444-1 A.5.1), and where the first tile begins."""
    at = stream.index(_J2K, 0, 4096) + 4
    right, bottom, left, top = struct.unpack_from(">4I", stream, at + 4)
    (channels,) = struct.unpack_from(">H", stream, at + 36)
    kinds = {struct.unpack_from(">3B", stream, at + 38 + 3 * i) for i in range(channels)}
    precision, *steps = min(kinds)  # ValueError where there is no channel
    if len(kinds) > 1 or steps != [1, 1]:
        raise DataError("expected channels of one kind and size, got a stream of several")
    return _Stream(bottom - top, right - left, channels, precision % 128 + 1,
                   stream.index(b"\xff\x90", at))


def _read_jpeg(stream: bytes, header: "Header") -> _Stream:
    """By the frame's segment (ITU T.81 B.2.2, T.87 C.2.2), which must be of a kind that the syntax
    allows and of a precision that fits, and where the first scan begins."""
    size, at = list[int](), 0
    for marker, start, end in _segments(stream):
        if (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)) or (
                marker == 0xFFF7):
            size = list(struct.unpack_from(">BHHB", stream, start))
            if marker not in _FRAMES[header.syntax] or not 2 <= size[0] <= header.allocated:
                raise ValueError
        at = end
    precision, height, width, channels = size  # ValueError where no frame came before
    return _Stream(height, width, channels, precision, at)


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


# --- decoding ---------------------------------------------------------------------------------

def _decode_rle(stream: bytes, header: "Header", said: _Stream) -> NDArray[Any]:
    """RLE of PS3.5 G: each byte of a value, the highest first, has a segment of its own.

    imagecodecs.dicomrle_decode would follow offsets that lie out of its memory; pydicom's own
    decoder is in Python.
    """
    import imagecodecs

    begins = _read_segments(stream)
    size, wide = header.rows * header.columns, header.allocated // 8
    planes = np.empty((header.samples, size, wide), np.uint8)
    for i, (begin, end) in enumerate(pairwise([*begins, len(stream)])):
        # Padding of a segment, of zeros, decodes to half as many.
        plane = imagecodecs.packbits_decode(stream[begin:end], out=size + end - begin)
        planes[i // wide, :, wide - 1 - i % wide] = np.frombuffer(plane, np.uint8, size)
    stored = move_bits(planes.view(f"<{'i' if header.signed else 'u'}{wide}")[:, :, 0], header)
    if header.samples == 1:
        return stored.reshape(header.rows, header.columns)
    found = stored.T.reshape(header.rows, header.columns, header.samples)
    return _to_rgb(found, header.colour in _YBR)


def _decode_jpeg(stream: bytes, header: "Header", said: _Stream) -> NDArray[Any]:
    """JPEG of ITU T.81, with loss or without, of 8 to 16 bits, by libjpeg-turbo."""
    import imagecodecs

    # A code of a bit at least for each value, or two for each block of 8 x 8: libjpeg-turbo fills
    # in what is missing.
    lossless = _FRAMES[header.syntax] == (0xFFC3,)
    least = said.height * said.width if lossless else (
        2 * -(-said.height // 8) * -(-said.width // 8))
    if 8 * (len(stream) - said.start) < least:
        raise ValueError("cut: fewer bytes than its pixels need")
    # The same on both sides: libjpeg-turbo shall not guess, for DICOM says what is coded.
    space = "YCBCR" if header.samples == 3 else None
    found = imagecodecs.jpeg8_decode(stream, colorspace=space, outcolorspace=space)
    if header.samples == 3:
        return _to_rgb(found, _is_ybr(stream, header))
    # Streams are unsigned; the sign is the highest bit stored.
    return _extend(found.astype(f"u{header.allocated // 8}"), header.stored, header)


def _decode_jpeg_ls(stream: bytes, header: "Header", said: _Stream) -> NDArray[Any]:
    """JPEG-LS of ITU T.87, with loss or without, by CharLS."""
    import imagecodecs

    found = imagecodecs.jpegls_decode(stream)
    if header.samples == 3:
        return _to_rgb(found, _is_ybr(stream, header))
    return _extend(found, said.precision, header)


def _decode_j2k(stream: bytes, header: "Header", said: _Stream) -> NDArray[Any]:
    """JPEG 2000 of ISO 15444-1 and its high-throughput kind of ISO 15444-15, by OpenJPEG, which
    gives RGB for YBR_ICT and YBR_RCT.

    imagecodecs has OpenJPH, too. But damaged streams make it end the process or never return, and
    it gives wrong pixels where its own error comes late.
    """
    import imagecodecs

    # Without the boxes of a file around the stream: DICOM says what the colours are.
    coded = stream[stream.index(_J2K):]
    _check_parts(coded, header)
    found = imagecodecs.jpeg2k_decode(coded, planar=False, numthreads=1)
    if header.samples == 3:
        return _to_rgb(found, header.colour in _YBR)
    return _extend(found, said.precision, header)


def _check_parts(coded: bytes, header: "Header") -> None:
    """Raise ValueError where a stream of JPEG 2000 says that it has more tiles or precincts than it
    has bytes for: OpenJPEG takes memory for all of them at once."""
    right, bottom, _, _, width, height, left, top = struct.unpack_from(">8I", coded, 8)
    if not width or not height or len(coded) < _LEAST_TILE * (
            -(-(right - left) // width) * -(-(bottom - top) // height)):
        raise ValueError("more tiles than its bytes hold")
    for marker, start, end in _segments_j2k(coded):
        if marker not in (_COD, _COC):
            continue
        # A.6.1 and A.6.2: the style, which says whether sizes of precincts come at the end.
        at = start if marker == _COD else start + (1 if header.samples < 257 else 2)
        sizes = coded[at + (10 if marker == _COD else 6):end] if coded[at] & 1 else b""
        least = sum((header.columns >> step + (size & 15)) * (header.rows >> step + (size >> 4))
                    for step, size in enumerate(reversed(sizes)))
        if least > len(coded):  # each is a byte at least in each layer
            raise ValueError("more precincts than its bytes hold")


def _segments_j2k(coded: bytes) -> Iterator[tuple[int, int, int]]:
    """The marker of each segment in the headers of a stream and its tile-parts (A.4), and where its
    content begins and ends."""
    at, tile = 2, 0
    while at + 4 <= len(coded):
        marker, length = struct.unpack_from(">HH", coded, at)
        if marker < 0xFF00:  # damaged, for the codec to say how
            return
        if marker == _SOT:
            tile = at
        elif marker == _SOD:
            (whole,) = struct.unpack_from(">I", coded, tile + 6)
            if whole <= at - tile:  # the last tile-part, whose length need not be told
                return
            at = tile + whole
            continue
        yield marker, at + 4, at + 2 + length
        at += 2 + length


def _extend(found: NDArray[Any], precision: int, header: "Header") -> NDArray[Any]:
    """Values of so many bits with a sign or without as the header, not the stream, says."""
    left = 8 * found.itemsize - precision
    signed = found.view(f"{'i' if header.signed else 'u'}{found.itemsize}")
    return (signed << left) >> left if left else signed


def _to_rgb(found: NDArray[Any], is_ybr: bool) -> NDArray[Any]:
    from pydicom.pixels import convert_color_space

    return convert_color_space(found, "YBR_FULL", "RGB") if is_ybr else found


def _is_ybr(stream: bytes, header: "Header") -> bool:
    """Whether the colours coded are YBR: by the stream where that says so, else by the header."""
    jfif = False
    for marker, start, end in _segments(stream):
        if marker in _FRAMES[header.syntax] and stream[start + 6:end:3].upper() == b"RGB":
            return False
        jfif |= marker == 0xFFE0 and stream.startswith(b"JFIF", start)
    return jfif or header.colour != "RGB"


@dataclass(frozen=True)
class _Codec:
    read: Callable[[bytes, "Header"], _Stream]
    decode: Callable[[bytes, "Header", _Stream], NDArray[Any]]


#: By the UID of the transfer syntax.
CODECS = {_RLE: _Codec(_read_rle, _decode_rle), **{
    f"1.2.840.10008.1.2.4.{number}": _Codec(read, decode) for numbers, read, decode in (
        ((50, 51, 57, 70), _read_jpeg, _decode_jpeg), ((80, 81), _read_jpeg, _decode_jpeg_ls),
        ((90, 91, 201, 202, 203), _read_j2k, _decode_j2k))
    for number in numbers}}
