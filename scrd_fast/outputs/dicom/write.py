"""Writing the results of a series as DICOM objects beside it in its study."""

import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scrd_fast.data.decode.quiet import silent_libraries
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.stream import Scored
from scrd_fast.errors import DataError, MissingExtra, ScrdError, expect
from scrd_fast.files import as_path, atomic_write
from scrd_fast.metrics.map_scale import MapValues, choose_scale
from scrd_fast.outputs.dicom.identity import Maker, check_root, make_maker
from scrd_fast.outputs.dicom.sources import SourceImage, check_unchanged, read_sources, stack

if TYPE_CHECKING:
    from pydicom import Dataset

OBJECTS = ("pm", "seg", "sc", "sr")  #: Parametric Map, Segmentation, Secondary Capture, report.
_NAMES = {"pm": "Parametric Map", "seg": "Segmentation", "sc": "Secondary Capture",
          "sr": "Structured Report"}
_UNCALIBRATED = "the engine has learned none; scrd-fast calibrate gives it one"
_OWN_SCALE = f"the maps of each series are shown on a scale of their own: {_UNCALIBRATED}"
_NO_THRESHOLD = f"no binary Segmentation, which needs a threshold of pixels: {_UNCALIBRATED}"


@dataclass(frozen=True)
class Written:
    """files: that were written, in the order of their kinds and images. notes: what was left out
    and why, with the files that it goes for; none where it goes for the engine."""

    files: list[Path] = field(default_factory=list)
    notes: dict[str, list[Path]] = field(default_factory=dict)


def write_dicom(
    series: Sequence[Scored], engine: Engine, folder: str | os.PathLike[str], *,
    scale: tuple[float, float] | None = None, pixel_threshold: float | None = None,
    objects: Collection[str] = OBJECTS, uid_root: str | None = None,
) -> Written:
    """Write what scoring the files of one DICOM series gave as DICOM objects of its study.

    series: all that Engine.stream(maps=True) gave of it. scale: values of the map between which
    viewers and overlays show it, and fractional segmentations rise from 0 to 1. pixel_threshold: a
    binary segmentation holds what lies above it in the map. Both are the engine's if None; of an
    engine that has learned none the scale is that of the series' own maps (choose_scale), and there
    is no binary segmentation. objects: of OBJECTS. uid_root: that new unique identifiers begin
    with, at most 43 characters; None for UUIDs under 2.25.

    A Parametric Map and a Segmentation are written for each stack of parallel slices, a Secondary
    Capture for each image, a Structured Report for the series. What lies in no frame of reference
    (X-rays) has no map but a segmentation for each image; an image whose file should tell where
    it lies and does not has neither. Maps are resampled to the pixels of each image.

    Files are named KIND-UID.dcm, and are there once all are made: none is where an error is raised,
    unless they cannot be renamed. The same sources, engine file, version of this package and
    arguments give the same identifiers and the same bytes but for the dates of making, which are
    the time of this call. Older files of these names are replaced.

    Raises InputError for arguments that do not fit, DataError for images of several series, studies
    or patients, for files that have changed since they were scored and for headers that no object
    can be made of, OutputError for what cannot be written, and MissingExtra without highdicom.
    """
    folder = as_path(folder, "folder")
    check_options(objects, uid_root)
    _check(series, scale, pixel_threshold)
    maker = make_maker(engine, uid_root)
    written = Written()
    good = [item for item in series if item.error is None]
    if len(good) < len(series):
        _note(written.notes, "no DICOM objects of images that could not be read or scored",
              [item.path for item in series if item.error is not None])
    if not good:
        return written
    learned = None if engine.decisions is None else engine.decisions.maps
    if learned is not None:
        scale = learned.scale if scale is None else scale
        pixel_threshold = learned.pixel_threshold if pixel_threshold is None else pixel_threshold
    if scale is None:
        scale = _choose_own_scale(good)
        if set(objects) != {"sr"}:
            _note(written.notes, _OWN_SCALE)
    scale = float(scale[0]), float(scale[1])
    with silent_libraries(), ExitStack() as whole:
        images = read_sources(good)
        check_unchanged(series, engine.spec.decoding)
        when = datetime.now()
        for kind in OBJECTS:
            if kind not in objects:
                continue
            for uid, data in _encode(images[0].path, kind, _make(
                    kind, images, maker, engine, when, scale, pixel_threshold, written.notes)):
                path = folder / f"{kind}-{uid}.dcm"
                whole.enter_context(atomic_write(path)).write_bytes(data)
                written.files.append(path)
    return written


