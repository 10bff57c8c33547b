"""Reading one picture as the package does."""

import os
from pathlib import Path

import numpy as np

from scrd_fast.data.decode.read import read_file
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The pixels of a file of one image, in the type that it has; raises DataError."""
    read = read_file(Path(path), DecodingRule())
    if read.error is not None:
        raise DataError(read.error)
    (image,) = read.images
    return image.pixels
