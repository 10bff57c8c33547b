"""Images: the Parametric Map, the Segmentation and the Secondary Capture (PS3.3 A.75, A.51, A.8).

highdicom wants the slices of a series, or one multi-frame object, of one orientation. Sources are
more than that: frames in several stacks, series of several multi-frame objects. So it is given a
stand-in for each image, a single slice; what refers to a stand-in is made to refer to the image.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.dicom_pixels import read_numbers, read_texts
from scrd_fast.metrics.map_scale import LARGEST
from scrd_fast.outputs.dicom.common import LOSSY, begin_header, describe_object, finish
from scrd_fast.outputs.dicom.identity import Maker, code, describe_scheme
from scrd_fast.outputs.dicom.sources import Plane, SourceImage, refer
from scrd_fast.report.overlays import overlay, resample

if TYPE_CHECKING:
    from pydicom import Dataset

_STAND_IN = "2.25."  # before its number, from 1
_DECIMALS = 9  # of mm: what is left of a decimal text after a turn through float64
_WHITE = 255


def _resample_all(images: Sequence[SourceImage], kind: Any,
                  change: Callable[[NDArray[np.float32]], NDArray[Any]]) -> NDArray[Any]:
    """The changed maps of a stack at its images' own pixels, (N, H, W)."""
    frames = np.empty((len(images), *images[0].shape), kind)
    for frame, image in zip(frames, images, strict=True):
        assert image.scored.map is not None
        frame[:] = change(resample(image.scored.map, *image.shape))
    return frames


def make_map(images: Sequence[SourceImage], maker: Maker, when: datetime, number: int,
             scale: tuple[float, float]) -> "Dataset":
    """The Parametric Map of a stack: float32 distances without unit.

    Viewers show it between the two values of `scale`.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    pixels = _resample_all(images, np.float32, lambda heat: heat)
    # Rounding may carry a distance over its bounds.
    ends = min(0.0, float(pixels.min())), max(LARGEST, float(pixels.max()))
    mapping = highdicom.pm.RealWorldValueMapping(
        "anomaly-map", "identity: distance of student's from teacher's features",
        codes.UCUM.NoUnits, ends, quantity_definition=code("anomaly-map"))
    low, high = scale
    made = highdicom.pm.ParametricMap(
        _stand_in(images), pixels, **describe_object("pm", images, maker, number, scale),
        contains_recognizable_visual_features=False, real_world_value_mappings=[mapping],
        voi_lut_transformations=[highdicom.VOILUTTransformation(
            window_center=(low + high) / 2, window_width=high - low,
            voi_lut_function="LINEAR_EXACT")],  # the others have no width below 1
        content_label="ANOMALY_MAP", content_description="Anomaly map",
        coding_schemes=[describe_scheme()])
    return _finish_frames(made, images, maker, when, body_part=True)


def make_segmentation(images: Sequence[SourceImage], maker: Maker, when: datetime, number: int,
                      limits: tuple[float, float] | float) -> "Dataset":
    """The Segmentation of a stack, or of one projection.

    limits: a number for a binary one, of what lies above it; two for a fractional one, of values
    that rise from 0 at the first to 1 at the second. Those are no calibrated probabilities.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    if isinstance(limits, tuple):
        low, high = limits
        pixels = _resample_all(
            images, np.float32, lambda heat: np.clip((heat - low) / (high - low), 0, 1))
        told = {"map_value_of_0": f"{low:.9g}", "map_value_of_1": f"{high:.9g}"}
        kind: dict[str, Any] = {
            "segmentation_type": "FRACTIONAL", "fractional_type": "PROBABILITY",
            "max_fractional_value": _WHITE, "content_label": "ANOMALY_FRACTION",
            "content_description": "Anomaly map, scaled; no calibrated probability"}
    else:
        pixels = _resample_all(images, np.uint8, lambda heat: heat > limits)
        told = {"pixel_threshold": f"{limits:.9g}"}
        kind = {"segmentation_type": "BINARY", "content_label": "ANOMALY",
                "content_description": "Anomaly map above a threshold"}
    abnormal = codes.SCT.MorphologicallyAbnormalStructure
    segment = highdicom.seg.SegmentDescription(
        1, "Anomaly", abnormal, abnormal, "AUTOMATIC", maker.identify_algorithm(**told))
    made = highdicom.seg.Segmentation(
        _stand_in(images), pixels, segment_descriptions=[segment], **kind,
        omit_empty_frames=bool(pixels.any()),  # not all of them can be left out
        **describe_object("seg", images, maker, number, limits))
    return _finish_frames(made, images, maker, when, body_part=False)


