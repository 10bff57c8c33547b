"""DICOM objects beside scoring: series by series, of what was scored and of nothing else."""

import re
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")
pytest.importorskip("highdicom", reason="highdicom writes the objects")

import pydicom

from scrd_fast.data.decode.find import find_files
from scrd_fast.engine.engine_file import read_engine_file, write_engine_file
from scrd_fast.engine.load import load_engine
from scrd_fast.errors import DataError, InputError, OutputError
from scrd_fast.outputs.dicom.collect import collect_dicom
from scrd_fast.outputs.dicom.write import write_dicom
from scrd_fast.spec import DecodingRule
from tests.outputs.dicom_series import CR, read_scored, write_enhanced, write_series

CHANGED = ": expected the pixels that were scored, got others; it has changed since, or its series"


def change(path, **elements):
    data = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.save_as(path)


# --- what changed since ---------------------------------------------------------------------------

def brighten(path):
    """One pixel, by one step of 2000."""
    data = pydicom.dcmread(path)
    pixels = data.pixel_array.copy()
    pixels[7, 5] += 1 if pixels[7, 5] < 1000 else -1
    data.PixelData = pixels.tobytes()
    data.save_as(path)


@pytest.mark.slow
@pytest.mark.parametrize("alter", [
    brighten, lambda path: change(path, WindowWidth=1999),
    lambda path: change(path, ImagePositionPatient=[0, 0, 0]),
    lambda path: change(path, SOPInstanceUID="1.2.3.4"),
    lambda path: change(path, PatientID="Zebedeus"),
    lambda path: path.write_bytes((path.parent / "0.dcm").read_bytes())],
    ids=["pixel", "window", "place", "instance", "patient", "copy"])
def test_a_source_that_changed_after_scoring(engine, tmp_path, alter):
    paths = write_series(tmp_path / "in", count=3)
    scored = list(engine.stream(paths))
    alter(paths[1])
    with pytest.raises(DataError) as error:
        write_dicom(scored, engine, tmp_path / "out")
    assert str(error.value).startswith(str(paths[1]))
    assert "Zebedeus" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_pixels_and_nothing_else(engine, tmp_path):
    """What does not change the picture may change, such as the compression or a comment."""
    paths = write_series(tmp_path / "in", count=2)
    scored = list(engine.stream(paths))
    change(paths[0], ImageComments="seen")
    data = pydicom.dcmread(paths[1])
    data.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    data.save_as(paths[1])
    assert len(write_dicom(scored, engine, tmp_path / "out").files) == 6
    brighten(paths[0])
    with pytest.raises(DataError, match=f"^{re.escape(str(paths[0]))}{CHANGED}"):
        write_dicom(scored, engine, tmp_path / "out")


@pytest.mark.slow
def test_a_frame_of_an_enhanced_object(engine, tmp_path):
    path = write_enhanced(tmp_path)
    scored = read_scored([path])
    assert len(write_dicom(scored, engine, tmp_path / "out").files) == 1 + 2 + 5 + 1
    data = pydicom.dcmread(path)
    pixels = data.pixel_array.copy()
    pixels[3, 0, 0] ^= 512
    data.PixelData = pixels.tobytes()
    data.save_as(path)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}{CHANGED}"):
        write_dicom(scored, engine, tmp_path / "out")


def test_a_file_that_is_gone_or_cut(engine, tmp_path):
    paths = write_series(tmp_path / "in", count=2)
    scored = list(engine.stream(paths))
    paths[0].write_bytes(paths[0].read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"0\.dcm: cut, or its header lies"):
        write_dicom(scored, engine, tmp_path / "out")
    paths[0].unlink()
    with pytest.raises(DataError, match=r"0\.dcm: expected a DICOM file, got FileNotFoundError"):
        write_dicom(scored, engine, tmp_path / "out")


@pytest.mark.slow
def test_percentiles_are_of_the_series_that_was_scored(small_file, tmp_path):
    """Also where one of its files cannot be read; without one of its files they are others."""
    manifest, members = read_engine_file(small_file)
    rule = DecodingRule("percentile", percentiles=(1, 90))
    path = write_engine_file(tmp_path / "m.scrd", replace(
        manifest, spec=replace(manifest.spec, decoding=rule)), members)
    paths = write_series(tmp_path / "in", count=4)
    paths[1].write_bytes(paths[1].read_bytes()[:-5000])
    with load_engine(path) as engine:
        scored = list(engine.stream(paths))
        written = write_dicom(scored, engine, tmp_path / "out")
        assert Counter(each.name[:2] for each in written.files) == {
            "pm": 1, "se": 1, "sc": 3, "sr": 1}
        with pytest.raises(DataError, match=f"^{re.escape(str(paths[0]))}{CHANGED}"):
            write_dicom(scored[:1], engine, tmp_path / "out")


