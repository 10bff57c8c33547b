"""What is no picture of a patient, or not readable: one line that says why, and no library's."""

import gzip
import io
import os
import re
import struct
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")

import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
)

import scrd_fast
from scrd_fast.data.decode import dicom_codecs, dicom_pixels
from scrd_fast.errors import DataError, InputError
from scrd_fast.spec import DecodingRule
from tests.data.decode.dicom_by_hand import OWN, dicom, rle, save

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
WINDOW = {"WindowCenter": 2000, "WindowWidth": 4000}


def refused(path, reason, rule=None):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError) as caught:
            scrd_fast.read_images(path, rule)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert re.search(reason, message), message
    assert not re.search("zebedeus|ypsilanti", message, re.I)
    assert caught.value.__cause__ is None  # a traceback would show the libraries'
    return message


@pytest.mark.parametrize(("name", "reason"), [
    ("test-SR.dcm", "an object of the class Comprehensive SR Storage, without pixel data"),
    ("reportsi.dcm", "Basic Text SR"),
    ("rtplan.dcm", "RT Plan"),
    ("rtstruct.dcm", "RT Structure Set"),
    ("waveform_ecg.dcm", "ECG Waveform"),
    ("no_meta_group_length.dcm", "no pixel data"),
    ("rtdose.dcm", "a radiotherapy dose"),
    ("badVR.dcm", "a radiotherapy dose"),
    ("liver_1frame.dcm", "a segmentation"),
    ("dicomdirtests/DICOMDIR", "a DICOMDIR"),
    ("dicomdirtests/98892001/CT2N/6293", "a localizer"),
    ("MR_truncated.dcm", "cut, or its header lies: expected 8192 bytes of pixels, got 8130"),
    ("JPEG2000-embedded-sequence-delimiter.dcm", "stream"),
    ("meta_missing_tsyntax.dcm", "Rows"),
    ("nested_priv_SQ.dcm", "Rows"),
    ("README.txt", "expected a DICOM, NIfTI, PNG, JPEG, TIFF or BMP file, got other content"),
    ("zipMR.gz", "got other content"),
])
def test_pydicoms_own(name, reason):
    refused(OWN / name, reason)


@pytest.mark.parametrize(("name", "syntax"), [
    ("JPEG-lossy.dcm", "JPEG Extended"), ("693_J2KI.dcm", "JPEG 2000"),
    ("MR_small_jpeg_ls_lossless.dcm", "JPEG-LS"), ("MR_small_RLE.dcm", "RLE Lossless")])
def test_a_missing_codec_names_the_extra(name, syntax, monkeypatch):
    monkeypatch.setattr(dicom_pixels, "find_spec", lambda package: None)
    refused(OWN / name, rf"imagecodecs, which reads {syntax}.*, is not installed: pip install"
                        r" 'scrd-fast\[medical\]'$")


def test_a_syntax_that_nothing_reads(tmp_path):
    data = dicom(RAMP, MPEG2MPML, PixelData=encapsulate([bytes(100)]))
    data["PixelData"].is_undefined_length = True
    refused(save(data, tmp_path / "a"), "MPEG2 Main Profile")


@pytest.mark.parametrize(("package", "name"), [("pydicom", "MR_small.dcm"), ("nibabel", None)])
def test_a_missing_package_names_the_extra(package, name, monkeypatch, tmp_path):
    path = tmp_path / "a.nii"
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    header[344:348] = b"n+1\0"
    path.write_bytes(header)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "pydicom":
        monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    refused(OWN / name if name else path,
            rf"reading \w+ needs {package}: pip install 'scrd-fast\[medical\]'$")


def test_nothing_there(tmp_path):
    (tmp_path / "empty.dcm").write_bytes(b"")
    refused(tmp_path / "empty.dcm", "got no byte")
    refused(tmp_path / "missing.dcm", "no such place")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a file but a pipe")
    (tmp_path / "text").write_bytes(b"\x08\x00\x05\x00 no data set at all, whatever it begins with")
    refused(tmp_path / "text", "got other content")


@pytest.mark.parametrize("make", [dicom, rle])
def test_no_pixels(tmp_path, make):
    data = make(RAMP, **WINDOW)
    del data.PixelData
    refused(save(data, tmp_path / "a"), "holds no pixel data, or is cut before them")
    data.add_new("FloatPixelData", "OF", RAMP.astype("<f4").tobytes())
    refused(save(data, tmp_path / "a"), "expected PixelData, got FloatPixelData")


