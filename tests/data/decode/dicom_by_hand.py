"""DICOM files made by hand, and pydicom's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.data
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

OWN = Path(pydicom.data.__file__).parent / "test_files"


def dicom(pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> FileDataset:
    """A CT slice with these stored values, (H, W) or (H, W, 3), and elements over the usual."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    data = FileDataset("none", {}, file_meta=meta, preamble=bytes(128),
                       is_implicit_VR=syntax == ImplicitVRLittleEndian,
                       is_little_endian=syntax != ExplicitVRBigEndian)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID = "Ypsilanti^Zebedeus", "P1"
    data.StudyInstanceUID = data.SeriesInstanceUID = generate_uid()
    colour = pixels.shape[-1] == 3
    data.Rows, data.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    data.SamplesPerPixel = 3 if colour else 1
    if colour:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def save(data: FileDataset, path: Path, **options: Any) -> Path:
    data.save_as(path, **{"enforce_file_format": False, **options})
    return path


def rle(pixels: np.ndarray, **elements: Any) -> FileDataset:
    data = dicom(pixels, **elements)
    data.compress(RLELossless)
    return data


def items(**elements: Any) -> list[pydicom.Dataset]:
    """A sequence of one item."""
    item = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return [item]


def table(descriptor: list[int], entries: list[int], as_bytes: bool = False) -> list[
        pydicom.Dataset]:
    """The sequence of one lookup table."""
    found = items(LUTDescriptor=descriptor)
    found[0].add_new("LUTData", "OW" if as_bytes else "US",
                     np.array(entries, "<u2").tobytes() if as_bytes else entries)
    return found


def enhanced(frames: np.ndarray, slopes: list[float], windows: list[tuple[float, float]],
             positions: list[list[float]]) -> FileDataset:
    """A multi-frame object, each frame with its own rescale, window and position."""
    data = dicom(frames[0])
    data.PixelData, data.NumberOfFrames = frames.tobytes(), len(frames)
    data.SharedFunctionalGroupsSequence = items(
        PlaneOrientationSequence=items(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        PixelMeasuresSequence=items(PixelSpacing=[2, 0.5], SliceThickness=3))
    data.PerFrameFunctionalGroupsSequence = [items(
        PixelValueTransformationSequence=items(RescaleSlope=slope, RescaleIntercept=-10,
                                               RescaleType="HU"),
        FrameVOILUTSequence=items(WindowCenter=window[0], WindowWidth=window[1]),
        PlanePositionSequence=items(ImagePositionPatient=position))[0]
        for slope, window, position in zip(slopes, windows, positions, strict=True)]
    return data
