"""NoiseConfig: the law of the synthetic anomalies. Loads no PyTorch: the command line shows it."""

from dataclasses import dataclass, field, replace

from scrd_fast.errors import expect
from scrd_fast.ops.octaves import check_octaves

TEXTURES = ("per_sample", "shared")
CHANNELS = ("independent", "shared")


@dataclass(frozen=True)
class NoiseConfig:
    """The law of the noise patches; the defaults are published unless a field says otherwise.

    A patch's height and width are each uniform integers in [min_side, max_share * image side); its
    corner is uniform from 1 to the last that fits. octaves, persistence and wavelength are those
    of ops.simplex_noise. Channel c of "independent" channels reads the field at depth c.

    Each field's "help" says the rest; "option" is its name on the command line where that is
    another.
    """

    strength: float = field(default=0.2, metadata={
        "help": "Factor of the noise, in units of the [0, 1] pixel range."})
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

    def __post_init__(self) -> None:
        expect(self.strength > 0, "noise.strength", "a number above 0", self.strength)
        expect(self.min_side >= 1, "noise.min_side", "at least 1 pixel", self.min_side)
        expect(0 < self.max_share <= 1, "noise.max_share", "above 0, at most 1", self.max_share)
        check_octaves(self.octaves, self.persistence, self.wavelength, "noise.")
        expect(self.texture in TEXTURES, "noise.texture", f"one of {TEXTURES}", self.texture)
        expect(self.channels in CHANNELS, "noise.channels", f"one of {CHANNELS}", self.channels)
        expect(0 < self.weakest <= 1, "noise.weakest", "above 0, at most 1", self.weakest)

    def scaled(self, factor: float) -> "NoiseConfig":
        """The same law for images whose sides are `factor` times as long."""
        return replace(self, min_side=max(1, round(self.min_side * factor)),
                       wavelength=self.wavelength * factor)
