"""What a DICOM file is: by its first bytes, by the class of its object, by its place in a series.

Nothing here reads pixels. pydicom is imported when the first such file is met.
"""

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from scrd_fast.data.decode.dicom_pixels import DEFLATED, read_meta, read_texts
from scrd_fast.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

OWN_NAME = "scrd-fast"  #: The Manufacturer of what this package writes.

_FILE_OF_MEDIUM = b"1.2.840.10008.1.3.10\2\0"  # the class of a DICOMDIR, the next element
# Results that are stored as pixels, and are no pictures of a patient.
_NO_IMAGES = {"1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
              "1.2.840.10008.5.1.4.1.1.66.7": "a label map",
              "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
              "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
              "1.2.840.10008.1.3.10": "a DICOMDIR, the index of a medium"}
_VRS = {  # PS3.5 6.2
    "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OD", "OF", "OL",
    "OV", "OW", "PN", "SH", "SL", "SQ", "SS", "ST", "SV", "TM", "UC", "UI", "UL", "UN", "UR", "US",
    "UT", "UV"}
_MOST_INFLATED = 2**32


def is_dicom(head: bytes) -> bool:
    """Whether a file's first bytes (at least 132) are DICOM's, also without preamble.

    Without it the first element must be one of the meta header or of group 8, with which each data
    set of an image begins.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 132:
        return False
    little, big = struct.unpack_from("<HH", head), struct.unpack_from(">HH", head)
    if head[4:6].decode("latin-1") in _VRS:
        return little[0] in (2, 8) or big[0] == 8
    length, = struct.unpack_from("<I", head, 4)
    return little[0] in (2, 8) and little[1] < 0x100 and length < 1024


def is_medium_index(head: bytes) -> bool:
    """Whether DICOM's first bytes are those of a DICOMDIR."""
    return _FILE_OF_MEDIUM in head[132:]


def tell_what_it_is(dataset: "Dataset") -> str | None:
    """What an object is that is no picture of a patient; None of pictures, and where it does not
    tell."""
    found = "".join(read_texts(dataset, "SOPClassUID")[:1]) or "".join(
        read_texts(read_meta(dataset), "MediaStorageSOPClassUID")[:1])
    if found in _NO_IMAGES:
        return _NO_IMAGES[found]
    name = _name_class(found)
    if "Rows" not in dataset and name is not None and "Image Storage" not in name:
        return f"an object of the class {name}, without pixel data"
    if OWN_NAME in read_texts(dataset, "Manufacturer"):
        return "a result of this package"
    if "LOCALIZER" in (text.upper() for text in read_texts(dataset, "ImageType")):
        return "a localizer, which shows where other pictures lie"
    for keyword in ("QualityControlImage", "QualityControlSubject"):
        if "YES" in read_texts(dataset, keyword):
            return "a phantom, by its quality control tags"
    return None


def _name_class(found: str) -> str | None:
    from pydicom.uid import UID_dictionary

    return str(UID_dictionary[found][0]) if found in UID_dictionary else None


def check_kind(dataset: "Dataset", whole: bool) -> None:
    """Raise DataError for what is no picture of a patient, or has no pixels; whole: whether these
    were read."""
    if kind := tell_what_it_is(dataset):
        raise DataError(f"expected a picture of a patient, got {kind}")
    if "PixelData" not in dataset and (whole or "Rows" not in dataset):
        floats = [name for name in ("FloatPixelData", "DoubleFloatPixelData") if name in dataset]
        if floats:
            raise DataError(f"expected PixelData, got {floats[0]}, as parametric maps have it")
        raise DataError("holds no pixel data, or is cut before them")


def read_for_order(path: Path) -> "Dataset":
    """What a file says of its kind and of its place among others; the pixels are not read."""
    import pydicom

    check_deflated(path)
    return pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=[
        "SOPClassUID", "SOPInstanceUID", "ImageType", "Manufacturer", "QualityControlImage",
        "QualityControlSubject", "Rows", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
        "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"])


def check_deflated(path: Path) -> None:
    """Raise DataError where a file is too long when inflated: it may be by a thousand times."""
    from pydicom.filereader import read_file_meta_info

    try:
        meta = read_file_meta_info(path)
    except Exception:  # no preamble, so no meta header that names a syntax, or pydicom will say it
        return
    if meta.get("TransferSyntaxUID") != DEFLATED:
        return
    begins = 144 + int(meta.get("FileMetaInformationGroupLength", 0))
    stream, length = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(begins)
        while (part := file.read(2**16)) and not stream.eof:
            while part:
                length += len(stream.decompress(part, 2**20))
                part = stream.unconsumed_tail
            if length > _MOST_INFLATED:
                raise DataError("expected at most 4 GiB when inflated, got more")