def test_nothing_but_what_is_no_image(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "files below it, got none$")
    (tmp_path / "empty" / "a.txt").write_text("none")
    refused(tmp_path / "empty", r"got none; skipped 1 file that is no DICOM, .*: 1 \.txt")


@pytest.mark.parametrize("begin", [b"GIF89a", b"RIFF\x24\0\0\0WEBPVP8X", b"\0\0\0\x1cftypavis"])
def test_moving_pictures_of_other_formats(tmp_path, begin):
    (tmp_path / "a.png").write_bytes(begin + bytes(300))
    refused(tmp_path / "a.png", "got other content")


@pytest.mark.parametrize("wrong", [1, b"a.dcm", None, object()])
def test_no_path(wrong):
    with pytest.raises(InputError, match=r"^path: expected a path"):
        scrd_fast.read_images(wrong)


def test_no_rule():
    with pytest.raises(InputError, match=r"^rule: expected a DecodingRule"):
        scrd_fast.read_images(OWN / "MR_small.dcm", "brain")


# --- headers that lie -------------------------------------------------------------------------

@pytest.mark.parametrize("make", [dicom, rle])
def test_a_gigapixel_takes_no_memory(make, tmp_path):
    import tracemalloc

    path = save(make(RAMP, **WINDOW), tmp_path / "a")
    data = path.read_bytes()
    for keyword in (b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x11\x00US\x02\x00"):
        at = data.index(keyword) + 8
        data = data[:at] + struct.pack("<H", 40000) + data[at + 2:]
    path.write_bytes(data)
    tracemalloc.start()
    refused(path, "at most 100 megapixels in a picture, got 40000 x 40000")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize(("elements", "reason"), [
    ({"Rows": 65}, "cut, or its header lies: expected 8320 bytes of pixels, got 8192"),
    ({"Rows": 0}, "at least one pixel"),
    ({"NumberOfFrames": 2}, "expected 16384 bytes"),
    ({"NumberOfFrames": 10**9}, r"at most 2\^30 pixels"),
    ({"BitsAllocated": 12}, "bits allocated"),
    ({"BitsStored": 17}, "17 bits"),
    ({"HighBit": 3}, "bit 3"),
    ({"SamplesPerPixel": 4}, "MONOCHROME2 with 4"),
    ({"PhotometricInterpretation": "CMYK"}, "got CMYK"),
    ({"PixelRepresentation": 2}, "pixel representation"),
    ({"PixelData": b""}, "no byte of pixel data"),
    ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope other than 0"),
    ({"VOILUTFunction": "CUBIC"}, "got another"),
])
def test_headers_that_lie(tmp_path, elements, reason):
    refused(save(dicom(RAMP, **{**WINDOW, **elements}), tmp_path / "a"), reason)


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e999", "12 HU"])
def test_a_rescale_that_is_no_number(tmp_path, keyword, value):
    data = dicom(RAMP, **{**WINDOW, "RescaleSlope": 1, "RescaleIntercept": 77777})
    whole = save(data, tmp_path / "a").read_bytes()
    at = whole.index(b"\x28\x00" + (b"\x53" if keyword == "RescaleSlope" else b"\x52")
                     + b"\x10DS") + 6
    length, = struct.unpack_from("<H", whole, at)
    (tmp_path / "a").write_bytes(whole[:at] + struct.pack("<H", 6) + value.ljust(6).encode()
                                 + whole[at + 2 + length:])
    refused(tmp_path / "a", f"{keyword} is (no number|not finite)$")


@pytest.mark.parametrize("elements", [
    {}, {"RescaleSlope": 2}, {"RescaleIntercept": -24}, {"RescaleSlope": None}])
def test_a_missing_rescale_changes_nothing(tmp_path, elements):
    """A slope of 1 and an intercept of 0 (PS3.3 C.11.1 asks for both or none)."""
    path = save(dicom(RAMP, **elements), tmp_path / "a")
    (image,) = scrd_fast.read_images(path, DecodingRule("window", (0.0, 2000.0)))
    units = RAMP * (elements.get("RescaleSlope") or 1.0) + elements.get("RescaleIntercept", 0)
    np.testing.assert_allclose(image.pixels, np.clip(units / 2000, 0, 1), atol=1e-6)


def test_a_window_is_not_put_on_ct_without_rescale(tmp_path):
    """Its stored values are Hounsfield units plus something that nobody knows."""
    rule = DecodingRule("window", "brain")
    path = save(dicom(RAMP, Modality="CT"), tmp_path / "a")
    refused(path, "expected RescaleSlope and RescaleIntercept", rule)
    save(dicom(RAMP, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024), path)
    assert len(scrd_fast.read_images(path, rule)) == 1
    save(dicom(RAMP, Modality="MR"), path)
    assert len(scrd_fast.read_images(path, rule)) == 1


@pytest.mark.parametrize("elements", [
    {"PixelPaddingValue": None}, {"NumberOfFrames": 0}, {"VOILUTFunction": "linear", **WINDOW}])
def test_what_writers_leave_empty_or_write_small(tmp_path, elements):
    (image,) = scrd_fast.read_images(save(dicom(RAMP, **WINDOW), tmp_path / "a"))
    (other,) = scrd_fast.read_images(save(dicom(RAMP, **{**WINDOW, **elements}), tmp_path / "b"))
    np.testing.assert_array_equal(other.pixels, image.pixels)


@pytest.mark.parametrize(("keyword", "value"), [
    ("PhotometricInterpretation", "DOE^JANE"), ("VOILUTFunction", "DOE^JANE")])
def test_no_text_of_a_file_is_quoted(tmp_path, keyword, value):
    with pytest.raises(DataError) as caught:
        scrd_fast.read_images(save(dicom(RAMP, **{**WINDOW, keyword: value}), tmp_path / "a"))
    assert "DOE" not in str(caught.value)


def test_too_few_frames_in_a_stream(tmp_path):
    data = rle(RAMP, **WINDOW)
    data.NumberOfFrames = 3
    refused(save(data, tmp_path / "a"), "frames|frame")


def _j2k(data):
    return bytearray(next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1)))


