"""Writing results as DICOM objects: on which scale, the same whenever it is done, what is left out
and why, and what is refused."""

import io
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")
pytest.importorskip("highdicom", reason="highdicom writes the objects")

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import UID

from scrd_fast.engine.load import load_engine
from scrd_fast.errors import DataError, InputError, MissingExtra, OutputError
from scrd_fast.outputs.dicom.write import OBJECTS, write_dicom
from scrd_fast.report.overlays import overlay
from tests.data.decode.dicom_by_hand import OWN
from tests.outputs.dicom_series import (
    CR,
    SCALE,
    THRESHOLD,
    every,
    find_errors,
    has_tool,
    read_scored,
    referred,
    write,
    write_series,
)

# The dates of making. All else is the same whenever it is written.
DATES = ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime",
         "DateOfSecondaryCapture", "TimeOfSecondaryCapture")


# --- the scale ------------------------------------------------------------------------------------

def read_limits(found):
    """Of the map's window, of the fractional segmentation, and the binary one's threshold."""
    (window,) = found["pm"][0].SharedFunctionalGroupsSequence[0].FrameVOILUTSequence
    low = window.WindowCenter - window.WindowWidth / 2
    told = "\n".join(each.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[
        0].AlgorithmParameters for each in found["seg"])
    return {"window": (low, low + window.WindowWidth)} | {
        name: float(value) for name, value in re.findall(r"(map_\w+|pixel_\w+)=([\d.]+)", told)}


@pytest.mark.parametrize("given", [
    {}, {"scale": (0.5, 1.25)}, {"pixel_threshold": 0.7},
    {"scale": (0.5, 1.25), "pixel_threshold": 0.7}])
def test_the_scale_is_the_engines_or_as_given(engine, tmp_path, given):
    scored = read_scored(write_series(tmp_path / "in", count=2))
    found, notes = write(engine, scored, tmp_path / "out", **given)
    assert notes == {}
    low, high = given.get("scale", SCALE)
    assert read_limits(found) == {
        "window": (low, high), "map_value_of_0": low, "map_value_of_1": high,
        "pixel_threshold": given.get("pixel_threshold", THRESHOLD)}
    shown = np.rint(scored[0].image * 255).astype(np.uint8)
    np.testing.assert_array_equal(found["sc"][0].pixel_array,
                                  overlay(shown, scored[0].map, low, high))


@pytest.mark.slow
def test_an_engine_that_has_learned_no_scale(small_file, tmp_path):
    """Its maps are uniform from 0 to 2."""
    scored = read_scored(write_series(tmp_path / "in", count=2))
    with load_engine(small_file) as engine:
        found, notes = write(engine, scored, tmp_path / "1")
        told = "the engine has learned none; scrd-fast calibrate gives it one"
        assert notes == {
            f"the maps of each series are shown on a scale of their own: {told}": [],
            f"no binary Segmentation, which needs a threshold of pixels: {told}": []}
        assert [each.SegmentationType for each in found["seg"]] == ["FRACTIONAL"]
        assert read_limits(found)["window"] == pytest.approx((1, 2 * 0.999), abs=0.02)
        assert write(engine, scored, tmp_path / "2", objects=["sr"])[1] == {}
        found, notes = write(engine, scored, tmp_path / "3", scale=(0.5, 1.25), pixel_threshold=0.7)
        assert (len(found["seg"]), notes) == (2, {})
        flat = [replace(item, map=np.zeros_like(item.map)) for item in scored]
        found, _ = write(engine, flat, tmp_path / "4", objects=["pm", "seg"])
        low, high = read_limits(found)["window"]
        assert high - low == pytest.approx(1e-3)
        assert not found["seg"][0].pixel_array.any()


# --- the same again -------------------------------------------------------------------------------

def without_dates(dataset):
    """Its bytes."""
    for keyword in DATES:
        if keyword in dataset:
            setattr(dataset, keyword, None)
    for equipment in dataset.ContributingEquipmentSequence:
        equipment.pop("ContributionDateTime", None)
    data = io.BytesIO()
    dataset.save_as(data)
    return data.getvalue()