# --- series by series -----------------------------------------------------------------------------

@pytest.fixture
def studies(tmp_path):
    """Two studies, each of a series of CT and one of MR; an X-ray, and a picture."""
    root = tmp_path / "in"
    for k in range(2):
        for number, like in enumerate(("CT_small.dcm", "MR_small.dcm")):
            write_series(root / f"{k}{number}", count=3, like=like, PatientID=f"P{k}",
                         StudyInstanceUID=f"1.2.{k}", SeriesInstanceUID=f"1.2.{k}.{number}")
    (root / "x-ray").write_bytes(CR.read_bytes())
    cv2.imwrite(str(root / "picture.png"), np.full((40, 50), 90, np.uint8))
    return root


def collect(engine, paths, folder, alter=lambda item: None, **options):
    """As scoring does it; the objects that are there, as pydicom reads them, and the notes."""
    notes = []
    with collect_dicom(folder, engine, paths, notes, **options) as take:
        for item in engine.stream(paths):
            alter(item)
            take(item)
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())], notes


def count(objects):
    """How many there are of each study and modality."""
    return Counter((each.StudyInstanceUID, each.Modality) for each in objects)


OF_STUDIES = {("1.2.0", "OT"): 8, ("1.2.0", "SEG"): 4, ("1.2.0", "SR"): 2,
              ("1.2.1", "OT"): 8, ("1.2.1", "SEG"): 4, ("1.2.1", "SR"): 2}


@pytest.mark.slow
def test_a_folder_of_studies(engine, studies, tmp_path):
    """Each object lies in the study of its source, with its patient."""
    objects, notes = collect(engine, find_files(studies).paths, tmp_path / "out")
    x_ray = pydicom.dcmread(CR).StudyInstanceUID
    assert count(objects) == OF_STUDIES | {
        (x_ray, "SEG"): 2, (x_ray, "OT"): 1, (x_ray, "SR"): 1}
    for each in objects:
        if each.StudyInstanceUID != x_ray:
            assert each.PatientID == f"P{each.StudyInstanceUID[-1]}"
    assert notes == [
        f"no DICOM objects of what is no DICOM file: 1 file ({studies / 'picture.png'})",
        "no Parametric Map, which needs a frame of reference, of images that lie in none: 1 file"
        f" ({studies / 'x-ray'})"]
    for each in objects:
        if each.Modality == "SR":
            (study,) = each.CurrentRequestedProcedureEvidenceSequence
            assert study.StudyInstanceUID == each.StudyInstanceUID
            (series,) = study.ReferencedSeriesSequence
            assert len(series.ReferencedSOPSequence) == (
                1 if each.StudyInstanceUID == x_ray else 3)


@pytest.mark.slow
def test_files_of_series_in_turn_are_no_half_series(engine, studies, tmp_path):
    """The same objects as of series one after the other."""
    paths = find_files([studies / f"{k}{number}" for k in range(2) for number in range(2)]).paths
    one, _ = collect(engine, paths, tmp_path / "1")
    written = []

    def look(item):
        written.append(len(list((tmp_path / "2").iterdir())))

    other, notes = collect(engine, sorted(paths, key=lambda path: path.name), tmp_path / "2", look)
    assert notes == []
    assert written[:10] == [0] * 10
    assert count(one) == count(other) == OF_STUDIES
    assert {path.name for path in (tmp_path / "1").iterdir()} == {
        path.name for path in (tmp_path / "2").iterdir()}


def test_a_series_is_written_when_the_next_one_begins(engine, studies, tmp_path):
    found = []

    def look(item):
        found.append({path.name[:2] for path in (tmp_path / "out").iterdir()})

    paths = find_files([studies / "00", studies / "01"]).paths
    collect(engine, paths, tmp_path / "out", look, objects=["sr"])
    assert found == [set()] * 4 + [{"sr"}] * 2


def test_what_has_no_results_is_told(engine, studies, tmp_path):
    """A cut file belongs to the series that its header names, where it stands first, too."""
    paths = find_files([studies / "00", studies / "01", studies / "x-ray"]).paths
    for path in (studies / "00" / "1.dcm", studies / "01" / "0.dcm", studies / "x-ray"):
        path.write_bytes(path.read_bytes()[:-500])
    (studies / "no.dcm").write_bytes(b"")
    objects, notes = collect(engine, [*paths, studies / "no.dcm"], tmp_path / "out",
                             objects=["sc", "sr"])
    assert count(objects) == {("1.2.0", "OT"): 4, ("1.2.0", "SR"): 2}
    assert notes == ["no DICOM objects of images that could not be read or scored: 3 files ("
                     f"{studies / '00' / '1.dcm'}, {studies / '01' / '0.dcm'}, {studies / 'x-ray'})"
                     ]


