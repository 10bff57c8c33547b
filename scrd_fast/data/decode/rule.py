"""DecodingRule: how values in a file become the pixels in [0, 1] that a model sees."""

from dataclasses import dataclass

from scrd_fast.errors import expect
from scrd_fast.spec import is_number, is_whole

INTENSITIES = ("voi", "window", "percentile")
PLANES = ("axial", "coronal", "sagittal")
#: Low and high in Hounsfield units: centre 40 and width 80, -600 and 1500, 400 and 1800, the usual
#: settings for the brain, lung and bone of CT (https://radiopaedia.org/articles/windowing-ct).
WINDOWS = {"brain": (0.0, 80.0), "lung": (-1350.0, 150.0), "bone": (-500.0, 1300.0)}



@dataclass(frozen=True)
class DecodingRule:
    """How to read a file; to JSON by dataclasses.asdict, back by records.read_record.

    intensity: "voi": what the file says that a viewer shows: DICOM's own window or table, a
        picture's pixels as they are. NIfTI says nothing of the kind and is scaled by percentiles;
        so is, with a warning, a DICOM series of more than 8 bits that names no window.
        "window": low and high of `window` become 0 and 1. Colour and pictures have no units and
        are refused.
        "percentile": the `percentiles` of a DICOM series (its files that are read together) or
        NIfTI volume (its voxels that are not 0) become 0 and 1. Colour and pictures stay as they
        are.
    window: for "window" alone: (low, high) in the units of the file (Hounsfield units in CT), or a
        name among WINDOWS.
    voi_index: which of several alternatives of a DICOM file "voi" takes, from 0: its VOI tables in
        their order, then its windows.
    percentiles: low and high in percent.
    plane: of NIfTI's slices: "axial", "coronal" or "sagittal".
    slices: the first slice of NIfTI and the one after the last, counted from the patient's feet,
        back or left, from 0; None: all.

    Raises InputError that names the field.
    """

    intensity: str = "voi"
    window: str | tuple[float, float] | None = None
    voi_index: int = 0
    percentiles: tuple[float, float] = (0.5, 99.5)
    plane: str = "axial"
    slices: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        expect(isinstance(self.intensity, str) and self.intensity in INTENSITIES,
               "rule.intensity", f"one of {INTENSITIES}", self.intensity)
        if self.intensity == "window":
            named = isinstance(self.window, str) and self.window in WINDOWS
            expect(named or _rises(self.window), "rule.window",
                   f"(low, high) with low < high, or one of {tuple(WINDOWS)}", self.window)
        else:
            expect(self.window is None, "rule.window",
                   f"None where the intensity is {self.intensity!r}", self.window)
        expect(is_whole(self.voi_index, 0), "rule.voi_index", "an integer from 0", self.voi_index)
        expect(_rises(self.percentiles) and self.percentiles[0] >= 0 and self.percentiles[1] <= 100,
               "rule.percentiles", "(low, high) with 0 <= low < high <= 100", self.percentiles)
        expect(isinstance(self.plane, str) and self.plane in PLANES, "rule.plane",
               f"one of {PLANES}", self.plane)
        pair = self.slices
        expect(pair is None or (isinstance(pair, tuple) and len(pair) == 2
                                and all(is_whole(each, 0) for each in pair) and pair[0] < pair[1]),
               "rule.slices", "None or (first, one after the last), integers from 0", pair)

    def limits(self) -> tuple[float, float]:
        """Low and high of the window; only where the intensity is "window"."""
        assert self.window is not None
        return WINDOWS[self.window] if isinstance(self.window, str) else self.window


def _rises(pair: object) -> bool:
    return (isinstance(pair, tuple) and len(pair) == 2
            and all(map(is_number, pair)) and pair[0] < pair[1])