def test_the_same_results_give_the_same_bytes(engine, tmp_path):
    scored = read_scored(write_series(tmp_path / "in", count=2))
    first, _ = write(engine, scored, tmp_path / "1")
    again, _ = write(engine, scored, tmp_path / "2", scale=np.array(SCALE, np.float32),
                     pixel_threshold=np.float32(1), objects={*OBJECTS})
    for kind in OBJECTS:
        assert len(first[kind]) == len(again[kind]) > 0
        for one, two in zip(first[kind], again[kind], strict=True):
            assert without_dates(one) == without_dates(two)
    write(engine, scored, tmp_path / "1")  # replaces its files


def uids(found):
    return {each.SOPInstanceUID for each in every(found)}


@pytest.mark.slow
def test_what_changes_an_object_changes_its_identifier(engine, small_file, tmp_path):
    scored = read_scored(write_series(tmp_path / "in", count=2))
    found, _ = write(engine, scored, tmp_path / "1")
    other, _ = write(engine, scored, tmp_path / "2", pixel_threshold=0.9)
    assert len(uids(found) - uids(other)) == 1
    other, _ = write(engine, scored, tmp_path / "3", scale=(0.2, 1.75))
    assert uids(found) & uids(other) == {found["sr"][0].SOPInstanceUID,
                                         found["seg"][1].SOPInstanceUID}
    other, _ = write(engine, scored[:1], tmp_path / "4")
    assert uids(found) & uids(other) == {found["sc"][0].SOPInstanceUID}
    other, _ = write(engine, scored[::-1], tmp_path / "6")  # the order of files does not
    assert {each.SOPInstanceUID for kind in ("pm", "seg", "sc") for each in found[kind]} == {
        each.SOPInstanceUID for kind in ("pm", "seg", "sc") for each in other[kind]}
    with load_engine(small_file) as uncalibrated:
        other, _ = write(uncalibrated, scored, tmp_path / "5")
    assert not uids(found) & uids(other)


@pytest.mark.parametrize("root", ["1.2.826.0.1.3680043.10.1234", "1.2", "2." + "9" * 41])
def test_identifiers_under_a_root(engine, tmp_path, root):
    scored = read_scored(write_series(tmp_path / "in", count=1))
    found, _ = write(engine, scored, tmp_path / "out", uid_root=root)
    own = set()
    for dataset in every(found):
        own |= {dataset.SOPInstanceUID, dataset.SeriesInstanceUID,
                dataset.file_meta.MediaStorageSOPInstanceUID}
        own |= {each.DimensionOrganizationUID
                for each in dataset.get("DimensionOrganizationSequence", ())}
    assert len(own) == 5 + 4 + 3
    assert all(each.startswith(f"{root}.") and UID(each).is_valid for each in own)


@pytest.mark.parametrize("root", ["", "1.2.", "1..2", "1.02", "3.1", "scrd", "1.2." + "9" * 40, 12,
                                  "1.٣"])
def test_no_root(engine, tmp_path, root):
    scored = read_scored(write_series(tmp_path / "in", count=1))
    with pytest.raises(InputError, match=r"^uid_root: expected numbers with dots between"):
        write_dicom(scored, engine, tmp_path / "out", uid_root=root)
    assert not (tmp_path / "out").exists()


# --- what cannot be placed ------------------------------------------------------------------------

def test_an_x_ray_has_no_map(engine, tmp_path):
    found, notes = write(engine, read_scored([CR]), tmp_path)
    assert {kind: len(each) for kind, each in found.items()} == {
        "pm": 0, "seg": 2, "sc": 1, "sr": 1}
    assert notes == {"no Parametric Map, which needs a frame of reference, of images that lie in"
                     " none": [CR]}
    for dataset in every(found):
        assert "FrameOfReferenceUID" not in dataset
    for dataset in found["seg"]:
        assert referred(dataset) == [(pydicom.dcmread(CR).SOPInstanceUID, None)]


@pytest.mark.parametrize("elements", [
    {"PixelSpacing": [0, 0]}, {"ImagePositionPatient": None}, {"ImageOrientationPatient": None},
    {"FrameOfReferenceUID": None}, {"ImageOrientationPatient": [0] * 6}])
