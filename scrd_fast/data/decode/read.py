"""Reading one file by what is in it: the formats, and the images that a file gives."""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scrd_fast.data.decode.dicom import read_dicom
from scrd_fast.data.decode.dicom_kind import is_dicom, is_medium_index
from scrd_fast.data.decode.image import DecodedImage, Unscaled
from scrd_fast.data.decode.nifti import is_nifti, read_nifti
from scrd_fast.data.decode.pictures import read_one_picture
from scrd_fast.data.pictures.formats import FORMATS as PICTURES
from scrd_fast.data.pictures.formats import HEAD as PICTURE_HEAD
from scrd_fast.data.pictures.formats import SUFFIXES as PICTURE_SUFFIXES
from scrd_fast.data.pictures.formats import format_of
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule

_HEAD = 4096  # bytes; enough to inflate NIfTI's header
Decoder = Callable[[Path, DecodingRule, list[str]], Sequence[DecodedImage | Unscaled]]


@dataclass(frozen=True)
class Format:
    """recognises: by a file's first bytes. decode: a file by a rule; what a user should know
    besides is added to the list."""

    name: str
    recognises: Callable[[bytes], bool]
    decode: Decoder


# A DICOM file may be a TIFF as well: its first 128 bytes are free for that.
FORMATS = (
    Format("DICOM", is_dicom, lambda path, rule, remarks: read_dicom(path, rule)),
    Format("NIfTI", is_nifti, read_nifti),
    Format(PICTURES, lambda head: format_of(head[:PICTURE_HEAD]) is not None,
           lambda path, rule, remarks: read_one_picture(path, rule)),
)
NAMES = ", ".join(each.name for each in FORMATS)
SUFFIXES = (*PICTURE_SUFFIXES, ".dcm", ".dicom", ".nii", ".nii.gz")


@dataclass(frozen=True)
class FileRead:
    """What reading a file gave: its images, or why there are none.

    Pixels of pictures are still the integers that the file holds. remarks: what a user should know
    besides, naming the file.
    """

    path: Path
    images: tuple[DecodedImage | Unscaled, ...] = ()
    error: str | None = None
    remarks: tuple[str, ...] = ()


def read_file(path: Path, rule: DecodingRule) -> FileRead:
    """All images of a file; what is wrong with it is told, not raised."""
    said: list[str] = []
    try:
        images = tuple(_recognise(path).decode(path, rule, said))
    except DataError as error:
        return FileRead(path, error=f"{path}: {error}")
    except (OSError, ValueError) as error:
        # What a library says besides may quote what the file says of a patient.
        reason = getattr(error, "strerror", None) or type(error).__name__
        return FileRead(path, error=f"{path}: cannot be read: {reason}")
    except MemoryError:
        return FileRead(path, error=f"{path}: does not fit into memory")
    return FileRead(path, images, remarks=tuple(f"{path}: {each}" for each in said))


def _recognise(path: Path) -> Format:
    # Opening a pipe may wait for ever, and a device may have no end.
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise DataError("cannot be read: not a file but a pipe, socket or device")
    head = _read_head(path)
    for each in FORMATS:
        if each.recognises(head):
            return each
    raise DataError(f"expected a {NAMES} file, got {'other content' if head else 'no byte'}")


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def is_known(path: Path) -> bool:
    """Whether a file below a folder is to be read: by its content, or by a suffix that is known,
    so that reading it tells what it lacks. May raise OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        return False
    head = _read_head(path)
    if is_dicom(head) and is_medium_index(head):  # it lies beside the files that it lists
        return False
    return path.name.lower().endswith(SUFFIXES) or any(each.recognises(head) for each in FORMATS)


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM by its content; False where it cannot be opened."""
    try:
        return stat.S_ISREG(path.stat().st_mode) and is_dicom(_read_head(path))
    except OSError:
        return False


def is_picture(path: str | os.PathLike[str]) -> str | None:
    """PNG, JPEG, TIFF or BMP; None of all else, and of what cannot be opened."""
    try:
        head = _read_head(Path(path))
    except OSError:
        return None
    return None if is_dicom(head) else format_of(head[:PICTURE_HEAD])


def is_one_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file is of a kind that holds a single picture, which needs no other file to be
    scaled."""
    return is_picture(path) in ("PNG", "JPEG", "BMP")
