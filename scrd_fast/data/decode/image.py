"""What decoding gives: pictures with their place in the patient and the file they come from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule

MOST_PIXELS = DecodingRule.most_megapixels * 1_000_000  #: Of one picture, unless asked for.
MOST_IN_ALL = 2**30  #: Of all pictures of one file, which are in memory together.


@dataclass(frozen=True)
class Source:
    """Where a picture comes from; None where that is not known.

    patient is DICOM's Patient ID; study, series and instance are its unique identifiers. frame is
    the number of a picture within a file of several, from 0: of a DICOM frame, or of a NIfTI slice
    as `DecodingRule.slices` counts.
    """

    path: Path
    patient: str | None = field(default=None, repr=False)  # not for logs
    study: str | None = None
    series: str | None = None
    instance: str | None = None
    frame: int | None = None

    @property
    def whose(self) -> str | None:
        """What images of one patient share: the patient's ID, else the study, the series, the file
        of several images; None of a file of one that tells nothing."""
        whole = None if self.frame is None else str(self.path)
        return self.patient or self.study or self.series or whole


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One picture.

    pixels: float32 in [0, 1], (H, W) or, in RGB order, (H, W, 3). Inside this package those of
        pictures stay the integers of their file, uint8 or uint16, until the engine scales them.
    geometry: float64 (4, 4), or None where a file does not tell. geometry @ (row, column, 0, 1) is
        where the centre of pixels[row, column] lies in the patient, in mm, in RAS+ coordinates
        (x grows to the patient's right, y to the front, z to the head), as NIfTI has them; DICOM's
        own, LPS+, are those with x and y negated. The third column is the step to the next slice:
        of NIfTI as `frame` counts, of DICOM the plane's normal, as long as slices are apart, as
        they are thick where that is not told, else 1 mm.
    """

    pixels: NDArray[Any]
    geometry: NDArray[np.float64] | None
    source: Source


class Unscaled(Protocol):
    """A picture of one channel whose intensities wait for those of its whole series."""

    @property
    def source(self) -> Source:
        """As DecodedImage's."""

    def values(self) -> NDArray[np.float64]:
        """What percentiles are taken of, in the file's units, (N,)."""

    def between(self, low: float, high: float) -> DecodedImage:
        """The picture in which `low` is 0 and `high` is 1."""

    def names_no_window(self) -> bool:
        """Whether it waits although the rule says "voi"."""


def check_size(width: int, height: int, pictures: int, most_megapixels: int) -> None:
    """Raise DataError where a file's pictures are empty or too large."""
    if min(width, height, pictures) < 1:
        raise DataError(f"expected at least one pixel, got {pictures} x {height} x {width}")
    if width * height > most_megapixels * 1_000_000:
        raise DataError(f"expected at most {most_megapixels} megapixels in a picture, got"
                        f" {width} x {height} pixels; the rule's most_megapixels"
                        " (--most-megapixels) allows more")
    if width * height * pictures > MOST_IN_ALL:
        raise DataError(f"expected at most 2^30 pixels in a file, got {pictures} pictures of"
                        f" {width} x {height}")
