"""DICOM: values as pydicom has them, windows by the standard's formulas, places in the patient."""

import gc
import math
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")

import pydicom
from pydicom.pixels import apply_modality_lut
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

import scrd_fast
from scrd_fast.data.decode.dicom import Monochrome, read_frames
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule
from tests.data.decode.dicom_by_hand import OWN, dicom, enhanced, rle, save, table
from tests.support.alone import run_silently

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def own_files() -> list[Path]:
    """pydicom's files with pixels that it decodes here."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(each for each in OWN.rglob("*") if each.is_file()):
            try:
                data = pydicom.dcmread(path, force=True)
                if "PixelData" in data and data.pixel_array.size:
                    found.append(path)
            except Exception:  # the rest is in test_refused.py
                continue
    return found


OWN_FILES = own_files()


def pixels_of(path, rule=None):
    (image,) = scrd_fast.read_images(path, rule)
    assert image.pixels.dtype == np.float32
    assert image.pixels.min() >= 0
    assert image.pixels.max() <= 1
    return image.pixels


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_are_pydicoms(path):
    """Also of kinds that read_images refuses (doses, segmentations, localizers)."""
    data = pydicom.dcmread(path)
    frames = list(read_frames(data, path, DecodingRule()))
    expected = data.pixel_array
    if data.get("NumberOfFrames", 1) == 1:
        expected = expected[None]
    assert len(frames) == len(expected)
    for frame, stored in zip(frames, expected, strict=True):
        if isinstance(frame, Monochrome):
            np.testing.assert_array_equal(frame.in_units(), apply_modality_lut(stored, data))
        elif data.PhotometricInterpretation == "PALETTE COLOR":
            colours = pydicom.pixels.apply_color_lut(stored, data)
            np.testing.assert_allclose(frame.pixels, colours / np.iinfo(colours.dtype).max,
                                       atol=1e-7)
        else:
            # Decoders of lossy JPEG round in their own ways, and colours of half the resolution
            # may be interpolated.
            lossy = data.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
            off = np.abs(frame.pixels - stored / (2.0**data.BitsStored - 1))
            assert off.max() <= (0.5 if lossy else 1e-7)
            assert off.mean() <= (0.01 if lossy else 1e-7)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_jpeg_of_twelve_bits():
    """The same picture comes with JPEG 2000, too."""
    for name in ("JPEG-lossy.dcm", "JPGExtended.dcm"):
        (frame,) = read_frames(pydicom.dcmread(OWN / name), OWN / name, DecodingRule())
        other = pydicom.dcmread(OWN / "JPEG2000.dcm").pixel_array
        assert np.abs(frame.stored.astype(int) - other).mean() < 5
        assert frame.stored.max() > 200


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_transfer_syntax_is_among_them():
    pytest.importorskip("gdcm", reason="pydicom needs it to decode all to compare with")
    syntaxes = {pydicom.dcmread(path).file_meta.TransferSyntaxUID.rpartition("2.840.10008.1.2")[2]
                for path in OWN_FILES}
    assert {"", ".1", ".1.99", ".2", ".4.50", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91",
            ".5"} <= syntaxes


# --- windows, against the standard's text in another form ---------------------------------------

def linear(x: float, c: float, w: float) -> float:
    """PS3.3 C.11.2.1.2.1 line by line, for y from 0 to 1."""
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    if x > c - 0.5 + (w - 1) / 2:
        return 1.0
    return ((x - (c - 0.5)) / (w - 1)) + 0.5


def linear_exact(x: float, c: float, w: float) -> float:
    if x <= c - w / 2:
        return 0.0
    if x > c + w / 2:
        return 1.0
    return (x - c) / w + 0.5


def sigmoid(x: float, c: float, w: float) -> float:
    return 1 / (1 + math.exp(min(-4 * (x - c) / w, 700)))  # more overflows


FUNCTIONS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}


@pytest.mark.parametrize("centre_width", [(40, 400), (1000.5, 2001), (0, 1), (300, 2), (50, 0.5)])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_windows(tmp_path, function, centre_width):
    centre, width = centre_width
    path = save(dicom(RAMP, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function,
                      RescaleSlope=0.5, RescaleIntercept=-1024), tmp_path / "a")
    # LINEAR has no meaning for a width below 1.
    named = FUNCTIONS["LINEAR_EXACT" if function == "LINEAR" and width < 1 else function]
    expected = [[named(0.5 * int(x) - 1024, centre, width) for x in row] for row in RAMP]
    np.testing.assert_allclose(pixels_of(path), np.array(expected), rtol=0, atol=1e-6)


def test_no_function_is_linear_and_the_index_chooses(tmp_path):
    path = save(dicom(RAMP, WindowCenter=[100, 2000], WindowWidth=[50, 1500]), tmp_path / "a")
    for index, (centre, width) in enumerate([(100, 50), (2000, 1500)]):
        expected = np.vectorize(lambda x, c=centre, w=width: linear(int(x), c, w))(RAMP)
        np.testing.assert_allclose(pixels_of(path, DecodingRule(voi_index=index)), expected,
                                   atol=1e-6)
    with pytest.raises(DataError, match="window number 2"):
        scrd_fast.read_images(path, DecodingRule(voi_index=2))


def test_voi_table(tmp_path):
    entries = (np.arange(100, dtype=np.uint16) ** 2).tolist()
    path = save(dicom(RAMP, VOILUTSequence=table([100, 65536 - 20, 14], entries), RescaleSlope=1,
                      RescaleIntercept=-40, WindowCenter=1000, WindowWidth=2000), tmp_path / "a")
    index = np.clip(RAMP.astype(int) - 40 + 20, 0, 99)
    np.testing.assert_allclose(pixels_of(path), np.array(entries)[index] / (2**14 - 1), atol=1e-6)
    # The window comes after the table.
    expected = np.vectorize(lambda x: linear(int(x) - 40, 1000, 2000))(RAMP)
    np.testing.assert_allclose(pixels_of(path, DecodingRule(voi_index=1)), expected, atol=1e-6)


@pytest.mark.parametrize("as_bytes", [True, False])
def test_modality_table(tmp_path, as_bytes):
    entries = np.arange(4096, dtype=np.uint16)[::-1] * 3
    data = dicom(RAMP, ModalityLUTSequence=table([4096, 0, 16], entries.tolist(), as_bytes),
                 WindowCenter=6000, WindowWidth=12000)
    path = save(data, tmp_path / "a")
    expected = np.vectorize(lambda x: linear(int(entries[x]), 6000, 12000))(RAMP)
    np.testing.assert_allclose(pixels_of(path), expected, atol=1e-6)


def test_the_rules_own_window(tmp_path):
    path = save(dicom(RAMP, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=1, WindowWidth=9),
                tmp_path / "a")
    units = RAMP.astype(float) - 1024
    for window, (low, high) in {(-100.0, 300.0): (-100, 300), "brain": (0, 80),
                                "lung": (-1350, 150), "bone": (-500, 1300)}.items():
        got = pixels_of(path, DecodingRule(intensity="window", window=window))
        np.testing.assert_allclose(got, np.clip((units - low) / (high - low), 0, 1), atol=1e-6)


def test_percentiles_are_the_series(tmp_path):
    shared = {"SeriesInstanceUID": "1.2.3"}
    save(dicom(RAMP, **shared), tmp_path / "a")
    save(dicom(RAMP + np.uint16(8000), **shared), tmp_path / "b")
    save(dicom(RAMP, SeriesInstanceUID="1.2.4"), tmp_path / "c")
    rule = DecodingRule(intensity="percentile", percentiles=(1.0, 99.0))
    a, b, c = (image.pixels for image in scrd_fast.read_images(tmp_path, rule))
    low, high = np.percentile(np.concatenate([RAMP, RAMP + 8000]), [1, 99])
    np.testing.assert_allclose(a, np.clip((RAMP - low) / (high - low), 0, 1), atol=1e-6)
    np.testing.assert_allclose(b, np.clip((RAMP + 8000 - low) / (high - low), 0, 1), atol=1e-6)
    low, high = np.percentile(RAMP, [1, 99])
    np.testing.assert_allclose(c, np.clip((RAMP - low) / (high - low), 0, 1), atol=1e-6)


def test_no_window_of_its_own(tmp_path):
    eight = save(dicom(RAMP.astype(np.uint8)), tmp_path / "8")
    np.testing.assert_allclose(pixels_of(eight), RAMP.astype(np.uint8) / 255, atol=1e-7)
    with pytest.warns(UserWarning, match="names no window"):
        pixels_of(save(dicom(RAMP), tmp_path / "16"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_twelve_bits_keep_their_levels(tmp_path):
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12, "HighBit": 11}
    assert len(np.unique(pixels_of(save(dicom(RAMP, **window), tmp_path / "a")))) == 4096
    assert len(np.unique(pixels_of(save(rle(RAMP, **window), tmp_path / "b")))) == 4096


@pytest.mark.parametrize("elements", [
    {"WindowCenter": 2000, "WindowWidth": 3000},
    {"VOILUTSequence": table([4, 7, 16], [1, 60000, 3, 65535])}])
@pytest.mark.parametrize("rule", [
    DecodingRule(), DecodingRule("percentile"), DecodingRule("window", (100.0, 900.0))])
def test_monochrome1_is_inverted(tmp_path, elements, rule):
    two = pixels_of(save(dicom(RAMP, **elements), tmp_path / "2"), rule)
    one = pixels_of(save(dicom(RAMP, PhotometricInterpretation="MONOCHROME1", **elements),
                         tmp_path / "1"), rule)
    np.testing.assert_allclose(one, 1 - two, atol=1e-7)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("padding", [-2000, 65536 - 2000])
def test_padding(tmp_path, photometric, padding):
    pixels = RAMP.astype(np.int16) - 1000
    pixels[:10] = -2000
    pixels[10] = -1990
    data = dicom(pixels, PhotometricInterpretation=photometric, WindowCenter=0, WindowWidth=500)
    data.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
    data.add_new("PixelPaddingRangeLimit", "SS", -1990)
    path = save(data, tmp_path / "a")
    assert not pixels_of(path)[:11].any()
    rule = DecodingRule("percentile", percentiles=(0.0, 100.0))
    got = pixels_of(path, rule)
    assert not got[:11].any()
    rest = pixels[11:].astype(float)
    scaled = (rest - rest.min()) / (rest.max() - rest.min())
    np.testing.assert_allclose(got[11:], 1 - scaled if photometric == "MONOCHROME1" else scaled,
                               atol=1e-6)


@pytest.mark.parametrize("make", [dicom, rle])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_that_do_not_begin_at_0(tmp_path, make, signed):
    values = (RAMP.astype(np.int16) - 2048) if signed else RAMP
    stored = ((values.astype(np.int32) << 4) | 0b0101).astype(values.dtype)  # rubbish below
    data = make(stored, BitsStored=12, HighBit=15, WindowCenter=0, WindowWidth=4097)
    (frame,) = read_frames(pydicom.dcmread(save(data, tmp_path / "a")), tmp_path, DecodingRule())
    np.testing.assert_array_equal(frame.in_units(), values)


def test_signed_values_with_rubbish_above(tmp_path):
    values = RAMP.astype(np.int16) - 2048
    data = dicom((values & 0x0FFF).astype(np.int16) | np.int16(0x5000), BitsStored=12, HighBit=11)
    (frame,) = read_frames(pydicom.dcmread(save(data, tmp_path / "a")), tmp_path, DecodingRule())
    np.testing.assert_array_equal(frame.in_units(), values)


def test_palette_of_more_colours_than_a_byte_counts(tmp_path):
    pixels = RAMP // 4  # 1024 values, 8 bits of colour
    tables = {f"{name}PaletteColorLookupTable{what}": value
              for name, step in (("Red", 1), ("Green", 3), ("Blue", 7))
              for what, value in (("Descriptor", [1024, 0, 8]),
                                  ("Data", (np.arange(1024) * step).astype(np.uint8).tobytes()))}
    path = save(dicom(pixels, PhotometricInterpretation="PALETTE COLOR", **tables), tmp_path / "a")
    expected = np.stack([(pixels * step).astype(np.uint8) for step in (1, 3, 7)], -1) / 255
    np.testing.assert_allclose(pixels_of(path), expected, atol=1e-7)


# --- several frames, places -------------------------------------------------------------------

def test_enhanced_frames_have_their_own_rescale_window_and_place(tmp_path):
    frames = np.stack([RAMP, RAMP + 5, RAMP // 2])
    slopes, windows = [1.0, 2.0, 0.5], [(100, 300), (2000, 900), (50, 70.5)]
    places = [[10, 20, z] for z in (0, 3, 7)]
    path = save(enhanced(frames, slopes, windows, places), tmp_path / "a")
    images = scrd_fast.read_images(path)
    assert [image.source.frame for image in images] == [0, 1, 2]
    for image, frame, slope, window, place in zip(images, frames, slopes, windows, places,
                                                  strict=True):
        expected = np.vectorize(
            lambda x, s=slope, w=window: linear(s * int(x) - 10, *w))(frame)
        np.testing.assert_allclose(image.pixels, expected, atol=1e-6)
        x, y, z = place
        # Rows are 2 mm apart, columns 0.5; DICOM's x and y run against RAS.
        np.testing.assert_allclose(image.geometry @ [0, 0, 0, 1], [-x, -y, z, 1])
        np.testing.assert_allclose(image.geometry @ [4, 8, 1, 1], [-x - 4, -y - 8, z + 3, 1])


def test_geometry_of_a_tilted_slice(tmp_path):
    tilt = math.radians(30)
    right, down = np.array([0, 1, 0]), np.array([0, 0, -1])
    right = np.array([math.sin(tilt), math.cos(tilt), 0])
    path = save(dicom(RAMP, ImagePositionPatient=[1, 2, 3], PixelSpacing=[0.7, 0.4],
                      ImageOrientationPatient=[*right, *down], WindowCenter=1, WindowWidth=9),
                tmp_path / "a")
    (image,) = scrd_fast.read_images(path)
    place = np.array([1, 2, 3]) + 5 * 0.7 * down + 6 * 0.4 * right
    np.testing.assert_allclose((image.geometry @ [5, 6, 0, 1])[:3], place * [-1, -1, 1])
    assert image.geometry.dtype == np.float64


def test_source():
    data = pydicom.dcmread(OWN / "CT_small.dcm")
    (image,) = scrd_fast.read_images(OWN / "CT_small.dcm", DecodingRule("window", "brain"))
    source = image.source
    assert (source.path, source.patient, source.study, source.series, source.instance) == (
        OWN / "CT_small.dcm", data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID,
        data.SOPInstanceUID)
    assert source.frame is None
    assert data.PatientID not in repr(source)


# --- which files are DICOM -------------------------------------------------------------------

@pytest.mark.parametrize("name", ["a", "a.png", "a.nii.gz", "1.2.840.10008.5"])
def test_the_name_does_not_matter(tmp_path, name):
    path = tmp_path / name
    path.write_bytes((OWN / "MR_small.dcm").read_bytes())
    np.testing.assert_array_equal(pixels_of(path), pixels_of(OWN / "MR_small.dcm"))


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ImplicitVRLittleEndian, None])
def test_without_preamble(tmp_path, syntax):
    data = dicom(RAMP, *([syntax] if syntax else []), WindowCenter=2000, WindowWidth=3000)
    whole = pixels_of(save(data, tmp_path / "whole"))
    bare = pydicom.Dataset(data)
    bare.save_as(tmp_path / "bare", implicit_vr=syntax == ImplicitVRLittleEndian,
                 little_endian=syntax != ExplicitVRBigEndian)
    assert (tmp_path / "bare").read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(pixels_of(tmp_path / "bare"), whole)


def test_a_tiff_in_the_preamble_is_dicom(tmp_path):
    data = bytearray((OWN / "MR_small.dcm").read_bytes())
    data[:4] = b"II*\0"
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.tif"), pixels_of(OWN / "MR_small.dcm"))


def test_a_folder_leaves_out_what_is_no_image(tmp_path):
    for name in ("MR_small.dcm", "dicomdirtests/DICOMDIR", "README.txt"):
        (tmp_path / Path(name).name).write_bytes((OWN / name).read_bytes())
    with pytest.warns(UserWarning, match="skipped 1 file"):
        (image,) = scrd_fast.read_images(tmp_path)
    assert image.source.path == tmp_path / "MR_small.dcm"


# --- what else may happen in a process -----------------------------------------------------

@pytest.mark.slow
def test_without_what_trains_and_without_a_word():
    """Every own file, in a process where PyTorch, ONNX and SciPy cannot be imported; what the
    libraries have to say, of damaged files too, reaches neither log nor stderr, and nothing
    opens a connection."""
    code = f"""
