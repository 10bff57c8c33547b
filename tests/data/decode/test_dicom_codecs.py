"""Compressed DICOM: lossless streams come back exactly, other decoders agree, and no damaged stream
takes more than an error."""

import io
import struct
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")
pytest.importorskip("imagecodecs", reason="imagecodecs decompresses")

import imagecodecs
import pydicom
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.pixels import convert_color_space, get_decoder
from pydicom.uid import (
    HTJ2K,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from scrd_fast.data.decode.dicom_codecs import CODECS, decode_frame
from scrd_fast.data.decode.dicom_pixels import Header, iterate_stored, read_header
from scrd_fast.errors import DataError
from tests.data.decode.dicom_by_hand import OWN, dicom, save
from tests.support.alone import run_silently

writes_htj2k = pytest.mark.skipif(not hasattr(imagecodecs, "HTJ2K"),
                                  reason="a newer imagecodecs writes HTJ2K")


def own(name: str) -> np.ndarray:
    return pydicom.dcmread(OWN / name).pixel_array


MR = own("MR_small.dcm")  # int16, some of them negative
CT = own("CT_small.dcm").astype(np.uint16)  # of 12 bits
EIGHT = (CT >> 4).astype(np.uint8)
COLOUR = own("examples_rgb_color.dcm")[100:196, 100:180].copy()
PICTURES = {"signed": MR, "unsigned": CT, "8 bits": EIGHT, "odd": CT[:37, :53].copy(),
            "colour": COLOUR}


def compressed(streams, pixels, syntax, extended=False, fragments=1, **elements):
    """A file with these streams, one a frame; the header is that of `pixels`."""
    data = dicom(pixels, syntax, **elements)
    if extended:
        data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = (
            encapsulate_extended(streams))
    else:
        data.PixelData = encapsulate(streams, fragments_per_frame=fragments)
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    if len(streams) > 1:
        data.NumberOfFrames = len(streams)
    return data


def stored_in(data, tmp_path):
    """The frames of a file, after it was written and read."""
    found = pydicom.dcmread(save(data, tmp_path / "a"))
    return list(iterate_stored(found, read_header(found)))


def exactly(stored, pixels):
    np.testing.assert_array_equal(stored, pixels)
    assert stored.dtype.kind == pixels.dtype.kind


# --- lossless is lossless -------------------------------------------------------------------------

@writes_htj2k
@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K])
@pytest.mark.parametrize("name", PICTURES)
def test_htj2k(tmp_path, name, syntax):
    pixels = PICTURES[name]
    for options in ({}, {"tile": (32, 32)}, {"resolutions": 2}):
        stream = imagecodecs.htj2k_encode(pixels, reversible=True, **options)
        elements = {"PhotometricInterpretation": "YBR_RCT"} if pixels.ndim == 3 else {}
        (stored,) = stored_in(compressed([stream], pixels, syntax, **elements), tmp_path)
        exactly(stored, pixels)


@writes_htj2k
@pytest.mark.parametrize("name", ["signed", "unsigned", "8 bits"])
def test_htj2k_with_loss_as_another_decoder_has_it(tmp_path, name):
    pixels = PICTURES[name]
    stream = imagecodecs.htj2k_encode(pixels, reversible=False, level=0.01)
    (stored,) = stored_in(compressed([stream], pixels, HTJ2K), tmp_path)
    other = imagecodecs.htj2k_decode(stream)
    assert np.abs(stored.astype(int) - pixels).max() > 0
    assert np.abs(stored.astype(int) - other).max() <= 1


@pytest.mark.parametrize("name", PICTURES)
def test_jpeg_2000(tmp_path, name):
    pixels = PICTURES[name]
    for options in ({}, {"resolutions": 2}, {"codecformat": "JP2"}):
        stream = imagecodecs.jpeg2k_encode(pixels, **{"codecformat": "J2K", "reversible": True,
                                                      **options})
        elements = {"PhotometricInterpretation": "YBR_RCT"} if pixels.ndim == 3 else {}
        (stored,) = stored_in(compressed([stream], pixels, JPEG2000Lossless, **elements), tmp_path)
        exactly(stored, pixels)