def _stand_in(images: Sequence[SourceImage]) -> "list[Dataset]":
    """A single slice, or projection, for each image, numbered by its place among them."""
    found = []
    for number, image in enumerate(images, 1):
        header = begin_header(image)
        header.SOPInstanceUID = f"{_STAND_IN}{number}"
        header.Rows, header.Columns = image.shape
        if image.plane is None:
            spacing = read_numbers(image.header, "PixelSpacing")
            if len(spacing) == 2 and min(spacing) > 0:
                header.PixelSpacing = list(spacing)
        else:
            _place(header, image.plane, images[0].plane or image.plane)
            header.PositionReferenceIndicator = image.header.get("PositionReferenceIndicator")
        found.append(header)
    return found


def _place(header: "Dataset", plane: Plane, first: Plane) -> None:
    """As `plane` lies; orientation and spacing, which a stack shares, are those of its first."""
    from pydicom.valuerep import DS

    def as_text(values: Any) -> list[Any]:
        # Adding 0 makes zeros of negative ones.
        return [DS(round(float(value), _DECIMALS) + 0.0, auto_format=True) for value in values]

    header.FrameOfReferenceUID = plane.frame_of_reference
    header.ImagePositionPatient = as_text(plane.position)
    header.ImageOrientationPatient = as_text(first.directions.ravel())
    header.PixelSpacing = as_text(first.spacing)
    header.SliceThickness = first.thickness


def _finish_frames(made: "Dataset", images: Sequence[SourceImage], maker: Maker,
                   when: datetime, body_part: bool) -> "Dataset":
    for group in made.PerFrameFunctionalGroupsSequence:
        for derivation in group.DerivationImageSequence:
            for item in derivation.SourceImageSequence:
                number = int(item.ReferencedSOPInstanceUID.removeprefix(_STAND_IN))
                item.update(refer([images[number - 1]]))
    files: dict[str, list[SourceImage]] = {}
    for image in images:
        files.setdefault(image.name[0], []).append(image)
    made.SourceImageSequence = [refer(of_file) for of_file in files.values()]
    made.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [
        refer(of_file, whole=True) for of_file in files.values()]
    if images[0].plane is None:
        made.PatientOrientation = list(read_texts(images[0].header, "PatientOrientation"))
    # highdicom draws this one by chance.
    organization = maker.make_uid("dimensions", made.SOPInstanceUID)
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    return finish(made, images[0].header, when, body_part=body_part)


def make_capture(image: SourceImage, maker: Maker, when: datetime, number: int,
                 scale: tuple[float, float]) -> "Dataset":
    """The Secondary Capture of an image: its map in true colour over it, on the colours of `scale`.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    assert image.scored.map is not None
    shown = np.asarray(np.rint(image.scored.image * _WHITE), np.uint8)
    made = highdicom.sc.SCImage(
        overlay(shown, image.scored.map, *scale), "RGB", 8, "PATIENT",
        study_instance_uid=image.header.StudyInstanceUID,
        patient_orientation=("L", "P"),  # replaced below: a file need not tell
        pixel_spacing=None if image.plane is None else image.plane.spacing,
        **describe_object("sc", [image], maker, number, scale))
    made.PatientOrientation = (list(read_texts(image.header, "PatientOrientation"))
                               if image.plane is None else name_directions(image.plane))
    for keyword in ("BurnedInAnnotation", *LOSSY):
        if keyword in image.header:
            made[keyword] = image.header[keyword]
    made.DerivationDescription = "Anomaly map in colour over the image"
    item = refer([image])
    item.PurposeOfReferenceCodeSequence = [highdicom.sr.CodedConcept.from_code(
        codes.DCM.SourceImageForImageProcessingOperation)]
    item.SpatialLocationsPreserved = "YES"
    made.SourceImageSequence = [item]
    return finish(made, image.header, when, body_part=True)


def name_directions(plane: Plane) -> list[str]:
    """Where columns, then rows lead to in the patient, as Patient Orientation says it: letters of
    the axes that a direction runs along, the nearest first (C.7.6.1.1.1)."""
    letters = ("L", "R"), ("P", "A"), ("H", "F")
    return ["".join(letters[axis][int(direction[axis] < 0)]
                    for axis in np.argsort(-np.abs(direction), kind="stable")
                    if abs(direction[axis]) > 0.05)  # 3 degrees; below it rounding names axes
            for direction in plane.directions]
