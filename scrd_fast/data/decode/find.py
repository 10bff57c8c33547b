"""Finding the files that hold images, and `read_images`."""

import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.ahead import Decoded, decode_ahead
from scrd_fast.data.decode.image import DecodedImage
from scrd_fast.data.decode.read import NAMES, is_known
from scrd_fast.data.decode.series import arrange, count_kinds
from scrd_fast.data.listing import list_images
from scrd_fast.errors import DataError, expect
from scrd_fast.files import as_path
from scrd_fast.spec import DecodingRule

T = TypeVar("T")
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class Found:
    """paths: files that hold images, in the order in which they are read. refused: other files that
    were meant to, and why not."""

    paths: list[Path]
    refused: dict[Path, str]


def find_files(where: Paths, stacklevel: int = 2) -> Found:
    """The files with images of a folder, of one path, or of a list of both.

    Of a folder all files below it that are known (see read.is_known). The files of a DICOM series
    stand together, by their place in the patient. What is no picture of a patient (reports,
    localizers, phantoms) is left out, with one warning; a file that repeats the object of another
    is refused. Files that are named are taken as they are, in their order, unless a folder of
    theirs is named as well: decoding them says what is wrong. `stacklevel` is that of warnings, 2
    for the caller's line. Raises DataError where there is no file, InputError for what is no path.
    """
    if one := isinstance(where, str | os.PathLike):
        where = [where]
    places = [as_path(each, "path") for each in where]
    listed = list_images(places[0] if one else places, is_known, NAMES, stacklevel=stacklevel + 1)
    folders = [place for place in places if os.path.isdir(place)]
    named = {place for place in places if not any(map(place.is_relative_to, folders))}
    return arrange_files(listed, stacklevel + 1, named)


def arrange_files(paths: Sequence[Path], stacklevel: int = 2,
                  named: Collection[Path] = frozenset()) -> Found:
    """The files of folders in the order in which they are read, among others that are `named`;
    see find_files."""
    arranged = arrange(paths, named)
    skipped = [count_kinds(arranged.skipped)] if arranged.skipped else []
    for remark in [*skipped, *arranged.remarks]:
        warnings.warn(remark, stacklevel=stacklevel)
    if not arranged.paths:
        others = ", as all others are of no patient either" if len(arranged.skipped) > 1 else ""
        raise DataError(f"{paths[0]}: expected a picture of a patient, got"
                        f" {arranged.skipped[paths[0]]}{others}")
    return Found(arranged.paths, {
        path: f"{path}: is the object that {other} is, by its SOP instance UID"
        for path, other in arranged.repeated.items()})


def read_images(path: Paths, rule: DecodingRule | None = None) -> list[DecodedImage]:
    """All images of a file: of a DICOM file its frames, of NIfTI its slices, of a TIFF its pages.

    `path` may be a folder, too, or a list of both; of a folder all files below it are read that
    are DICOM, NIfTI, PNG, JPEG, TIFF or BMP by their content or suffix, the files of a DICOM series
    by their place in the patient. `rule` is DecodingRule() if None. DICOM and NIfTI need packages
    that come with scrd-fast[medical].

    Warns where a NIfTI file contradicts itself on how its volume lies, where DICOM files name no
    window, where slices of a series are missing or its gantry was tilted, and of files in folders
    that are left out. Raises DataError, one line that names the file and the reason, for the first
    file that cannot be read, and InputError for what is no path or rule.
    """
    rule = DecodingRule() if rule is None else rule
    expect(isinstance(rule, DecodingRule), "rule", "a DecodingRule or None", type(rule).__name__)
    known = isinstance(path, str | os.PathLike | Iterable) and not isinstance(path, bytes)
    expect(known, "path", "a path, or a list of paths", type(path).__name__)
    images: list[DecodedImage] = []
    for decoded in _decode(path, rule, stacklevel=4):
        images += [replace(each, pixels=to_unit(each.pixels)) for each in decoded.images]
    return images


def read_some(paths: Sequence[Path], rule: DecodingRule, most: int = 256) -> list[NDArray[Any]]:
    """The pixels of about `most` images at most, as an engine takes them, spread evenly over files
    and over the images of each; errors and warnings as in read_images."""
    chosen = _spread(paths, most)
    of_each = max(1, most // len(chosen))
    pixels = []
    for decoded in _decode(chosen, rule, stacklevel=4):
        pixels += [image.pixels for image in _spread(decoded.images, of_each)]
    return pixels


def _spread(values: Sequence[T], most: int) -> list[T]:
    places = np.linspace(0, len(values) - 1, min(most, len(values))).astype(int)
    return [values[place] for place in places]


def _decode(path: Paths, rule: DecodingRule, stacklevel: int) -> Iterator[Decoded]:
    found = find_files(path if isinstance(path, str | os.PathLike) else list(path), stacklevel)
    for reason in found.refused.values():
        raise DataError(reason)
    for decoded in decode_ahead(found.paths, rule):
        if decoded.error is not None:
            raise DataError(decoded.error)
        for remark in decoded.remarks:
            warnings.warn(remark, stacklevel=stacklevel - 1)
        yield decoded


def to_unit(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Pixels as float32 in [0, 1]: integers by the largest of their type."""
    if pixels.dtype == np.float32:
        return pixels
    return (pixels / np.float32(np.iinfo(pixels.dtype).max)).astype(np.float32)