def test_a_stream_larger_than_its_header(tmp_path):
    data = pydicom.dcmread(OWN / "MR_small_jp2klossless.dcm")
    stream = _j2k(data)
    at = stream.index(b"\xff\x4f\xff\x51") + 8
    struct.pack_into(">II", stream, at, 60000, 60000)
    data.PixelData = encapsulate([bytes(stream)])
    refused(save(data, tmp_path / "a"), "got a stream of 60000 x 60000 x 1")


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
                                  "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm"])
def test_streams_that_are_cut(tmp_path, name):
    data = pydicom.dcmread(OWN / name)
    stream = _j2k(data)
    for share in (0.02, 0.5, 0.95):
        data.PixelData = encapsulate([bytes(stream[:int(len(stream) * share)])])
        refused(save(data, tmp_path / "a"), "cut|damaged")


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small.dcm",
                                  "examples_ybr_color.dcm", "image_dfl.dcm"])
def test_files_that_are_cut(tmp_path, name):
    """At any place; behind all pixels there is little that is missed."""
    whole = (OWN / name).read_bytes()
    for share in (0.001, 0.1, 0.3, 0.5, 0.7, 0.9):
        (tmp_path / "a").write_bytes(whole[:int(len(whole) * share)])
        refused(tmp_path / "a", "cut|damaged|expected")


def test_rubbish_inside(tmp_path):
    """Bytes changed anywhere: a picture or a DataError, and nothing else."""
    rng = np.random.default_rng(0)
    for name in ("MR_small.dcm", "MR_small_RLE.dcm", "CT_small.dcm", "examples_palette.dcm"):
        whole = np.frombuffer((OWN / name).read_bytes(), np.uint8)
        for _ in range(20):
            changed = whole.copy()
            changed[rng.integers(132, 2000, 20)] = rng.integers(0, 256, 20)
            (tmp_path / "a").write_bytes(changed.tobytes())
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    images = scrd_fast.read_images(tmp_path / "a")
            except DataError:
                continue
            assert all(np.isfinite(image.pixels).all() for image in images)


def test_a_bomb_of_deflate(tmp_path, monkeypatch):
    from scrd_fast.data.decode import dicom_kind as decoder

    monkeypatch.setattr(decoder, "_MOST_INFLATED", 2**17)
    refused(OWN / "image_dfl.dcm", "when inflated")


