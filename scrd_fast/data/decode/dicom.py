"""DICOM: which values a file means, which window it asks for, and where its pictures lie.

Sections are those of DICOM PS3.3. pydicom is imported when the first such file is met.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.dicom_kind import check_deflated, check_kind
from scrd_fast.data.decode.dicom_pixels import (
    MEDICAL,
    Header,
    check_syntax,
    iterate_stored,
    read_header,
    read_numbers,
    read_texts,
    read_whole,
)
from scrd_fast.data.decode.dicom_tables import read_palette, read_table
from scrd_fast.data.decode.image import DecodedImage, Source, Unscaled
from scrd_fast.data.decode.intensity import FUNCTIONS, Table, Window, apply_limits, apply_voi
from scrd_fast.data.decode.quiet import silent_libraries
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule

if TYPE_CHECKING:
    from pydicom import Dataset

_WHOLE_AT_ONCE = 2**26  # bytes; of larger files the header is looked at before the pixels are read
_STRIP = 64  # rows
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Modality:
    """From stored values to a file's units (C.11.1): a table, then slope and intercept."""

    table: Table | None = None
    slope: float = 1.0
    intercept: float = 0.0

    def apply(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        values = stored.astype(np.float64)
        if self.table is not None:
            values = self.table.look_up(values)
        return values * self.slope + self.intercept


@dataclass(frozen=True, eq=False)
class Monochrome:
    """One frame of one channel, before its intensities are scaled; see image.Unscaled.

    stored: integers (H, W). padding: stored values, low and high, that are no pixels (C.7.5.1.1.2).
    full: the range of values that the stored bits allow, where these are at most 8.
    """

    stored: NDArray[Any]
    modality: Modality
    padding: tuple[int, int] | None
    inverted: bool
    full: tuple[float, float] | None
    voi: tuple[Table | Window, ...]
    geometry: NDArray[np.float64] | None
    source: Source
    rule: DecodingRule

    def in_units(self) -> NDArray[np.float64]:
        """Values after modality table or rescale, (H, W)."""
        return self.modality.apply(self.stored)

    def values(self) -> NDArray[np.float64]:
        return self.in_units()[~self._is_padding(self.stored)]

    def names_no_window(self) -> bool:
        return self.rule.intensity == "voi"

    def between(self, low: float, high: float) -> DecodedImage:
        return self._show(lambda values: apply_limits(values, low, high))

    def scaled(self) -> "DecodedImage | Unscaled":
        """The picture by the rule; itself where that takes the whole series."""
        rule = self.rule
        if rule.intensity == "window":
            return self.between(*rule.limits())
        if rule.intensity == "voi" and self.voi:
            if rule.voi_index >= len(self.voi):
                raise DataError(f"expected a window number {rule.voi_index} (from 0) as the rule"
                                f" asks, got {len(self.voi)} windows and tables")
            chosen = self.voi[rule.voi_index]
            return self._show(lambda values: apply_voi(values, chosen))
        if rule.intensity == "voi" and self.full:
            return self.between(*self.full)
        return self

    def _is_padding(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        if self.padding is None:
            return np.zeros(stored.shape, bool)
        return (stored >= self.padding[0]) & (stored <= self.padding[1])

    def _show(self, scale: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> DecodedImage:
        """The picture, of which each pixel depends on its stored value alone."""
        def show(stored: NDArray[Any]) -> NDArray[np.float32]:
            shown = scale(self.modality.apply(stored))
            if self.inverted:
                shown = 1 - shown
            if self.padding is not None:
                shown = np.where(self._is_padding(stored), 0, shown)
            return shown.astype(np.float32)

        low, high = int(self.stored.min()), int(self.stored.max())
        if high - low >= self.stored.size:
            return DecodedImage(show(self.stored), self.geometry, self.source)
        # A table of the values that occur: of 512 x 512 pixels 0.3 ms, in float64 arrays 3.1 ms. In
        # strips, whose indices stay in the cache.
        unsigned = np.dtype(f"u{self.stored.itemsize}")
        stored = self.stored.astype(self.stored.dtype.newbyteorder("="), copy=False)
        offsets = stored.view(unsigned) - unsigned.type(low % 2 ** (8 * unsigned.itemsize))
        table = show(np.arange(low, high + 1))
        pixels = np.empty(offsets.shape, np.float32)
        for row in range(0, len(pixels), _STRIP):
            np.take(table, offsets[row:row + _STRIP], mode="clip", out=pixels[row:row + _STRIP])
        return DecodedImage(pixels, self.geometry, self.source)


def read_dicom(path: Path, rule: DecodingRule) -> list[DecodedImage | Unscaled]:
    """The frames of a DICOM file in their order; DataError gives the reason without the path."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise DataError(f"reading DICOM needs pydicom: {MEDICAL}") from error
    try:
        with silent_libraries():
            frames = read_frames(open_dataset(path, rule), path, rule)
            return [frame.scaled() if isinstance(frame, Monochrome) else frame for frame in frames]
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:
        # Elements are parsed when asked for; what pydicom says may quote what the file says.
        raise DataError("a DICOM file that is cut or damaged:"
                        f" {type(error).__name__} while reading it") from error


def open_dataset(path: Path, rule: DecodingRule) -> "Dataset":
    """The data set of a file that holds pixels of a picture; its header is checked first.

    Raises DataError for objects without pixels, and for what is no picture of a patient.
    """
    large = path.stat().st_size > _WHOLE_AT_ONCE
    dataset = _parse(path, stop_before_pixels=large)
    check_kind(dataset, whole=not large)
    check_syntax(read_header(dataset, rule.most_megapixels))
    return _parse(path, stop_before_pixels=False) if large else dataset


def _parse(path: Path, stop_before_pixels: bool) -> "Dataset":
    import pydicom

    check_deflated(path)
    with path.open("rb") as file:
        return pydicom.dcmread(file, force=True, stop_before_pixels=stop_before_pixels)


def read_frames(dataset: "Dataset", path: Path, rule: DecodingRule) -> Iterator[
        Monochrome | DecodedImage]:
    """The frames of a data set with pixels, before intensities are scaled; colour is as it is."""
    header = read_header(dataset)
    palette = read_palette(dataset, header) if header.colour == "PALETTE COLOR" else None
    coloured = palette is not None or header.samples == 3
    if coloured and rule.intensity == "window":
        raise DataError("expected values in units that a window can be put on, got colour")
    in_units = rule.intensity == "window" and "CT" in read_texts(dataset, "Modality")
    for number, stored in enumerate(iterate_stored(dataset, header)):
        said = _Said(dataset, number)
        source = _read_source(dataset, path, number if header.frames > 1 else None)
        geometry = _read_geometry(said) if header.frames == 1 or said.has_groups else None
        if coloured:
            colours = stored / (2**header.stored - 1) if palette is None else palette.apply(stored)
            yield DecodedImage(colours.astype(np.float32), geometry, source)
            continue
        modality = _read_modality(said, header, in_units)
        ends = modality.apply(np.array(header.limits()))
        full = (float(ends.min()), float(ends.max()))
        if modality.table is not None:
            full = (0.0, 2.0**modality.table.bits - 1)
        bits = header.stored if modality.table is None else modality.table.bits
        yield Monochrome(stored, modality, _read_padding(dataset, header),
                         header.colour == "MONOCHROME1", full if bits <= 8 else None,
                         _read_voi(said, header, full), geometry, source, rule)


class _Said:
    """What is said of one frame: in its own functional groups (C.7.6.16), in those that all frames
    share, and in the data set itself."""

    def __init__(self, dataset: "Dataset", number: int) -> None:
        self._dataset = dataset
        self._groups = []
        each = dataset.get("PerFrameFunctionalGroupsSequence")
        if each:
            if number >= len(each):
                raise DataError(f"expected functional groups for each frame, got {len(each)}")
            self._groups.append(each[number])
        if shared := dataset.get("SharedFunctionalGroupsSequence"):
            self._groups.append(shared[0])
        self.has_groups = bool(self._groups)

    def where(self, group: str, keyword: str) -> "Dataset":
        """The item of `group`, or the data set, that has `keyword`; the data set if none has."""
        for each in self._groups:
            items = each.get(group)
            if items and keyword in items[0]:
                return items[0]
        return self._dataset


def _read_modality(said: _Said, header: Header, in_units: bool) -> Modality:
    """in_units: whether values must come in units, and may not be taken as they are stored."""
    item = said.where("PixelValueTransformationSequence", "RescaleSlope")
    table = None
    if tables := item.get("ModalityLUTSequence"):
        table = read_table(tables[0], "", header, signed=header.signed)
    slope, intercept = read_numbers(item, "RescaleSlope"), read_numbers(item, "RescaleIntercept")
    if in_units and not intercept and table is None:
        raise DataError("expected RescaleSlope and RescaleIntercept, by which a CT's values are"
                        " Hounsfield units that a window can be put on, got none")
    if slope and slope[0] == 0:
        raise DataError("expected a RescaleSlope other than 0")
    return Modality(table, slope[0] if slope else 1.0, intercept[0] if intercept else 0.0)


def _read_voi(said: _Said, header: Header,
              full: tuple[float, float]) -> tuple[Table | Window, ...]:
    """The tables and windows to choose from; windows without width say nothing."""
    found: list[Table | Window] = []
    item = said.where("FrameVOILUTSequence", "VOILUTSequence")
    found += [read_table(each, "", header, signed=full[0] < 0)
              for each in item.get("VOILUTSequence") or ()]
    item = said.where("FrameVOILUTSequence", "WindowCenter")
    function = "".join(read_texts(item, "VOILUTFunction")[:1]).upper() or "LINEAR"
    if function not in FUNCTIONS:
        raise DataError(f"expected a VOI function of {tuple(FUNCTIONS)}, got another")
    centres, widths = read_numbers(item, "WindowCenter"), read_numbers(item, "WindowWidth")
    found += [Window(centre, width, function)
              for centre, width in zip(centres, widths, strict=False) if width > 0]
    return tuple(found)


def _read_padding(dataset: "Dataset", header: Header) -> tuple[int, int] | None:
    if not read_numbers(dataset, "PixelPaddingValue"):
        return None
    first = _as_stored(read_whole(dataset, "PixelPaddingValue"), header)
    last = _as_stored(read_whole(dataset, "PixelPaddingRangeLimit", first), header)
    return min(first, last), max(first, last)


def _as_stored(value: int, header: Header) -> int:
    """A value that was written with the other sign than the pixels have."""
    if header.signed and value >= 2 ** (header.allocated - 1):
        return value - 2**header.allocated
    return value + 2**header.allocated if value < 0 and not header.signed else value


def _read_source(dataset: "Dataset", path: Path, frame: int | None) -> Source:
    patient, study, series, instance = (
        next(iter(read_texts(dataset, keyword)), None) for keyword in (
            "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
    return Source(path, patient, study, series, instance, frame)


def _read_geometry(said: _Said) -> NDArray[np.float64] | None:
    """See image.DecodedImage; equation C.7.6.2.1-1, with the columns swapped and x and y negated.

    None where a file does not give a position, or gives one that is no plane.
    """
    read = {keyword: read_numbers(said.where(group, keyword), keyword) for group, keyword in (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
        ("PixelMeasuresSequence", "SpacingBetweenSlices"),
        ("PixelMeasuresSequence", "SliceThickness"))}
    position, directions, spacing, *steps = read.values()
    if (len(position), len(directions), len(spacing)) != (3, 6, 2) or min(spacing) <= 0:
        return None
    right, down = np.reshape(directions, (2, 3))  # of increasing column, of increasing row
    normal = np.cross(right, down)
    if not np.allclose([right @ right, down @ down, normal @ normal], 1, atol=1e-2):
        return None
    step = next((each[0] for each in steps if each and each[0] > 0), 1.0)
    affine = np.eye(4)
    affine[:3] = np.stack([down * spacing[0], right * spacing[1], normal * step, position], axis=1)
    return np.asarray(_LPS_TO_RAS @ affine)
