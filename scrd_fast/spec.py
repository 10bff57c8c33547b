"""ScoringSpec: the one description of the path from a file to its score.

The reference model, the exported graph and every engine are built from it; nothing else in the
package knows a default for any of these values.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from scrd_fast.errors import InputError, expect
from scrd_fast.records import is_number, is_whole, read_record

WEIGHTINGS = ("none", "scale", "feature")
REDUCTIONS = ("mean", "max")
RESIZE_RULES = ("bilinear_half_pixel",)
CHANNEL_RULES = ("rgb",)

STRIDES = (4, 8, 16)  # of the three scales: a feature map's side is the input's by these

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTENSITIES = ("voi", "window", "percentile")
MOST_MEGAPIXELS = 1000  # that a rule can allow
PLANES = ("axial", "coronal", "sagittal")
#: Low and high in Hounsfield units: centre 40 and width 80, -600 and 1500, 400 and 1800, the usual
#: settings for the brain, lung and bone of CT (https://radiopaedia.org/articles/windowing-ct).
WINDOWS = {"brain": (0.0, 80.0), "lung": (-1350.0, 150.0), "bone": (-500.0, 1300.0)}


def parse_window(text: str) -> str | tuple[float, float]:
    """A window as a command line gives it: a name, or "LOW,HIGH". Raises InputError."""
    if text in WINDOWS:
        return text
    return parse_limits(text, "window", f"LOW,HIGH or one of {tuple(WINDOWS)}")


def parse_limits(text: str, name: str, expected: str = "LOW,HIGH") -> tuple[float, float]:
    """LOW,HIGH as a command line gives it; raises InputError that names the option."""
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise InputError(f"{name}: expected {expected}, got {text!r}") from error
    return low, high


@dataclass(frozen=True)
class DecodingRule:
    """How a file becomes images with pixels in [0, 1].

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
    volume: which volume of a NIfTI series, from 0; None: a series is refused.
    exif: turn pictures as their EXIF data say.
    most_megapixels: larger images are refused before they take memory.

    To JSON by dataclasses.asdict, back by records.read_record. Raises InputError that names the
    field.
    """

    intensity: str = field(default="voi", metadata={
        "help": "Which values become 0 and 1: voi (what the file says that a viewer shows), window"
                " (in the file's units, recommended for CT) or percentile (of a series or volume,"
                " for MR)."})
    window: str | tuple[float, float] | None = field(default=None, metadata={
        "help": "For the intensity window: LOW,HIGH in the file's units, or"
                f" {', '.join([*WINDOWS][:-1])} or {[*WINDOWS][-1]}.", "parser": parse_window})
    voi_index: int = field(default=0, metadata={
        "help": "Which of a DICOM file's tables and windows, from 0."})
    percentiles: tuple[float, float] = field(default=(0.5, 99.5), metadata={
        "help": "Low and high in percent."})
    plane: str = field(default="axial", metadata={
        "help": f"Of a NIfTI volume's slices: {', '.join(PLANES[:-1])} or {PLANES[-1]}."})
    slices: tuple[int, int] | None = field(default=None, metadata={
        "help": "The first slice of a NIfTI volume, from 0, and the one after the last; else all."})
    volume: int | None = field(default=None, metadata={
        "help": "Which volume of a NIfTI series, from 0; without it a series is refused."})
    exif: bool = field(default=True, metadata={
        "help": "Turn pictures as their EXIF data say.", "option": "exif/--no-exif"})
    most_megapixels: int = field(default=100, metadata={
        "help": "Larger images are refused before they take memory."})

    def __post_init__(self) -> None:
        expect(isinstance(self.intensity, str) and self.intensity in INTENSITIES,
               "rule.intensity", f"one of {INTENSITIES}", self.intensity)
        if self.intensity == "window":
            named = isinstance(self.window, str) and self.window in WINDOWS
            expect(named or _rises(self.window), "rule.window",
                   f"(low, high) with low < high, or one of {tuple(WINDOWS)}", self.window)
        else:
            expect(self.window is None, "rule.window",
                   "None, or the intensity 'window' (--intensity window), where the intensity is"
                   f" {self.intensity!r}", self.window)
        expect(is_whole(self.voi_index, 0), "rule.voi_index", "an integer from 0", self.voi_index)
        expect(_rises(self.percentiles) and self.percentiles[0] >= 0 and self.percentiles[1] <= 100,
               "rule.percentiles", "(low, high) with 0 <= low < high <= 100", self.percentiles)
        expect(isinstance(self.plane, str) and self.plane in PLANES, "rule.plane",
               f"one of {PLANES}", self.plane)
        pair = self.slices
        expect(pair is None or (isinstance(pair, tuple) and len(pair) == 2
                                and all(is_whole(each, 0) for each in pair) and pair[0] < pair[1]),
               "rule.slices", "None or (first, one after the last), integers from 0", pair)
        expect(self.volume is None or is_whole(self.volume, 0), "rule.volume",
               "None or an integer from 0", self.volume)
        expect(isinstance(self.exif, bool), "rule.exif", "True or False", self.exif)
        expect(is_whole(self.most_megapixels, 1) and self.most_megapixels <= MOST_MEGAPIXELS,
               "rule.most_megapixels", f"an integer from 1 to {MOST_MEGAPIXELS}",
               self.most_megapixels)

    def limits(self) -> tuple[float, float]:
        """Low and high of the window; only where the intensity is "window"."""
        assert self.window is not None
        return WINDOWS[self.window] if isinstance(self.window, str) else self.window


def _rises(pair: object) -> bool:
    return (isinstance(pair, tuple) and len(pair) == 2
            and all(map(is_number, pair)) and pair[0] < pair[1])


THUMBNAIL = 16  # side of the thumbnail of the network input that a prior reads, and of its maps
FEWEST_PEOPLE = 20  # whose average may enter a file
_MOST_COMPONENTS = 64
_MOST_PEOPLE = 10**9


@dataclass(frozen=True)
class Prior:
    """What is known of normal images besides the network; the maths is in reference.prior.

    The normal map says what distances normal images have at each place, by what the thumbnail
    shows; the foreground says where there is anything to be judged.

    people, images: of how many the normal map is made, 0 without one.
    components: how many numbers describe the thumbnail; 0: the normal map is one for all images.
    offset: added to the spread, in units of the usual spread, before anything is divided by it.
    foreground: (low, high) in units of the [0, 1] pixel range: places that are darker than the
        first, and whose neighbours are, do not count, those brighter than the second do fully;
        None: all do.
    values: the normal map's numbers, as `encode_values` makes them; "" without one.

    Raises InputError that names the field.
    """

    people: int = 0
    images: int = 0
    components: int = 0
    offset: float = 0.5
    foreground: tuple[float, float] | None = None
    values: str = ""

    def __post_init__(self) -> None:
        for name, most in (("people", _MOST_PEOPLE), ("images", _MOST_PEOPLE),
                           ("components", _MOST_COMPONENTS)):
            value = getattr(self, name)
            expect(is_whole(value, 0) and value <= most, f"prior.{name}",
                   f"an integer from 0 to {most}", value)
        expect(is_number(self.offset) and 0.01 <= self.offset <= 100, "prior.offset",
               "a number from 0.01 to 100", self.offset)
        pair = self.foreground
        expect(pair is None or _rises(pair), "prior.foreground",
               "None or (low, high) with low < high", pair)
        expect(isinstance(self.values, str), "prior.values", "a text", self.values)
        if not self.values:
            expect(pair is not None, "prior", "a normal map or a foreground", "neither")
            expect((self.people, self.images, self.components) == (0, 0, 0), "prior.people",
                   "0, as images and components, without a normal map", self.people)
            return
        expect(self.people >= FEWEST_PEOPLE and self.images >= self.people, "prior.people",
               f"at least {FEWEST_PEOPLE}, and no more than there are images", self.people)
        wanted, found = 2 * self.count(), len(decode_values(self.values))
        expect(found == wanted, "prior.values",
               f"{wanted} bytes of a normal map of {self.components} components", found)

    def describe(self) -> str:
        """What it is, in words."""
        parts = []
        if self.values:
            by = f" by {self.components} components of a thumbnail" if self.components else ""
            parts.append(f"normal map of {self.people} people and {self.images} images{by}")
        if self.foreground is not None:
            parts.append("foreground from {:g} to {:g}".format(*self.foreground))
        return ", ".join(parts)

    def count(self) -> int:
        """How many numbers the normal map has: see reference.prior.NormalMap."""
        terms = 1 + 2 * self.components
        return (self.components * (THUMBNAIL**2 + 1) + terms * 2 * len(STRIDES) * THUMBNAIL**2
                + len(STRIDES))


def encode_values(values: bytes) -> str:
    """The bytes of little-endian float16 numbers as the text that Prior.values is."""
    return base64.b64encode(values).decode("ascii")


def decode_values(text: str) -> bytes:
    """The inverse of `encode_values`; raises InputError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"prior.values: expected base64, got others ({error})") from error


