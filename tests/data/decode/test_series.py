"""The files of a folder: DICOM slices by their place in the patient, and what is left out."""

import shutil
import warnings

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")

from pydicom.uid import ComprehensiveSRStorage, generate_uid

import scrd_fast
from scrd_fast.data.decode.find import find_files
from scrd_fast.data.decode.series import arrange
from scrd_fast.errors import DataError, InputError
from scrd_fast.spec import DecodingRule
from tests.data.decode.dicom_by_hand import OWN, dicom, items, save

PIXELS = np.arange(64, dtype=np.uint16).reshape(8, 8)
PLANES = {"axial": [1, 0, 0, 0, 1, 0], "coronal": [1, 0, 0, 0, 0, -1],
          "sagittal": [0, 1, 0, 0, 0, -1], "oblique": [0.8, 0.6, 0, 0, 0, -1]}
KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"
PRESENTATION_STATE = "1.2.840.10008.5.1.4.1.1.11.1"


def write_slice(path, plane="axial", at=None, **elements):
    """One slice `at` mm along the normal of its plane."""
    directions = np.array(PLANES[plane], float)
    shared = {"WindowCenter": 30, "WindowWidth": 60, "ImageOrientationPatient": list(directions)}
    if at is not None:
        normal = np.cross(directions[:3], directions[3:])
        shared["ImagePositionPatient"] = list(np.round(normal * at + [5, -7, 9], 6))
    return save(dicom(PIXELS, **shared | elements), path)


def write_series(folder, heights, plane="axial", **elements):
    """Slices in files whose names sort in the order of `heights`."""
    folder.mkdir(exist_ok=True)
    series = generate_uid()
    return [write_slice(folder / f"{plane}{i:02d}", plane, at, SeriesInstanceUID=series,
                        **elements) for i, at in enumerate(heights)]


def write_object(path, of_class, **elements):
    """What a scanner's archive holds besides pictures; its patient stands in it, too."""
    data = dicom(PIXELS, **elements)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = of_class
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(data, keyword)
    return save(data, path)


