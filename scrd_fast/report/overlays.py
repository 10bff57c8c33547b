"""Heat-map overlays."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from scrd_fast.files import atomic_write, writing
from scrd_fast.metrics.map_scale import MapValues, choose_scale
from scrd_fast.progress import Progress, silent

_LONGEST = 255  # bytes of a file name, on nearly every file system


def resample(anomaly_map: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """A map at the pixels of its image, float32 (rows, columns): bilinear between the centres of
    pixels, which are areas that cover the image evenly."""
    return np.asarray(cv2.resize(np.asarray(anomaly_map, np.float32), (columns, rows),
                                 interpolation=cv2.INTER_LINEAR))


def overlay(image: NDArray[Any], anomaly_map: NDArray[np.float32], low: float,
            high: float) -> NDArray[np.uint8]:
    """The image with its anomaly map in colour over it: uint8 (H, W, 3) RGB.

    image: uint8 (H, W) or (H, W, 3); anomaly_map: float32 of any size; values up to `low` stay
    transparent, `high` is the strongest colour.
    """
    colour = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    heat = resample(anomaly_map, *image.shape[:2])
    heat = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)
    coloured = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    alpha = 0.65 * heat[..., None]
    return np.round((1 - alpha) * colour + alpha * coloured).astype(np.uint8)


def as_bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels as a screen shows them."""
    if image.dtype == np.float32:
        return np.asarray(np.rint(image * 255), np.uint8)
    return image if image.dtype == np.uint8 else np.asarray(image // 257, np.uint8)


class Overlays:
    """Pictures of images and their maps, with colours on a scale that is given, or on one of each
    image's own, else all on one scale, which is known when all maps are: what comes before waits in
    a temporary file. Made by `collect_overlays`."""

    def __init__(self, folder: Path, spool: BinaryIO, scale: tuple[float, float] | None,
                 own: bool) -> None:
        self._folder, self._spool, self._scale, self._own = folder, spool, scale, own
        self._names: list[str] = []
        self._values = MapValues()

    def add(self, name: str, image: NDArray[Any], anomaly_map: NDArray[np.float32]) -> None:
        """image: uint8, uint16 or float32 in [0, 1], (H, W) or (H, W, 3); anomaly_map: float32
        (S, S). Raises OutputError."""
        if self._own:
            low, high = np.quantile(anomaly_map, (0.5, 0.999))
            self._write_one(name, as_bytes(image), anomaly_map, (float(low), float(high)))
        elif self._scale is not None:
            self._write_one(name, as_bytes(image), anomaly_map, self._scale)
        else:
            self._names.append(name)
            self._values.add(anomaly_map)
            with writing(self._folder):
                np.save(self._spool, as_bytes(image), allow_pickle=False)
                np.save(self._spool, anomaly_map, allow_pickle=False)

    def write(self, progress: Progress = silent) -> None:
        """What waited for a scale. Raises OutputError."""
        scale = choose_scale(self._values)
        self._spool.seek(0)
        for done, name in enumerate(self._names):
            progress(done, len(self._names), "drawing overlays")
            image, heat = (np.load(self._spool, allow_pickle=False) for _ in range(2))
            self._write_one(name, image, heat, scale)

    def _write_one(self, name: str, image: NDArray[np.uint8], heat: NDArray[np.float32],
                   scale: tuple[float, float]) -> None:
        """A PNG of the image beside its overlay. Names that are too long for a file lose their end,
        so their beginnings must differ."""
        plain = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        both = np.concatenate([plain, overlay(image, heat, *scale)], axis=1)
        while len(os.fsencode(f"{name}.png")) > _LONGEST:
            name = name[:-1]
        # The bytes are ours to write: OpenCV cannot take every file name.
        _, data = cv2.imencode(".png", both[..., ::-1])
        with atomic_write(self._folder / f"{name}.png") as temporary:
            temporary.write_bytes(data.tobytes())


@contextmanager
def collect_overlays(folder: Path, *, scale: tuple[float, float] | None = None,
                     own: bool = False, progress: Progress = silent) -> Iterator[Overlays]:
    """Overlays to write into a folder, which is made; what waits goes into a file there, too, that
    has no name, and is drawn when the block ends. scale, own: see `Overlays`. Raises OutputError.
    """
    with ExitStack() as stack:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            spool = stack.enter_context(TemporaryFile(dir=folder))
        overlays = Overlays(folder, spool, scale, own)
        yield overlays
        overlays.write(progress)


def write_overlays(
    folder: Path, names: Iterable[str], images: Iterable[NDArray[Any]],
    maps: NDArray[np.float32], *, scale: tuple[float, float] | None = None,
) -> None:
    """The overlays of images (H, W) or (H, W, 3) and their maps (N, S, S); see `Overlays`."""
    with collect_overlays(folder, scale=scale) as overlays:
        for name, image, heat in zip(names, images, maps, strict=True):
            overlays.add(name, image, heat)