import logging, socket, sys
from tests.support.without_training import forbid_training
forbid_training()
logging.basicConfig(level=logging.INFO)
def no_network(*_): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = no_network
import scrd_fast
from pathlib import Path
read = refused = 0
rule = scrd_fast.DecodingRule("percentile")
for path in sorted(Path({str(OWN)!r}).rglob("*.dcm")):
    try:
        read += len(scrd_fast.read_images(path, rule))
    except scrd_fast.ScrdError as error:
        assert "\\n" not in str(error) and str(path) in str(error), error
        refused += 1
assert not {{"torch", "onnx", "scipy"}} & set(sys.modules)
print(read, refused)
"""
    read, refused = map(int, run_silently(code).split())
    assert read > 70
    assert refused > 10


@pytest.mark.slow
def test_threads_leave_filters_and_levels_as_they_were():
    import logging

    filters, level = list(warnings.filters), logging.getLogger("pydicom").level
    faults = []

    def work() -> None:
        try:
            for _ in range(5):
                pixels_of(OWN / "MR_small_RLE.dcm")
                with pytest.raises(DataError):
                    scrd_fast.read_images(OWN / "MR_truncated.dcm")
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    gc.collect()
    assert not faults
    assert warnings.filters == filters
    assert logging.getLogger("pydicom").level == level