# --- decoders that lie --------------------------------------------------------------------------

@pytest.mark.parametrize("name", [
    "SC_rgb_jpeg_lossy_gdcm.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_one_value_out_of_a_stream_that_carries_more(name, monkeypatch):
    """What a decoder gives that does not know 12 bits of lossless JPEG: zeros."""
    def zeros(stream, header, said):
        return np.zeros((header.rows, header.columns, header.samples)[
            :3 if header.samples == 3 else 2], np.uint16)

    for syntax, codec in dicom_codecs.CODECS.items():
        monkeypatch.setitem(dicom_codecs.CODECS, syntax, replace(codec, decode=zeros))
    refused(OWN / name, "all pixels are the same, but the stream carries more")


def test_a_picture_of_one_value_is_one(tmp_path):
    """In each way of compressing that a package here writes."""
    flat = np.full((600, 500), 900, np.uint16)
    (image,) = scrd_fast.read_images(save(rle(flat, **WINDOW), tmp_path / "rle"))
    assert np.unique(image.pixels).size == 1
    PIL = pytest.importorskip("PIL.Image", reason="Pillow writes the streams")
    for syntax, kind, options in ((JPEGBaseline8Bit, "JPEG", {"icc_profile": os.urandom(3000)}),
                                  (JPEG2000Lossless, "JPEG2000", {"no_jp2": True})):
        out = io.BytesIO()
        PIL.fromarray(np.full((600, 500), 90, np.uint8)).save(out, kind, **options)
        data = dicom(np.zeros((600, 500), np.uint8), syntax)
        data.PixelData = encapsulate([out.getvalue()])
        data["PixelData"].is_undefined_length = True
        (image,) = scrd_fast.read_images(save(data, tmp_path / kind))
        np.testing.assert_allclose(image.pixels, 90 / 255, atol=2e-3)


def test_a_lossless_jpeg_of_one_value(tmp_path):
    """Two bits a pixel, the longest stream of nothing: made by hand, as nothing here writes it."""
    height, width = 256, 256
    segments = (b"\xff\xd8"
                b"\xff\xc3" + struct.pack(">HBHHB3B", 11, 16, height, width, 1, 1, 0x11, 0)
                # Two codes of two bits, for no difference and for one of 16 bits.
                + b"\xff\xc4" + struct.pack(">HB16B2B", 21, 0, 0, 2, *[0] * 14, 0, 1)
                + b"\xff\xda" + struct.pack(">HB2B3B", 8, 1, 1, 0, 1, 0, 0))
    data = dicom(np.zeros((height, width), np.uint16), JPEGLosslessSV1, **WINDOW)
    data.PixelData = encapsulate([segments + bytes(height * width // 4) + b"\xff\xd9"])
    data["PixelData"].is_undefined_length = True
    (image,) = scrd_fast.read_images(save(data, tmp_path / "a"))
    assert np.unique(image.pixels).size == 1


def test_extended_jpeg_of_eight_bits_needs_no_other_package(tmp_path):
    PIL = pytest.importorskip("PIL.Image", reason="Pillow writes the stream")
    out = io.BytesIO()
    pixels = (RAMP // 16).astype(np.uint8)
    PIL.fromarray(pixels).save(out, "JPEG", quality=100)
    data = dicom(pixels, JPEGExtended12Bit)
    data.PixelData = encapsulate([out.getvalue()])
    data["PixelData"].is_undefined_length = True
    (image,) = scrd_fast.read_images(save(data, tmp_path / "a"))
    np.testing.assert_allclose(image.pixels, pixels / 255, atol=0.02)


# --- rules that do not fit ------------------------------------------------------------------------

def test_colour_has_no_units(tmp_path):
    refused(OWN / "examples_rgb_color.dcm", "units", DecodingRule("window", "brain"))


def test_nothing_to_scale_by(tmp_path):
    flat = np.full((20, 20), 7, np.int16)
    refused(save(dicom(flat), tmp_path / "a"), "both 7", DecodingRule("percentile"))
    padded = dicom(flat)
    padded.add_new("PixelPaddingValue", "SS", 7)
    refused(save(padded, tmp_path / "b"), "got none", DecodingRule("percentile"))


def test_gzip_of_anything_else(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress((OWN / "MR_small.dcm").read_bytes()))
    refused(tmp_path / "a.nii.gz", "got other content")