@pytest.mark.parametrize("signed", [False, True])
def test_the_header_says_the_sign(tmp_path, signed):
    """Streams of 13 bits with the other sign, as J2K_pixelrep_mismatch.dcm has one."""
    pixels = CT.astype(np.int16) - 1000 if signed else CT
    bits = (pixels & 0x1FFF).astype(np.uint16)
    other = bits if signed else (bits.astype(np.int16) << 3) >> 3
    stream = imagecodecs.jpeg2k_encode(other, codecformat="J2K", reversible=True, bitspersample=13)
    at = stream.index(b"\xff\x51") + 40
    assert stream[at] == 12 + 128 * (not signed)
    (stored,) = stored_in(compressed([stream], pixels, JPEG2000Lossless, BitsStored=13, HighBit=12),
                          tmp_path)
    exactly(stored, pixels)


@pytest.mark.parametrize("name", PICTURES)
def test_jpeg_ls(tmp_path, name):
    pixels = PICTURES[name]
    stream = imagecodecs.jpegls_encode(pixels.view(f"u{pixels.itemsize}"))
    exactly(*stored_in(compressed([stream], pixels, JPEGLSLossless), tmp_path), pixels)
    near = imagecodecs.jpegls_encode(pixels.view(f"u{pixels.itemsize}"), level=2)
    (stored,) = stored_in(compressed([near], pixels, JPEGLSNearLossless), tmp_path)
    assert 0 < np.abs(stored.astype(int) - pixels).max() <= 2


@pytest.mark.parametrize("signed", [False, True])
def test_jpeg_ls_of_twelve_bits(tmp_path, signed):
    pytest.importorskip("jpeg_ls", reason="pyjpegls writes the stream")
    pixels = CT.astype(np.int16) - 1500 if signed else CT
    data = dicom(pixels, BitsStored=12, HighBit=11)
    data.compress(JPEGLSLossless)
    exactly(*stored_in(data, tmp_path), pixels)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_jpeg_ls_interleaves_colours_in_three_ways(tmp_path, mode):
    jpeg_ls = pytest.importorskip("jpeg_ls", reason="pyjpegls writes the stream")
    planes = np.ascontiguousarray(np.moveaxis(COLOUR, -1, 0)) if mode == 0 else COLOUR
    stream = jpeg_ls.encode_pixel_data(
        planes.tobytes(), rows=96, columns=80, samples_per_pixel=3, bits_allocated=8, bits_stored=8,
        photometric_interpretation="RGB", planar_configuration=int(mode == 0),
        interleave_mode=mode, lossy_error=0, pixel_representation=0)
    exactly(*stored_in(compressed([bytes(stream)], COLOUR, JPEGLSLossless), tmp_path), COLOUR)


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("name", ["signed", "unsigned", "8 bits", "odd", "colour"])
def test_lossless_jpeg(tmp_path, name, predictor):
    pixels = PICTURES[name]
    stream = imagecodecs.jpeg8_encode(pixels.view(f"u{pixels.itemsize}"), lossless=True,
                                      predictor=predictor)
    exactly(*stored_in(compressed([stream], pixels, JPEGLossless), tmp_path), pixels)