def test_a_slice_that_does_not_tell_where_it_lies(engine, tmp_path, elements):
    paths = write_series(tmp_path / "in", count=2, **elements)
    found, notes = write(engine, read_scored(paths), tmp_path / "out")
    assert {kind: len(each) for kind, each in found.items()} == {
        "pm": 0, "seg": 0, "sc": 2, "sr": 1}
    reason = ("of images whose files do not tell where they lie (frame of reference, position,"
              " orientation and spacing)")
    assert notes == {f"no Parametric Map {reason}": paths, f"no Segmentation {reason}": paths}


def test_images_that_were_not_scored_are_told(engine, tmp_path):
    paths = write_series(tmp_path / "in", count=2)
    paths[1].write_bytes(paths[1].read_bytes()[:-5000])
    scored = list(engine.stream(paths))
    found, notes = write(engine, scored, tmp_path / "out")
    assert notes == {"no DICOM objects of images that could not be read or scored": paths[1:]}
    assert {kind: len(each) for kind, each in found.items()} == {
        "pm": 1, "seg": 2, "sc": 1, "sr": 1}
    written = write_dicom(scored[1:], engine, tmp_path / "none")
    assert (written.files, written.notes) == ([], notes)


# --- bad input ------------------------------------------------------------------------------------

@pytest.mark.parametrize(("keyword", "name"), [
    ("StudyInstanceUID", "study"), ("SeriesInstanceUID", "series"), ("PatientID", "patient")])
def test_mixed_sources(engine, tmp_path, keyword, name):
    paths = write_series(tmp_path / "in", count=2)
    data = pydicom.dcmread(paths[1])
    setattr(data, keyword, "1.2.3.99")
    data.save_as(paths[1])
    with pytest.raises(DataError) as error:
        write_dicom(read_scored(paths), engine, tmp_path / "out")
    assert str(error.value) == f"{paths[1]}: expected the {name} of {paths[0]}, got another"


def test_an_image_twice(engine, tmp_path):
    (path,) = write_series(tmp_path / "in", count=1)
    (tmp_path / "copy.dcm").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"copy\.dcm: expected another image than in .*0\.dcm, got"
                                        " the same"):
        write_dicom(read_scored([path, tmp_path / "copy.dcm"]), engine, tmp_path / "out")


def test_files_that_are_no_objects(engine, tmp_path):
    from scrd_fast.data.decode.image import Source

    (scored,) = read_scored(write_series(tmp_path / "in", count=1))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    picture = replace(scored, source=Source(tmp_path / "a.png"))
    with pytest.raises(DataError, match=r"a\.png: expected a DICOM object that others can refer to,"
                                        " got one without SOPClassUID"):
        write_dicom([picture], engine, tmp_path / "out")


@pytest.mark.parametrize(("change", "message"), [
    ({"scale": (1, 1)}, "scale: expected two rising finite numbers"),
    ({"scale": (0, np.inf)}, "scale: expected two rising finite numbers"),
    ({"pixel_threshold": np.nan}, "pixel_threshold: expected a finite number"),
    ({"objects": ["pm", "nii"]}, "objects: expected some of"),
    ({"objects": "pm"}, "objects: expected some of"), ({"objects": []}, "objects: expected some"),
    ({"folder": 3}, "folder: expected a path")])
def test_arguments(engine, tmp_path, change, message):
    scored = read_scored(write_series(tmp_path / "in", count=1))
    with pytest.raises(InputError, match=f"^{message}"):
        write_dicom(scored, engine, **{"folder": tmp_path / "out"} | change)


def test_results(engine, tmp_path):
    (scored,) = read_scored(write_series(tmp_path / "in", count=1))
    for series, message in (([], "series: expected results of scoring"),
                            ([scored, 3], r"series\[1\]: expected a Scored, got int"),
                            ([replace(scored, map=None)], r"series\[0\].map: expected a map"),
                            ([replace(scored, source=None)], r"series\[0\]: expected a result of")):
        with pytest.raises(InputError, match=f"^{message}"):
            write_dicom(series, engine, tmp_path / "out")


def spoil(path):
    """A number of three bytes, among what is said of the patient."""
    data = pydicom.dcmread(path)
    data[0x001021c0] = RawDataElement(Tag(0x001021c0), "US", 3, b"Zoe", 0, False, True)
    data.save_as(path)


