"""DICOM: which values a file means, which window it asks for, and where its pictures lie.

Sections are those of DICOM PS3.3. pydicom is imported when the first such file is met.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.dicom_pixels import (
    DEFLATED,
    MEDICAL,
    Header,
    check_syntax,
    iterate_stored,
    read_header,
    read_meta,
    read_numbers,
    read_texts,
    read_whole,
)
from scrd_fast.data.decode.image import DecodedImage, Source, Unscaled
from scrd_fast.data.decode.intensity import FUNCTIONS, Table, Window, apply_limits, apply_voi
from scrd_fast.data.decode.quiet import silent_libraries
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule

if TYPE_CHECKING:
    from pydicom import Dataset

_FILE_OF_MEDIUM = b"1.2.840.10008.1.3.10\2\0"  # the class of a DICOMDIR, the next element
# Results that are stored as pixels, and are no pictures of a patient.
_NO_IMAGES = {"1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
              "1.2.840.10008.5.1.4.1.1.66.7": "a label map",
              "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
              "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
              "1.2.840.10008.1.3.10": "a DICOMDIR, the index of a medium"}
_VRS = {  # PS3.5 6.2
    "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OD", "OF", "OL",
    "OV", "OW", "PN", "SH", "SL", "SQ", "SS", "ST", "SV", "TM", "UC", "UI", "UL", "UN", "UR", "US",
    "UT", "UV"}
_WHOLE_AT_ONCE = 2**26  # bytes; of larger files the header is looked at before the pixels are read
_MOST_INFLATED = 2**32
_STRIP = 64  # rows
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_dicom(head: bytes) -> bool:
    """Whether a file's first bytes (at least 132) are DICOM's, also without preamble.

    Without it the first element must be one of the meta header or of group 8, with which each data
    set of an image begins.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 132:
        return False
    little, big = struct.unpack_from("<HH", head), struct.unpack_from(">HH", head)
    if head[4:6].decode("latin-1") in _VRS:
        return little[0] in (2, 8) or big[0] == 8
    length, = struct.unpack_from("<I", head, 4)
    return little[0] in (2, 8) and little[1] < 0x100 and length < 1024


def is_medium_index(head: bytes) -> bool:
    """Whether DICOM's first bytes are those of a DICOMDIR."""
    return _FILE_OF_MEDIUM in head[132:]


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
    _check_kind(dataset, whole=not large)
    check_syntax(read_header(dataset, rule.most_megapixels))
    return _parse(path, stop_before_pixels=False) if large else dataset


def _parse(path: Path, stop_before_pixels: bool) -> "Dataset":
    import pydicom

    _check_deflated(path)
    with path.open("rb") as file:
        return pydicom.dcmread(file, force=True, stop_before_pixels=stop_before_pixels)


def _check_deflated(path: Path) -> None:
    """A deflated data set may be a thousand times as long as its file."""
    from pydicom.filereader import read_file_meta_info

    try:
        meta = read_file_meta_info(path)
    except Exception:  # no preamble, so no meta header that names a syntax, or pydicom will say it
        return
    if meta.get("TransferSyntaxUID") != DEFLATED:
        return
    begins = 144 + int(meta.get("FileMetaInformationGroupLength", 0))
    stream, length = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(begins)
        while (part := file.read(2**16)) and not stream.eof:
            while part:
                length += len(stream.decompress(part, 2**20))
                part = stream.unconsumed_tail
            if length > _MOST_INFLATED:
                raise DataError("expected at most 4 GiB when inflated, got more")


def tell_what_it_is(dataset: "Dataset") -> str | None:
    """What an object is that is no picture of a patient; None of pictures, and where it does not
    tell."""
    found = "".join(read_texts(dataset, "SOPClassUID")[:1]) or "".join(
        read_texts(read_meta(dataset), "MediaStorageSOPClassUID")[:1])
    if found in _NO_IMAGES:
        return _NO_IMAGES[found]
    name = _name_class(found)
    if "Rows" not in dataset and name is not None and "Image Storage" not in name:
        return f"an object of the class {name}, without pixel data"
    if "LOCALIZER" in (text.upper() for text in read_texts(dataset, "ImageType")):
        return "a localizer, which shows where other pictures lie"
    for keyword in ("QualityControlImage", "QualityControlSubject"):
        if "YES" in read_texts(dataset, keyword):
            return "a phantom, by its quality control tags"
    return None


