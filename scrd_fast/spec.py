"""ScoringSpec: the one description of the path from pixels to score.

The reference model, the exported graph and every engine are built from it; nothing else in the
package knows a default for any of these values.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from scrd_fast.errors import expect

WEIGHTINGS = ("none", "scale", "feature")
REDUCTIONS = ("mean", "max")
RESIZE_RULES = ("bilinear_half_pixel",)
CHANNEL_RULES = ("rgb",)

STRIDES = (4, 8, 16)  # of the three scales: a feature map's side is the input's by these

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

T = TypeVar("T")


def from_mapping(
    cls: type[T], values: Mapping[str, Any], where: str, *, partial: bool = False
) -> T:
    """Build dataclass `cls` from `values`, refusing unknown and (unless `partial`) missing names.

    Lists become tuples, as JSON has no tuples. Raises InputError naming `where`.
    """
    expect(isinstance(values, Mapping), where, "a JSON object", type(values).__name__)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown, missing = sorted(set(values) - known), sorted(known - set(values))
    expect(not unknown, where, f"only the fields {sorted(known)}", f"unknown {unknown}")
    expect(partial or not missing, where, f"all the fields {sorted(known)}", f"none for {missing}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def is_whole(value: object, least: int) -> bool:
    """Whether this is an integer (no bool) from `least` that fits into 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def is_number(value: object) -> bool:
    """Whether this is a finite integer or float (no bool) that float32 can hold."""
    # A bound instead of isfinite, which overflows on the long integers that JSON allows.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


@dataclass(frozen=True)
class ScoringSpec:
    """How pixels become a score.

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
    """

    input_size: int = 256
    channels: str = "rgb"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: str = "bilinear_half_pixel"
    weighting: str = "none"
    blur_sigma: float = 4.0
    reduction: str = "mean"

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

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ScoringSpec":
        """The inverse of `to_dict`; raises InputError on unknown, missing or wrong fields."""
        return from_mapping(cls, values, "spec")


