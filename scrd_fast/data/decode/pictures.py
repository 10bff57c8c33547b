"""PNG, JPEG, TIFF and BMP: the reader of data/images.py, scaled to [0, 1]."""

from pathlib import Path

import numpy as np

from scrd_fast.data.decode.image import MOST_PIXELS, DecodedImage, Source
from scrd_fast.data.images import read_picture
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule


def read_one_picture(path: Path, rule: DecodingRule) -> list[DecodedImage]:
    """The picture of a file, in a list; DataError gives the reason without the path."""
    if rule.intensity == "window":
        raise DataError("expected values in units that a window can be put on, got a picture")
    pixels = read_picture(path, MOST_PIXELS)
    scaled = pixels / np.float32(np.iinfo(pixels.dtype).max)
    return [DecodedImage(scaled.astype(np.float32), None, Source(path))]
