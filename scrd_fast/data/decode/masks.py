"""Masks: which pixels of an image are anomalous, from the same kinds of files as images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.image import DecodedImage
from scrd_fast.data.decode.read import is_picture, read_file
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule


@dataclass(frozen=True, eq=False)
class Mask:
    """pixels: (H, W), True where anomalous. geometry: as DecodedImage has it."""

    pixels: NDArray[np.bool_]
    geometry: NDArray[np.float64] | None


def read_masks(path: Path, rule: DecodingRule) -> list[Mask]:
    """The mask of each image of a file, in the order in which `rule` reads images.

    In DICOM and NIfTI a pixel is anomalous from a value of 0.5 on, in pictures where a channel is
    not 0, in JPEG from half of the largest value on, for zeros do not stay zeros there. Raises
    DataError that names the file.
    """
    kind = is_picture(path)
    # volume: of a series one has been chosen; its mask is no series.
    of_masks = replace(rule, intensity="voi", window=None) if kind else replace(
        rule, intensity="window", window=(0.0, 1.0), volume=None)
    read = read_file(path, of_masks)
    if read.error is not None:
        raise DataError(read.error)
    least = 0.5 if kind in (None, "JPEG") else 1e-9
    return [Mask(_as_mask(each.pixels, least), each.geometry) for each in read.images
            if isinstance(each, DecodedImage)]


def _as_mask(pixels: NDArray[Any], least: float) -> NDArray[np.bool_]:
    if pixels.dtype != np.float32:
        pixels = pixels / np.iinfo(pixels.dtype).max
    mask = np.asarray(pixels >= least)
    return np.asarray(mask.any(axis=2)) if mask.ndim == 3 else mask
