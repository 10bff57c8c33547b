"""Reading any file by what is in it: the formats, and `read_images`."""

import os
import stat
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scrd_fast.data.decode.dicom import is_dicom, is_medium_index, read_dicom
from scrd_fast.data.decode.image import DecodedImage, Unscaled
from scrd_fast.data.decode.intensity import find_limits
from scrd_fast.data.decode.nifti import is_nifti, read_nifti
from scrd_fast.data.decode.pictures import read_one_picture
from scrd_fast.data.images import list_images
from scrd_fast.data.picture_formats import FORMATS as PICTURES
from scrd_fast.data.picture_formats import HEAD as PICTURE_HEAD
from scrd_fast.data.picture_formats import format_of
from scrd_fast.errors import DataError, expect
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


def read_images(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    rule: DecodingRule | None = None,
) -> list[DecodedImage]:
    """All pictures of a file: of a DICOM file its frames, of NIfTI its slices.

    `path` may be a folder, too, or a list of both; of a folder all files below it are read that
    are DICOM, NIfTI, PNG, JPEG, TIFF or BMP by their content, whatever their names. `rule` is
    DecodingRule() if None. DICOM and NIfTI need packages that come with scrd-fast[medical].

    Warns where a NIfTI file contradicts itself on how its volume lies, and where DICOM files name
    no window. Raises DataError, one line that names the file and the reason, for the first file
    that cannot be read, and InputError for what is no path or rule.
    """
    rule = DecodingRule() if rule is None else rule
    expect(isinstance(rule, DecodingRule), "rule", "a DecodingRule or None", type(rule).__name__)
    known = isinstance(path, str | os.PathLike | Iterable) and not isinstance(path, bytes)
    expect(known, "path", "a path, or a list of paths", type(path).__name__)
    remarks: list[str] = []
    found: list[DecodedImage | Unscaled] = []
    for file in list_images(path, _is_known, NAMES, stacklevel=3):
        found += _read_file(file, rule, remarks)
    images = _scale_series(found, rule, remarks)
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    return images


def _read_file(path: Path, rule: DecodingRule,
               remarks: list[str]) -> Sequence[DecodedImage | Unscaled]:
    said: list[str] = []
    try:
        images = _recognise(path).decode(path, rule, said)
    except DataError as error:
        # The library's error below it may quote what the file says of a patient.
        raise DataError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"{path}: cannot be read: {reason}") from None
    except MemoryError:
        raise DataError(f"{path}: does not fit into memory") from None
    remarks += [f"{path}: {each}" for each in said]
    return images


def _recognise(path: Path) -> Format:
    # Opening a pipe may wait for ever, and a device may have no end.
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise DataError("cannot be read: not a file but a pipe, socket or device")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for each in FORMATS:
        if each.recognises(head):
            return each
    raise DataError(f"expected a {NAMES} file, got {'other content' if head else 'no byte'}")


def _is_known(path: Path) -> bool:
    """Whether a file below a folder is to be read; a DICOMDIR lies beside the files it lists."""
    if not stat.S_ISREG(path.stat().st_mode):
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return any(each.recognises(head) for each in FORMATS) and not (
        is_dicom(head) and is_medium_index(head))


def _scale_series(found: list[DecodedImage | Unscaled], rule: DecodingRule,
                  remarks: list[str]) -> list[DecodedImage]:
    """All pictures, those that wait scaled by the percentiles of their series."""
    series = defaultdict[str, list[Unscaled]](list)
    for each in found:
        if not isinstance(each, DecodedImage):
            series[_name_series(each)].append(each)
    limits = {}
    for name, items in series.items():
        path = items[0].source.path
        try:
            values = np.concatenate([item.values().astype(np.float32) for item in items])
            limits[name] = find_limits(values, rule.percentiles, "pixels of its series")
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except MemoryError:
            raise DataError(f"{path}: its series does not fit into memory") from None
    without = {each.source.path: None for items in series.values() for each in items
               if each.names_no_window()}
    if without:
        more = f" and {len(without) - 1} more name" if len(without) > 1 else " names"
        remarks.append(f"{next(iter(without))}{more} no window: scaled by the percentiles of the"
                       " series; a rule with a window of your own keeps what they hide")
    return [each if isinstance(each, DecodedImage) else each.between(*limits[_name_series(each)])
            for each in found]


def _name_series(picture: Unscaled) -> str:
    return picture.source.series or str(picture.source.path)