def rle_stream(pixels: np.ndarray, padding: bytes = b"") -> bytes:
    """RLE by PS3.5 G, in literal runs and repeated bytes."""
    planes = np.moveaxis(pixels.reshape(*pixels.shape[:2], -1), -1, 0)
    parts = []
    for plane in planes:
        each = np.ascontiguousarray(plane).view(np.uint8).reshape(-1, plane.itemsize)
        for byte in reversed(range(plane.itemsize)):
            values, out = each[:, byte].tobytes(), b""
            for at in range(0, len(values), 100):
                run = values[at:at + 100]
                out += bytes([257 - len(run), run[0]]) if 1 < len(run) == run.count(run[0]) else (
                    bytes([len(run) - 1]) + run)
            parts.append(out + padding + bytes(len(out + padding) % 2))
    starts = 64 + np.cumsum([0, *map(len, parts)])
    header = struct.pack("<16I", len(parts), *starts[:-1], *[0] * (15 - len(parts)))
    return header + b"".join(parts)


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4"])
@pytest.mark.parametrize("samples", [1, 3])
def test_rle(tmp_path, kind, samples):
    limits = np.iinfo(kind)
    pixels = np.random.default_rng(0).integers(
        limits.min, limits.max, (33, 20, 3)[:2 if samples == 1 else 3], endpoint=True).astype(kind)
    pixels[3:20] = -7 if kind[0] == "i" else 7
    (stored,) = stored_in(compressed([rle_stream(pixels)], pixels, RLELossless), tmp_path)
    exactly(stored, pixels)
    # Some writers pad segments with more zeros than one, which pydicom leaves out, too.
    padded = compressed([rle_stream(pixels, bytes(40))], pixels, RLELossless)
    exactly(*stored_in(padded, tmp_path), pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(get_decoder(RLELossless).as_array(
            padded, decoding_plugin="pydicom", index=0)[0], pixels)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_ybr_becomes_rgb(tmp_path, syntax):
    ybr = convert_color_space(COLOUR, "RGB", "YBR_FULL")
    stream = {RLELossless: rle_stream, JPEGLSLossless: imagecodecs.jpegls_encode,
              JPEG2000Lossless: lambda pixels: imagecodecs.jpeg2k_encode(
                  pixels, codecformat="J2K", reversible=True, mct=False)}[syntax](ybr)
    data = compressed([stream], COLOUR, syntax, PhotometricInterpretation="YBR_FULL")
    (stored,) = stored_in(data, tmp_path)
    np.testing.assert_array_equal(stored, convert_color_space(ybr, "YBR_FULL", "RGB"))


@pytest.mark.parametrize(("extended", "fragments"), [(False, 1), (False, 3), (True, 1)])
def test_frames_in_fragments(tmp_path, extended, fragments):
    frames = [CT, CT[::-1].copy(), CT.T.copy()]
    streams = [imagecodecs.jpeg2k_encode(each, codecformat="J2K", reversible=True)
               for each in frames]
    found = stored_in(compressed(streams, CT, JPEG2000Lossless, extended, fragments), tmp_path)
    for stored, frame in zip(found, frames, strict=True):
        exactly(stored, frame)


# --- other decoders -------------------------------------------------------------------------------

# Which of them pydicom's plugins do not decode; the first is refused, see test_refused.py.
UNREAD = {"JPEG2000-embedded-sequence-delimiter.dcm": ("gdcm", "pillow", "pylibjpeg"),
          "GDCMJ2K_TextGBR.dcm": ("pillow",), "J2K_pixelrep_mismatch.dcm": ("gdcm", "pillow"),
          "JPEG-lossy.dcm": ("gdcm", "pillow"), "JPGExtended.dcm": ("gdcm", "pillow")}


def bundled() -> list[tuple[Path, str]]:
    """pydicom's own compressed files, each with each package that decodes it for pydicom."""
    found = []
    for path in sorted(OWN.glob("*.dcm")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        syntax = getattr(data, "file_meta", {}).get("TransferSyntaxUID", "")
        if syntax in CODECS and "Rows" in data:
            found += [(path, plugin) for plugin in get_decoder(syntax).available_plugins
                      if plugin not in UNREAD.get(path.name, ())]
    return found


BUNDLED = bundled()


@pytest.mark.parametrize(("path", "plugin"), BUNDLED, ids=lambda each: getattr(each, "name", each))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_decoders_agree(path, plugin):
    data = pydicom.dcmread(path)
    syntax = data.file_meta.TransferSyntaxUID
    expected, _ = get_decoder(syntax).as_array(data, decoding_plugin=plugin)
    stored = np.squeeze(np.stack(list(iterate_stored(data, read_header(data)))))
    lossy = syntax.rpartition(".")[2] in ("50", "51")  # each rounds in its own way
    assert np.abs(stored.astype(int) - np.squeeze(expected)).mean() <= (1 if lossy else 0)


# --- damage ---------------------------------------------------------------------------------------

def header_of(pixels, syntax, **fields):
    colour = pixels.ndim == 3
    bits = 8 * pixels.itemsize
    return replace(Header(syntax, *pixels.shape[:2], 1, 3 if colour else 1, bits, bits, bits - 1,
                          pixels.dtype.kind == "i", "RGB" if colour else "MONOCHROME2", 0),
                   **fields)


def j2k_of(size, sizes=b"", tile=None, component=False):
    """A picture of 128 x 128 that says to be larger, with precincts of these sizes (exponents)."""
    stream = bytearray(imagecodecs.jpeg2k_encode(CT, codecformat="J2K", reversible=True))
    struct.pack_into(">II", stream, 8, size, size)
    struct.pack_into(">II", stream, 24, *(tile or (size, size)))
    at = stream.index(b"\xff\x52")
    (length,) = struct.unpack_from(">H", stream, at + 2)
    style = bytes(stream[at + 9:at + 2 + length])
    segment = bytes([0, 1]) + style + sizes if component else (
        bytes([stream[at + 4] | 1]) + bytes(stream[at + 5:at + 2 + length]) + sizes)
    if sizes:
        marker = b"\xff\x53" if component else b"\xff\x52"
        segment = marker + struct.pack(">H", 2 + len(segment)) + segment
        stream[at + 2 + length if component else at:at + 2 + length] = segment
    return bytes(stream)


@pytest.mark.parametrize(("stream", "reason"), [
    (j2k_of(3000, tile=(1, 1)), "more tiles than its bytes hold"),
    (j2k_of(3000, tile=(0, 0)), "more tiles than its bytes hold"),
    (j2k_of(3000, sizes=b"\0\x11\x11\x11\x11\x11\x11"), "more precincts than its bytes hold"),
    (j2k_of(3000, sizes=b"\0\x11\x11\x11\x11\x11\x11", component=True),
     "more precincts than its bytes hold")])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, HTJ2K])
