"""NoiseConfig: the law of the synthetic anomalies. Loads no PyTorch: the command line shows it."""

from dataclasses import dataclass, field, replace

from scrd_fast.errors import InputError, expect
from scrd_fast.ops.octaves import check_octaves
from scrd_fast.records import is_number

#: The kinds of synthetic anomalies; docs/method.md has their laws.
KINDS = ("simplex", "perlin", "gaussian", "shift", "paste", "blend", "deform", "blur", "ghost")
LEAST_SIDE = 4  # in pixels, of what has a smooth edge or a ring that stays
TEXTURES = ("per_sample", "shared")
CHANNELS = ("independent", "shared")

Mixture = tuple[tuple[str, float], ...]


def parse_mixture(text: str) -> Mixture:
    """A mixture as a command line gives it: "KIND=WEIGHT,...". Raises InputError."""
    try:
        pairs = [(kind.strip(), float(weight))
                 for kind, weight in (part.split("=") for part in text.split(","))]
    except ValueError as error:
        raise InputError(f"noise.mixture: expected KIND=WEIGHT,... of the kinds {KINDS}, got"
                         f" {text!r}") from error
    return tuple(pairs)


def format_mixture(mixture: Mixture) -> str:
    """A mixture as `parse_mixture` reads it."""
    return ",".join(f"{kind}={weight:.12g}" for kind, weight in mixture)


@dataclass(frozen=True)
class NoiseConfig:
    """The law of the noise patches; the defaults are published unless a field says otherwise.

    A patch's height and width are each uniform integers in [min_side, max_share * image side); its
    corner is uniform from 1 to the last that fits. octaves, persistence and wavelength are those
    of ops.simplex_noise. Channel c of "independent" channels reads the field at depth c.

    Each image draws one kind of `mixture`, pairs of a name among KINDS and a weight. The fields
    mean the same for all kinds, where they mean something; docs/method.md says more.

    Each field's "help" says the rest; "option" is its name on the command line where that is
    another.
    """

    strength: float = field(default=0.2, metadata={
        "help": "Factor of the noise, or of other kinds the largest change of a pixel, in units of"
                " the [0, 1] pixel range."})
    min_side: int = field(default=10, metadata={
        "help": "Smallest patch side in pixels."})
    max_share: float = field(default=0.125, metadata={
        "help": "Largest patch side as a share of the image side.", "option": "share"})
    octaves: int = field(default=6, metadata={
        "help": "Of the simplex noise, each of half the wavelength of the one before."})
    persistence: float = field(default=0.6, metadata={
        "help": "Strength of an octave, in units of the one before."})
    wavelength: float = field(default=32.0, metadata={
        "help": "Of the first octave, in pixels."})
    texture: str = field(default="per_sample", metadata={
        "help": "per_sample: a noise seed per image and epoch; or shared: one texture for the whole"
                " run, as published."})
    channels: str = field(default="independent", metadata={
        "help": "independent (published), which tints the patch, or shared: the same noise in all"
                " channels, which fits grey images."})
    weakest: float = field(default=1.0, metadata={
        "help": "An image's strength is uniform from this share of the strength to all of it; 1 as"
                " published."})
    mixture: Mixture = field(default=(("simplex", 1.0),), metadata={
        "help": "Kinds and how often each is drawn, as KIND=WEIGHT,...: "
                f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.",
        "parser": parse_mixture, "text": format_mixture})

    def __post_init__(self) -> None:
        expect(self.strength > 0, "noise.strength", "a number above 0", self.strength)
        expect(self.min_side >= 1, "noise.min_side", "at least 1 pixel", self.min_side)
        expect(0 < self.max_share <= 1, "noise.max_share", "above 0, at most 1", self.max_share)
        check_octaves(self.octaves, self.persistence, self.wavelength, "noise.")
        expect(self.texture in TEXTURES, "noise.texture", f"one of {TEXTURES}", self.texture)
        expect(self.channels in CHANNELS, "noise.channels", f"one of {CHANNELS}", self.channels)
        expect(0 < self.weakest <= 1, "noise.weakest", "above 0, at most 1", self.weakest)
        object.__setattr__(self, "mixture", _checked(self.mixture))
        expect(self.min_side >= self._least_side(), "noise.min_side",
               f"at least {LEAST_SIDE} pixels for other kinds than simplex", self.min_side)

    def _least_side(self) -> int:
        return 1 if self.mixture[0][0] == "simplex" and len(self.mixture) == 1 else LEAST_SIDE

    def scaled(self, factor: float) -> "NoiseConfig":
        """The same law for images whose sides are `factor` times as long."""
        return replace(self, min_side=max(self._least_side(), round(self.min_side * factor)),
                       wavelength=self.wavelength * factor)


def _checked(mixture: object) -> Mixture:
    """A mixture of which the lists are tuples and the weights floats; raises InputError."""
    pairs = mixture if isinstance(mixture, tuple | list) else ()
    expect(len(pairs) > 0 and all(isinstance(pair, tuple | list) and len(pair) == 2
                                  for pair in pairs),
           "noise.mixture", "pairs of a kind and a weight", repr(mixture))
    kinds = [kind for kind, _ in pairs]
    for kind, weight in pairs:
        expect(kind in KINDS, "noise.mixture", f"kinds among {KINDS}", repr(kind))
        expect(kinds.count(kind) == 1, "noise.mixture", "each kind once", f"{kind!r} again")
        expect(is_number(weight) and weight >= 0, "noise.mixture", "weights from 0",
               f"{kind}={weight}")
    expect(any(weight > 0 for _, weight in pairs), "noise.mixture", "a weight above 0", repr(pairs))
    return tuple((kind, float(weight)) for kind, weight in pairs)