def _name_class(found: str) -> str | None:
    from pydicom.uid import UID_dictionary

    return str(UID_dictionary[found][0]) if found in UID_dictionary else None


def _check_kind(dataset: "Dataset", whole: bool) -> None:
    if kind := tell_what_it_is(dataset):
        raise DataError(f"expected a picture of a patient, got {kind}")
    if "PixelData" not in dataset and (whole or "Rows" not in dataset):
        floats = [name for name in ("FloatPixelData", "DoubleFloatPixelData") if name in dataset]
        if floats:
            raise DataError(f"expected PixelData, got {floats[0]}, as parametric maps have it")
        raise DataError("holds no pixel data, or is cut before them")


def read_for_order(path: Path) -> "Dataset":
    """What a file says of its kind and of its place among others; the pixels are not read."""
    import pydicom

    _check_deflated(path)
    return pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=[
        "SOPClassUID", "SOPInstanceUID", "ImageType", "QualityControlImage",
        "QualityControlSubject", "Rows", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
        "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"])


def read_frames(dataset: "Dataset", path: Path, rule: DecodingRule) -> Iterator[
        Monochrome | DecodedImage]:
    """The frames of a data set with pixels, before intensities are scaled; colour is as it is."""
    header = read_header(dataset)
    palette = _read_palette(dataset) if header.colour == "PALETTE COLOR" else None
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
        table = _read_table(tables[0], "", header, signed=header.signed)
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
    found += [_read_table(each, "", header, signed=full[0] < 0)
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


def _read_table(item: "Dataset", colour: str, header: Header, signed: bool) -> Table:
    """A table from its descriptor and data (C.11.1.1; C.7.6.3.1.5 for one of a palette)."""
    prefix = f"{colour}PaletteColorLookupTable" if colour else "LUT"
    descriptor = read_numbers(item, f"{prefix}Descriptor")
    if len(descriptor) != 3:
        raise DataError(f"expected 3 numbers as {prefix}Descriptor, got {len(descriptor)}")
    count, first, bits = (int(each) for each in descriptor)
    count = count or 2**16
    if signed and first >= 2**15:  # written as unsigned
        first -= 2**16
    if not 8 <= bits <= 16:
        raise DataError(f"expected a lookup table of 8 to 16 bits, got {bits}")
    data = item.get(f"{prefix}Data")
    if isinstance(data, bytes):
        wide = "<u2" if header.syntax != "1.2.840.10008.1.2.2" else ">u2"
        packed = bits == 8 and len(data) < 2 * count
        entries = np.frombuffer(data[:len(data) // 2 * 2], "u1" if packed else wide)
    else:
        entries = np.atleast_1d(np.asarray([] if data is None else data))
    if entries.size < count:
        raise DataError(f"expected a lookup table of {count} entries, got {entries.size}")
    return Table(first, entries[:count].astype(np.int64), bits)


@dataclass(frozen=True)
class _Palette:
    """Three tables, of red, green and blue."""

    tables: tuple[Table, ...]

    def apply(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Colours in [0, 1], (H, W, 3), of values (H, W)."""
        return np.stack([np.clip(table.look_up(stored.astype(np.float64)) / (2**table.bits - 1),
                                 0, 1) for table in self.tables], axis=-1)


def _read_palette(dataset: "Dataset") -> _Palette:
    header = read_header(dataset)
    names = ("Red", "Green", "Blue")
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        return _expand_palette(dataset, header)
    return _Palette(tuple(_read_table(dataset, name, header, header.signed) for name in names))


def _expand_palette(dataset: "Dataset", header: Header) -> _Palette:
    """A palette of segments (C.7.9.2), which pydicom expands."""
    from pydicom.pixels import apply_color_lut

    descriptor = read_numbers(dataset, "RedPaletteColorLookupTableDescriptor")
    if len(descriptor) != 3 or descriptor[2] not in (8, 16):
        raise DataError("expected a palette of 8 or 16 bits")
    count, first, bits = int(descriptor[0]) or 2**16, int(descriptor[1]), int(descriptor[2])
    if count > 2**bits:
        raise DataError(f"expected at most {2**bits} colours of {bits} bits in segments, got"
                        f" {count}")
    try:
        colours = apply_color_lut(np.arange(first, first + count), dataset)
    except Exception as error:
        raise DataError("a palette that is damaged") from error
    return _Palette(tuple(Table(first, colours[:, i].astype(np.int64), bits) for i in range(3)))


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
