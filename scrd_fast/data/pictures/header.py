"""Header: what a file says of one picture in it."""

from dataclasses import dataclass


class Damaged(Exception):
    """A file ends early or contradicts itself."""


@dataclass(frozen=True)
class RawPixels:
    """Pixels that lie uncompressed in a file and that OpenCV does not find.

    start: the first byte. dtype: as NumPy names it, byte order included.
    """

    start: int
    dtype: str
    samples: int


@dataclass(frozen=True)
class Header:
    """What OpenCV does not say of the pixels that it decodes."""

    width: int
    height: int
    orientation: int = 1  #: EXIF's, 1 to 8
    turned: bool = False  #: OpenCV itself applies the orientation
    inverted: bool = False  #: zero is white
    alpha: bool = True  #: a fourth channel is opacity, not padding
    grey: bool = False  #: the colour channels are one grey channel, repeated
    clear: int | None = None  #: the grey value that stands for transparent
    directory: int | None = None  #: where the directory of a TIFF's page begins
    raw: RawPixels | None = None
