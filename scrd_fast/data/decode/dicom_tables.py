"""Lookup tables of DICOM: of modalities, of displays, of palettes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.dicom_pixels import Header, read_numbers
from scrd_fast.data.decode.intensity import Table
from scrd_fast.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset


def read_table(item: "Dataset", colour: str, header: Header, signed: bool) -> Table:
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
class Palette:
    """Three tables, of red, green and blue."""

    tables: tuple[Table, ...]

    def apply(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Colours in [0, 1], (H, W, 3), of values (H, W)."""
        return np.stack([np.clip(table.look_up(stored.astype(np.float64)) / (2**table.bits - 1),
                                 0, 1) for table in self.tables], axis=-1)


def read_palette(dataset: "Dataset", header: Header) -> Palette:
    """The palette of an image; DataError where it is damaged."""
    names = ("Red", "Green", "Blue")
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        return _expand_palette(dataset, header)
    return Palette(tuple(read_table(dataset, name, header, header.signed) for name in names))


def _expand_palette(dataset: "Dataset", header: Header) -> Palette:
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
    return Palette(tuple(Table(first, colours[:, i].astype(np.int64), bits) for i in range(3)))
