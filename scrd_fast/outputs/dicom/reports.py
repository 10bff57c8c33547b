"""The Structured Report: a Measurement Report (PS3.16 TID 1500) with the scores of a series."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from scrd_fast.metrics.decisions import Decisions
from scrd_fast.outputs.dicom.common import begin_header, describe_object, finish
from scrd_fast.outputs.dicom.identity import NAME, Maker, code, describe_scheme
from scrd_fast.outputs.dicom.sources import SourceImage

if TYPE_CHECKING:
    from pydicom import Dataset


def make_report(images: Sequence[SourceImage], maker: Maker, when: datetime,
                decisions: Decisions | None) -> "Dataset":
    """The report of a series: for each image score, p-value and decision, the latter two once
    decisions are calibrated, with the algorithm they come from."""
    import highdicom
    from highdicom import sr
    from pydicom.sr.codedict import codes

    described = describe_object("sr", images, maker, 1)
    observer = sr.ObserverContext(codes.DCM.Device, sr.DeviceObserverIdentifyingAttributes(
        maker.make_uid("device"), name=NAME, manufacturer_name=NAME,
        model_name=described["manufacturer_model_name"], serial_number=maker.digest))
    parameters = [f"engine_sha256={maker.digest}", f"backbone={maker.backbone}"]
    if decisions is not None:
        parameters.append(f"threshold={decisions.threshold:.9g} ({decisions.rule})")
    algorithm = sr.AlgorithmIdentification(NAME, maker.version, parameters, manufacturer=NAME)
    report = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=observer), codes.SCT.ImagingProcedure,
        [_measure(image, maker, number, algorithm) for number, image in enumerate(images, 1)],
        title=codes.DCM.ImagingMeasurementReport)
    made = highdicom.sr.ComprehensiveSR(
        [begin_header(image) for image in images], report[0], **described, is_complete=True,
        coding_schemes=[describe_scheme()])
    classes = {image.name[0]: image.header.SOPClassUID for image in images}
    (study,) = made.CurrentRequestedProcedureEvidenceSequence
    for item in study.ReferencedSeriesSequence[0].ReferencedSOPSequence:
        item.ReferencedSOPClassUID = classes[item.ReferencedSOPInstanceUID]
    return finish(made, images[0].header, when)


def _measure(image: SourceImage, maker: Maker, number: int, algorithm: Any) -> Any:
    """The group of measurements of one image (TID 1501)."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    item = image.scored
    measured = [sr.Measurement(code("anomaly-score"), float(item.score), codes.UCUM.NoUnits)]
    if item.p_value is not None:
        measured.append(sr.Measurement(code("p-value"), float(item.p_value), codes.UCUM.NoUnits))
    decided = [] if item.anomalous is None else [sr.QualitativeEvaluation(
        code("decision"), code("anomalous" if item.anomalous else "not-anomalous"))]
    frames = None if image.frame is None else [image.frame]
    return sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(maker.make_uid("measurements", *image.name), f"image {number}"),
        algorithm_id=algorithm, measurements=measured, qualitative_evaluations=decided,
        source_images=[sr.SourceImageForMeasurementGroup(
            image.header.SOPClassUID, image.header.SOPInstanceUID, frames)])
