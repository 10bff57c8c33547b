"""Results as DICOM objects: that they lie where their sources do, refer to them, and say what was
scored."""

import re
import subprocess
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")
pytest.importorskip("highdicom", reason="highdicom writes the objects")

import highdicom
import pydicom
import torch

from scrd_fast import __version__
from scrd_fast.engine.engine_file import manifest_digest
from scrd_fast.engine.load import load_engine
from scrd_fast.outputs.dicom.write import OBJECTS, write_dicom
from scrd_fast.report.overlays import overlay
from tests.data.decode.dicom_by_hand import OWN
from tests.outputs.dicom_series import (
    COLUMNS,
    ORIGIN,
    PLANES,
    ROWS,
    SCALE,
    SPACING,
    STEP,
    every,
    has_tool,
    normal,
    read_scored,
    referred,
    write,
    write_series,
)


def place(dataset, frame, row, column):
    """Where a pixel lies, in mm, by PS3.3 C.7.6.2.1.1, from functional groups alone."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    own = dataset.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0]
    return (np.array(own.ImagePositionPatient, float) + directions[:3] * spacing[1] * column
            + directions[3:] * spacing[0] * row)


# --- geometry -------------------------------------------------------------------------------------

@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("order", ["rising", "falling"])
def test_the_peak_lies_at_the_lesion(engine, tmp_path, plane, order):
    """Within a voxel, in the map and in the segmentations, also as highdicom reads them."""
    right, down = np.reshape(PLANES[plane], (2, 3))
    lesion = ORIGIN + 61.3 * SPACING[1] * right + 22.8 * SPACING[0] * down + (
        2.9 * STEP * normal(plane))
    scored = read_scored(write_series(tmp_path / "in", plane), lesion)
    found, notes = write(engine, scored if order == "rising" else scored[::-1], tmp_path / "out",
                         objects=("pm", "seg"))
    assert notes == {}
    axes = np.stack([down * SPACING[0], right * SPACING[1], STEP * normal(plane)], 1)
    (heat,), (fraction, binary) = found["pm"], found["seg"]
    assert fraction.SegmentationType == "FRACTIONAL"
    values = np.frombuffer(heat.FloatPixelData, np.float32).reshape(-1, ROWS, COLUMNS)
    for dataset, pixels in ((heat, values), (fraction, fraction.pixel_array)):
        peak = np.unravel_index(pixels.argmax(), pixels.shape)
        off = np.linalg.solve(axes, place(dataset, *peak) - lesion)  # in voxels
        assert np.abs(off).max() <= 1, off
    shown = np.argwhere(np.atleast_3d(binary.pixel_array.reshape(-1, ROWS, COLUMNS)))
    middle = np.mean([place(binary, *each) for each in shown], 0)
    assert np.abs(np.linalg.solve(axes, middle - lesion)).max() <= 1
    volume = highdicom.pm.ParametricMap.from_dataset(heat).get_volume()
    index = np.unravel_index(volume.array.argmax(), volume.spatial_shape)
    off = np.linalg.solve(axes, volume.map_indices_to_reference(np.array([index]))[0] - lesion)
    assert np.abs(off).max() <= 1, off


def test_maps_are_resampled_between_the_centres_of_pixels(engine, tmp_path):
    scored = read_scored(write_series(tmp_path / "in", "sagittal", 3))
    (heat,) = write(engine, scored, tmp_path / "out", objects=["pm"])[0]["pm"]
    maps = torch.from_numpy(np.stack([item.map for item in scored]))[:, None]
    expected = torch.nn.functional.interpolate(maps, (ROWS, COLUMNS), mode="bilinear",
                                               align_corners=False)[:, 0]
    values = np.frombuffer(heat.FloatPixelData, np.float32).reshape(-1, ROWS, COLUMNS)
    by_instance = {item.source.instance: i for i, item in enumerate(scored)}
    order = [by_instance[instance] for instance, _ in referred(heat)]
    np.testing.assert_allclose(values, expected[order], atol=1e-4)
    mapping = heat.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert quantity.CodingSchemeDesignator == "99SCRDFAST"
    assert heat.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99SCRDFAST"


def test_geometry_is_that_of_the_source_to_the_letter(engine, tmp_path):
    paths = write_series(tmp_path / "in", "double oblique")
    found, _ = write(engine, read_scored(paths), tmp_path / "out")
    sources = {(each := pydicom.dcmread(path)).SOPInstanceUID: each for path in paths}
    for dataset in (*found["pm"], *found["seg"]):
        assert dataset.FrameOfReferenceUID == next(iter(sources.values())).FrameOfReferenceUID
        shared = dataset.SharedFunctionalGroupsSequence[0]
        for group, (instance, _) in zip(dataset.PerFrameFunctionalGroupsSequence,
                                        referred(dataset), strict=True):
            source = sources[instance]
            for item, keyword in ((group.PlanePositionSequence, "ImagePositionPatient"),
                                  (shared.PixelMeasuresSequence, "PixelSpacing"),
                                  (shared.PixelMeasuresSequence, "SliceThickness"),
                                  (shared.PlaneOrientationSequence, "ImageOrientationPatient")):
                np.testing.assert_allclose(np.array(item[0][keyword].value, float),
                                           np.array(source[keyword].value, float), atol=1e-6)


@pytest.mark.slow
def test_echoes_of_one_place_and_planes_that_cross_are_stacks(engine, tmp_path):
    """In one series: two echoes of three axial slices, and two sagittal ones."""
    first = write_series(tmp_path / "a", count=3)
    second = write_series(tmp_path / "b", count=3)
    third = write_series(tmp_path / "c", "sagittal", count=2)
    for number, path in enumerate([*first, *second, *third]):
        data = pydicom.dcmread(path)
        data.SOPInstanceUID = f"1.2.3.{number}"
        data.save_as(path)
    scored = read_scored([*first, *second, *third])
    found, notes = write(engine, scored, tmp_path / "out")
    assert notes == {}
    for heat, expected in zip(found["pm"], ("012", "345", "67"), strict=True):
        assert sorted(instance for instance, _ in referred(heat)) == [
            f"1.2.3.{each}" for each in expected]
    assert Counter(each.SegmentationType for each in found["seg"]) == {
        "FRACTIONAL": 3, "BINARY": 3}
    assert len(found["sc"]) == 8
    for kind in OBJECTS:  # one series of each kind
        (_,) = {each.SeriesInstanceUID for each in found[kind]}
        assert [each.InstanceNumber for each in found[kind]] == [*range(1, len(found[kind]) + 1)]


# --- references, patients and studies -------------------------------------------------------------

def test_segmentations_by_their_sources(engine, tmp_path):
    """highdicom finds the pixels of each instance."""
    scored = read_scored(write_series(tmp_path / "in", "oblique"))
    found, _ = write(engine, scored, tmp_path / "out", objects=["seg"])
    instances = [item.source.instance for item in scored]
    maps = torch.from_numpy(np.stack([item.map for item in scored]))[:, None]
    heat = torch.nn.functional.interpolate(maps, (ROWS, COLUMNS), mode="bilinear")[:, 0].numpy()
    for dataset in found["seg"]:
        pixels = highdicom.seg.Segmentation.from_dataset(
            dataset).get_pixels_by_source_instance(instances)[..., 0]
        if dataset.SegmentationType == "BINARY":
            surely = np.abs(heat - 1) > 1e-4
            np.testing.assert_array_equal(pixels[surely], (heat > 1)[surely])
        else:
            expected = np.clip((heat - SCALE[0]) / (SCALE[1] - SCALE[0]), 0, 1)
            np.testing.assert_allclose(pixels, expected, atol=0.5 / 255 + 1e-4)
        (segment,) = dataset.SegmentSequence
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert algorithm.AlgorithmVersion == __version__
        assert manifest_digest(engine.manifest) in algorithm.AlgorithmParameters


@pytest.mark.parametrize("orientation", ["shared", "of each frame"])
def test_an_enhanced_source(engine, enhanced, tmp_path, orientation):
    data = pydicom.dcmread(enhanced)
    if orientation == "of each frame":
        shared = data.SharedFunctionalGroupsSequence[0]
        for group in data.PerFrameFunctionalGroupsSequence:
            group.PlaneOrientationSequence = shared.PlaneOrientationSequence
            group.PixelMeasuresSequence = shared.PixelMeasuresSequence
        del shared.PlaneOrientationSequence
        del shared.PixelMeasuresSequence
    data.save_as(tmp_path / "in.dcm")
    scored = read_scored([tmp_path / "in.dcm"])
    found, notes = write(engine, scored, tmp_path / "out")
    assert notes == {}
    (heat,) = found["pm"]
    assert sorted(referred(heat)) == [("1.2.3.4", number) for number in range(1, 6)]
    for (_, number), group in zip(referred(heat), heat.PerFrameFunctionalGroupsSequence,
                                  strict=True):
        source = data.PerFrameFunctionalGroupsSequence[number - 1]
        np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient,
                                   source.PlanePositionSequence[0].ImagePositionPatient,
                                   atol=1e-6)
    (item,) = heat.SourceImageSequence
    assert sorted(item.ReferencedFrameNumber) == [1, 2, 3, 4, 5]
    (item,) = heat.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert item.ReferencedSOPClassUID == data.SOPClassUID
    assert "ReferencedFrameNumber" not in item
    pixels = highdicom.seg.Segmentation.from_dataset(
        found["seg"][1]).get_pixels_by_source_frame("1.2.3.4", [1, 2, 3, 4, 5])
    assert pixels.shape == (5, ROWS, COLUMNS, 1)
    assert [each.SourceImageSequence[0].ReferencedFrameNumber for each in found["sc"]] == [
        1, 2, 3, 4, 5]


def test_captures_show_the_overlay(engine, tmp_path):
    scored = read_scored(write_series(tmp_path / "in", "double oblique", 2))
    found, _ = write(engine, scored, tmp_path / "out", objects=["sc"])
    for item, capture in zip(scored, found["sc"], strict=True):
        shown = np.rint(item.image * 255).astype(np.uint8)
        np.testing.assert_array_equal(capture.pixel_array, overlay(shown, item.map, *SCALE))
        assert capture.PhotometricInterpretation == "RGB"
        (source,) = capture.SourceImageSequence
        assert source.ReferencedSOPInstanceUID == item.source.instance
        assert capture.PatientOrientation == ["LHA", "LPF"]  # of (2, -1, 2) and (2, 2, -1)


@pytest.mark.parametrize(("plane", "expected"), [
    ("axial", ["L", "P"]), ("sagittal", ["P", "F"]), ("oblique", ["LP", "F"]),
    ("both flipped", ["R", "A"])])
def test_captures_tell_how_the_patient_lies(engine, tmp_path, plane, expected):
    scored = read_scored(write_series(tmp_path / "in", plane, 1))
    found, _ = write(engine, scored, tmp_path / "out", objects=["sc"])
    assert found["sc"][0].PatientOrientation == expected


def test_patient_and_study_are_the_sources(engine, tmp_path):
    """To the letter, also where a value breaks the standard or has characters of its own."""
    odd = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Ypsilanti^Zebedäus=山田",
           "PatientSex": "X", "PatientAge": "033Y", "PatientComments": "très grand",
           "StudyDescription": "Schädel", "AccessionNumber": "A7"}
    scored = read_scored(write_series(tmp_path / "in", count=2, **odd))
    found, _ = write(engine, scored, tmp_path / "out")
    source = pydicom.dcmread(scored[0].path)
    for dataset in every(found):
        for keyword in (*odd, "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate",
                        "StudyTime", "StudyID", "ReferringPhysicianName"):
            assert dataset.get(keyword) == source.get(keyword), keyword
        assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
    assert pydicom.dcmread(scored[0].path) == source


def test_what_a_patient_is_called_is_not_told(engine, tmp_path, recwarn, caplog, capfd):
    """A name and dates that libraries have something to say about."""
    caplog.set_level(0)
    with pydicom.config.disable_value_validation():
        paths = write_series(tmp_path / "in", count=1, PatientName="Zebedeus^^^^^^^\\Zoe",
                             PatientBirthDate="Zebedeus", PatientSex="Zebedeus")
    scored = read_scored(paths)
    written = write_dicom(scored, engine, tmp_path / "out")
    out, err = capfd.readouterr()
    said = [*map(str, (each.message for each in recwarn)), caplog.text, out, err, *written.notes]
    assert not any("Zebedeus" in each for each in said)
    assert len(written.files) == 5


def test_missing_patient_elements_are_empty(engine, tmp_path):
    gone = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
            "AccessionNumber", "StudyID", "ReferringPhysicianName")
    paths = write_series(tmp_path / "in", count=1, **dict.fromkeys(gone, ""))
    data = pydicom.dcmread(paths[0])
    for keyword in gone:
        del data[keyword]
    data.SOPClassUID = "1.2.3.4.5"  # of a maker's own class
    data.save_as(paths[0])
    found, _ = write(engine, read_scored(paths), tmp_path / "out")
    (item,) = found["sr"][0].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[
        0].ReferencedSOPSequence
    assert item.ReferencedSOPClassUID == "1.2.3.4.5"
    for dataset in every(found):
        assert all(keyword in dataset and not dataset[keyword].value for keyword in gone)


# --- the report -----------------------------------------------------------------------------------

def test_the_report_says_what_was_scored(engine, tmp_path):
    scored = read_scored(write_series(tmp_path / "in", count=3))
    found, _ = write(engine, scored, tmp_path / "out", objects=["sr"])
    report = highdicom.sr.ComprehensiveSR.from_dataset(found["sr"][0]).content
    groups = report.get_image_measurement_groups()
    for item, group in zip(scored, groups, strict=True):
        score, p_value = group.get_measurements()
        assert (score.name.value, p_value.name.value) == ("anomaly-score", "p-value")
        assert score.value == pytest.approx(float(item.score), rel=1e-12)
        assert p_value.value == pytest.approx(float(item.p_value), rel=1e-12)
        (decision,) = group.get_qualitative_evaluations()
        assert decision.value.value == ("anomalous" if item.anomalous else "not-anomalous")
        (source,) = group.source_images
        assert source.referenced_sop_instance_uid == item.source.instance
    evidence = highdicom.sr.ComprehensiveSR.from_dataset(found["sr"][0]).get_evidence()
    assert [each[2] for each in evidence] == [item.source.instance for item in scored]


def test_the_report_without_calibration_has_scores_alone(small_file, tmp_path):
    scored = [replace(item, p_value=None, anomalous=None)
              for item in read_scored(write_series(tmp_path / "in", count=1))]
    with load_engine(small_file) as engine:
        found, _ = write(engine, scored, tmp_path / "out", objects=["sr"])
    report = highdicom.sr.ComprehensiveSR.from_dataset(found["sr"][0]).content
    (group,) = report.get_image_measurement_groups()
    assert [each.name.value for each in group.get_measurements()] == ["anomaly-score"]
    assert group.get_qualitative_evaluations() == []


@pytest.mark.skipif(not has_tool("dsrdump"), reason="dsrdump (dcmtk) is not installed")
def test_dsrdump_shows_score_p_value_and_model(engine, tmp_path):
    """Of files that the engine itself has scored."""
    scored = list(engine.stream([OWN / "MR_small.dcm"]))
    written = write_dicom(scored, engine, tmp_path, objects=["sr"])
    ran = subprocess.run(["dsrdump", "+Pl", str(written.files[0])], capture_output=True, text=True,
                         check=True)
    assert ran.stderr == ""
    values = dict(re.findall(r'"([^"]+)"\)="([^"]*)"', ran.stdout))
    assert float(values["Anomaly score of an image"]) == pytest.approx(float(scored[0].score))
    assert float(values["Conformal p-value of the anomaly score"]) == pytest.approx(
        float(scored[0].p_value))
    assert values["Algorithm Version"] == __version__
    assert values["Device Observer Model Name"] == "scrd-fast resnet18"
    for text in (f"engine_sha256={manifest_digest(engine.manifest)}", "threshold=0.25 (conformal)",
                 "Anomalous: the score lies above the threshold"):
        assert text in ran.stdout
