"""Heat-map overlays."""

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scrd_fast.files import atomic_write

_LONGEST = 255  # bytes of a file name, on nearly every file system


def overlay(image: NDArray[Any], anomaly_map: NDArray[np.float32], low: float,
            high: float) -> NDArray[np.uint8]:
    """The image with its anomaly map in colour over it: uint8 (H, W, 3) RGB.

    image: uint8 (H, W) or (H, W, 3); anomaly_map: float32 of any size; values up to `low` stay
    transparent, `high` is the strongest colour.
    """
    height, width = image.shape[:2]
    colour = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    heat = cv2.resize(anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR)
    heat = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)
    coloured = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    alpha = 0.65 * heat[..., None]
    return np.round((1 - alpha) * colour + alpha * coloured).astype(np.uint8)


def write_overlays(
    folder: Path, names: list[str], images: list[NDArray[Any]], maps: NDArray[np.float32]
) -> None:
    """One PNG per image: the image beside its overlay, all on one colour scale. Names that are too
    long for a file lose their end, so their beginnings must differ. Raises OutputError."""
    low, high = np.quantile(maps, [0.5, 0.999])
    for name, image, heat in zip(names, images, maps, strict=True):
        picture = image if image.dtype == np.uint8 else (image // 257).astype(np.uint8)
        plain = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
        both = np.concatenate([plain, overlay(picture, heat, low, high)], axis=1)
        while len(os.fsencode(f"{name}.png")) > _LONGEST:
            name = name[:-1]
        # The bytes are ours to write: OpenCV cannot take every file name.
        _, data = cv2.imencode(".png", both[..., ::-1])
        with atomic_write(folder / f"{name}.png") as temporary:
            temporary.write_bytes(data.tobytes())
