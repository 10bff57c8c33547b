"""Masks: which pixels of an image are anomalous, from the same kinds of files as images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.image import DecodedImage
from scrd_fast.data.decode.read import is_picture, read_file
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule


def read_masks(path: Path, rule: DecodingRule) -> list[NDArray[np.bool_]]:
    """The mask of each image of a file, (H, W), in the order in which `rule` reads images.

    In DICOM and NIfTI a pixel is anomalous from a value of 0.5 on, in pictures where a channel is
    not 0, in JPEG from half of the largest value on, for zeros do not stay zeros there. Raises
    DataError that names the file.
    """
    kind = is_picture(path)
    of_masks = replace(rule, intensity="voi", window=None) if kind else replace(
        rule, intensity="window", window=(0.0, 1.0))
    read = read_file(path, of_masks)
    if read.error is not None:
        raise DataError(read.error)
    least = 0.5 if kind in (None, "JPEG") else 1e-9
    return [_as_mask(each, least) for each in read.images if isinstance(each, DecodedImage)]


def _as_mask(image: DecodedImage, least: float) -> NDArray[np.bool_]:
    pixels = image.pixels
    if pixels.dtype != np.float32:
        pixels = pixels / np.iinfo(pixels.dtype).max
    mask = np.asarray(pixels >= least)
    return np.asarray(mask.any(axis=2)) if mask.ndim == 3 else mask