def test_jpeg_2000_of_more_parts_than_bytes(stream, reason, syntax):
    """OpenJPEG would take gigabytes."""
    with pytest.raises(DataError, match=reason):
        decode_frame(stream, header_of(CT, syntax, rows=3000, columns=3000), 0)


def test_parts_of_a_usual_size_are_read():
    PIL = pytest.importorskip("PIL.Image", reason="Pillow writes the stream")
    for options in ({"precinct_size": (32, 32), "codeblock_size": (16, 16)},
                    {"tile_size": (40, 32)}, {"progression": "RPCL", "num_resolutions": 3}):
        out = io.BytesIO()
        PIL.fromarray(EIGHT).save(out, "JPEG2000", no_jp2=True, **options)
        exactly(decode_frame(out.getvalue(), header_of(EIGHT, JPEG2000Lossless), 0), EIGHT)


@pytest.mark.parametrize("change", [(0, 0), (0, 16), (0, 3), (4, 63), (8, 0), (8, 2**31), (8, 64),
                                    (8, 2**32 - 1)])
def test_rle_that_points_elsewhere(change):
    """Offsets and counts that codecs may follow to where no stream is."""
    stream = bytearray(rle_stream(CT))
    struct.pack_into("<I", stream, *change)
    with pytest.raises(DataError, match=r"cut or damaged|expected a stream of 2 segments"):
        decode_frame(bytes(stream), header_of(CT, RLELossless), 0)


@pytest.mark.parametrize(("syntax", "encode"), [
    (JPEGLossless, lambda: imagecodecs.jpeg8_encode(CT, lossless=True)),
    ("1.2.840.10008.1.2.4.50", lambda: imagecodecs.jpeg8_encode(EIGHT, level=80))])
def test_jpeg_of_more_pixels_than_bits(syntax, encode):
    stream = bytearray(encode())
    at = max(stream.find(b"\xff\xc3"), stream.find(b"\xff\xc0"))
    struct.pack_into(">HH", stream, at + 5, 9000, 9000)
    pixels = CT if syntax == JPEGLossless else EIGHT
    with pytest.raises(DataError, match="cut: fewer bytes than its pixels need"):
        decode_frame(bytes(stream), header_of(pixels, syntax, rows=9000, columns=9000), 0)