def check_options(objects: Collection[str], uid_root: str | None) -> None:
    """Raise InputError unless write_dicom takes these, and MissingExtra without highdicom."""
    unknown = sorted(set(objects) - set(OBJECTS))
    expect(not isinstance(objects, str) and len(objects) > 0 and not unknown, "objects",
           f"some of {OBJECTS}", objects)
    check_root(uid_root)
    _check_installed()


def _check(series: Sequence[Scored], scale: tuple[float, float] | None,
           pixel_threshold: float | None) -> None:
    expect(len(series) > 0, "series", "results of scoring", "none")
    for i, item in enumerate(series):
        expect(isinstance(item, Scored), f"series[{i}]", "a Scored", type(item).__name__)
        expect(item.source is not None, f"series[{i}]", "a result of a file", "one of an array")
        expect(item.map is not None, f"series[{i}].map", "a map, as stream(maps=True) gives it",
               "none")
    expect(scale is None or (len(scale) == 2 and bool(np.isfinite(scale).all())
           and scale[0] < scale[1]), "scale", "two rising finite numbers or None", scale)
    expect(pixel_threshold is None or bool(np.isfinite(pixel_threshold)), "pixel_threshold",
           "a finite number or None", pixel_threshold)


def _note(notes: dict[str, list[Path]], reason: str, files: Iterable[Path | None] = ()) -> None:
    notes[reason] = list(dict.fromkeys(path for path in files if path is not None))


def _choose_own_scale(series: Sequence[Scored]) -> tuple[float, float]:
    values = MapValues()
    for item in series:
        assert item.map is not None
        values.add(item.map)
    return choose_scale(values)


def _check_installed() -> None:
    try:
        import highdicom  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("DICOM objects: expected highdicom, got none;"
                           " pip install 'scrd-fast[outputs]'") from error


def _make(kind: str, images: list[SourceImage], maker: Maker, engine: Engine, when: datetime,
          scale: tuple[float, float], pixel_threshold: float | None,
          notes: dict[str, list[Path]]) -> "Iterator[Dataset]":
    """All objects of a kind, one after the other; what is left out is told in `notes`."""
    from scrd_fast.outputs.dicom.images import make_capture, make_map, make_segmentation
    from scrd_fast.outputs.dicom.reports import make_report

    if kind == "sc":
        for number, image in enumerate(images, 1):
            yield make_capture(image, maker, when, number, scale)
        return
    if kind == "sr":
        yield make_report(images, maker, when, engine.decisions)
        return
    stacks = stack([image for image in images if image.plane is not None])
    projections = [[image] for image in images if image.is_projection()]
    unplaced = [image.path for image in images
                if image.plane is None and not image.is_projection()]
    if unplaced:
        _note(notes, f"no {_NAMES[kind]} of images whose files do not tell where they lie (frame of"
                     " reference, position, orientation and spacing)", unplaced)
    if kind == "pm":
        if projections:
            _note(notes, f"no {_NAMES[kind]}, which needs a frame of reference, of images that lie"
                         " in none", [image.path for image, in projections])
        for number, each in enumerate(stacks, 1):
            yield make_map(each, maker, when, number, scale)
        return
    limits: list[tuple[float, float] | float] = [scale]
    if pixel_threshold is None:
        _note(notes, _NO_THRESHOLD)
    else:
        limits.append(float(pixel_threshold))
    number = 0
    for each in (*stacks, *projections):
        for limit in limits:
            number += 1
            yield make_segmentation(each, maker, when, number, limit)


def _encode(path: Path, kind: str, made: "Iterator[Dataset]") -> "Iterator[tuple[str, memoryview]]":
    """Of each object its UID and the bytes of its file; raises DataError with the name of `path`
    for what a library refuses to make or to encode."""
    try:
        for each in made:
            # In memory, for pydicom tells a full disk as it tells a value that does not fit.
            data = io.BytesIO()
            each.save_as(data, enforce_file_format=True)
            yield str(each.SOPInstanceUID), data.getbuffer()
    except (ScrdError, MemoryError):
        raise
    except Exception as error:
        # What a library says may quote what the file says of a patient.
        raise DataError(f"{path}: expected a header that a {_NAMES[kind]} can be made of, got"
                        f" {type(error).__name__} while making it") from error