def found(*where):
    """What find_files gives and warns of; no message names the patient."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        files = find_files(list(where))
    told = [str(each.message) for each in caught]
    assert all(each.filename == __file__ for each in caught)
    assert not any(name in each for each in [*told, *files.refused.values()]
                   for name in ("Zebedeus", "Ypsilanti", "P1"))
    return files, told


# --- order ------------------------------------------------------------------------------------

@pytest.mark.parametrize("plane", PLANES)
def test_slices_by_their_place_whatever_their_names(tmp_path, plane):
    heights = [12, -3, 0, 9, 6, 3, -6]
    paths = [write_slice(tmp_path / f"{i}", plane, at, SeriesInstanceUID="1.2",
                         InstanceNumber=i * i % 7)  # which says something else
             for i, at in enumerate(heights)]
    files, told = found(tmp_path)
    assert files.paths == [paths[i] for i in np.argsort(heights)]
    assert (files.refused, told) == ({}, [])


def test_series_stand_together_where_their_first_file_was(tmp_path):
    for i in range(4):
        for plane in ("coronal", "sagittal", "axial"):
            write_slice(tmp_path / f"{i}{plane}", plane, 4 - i,
                        SeriesInstanceUID=f"1.2.{len(plane)}")
    shutil.copy(OWN / "MR_small.dcm", tmp_path / "1b")
    (tmp_path / "0b.dcm").write_bytes(b"")
    files, told = found(tmp_path)
    axial, coronal, sagittal = (
        [f"{i}{plane}" for i in (3, 2, 1, 0)] for plane in ("axial", "coronal", "sagittal"))
    assert [path.name for path in files.paths] == [*axial, "0b.dcm", *coronal, *sagittal, "1b"]
    assert told == []


def test_slices_of_one_place_by_their_numbers(tmp_path):
    """Echoes or phases, which lie at the same places."""
    for number, at in ((7, 0), (2, 0), (3, 5), (10, 5), (1, 10), (8, 10)):
        write_slice(tmp_path / f"{99 - number}", at=at, SeriesInstanceUID="1.2",
                    InstanceNumber=number)
    files, told = found(tmp_path)
    assert [99 - int(path.name) for path in files.paths] == [2, 7, 3, 10, 1, 8]
    assert told == []


@pytest.mark.parametrize("elements", [
    {}, {"ImagePositionPatient": [1, 2]}, {"ImagePositionPatient": [0, 0, 5],
                                           "ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}])
def test_numbers_where_a_slice_has_no_place(tmp_path, elements):
    for number in (10, 9, 1, 2):
        write_slice(tmp_path / f"{100 - number}", at=-number, SeriesInstanceUID="1.2",
                    InstanceNumber=number)
    write_slice(tmp_path / "x", SeriesInstanceUID="1.2", InstanceNumber=5, **elements)
    files, _ = found(tmp_path)
    assert [path.name for path in files.paths] == ["99", "98", "x", "91", "90"]


def test_numbers_where_slices_are_not_parallel(tmp_path):
    """Three crossing planes in one series."""
    for number, plane in ((3, "axial"), (1, "coronal"), (2, "sagittal")):
        write_slice(tmp_path / f"{plane}", plane, 10 * number, SeriesInstanceUID="1.2",
                    InstanceNumber=number)
    files, told = found(tmp_path)
    assert [path.name for path in files.paths] == ["coronal", "sagittal", "axial"]
    assert told == []


def test_a_place_that_is_no_number_is_left_to_the_decoder(tmp_path):
    paths = write_series(tmp_path / "a", [3, 2, 1])
    data = paths[1].read_bytes()
    at = data.index(b"\x20\x00\x32\x00DS") + 8
    paths[1].write_bytes(data[:at] + b"xx" + data[at + 2:])
    files, _ = found(tmp_path)
    assert sorted(files.paths) == paths
    with pytest.raises(DataError, match=r"axial01: ImagePositionPatient is no number$"):
        scrd_fast.read_images(tmp_path)


# --- what is missing, and how a scanner stood ------------------------------------------------

def test_missing_slices_are_counted(tmp_path):
    paths = write_series(tmp_path / "a", [at for at in range(0, 60, 3) if at not in (9, 30, 33)])
    _, (told,) = found(tmp_path)
    assert told == (f"{paths[2]}: 3 slices of its series are missing, the first between it and"
                    f" {paths[3]}")
    shutil.rmtree(tmp_path / "a")
    paths = write_series(tmp_path / "b", [0, 4, 8, 16, 20], "sagittal")
    _, (told,) = found(tmp_path)
    assert told == (f"{paths[2]}: 1 slice of its series is missing, the first between it and"
                    f" {paths[3]}")


@pytest.mark.parametrize("heights", [
    [0, 2.5, 5, 7.5, 10, 12.5, 15, 20, 25, 30],  # thinner at the base of the skull
    [0, 0, 3, 3, 6, 6],  # two echoes
    [0, 3, 6.4, 9, 12.3], [0, 100], [5, 5, 5]])
def test_nothing_is_missing(tmp_path, heights):
    write_series(tmp_path / "a", heights)
    assert found(tmp_path)[1] == []


def test_a_gap_where_slices_have_two_echoes(tmp_path):
    paths = write_series(tmp_path / "a", [0, 0, 3, 3, 6, 6, 12, 12, 15, 15])
    _, (told,) = found(tmp_path)
    assert told.startswith(f"{paths[5]}: 1 slice of its series is missing, the first between it"
                           f" and {paths[6]}")


@pytest.mark.parametrize("degrees", [0.2, 12.0, -20.0])
def test_a_tilted_gantry(tmp_path, degrees):
    """The slices lean, and the way from one to the next stays along the body."""
    lean = np.radians(degrees)
    for i in range(6):
        write_slice(tmp_path / f"{i}", SeriesInstanceUID="1.2", ImagePositionPatient=[0, 0, 3 * i],
                    ImageOrientationPatient=[
                        1, 0, 0, 0, round(np.cos(lean), 6), round(-np.sin(lean), 6)])
    files, told = found(tmp_path)
    assert [path.name for path in files.paths] == [*"012345"]
    assert told == ([] if abs(degrees) < 0.5 else [
        f"{tmp_path / '0'}: the gantry was tilted by {abs(degrees):.1f} degrees: the slices of its"
        " series are not stacked along their normal"])


# --- what is left out ------------------------------------------------------------------------

@pytest.fixture
def archive(tmp_path):
    """Three slices among all that an archive holds besides."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for i in range(3):
        write_slice(folder / f"slice{i}", at=-i, SeriesInstanceUID="1.2")
    write_object(folder / "report", ComprehensiveSRStorage)
    write_object(folder / "keys", KEY_OBJECTS)
    write_object(folder / "state", PRESENTATION_STATE)
    write_slice(folder / "scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice(folder / "phantom", QualityControlImage="YES")
    write_slice(folder / "phantom2", QualityControlSubject="YES")
    shutil.copy(OWN / "dicomdirtests/DICOMDIR", folder)
    return folder


def test_what_is_no_picture_of_a_patient_is_counted(archive):
    files, told = found(archive)
    assert [path.name for path in files.paths] == ["slice2", "slice1", "slice0"]
    assert files.refused == {}
    (told,) = [each for each in told if "DICOMDIR" not in each]
    assert told == (
        "skipped 6 DICOM files that are no picture of a patient: 2 a phantom, by its quality"
        " control tags, 1 an object of the class Key Object Selection Document Storage, without"
        " pixel data, 1 an object of the class Comprehensive SR Storage, without pixel data, 1 a"
        " localizer, which shows where other pictures lie, 1 an object of the class Grayscale"
        " Softcopy Presentation State Storage, without pixel data"
        f" ({archive / 'keys'}, {archive / 'phantom'}, {archive / 'phantom2'} and 3 more)")
    assert len(scrd_fast.read_images(files.paths)) == 3


@pytest.mark.parametrize("name", ["report", "keys", "state", "scout", "phantom", "DICOMDIR"])
def test_what_is_named_is_an_error(archive, name):
    files, told = found(archive / "slice0", archive / name)
    assert files.paths == [archive / "slice0", archive / name]
    assert told == []
    with pytest.raises(DataError, match=f"{name}: expected a picture of a patient, got a"):
        scrd_fast.read_images([archive / "slice0", archive / name])


def test_nothing_but_reports(tmp_path):
    write_object(tmp_path / "report", ComprehensiveSRStorage)
    for others in ("$", ", as all others are of no patient either$"):
        with pytest.warns(UserWarning, match="^skipped"), pytest.raises(
                DataError, match="report: expected a picture of a patient, got an object of the"
                                 f" class Comprehensive SR Storage, without pixel data{others}"):
            find_files(tmp_path)
        write_object(tmp_path / "report2", ComprehensiveSRStorage)


def test_the_same_object_twice_is_refused_by_name(tmp_path):
    paths = write_series(tmp_path / "a", [4, 2, 0])
    (tmp_path / "b").mkdir()
    copies = [shutil.copy(paths[i], tmp_path / "b" / f"copy{i}") for i in (0, 2)]
    files, told = found(tmp_path)
    assert files.paths == paths[::-1]
    assert files.refused == {copy: f"{copy}: is the object that {path} is, by its SOP instance UID"
                             for copy, path in zip(copies, paths[::2], strict=True)}
    assert told == []
    with pytest.raises(DataError, match=r"copy0: is the object that .*axial00 is, by its SOP"):
        scrd_fast.read_images(tmp_path)
    assert len(scrd_fast.read_images(tmp_path / "a")) == 3


# --- files that are named, among folders -------------------------------------------------------

def test_named_files_stay_where_they_are_and_part_no_series(tmp_path):
    """The slices of one series lie in two folders."""
    write_slice(tmp_path / "named", SeriesInstanceUID="1.3")
    for i, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        write_object(tmp_path / folder / "report", ComprehensiveSRStorage)
        write_slice(tmp_path / folder / "slice", at=-i, SeriesInstanceUID="1.2")
    where = [tmp_path / "a", tmp_path / "named", tmp_path / "b", tmp_path / "named"]
    with pytest.warns(UserWarning, match="skipped 2 DICOM files"):
        files = find_files(where)
    assert files.paths == [tmp_path / name for name in ("b/slice", "a/slice", "named", "named")]
    with pytest.warns(UserWarning, match="skipped 2 DICOM files"):
        assert len(scrd_fast.read_images(where[:3], DecodingRule("percentile"))) == 3


def test_a_file_in_a_folder_that_is_named_as_well_is_one(tmp_path):
    paths = write_series(tmp_path / "a", [4, 2, 0])
    files, _ = found(tmp_path / "a", paths[1])
    assert files.paths == paths[::-1]


@pytest.mark.parametrize("wrong", [1, None, "a\0b"])
def test_no_path_in_a_list(tmp_path, wrong):
    with pytest.raises(InputError, match=r"^path: expected a path, got"):
        scrd_fast.read_images([OWN / "MR_small.dcm", wrong])
    name = str(OWN / "MR_small.dcm")
    assert find_files([name.encode()]).paths == [OWN / "MR_small.dcm"]


# --- nothing of a patient ---------------------------------------------------------------------

def test_headers_are_read_without_pixels_and_do_not_show_a_patient(tmp_path):
    """Where pixels are missing the order is known all the same."""
    paths = write_series(tmp_path / "a", [6, 4, 2, 0])
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    arranged = arrange(paths)
    assert arranged.paths == paths[::-1]
    assert "P1" not in repr(arranged)
    with pytest.raises(DataError, match="axial02: cut, or its header lies") as error:
        scrd_fast.read_images(tmp_path)
    assert "Zebedeus" not in str(error.value)


def test_enhanced_objects_keep_their_place_in_a_series(tmp_path):
    """Their frames say where they are, the object does not: InstanceNumber orders them."""
    for number in (2, 1):
        data = dicom(np.stack([PIXELS] * 2), NumberOfFrames=2, SeriesInstanceUID="1.2",
                     InstanceNumber=number, WindowCenter=30, WindowWidth=60)
        data.SharedFunctionalGroupsSequence = items(
            PlaneOrientationSequence=items(ImageOrientationPatient=PLANES["axial"]))
        save(data, tmp_path / f"{9 - number}")
    images = scrd_fast.read_images(tmp_path)
    assert [(image.source.path.name, image.source.frame) for image in images] == [
        ("8", 0), ("8", 1), ("7", 0), ("7", 1)]
