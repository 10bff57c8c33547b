"""What all objects have in common: the source's patient and study, and when they were made."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from scrd_fast.outputs.dicom.identity import NAME, Maker
from scrd_fast.outputs.dicom.sources import SourceImage

if TYPE_CHECKING:
    from pydicom import Dataset

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Of a series each; the numbers are this package's own, so that its results stand together.
SERIES = {"pm": (9001, "anomaly map"), "seg": (9002, "anomalies, segmented"),
          "sc": (9003, "anomaly overlay"), "sr": (9004, "anomaly scores")}
_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber",
          "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName")
_GROUPS = (0x08, 0x10, 0x12, 0x20, 0x32, 0x38, 0x40)  # of patient and study modules
_SOP_CLASS = 0x00080016
_DATES = (("InstanceCreationDate", "InstanceCreationTime"), ("ContentDate", "ContentTime"),
          ("DateOfSecondaryCapture", "TimeOfSecondaryCapture"))
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def begin_header(image: SourceImage) -> "Dataset":
    """What highdicom reads of a source, without its patient: `finish` copies that as it is.

    Here its values would be checked, and what does not fit quoted in errors and logs. The class is
    one that highdicom knows, as it does not know all: what refers to the source must name its own.
    """
    from pydicom import Dataset

    header = Dataset()
    for keyword in _EMPTY:
        setattr(header, keyword, None)
    header.SOPClassUID = SECONDARY_CAPTURE
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", *LOSSY):
        if keyword in image.header:
            setattr(header, keyword, image.header[keyword].value)
    return header


def describe_object(kind: str, images: Sequence[SourceImage], maker: Maker, number: int,
                    *content: object) -> dict[str, Any]:
    """What every class of highdicom's takes: series, instance and maker.

    The instance's UID is made of the images and of all else that its content depends on; `number`
    counts the instances of the series, from 1.
    """
    series_number, description = SERIES[kind]
    names = [name for image in images for name in image.name]
    return {
        "series_instance_uid": maker.make_uid(
            "series", kind, images[0].header.SeriesInstanceUID),
        "series_number": series_number, "series_description": f"{NAME}: {description}",
        "sop_instance_uid": maker.make_uid("instance", kind, *content, *names),
        "instance_number": number, "manufacturer": NAME,
        "manufacturer_model_name": f"{NAME} {maker.backbone}",
        "software_versions": maker.version, "device_serial_number": maker.digest}


def finish(made: "Dataset", source: "Dataset", when: datetime, *,
           body_part: bool = False) -> "Dataset":
    """Copy the source's patient and study modules, and date all to `when`.

    body_part: the object is one of those that tell it, or else leave empty on which side it is
    (C.7.3.1).
    """
    from pydicom import Dataset

    # These modules are the same in all classes, also in those that highdicom does not know. By
    # keys: iterating gives elements, and parses all of them.
    like = Dataset()
    for tag in source.keys():  # noqa: SIM118
        if tag.group in _GROUPS and tag != _SOP_CLASS:
            like.add(source[tag])
    like.SOPClassUID = SECONDARY_CAPTURE
    made.copy_patient_and_study_information(like)
    if "SpecificCharacterSet" in source:
        made.SpecificCharacterSet = source.SpecificCharacterSet
    if body_part:
        for keyword in ("BodyPartExamined", "Laterality"):
            if keyword in source:
                setattr(made, keyword, source[keyword].value)
        side = source.get("ImageLaterality")
        if side in ("L", "R") and not made.get("Laterality"):
            made.Laterality = side
        if "BodyPartExamined" not in made and "Laterality" not in made:
            made.Laterality = None
    for date, time in _DATES:
        if date in made:
            setattr(made, date, when.strftime("%Y%m%d"))
            setattr(made, time, when.strftime("%H%M%S"))
    for equipment in made.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in equipment:
            equipment.ContributionDateTime = when.strftime("%Y%m%d%H%M%S")
    return made