def test_a_bad_series_does_not_stop_the_others(engine, studies, tmp_path):
    """One that says it is of two studies, and one of which a file changes while it is scored."""
    paths = find_files([studies / "00", studies / "01", studies / "10"]).paths
    change(studies / "00" / "2.dcm", StudyInstanceUID="1.2.9")

    def alter(item):
        if item.path == studies / "01" / "2.dcm":
            brighten(studies / "01" / "1.dcm")

    objects, notes = collect(engine, paths, tmp_path / "out", alter)
    assert {each.StudyInstanceUID for each in objects} == {"1.2.1"}
    assert len(objects) == 1 + 2 + 3 + 1
    assert notes == [
        f"{studies / '00' / '2.dcm'}: expected the study of {studies / '00' / '0.dcm'}, got"
        " another; its series has no DICOM objects",
        f"{studies / '01' / '1.dcm'}{CHANGED} has; its series has no DICOM objects"]


def test_a_series_that_does_not_tell_where_it_lies(engine, tmp_path):
    paths = write_series(tmp_path / "in", count=2, ImagePositionPatient=None)
    objects, notes = collect(engine, paths, tmp_path / "out")
    assert Counter(each.SOPClassUID.name for each in objects) == {
        "Secondary Capture Image Storage": 2, "Comprehensive SR Storage": 1}
    assert notes == [
        f"no {name} of images whose files do not tell where they lie (frame of reference, position,"
        f" orientation and spacing): 2 files ({paths[0]}, {paths[1]})"
        for name in ("Parametric Map", "Segmentation")]


def test_files_that_are_no_dicom_are_told_in_one_line(engine, tmp_path):
    """And a file of several images is one."""
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        cv2.imwrite(str(path), np.full((40, 50), 90, np.uint8))
    pages = tmp_path / "pages.tif"
    cv2.imwritemulti(str(pages), [np.full((40, 50), 90, np.uint8)] * 3)
    objects, notes = collect(engine, [pages, *paths], tmp_path / "out")
    assert objects == []
    assert notes == ["no DICOM objects of what is no DICOM file: 5 files"
                     f" ({pages}, {paths[0]}, {paths[1]} and 2 more)"]


@pytest.mark.slow
def test_what_an_engine_has_not_learned_is_told_once(small_file, studies, tmp_path):
    paths = find_files([studies / "00", studies / "01"]).paths
    with load_engine(small_file) as engine:
        _, notes = collect(engine, paths, tmp_path / "out", objects=["seg"])
    told = "the engine has learned none; scrd-fast calibrate gives it one"
    assert notes == [f"the maps of each series are shown on a scale of their own: {told}",
                     f"no binary Segmentation, which needs a threshold of pixels: {told}"]


@pytest.mark.parametrize(("options", "message"), [
    ({"objects": ["pm", "nii"]}, "objects: expected some of"),
    ({"uid_root": "3.1"}, "uid_root: expected numbers with dots between")])
def test_arguments(engine, tmp_path, options, message):
    with (pytest.raises(InputError, match=f"^{message}"),
          collect_dicom(tmp_path / "out", engine, [], [], **options)):
        pass
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(engine, tmp_path):
    (tmp_path / "out").write_text("a file")
    with (pytest.raises(OutputError, match=r"out: cannot be written"),
          collect_dicom(tmp_path / "out", engine, [], [])):
        pass


def test_after_a_failure_no_half_series_is_written(engine, studies, tmp_path):
    """As on a disk that is full for a while, where scoring goes on without objects."""
    paths = find_files([studies / "00", studies / "01"]).paths
    out = tmp_path / "out"
    with collect_dicom(out, engine, paths, []) as take:
        results = list(engine.stream(paths))
        for item in results[:3]:
            take(item)
        out.rmdir()
        out.write_text("a file")
        with pytest.raises(OutputError, match=r"pm-2\.25\.\d+\.dcm: cannot be written"):
            take(results[3])
        out.unlink()
    assert not out.exists()


def test_results_are_no_sources(engine, tmp_path):
    """An archive gives a study back with what was written of it before."""
    paths = write_series(tmp_path / "study", count=2)
    written = write_dicom(list(engine.stream(paths)), engine, tmp_path / "study")
    with pytest.warns(UserWarning, match="2 a result of this package"):
        found = find_files(tmp_path / "study")
    assert found.paths == paths
    (capture, _) = (path for path in written.files if path.name.startswith("sc-"))
    (item,) = engine.stream([capture])
    assert item.error == f"{capture}: expected a picture of a patient, got a result of this package"