@dataclass(frozen=True)
class ScoringSpec:
    """How a file becomes a score.

    input_size: side of the square network input in pixels, divisible by 32.
    channels: "rgb": three channels in RGB order; a single channel is repeated three times.
    mean, std: per channel, in units of the [0, 1] pixel range.
    resize: "bilinear_half_pixel": bilinear on floats, half-pixel centres, edges repeated, no
        antialiasing, nothing rounded (the rule of OpenCV's INTER_LINEAR on float images).
    weighting: what the scale weights multiply: "none" nothing, "scale" the distances of the
        three scales, "feature" the features before the cosine (which cancels).
    blur_sigma: sigma in pixels of the Gaussian over the map (SciPy's rule: radius
        int(4 sigma + 0.5), border mode "reflect"); 0 means no blur.
    reduction: image score = "mean" or "max" of the map.
    decoding: how files become pixels; images in memory are pixels already.
    prior: what is known of normal images besides the network, which the distances are judged by;
        None: nothing.
    """

    input_size: int = 256
    channels: str = "rgb"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: str = "bilinear_half_pixel"
    weighting: str = "none"
    blur_sigma: float = 4.0
    reduction: str = "mean"
    decoding: DecodingRule = field(default_factory=DecodingRule)
    prior: Prior | None = None

    def __post_init__(self) -> None:
        size = self.input_size
        whole = isinstance(size, int) and not isinstance(size, bool)
        expect(whole and 32 <= size <= 4096 and size % 32 == 0, "spec.input_size",
               "a multiple of 32 from 32 to 4096", size)
        for name in ("mean", "std"):
            values = getattr(self, name)
            numbers = isinstance(values, tuple) and len(values) == 3
            expect(numbers and all(map(is_number, values)), f"spec.{name}",
                   "three finite numbers", values)
        expect(min(self.std) > 0, "spec.std", "three numbers above 0", self.std)
        expect(is_number(self.blur_sigma) and 0 <= self.blur_sigma <= size / 4,
               "spec.blur_sigma", f"a number from 0 to {size / 4:g}", self.blur_sigma)
        for name, allowed in (("channels", CHANNEL_RULES), ("resize", RESIZE_RULES),
                              ("weighting", WEIGHTINGS), ("reduction", REDUCTIONS)):
            expect(getattr(self, name) in allowed, f"spec.{name}", f"one of {allowed}",
                   repr(getattr(self, name)))
        expect(isinstance(self.decoding, DecodingRule), "spec.decoding", "a DecodingRule",
               type(self.decoding).__name__)
        expect(self.prior is None or isinstance(self.prior, Prior), "spec.prior", "None or a Prior",
               type(self.prior).__name__)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ScoringSpec":
        """The inverse of `to_dict`; raises InputError on unknown, missing or wrong fields."""
        return read_record(cls, values, "spec")