def test_rle_of_more_pixels_than_runs():
    with pytest.raises(DataError, match="cut or damaged"):
        decode_frame(rle_stream(CT), header_of(CT, RLELossless, rows=9000, columns=9000), 0)


def test_channels_of_several_sizes():
    stream = bytearray(imagecodecs.jpeg2k_encode(COLOUR, codecformat="J2K", reversible=True))
    stream[stream.index(b"\xff\x51") + 44] = 2  # the second channel's step
    with pytest.raises(DataError, match="expected channels of one kind and size"):
        decode_frame(bytes(stream), header_of(COLOUR, JPEG2000Lossless), 0)


def samples() -> list[tuple[bytes, Header]]:
    """A stream or more of each syntax."""
    found = []
    for path in sorted({path for path, _ in BUNDLED}):
        data = pydicom.dcmread(path)
        if data.Rows * data.Columns <= 2**16:
            count = int(data.get("NumberOfFrames", 1))
            stream = next(generate_frames(data.PixelData, number_of_frames=count))
            found.append((stream, read_header(data)))
    for pixels in (MR, EIGHT, COLOUR):
        if hasattr(imagecodecs, "HTJ2K"):
            found += [(imagecodecs.htj2k_encode(pixels, reversible=True),
                       header_of(pixels, HTJ2KLossless))] * 4
        found.append((imagecodecs.jpeg8_encode(pixels.view(f"u{pixels.itemsize}"), lossless=True),
                      header_of(pixels, JPEGLossless)))
    return found


def damage(stream: bytes, rng: np.random.Generator) -> bytes:
    """Bits turned, bytes set, a piece taken out, put in or cut off; half of them in the head."""
    found = bytearray(stream)
    for _ in range(rng.integers(1, 4)):
        size = len(found) if rng.random() < 0.5 else min(len(found), 200)
        at = int(rng.integers(0, size))
        length = int(rng.integers(1, 40))
        kind = rng.integers(0, 5)
        if kind == 0:
            found[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            found[at:at + 2] = bytes([int(rng.choice([0, 1, 127, 128, 255]))]) * 2
        elif kind == 2:
            del found[at:at + length]
        elif kind == 3:
            found[at:at] = found[-length:]
        else:
            found[at:] = found[-2:]
        if len(found) < 2:
            break
    return bytes(found)


def read_damaged(seed: int, count: int) -> tuple[int, int]:
    """How many of so many damaged streams are read and refused."""
    rng, streams = np.random.default_rng(seed), samples()
    read = refused = 0
    for i in range(count):
        stream, header = streams[i % len(streams)]
        try:
            stored = decode_frame(damage(stream, rng), header, 0)
        except DataError:
            refused += 1
            continue
        assert stored.shape[:2] == (header.rows, header.columns)
        read += 1
    return read, refused


@pytest.mark.slow
def test_damaged_streams_end_no_process():
    """In a process of little memory, whose end would be seen: pictures or errors, no more."""
    code = """
import resource
from tests.data.decode.test_dicom_codecs import read_damaged
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
print(*read_damaged(0, 3000))
"""
    read, refused = map(int, run_silently(code, "-W", "ignore::UserWarning").split())
    assert read > 100
    assert refused > 1000


# --- one value ------------------------------------------------------------------------------------

def flat_streams():
    flat = np.full((600, 500), 900, np.uint16)
    found = {RLELossless: rle_stream(flat), JPEGLSLossless: imagecodecs.jpegls_encode(flat),
             JPEGLossless: imagecodecs.jpeg8_encode(flat, lossless=True),
             JPEG2000Lossless: imagecodecs.jpeg2k_encode(flat, codecformat="J2K", reversible=True)}
    if hasattr(imagecodecs, "HTJ2K"):
        found[HTJ2KLossless] = imagecodecs.htj2k_encode(flat, reversible=True)
    return flat, found


def test_a_picture_of_one_value_is_one():
    flat, streams = flat_streams()
    for syntax, stream in streams.items():
        exactly(decode_frame(stream, header_of(flat, syntax), 0), flat)