def test_all_objects_of_a_series_or_none(engine, tmp_path):
    """Where making one fails after others are made, and also where older ones are there."""
    paths = write_series(tmp_path / "in", count=3)
    scored = read_scored(paths)
    before = write_dicom(scored[:2], engine, tmp_path / "out").files
    content = {path: path.read_bytes() for path in before}
    spoil(paths[2])
    with pytest.raises(DataError) as error:
        write_dicom(scored, engine, tmp_path / "out")
    assert str(error.value) == (f"{paths[0]}: expected a header that a Secondary Capture can be"
                                " made of, got BytesLengthException while making it")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == content


def test_a_header_that_a_library_cannot_parse_is_no_trouble_of_the_disk(engine, tmp_path):
    """Which is what pydicom's error says that it is."""
    paths = write_series(tmp_path / "in", count=1)
    data = pydicom.dcmread(paths[0])
    data[0x00081110] = RawDataElement(Tag(0x00081110), "SQ", 4, b"\1\2\3\4", 0, False, True)
    data.save_as(paths[0])
    with pytest.raises(DataError, match=r"a Parametric Map can be made of, got OSError while"):
        write_dicom(read_scored(paths), engine, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(engine, tmp_path):
    """A limit on the size of files, which the objects before it keep to."""
    resource = pytest.importorskip("resource", reason="the system has no such limit")
    scored = read_scored(write_series(tmp_path / "in", count=1))
    *others, largest = sorted(path.stat().st_size for path in write_dicom(
        scored, engine, tmp_path / "1", objects=["seg", "sc"]).files)
    limit = largest - 10_000  # more than is buffered, so that it is met while pixels are written
    assert max(others) < limit
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(OutputError) as error:
            write_dicom(scored, engine, tmp_path / "2", objects=["seg", "sc"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert re.fullmatch(r"\S+/2/sc-2\.25\.\d+\.dcm: cannot be written: File too large",
                        str(error.value))
    assert list((tmp_path / "2").iterdir()) == []


def test_a_folder_that_cannot_be_written(engine, tmp_path):
    scored = read_scored(write_series(tmp_path / "in", count=1))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=r"sr-2\.25\.\d+\.dcm: cannot be written"):
        write_dicom(scored, engine, tmp_path / "out", objects=["sr"])


def test_without_highdicom(engine, tmp_path, monkeypatch):
    scored = read_scored(write_series(tmp_path / "in", count=1))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingExtra, match=r"pip install 'scrd-fast\[outputs\]'"):
        write_dicom(scored, engine, tmp_path / "out")


# --- the standard's checker -----------------------------------------------------------------------

@pytest.mark.skipif(not has_tool("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("elements", [
    {"BodyPartExamined": "HEAD"}, {"BodyPartExamined": "HAND", "Laterality": "L"},
    {"BodyPartExamined": "HAND", "Laterality": ""}, {"Laterality": "R"},
    {"BodyPartExamined": "BREAST", "ImageLaterality": "R"}, {"BodyPartExamined": ""},
    {"LossyImageCompression": "01", "LossyImageCompressionRatio": 12.5,
     "LossyImageCompressionMethod": "ISO_10918_1"}])
def test_no_error_by_what_a_source_says(engine, tmp_path, elements):
    paths = write_series(tmp_path / "in", count=2, **elements)
    written = write_dicom(read_scored(paths), engine, tmp_path / "out",
                          pixel_threshold=1.0)
    allowed = find_errors(paths[0])
    for made in written.files:
        assert find_errors(made) <= allowed, made.name


@pytest.mark.skipif(not has_tool("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("source", [
    "CT_small.dcm", "MR_small.dcm", "enhanced", "dicomdirtests/77654033/CR1/6154",
    "examples_rgb_color.dcm", "693_J2KI.dcm", "JPEG2000.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_no_error_that_the_source_has_not(engine, enhanced, tmp_path, source):
    path = enhanced if source == "enhanced" else OWN / source
    written = write_dicom(read_scored([path]), engine, tmp_path)
    allowed = find_errors(path)
    for made in written.files:
        assert find_errors(made) <= allowed, made.name
