"""Laws of the synthetic anomalies by the kind of images. Loads no PyTorch.

They are reasoned, not measured: none has been tuned on labelled images. A field that is not named
keeps the default of NoiseConfig.
"""

from dataclasses import dataclass, replace
from typing import Any

from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.errors import expect


@dataclass(frozen=True)
class Preset:
    """A law, and why it is as it is."""

    noise: NoiseConfig
    why: str


PRESETS = {
    "brain-mri": Preset(
        NoiseConfig(
            mixture=(("shift", 3), ("simplex", 1), ("blend", 1), ("deform", 1), ("ghost", 0.5)),
            strength=0.4,  # from plain lesions ...
            weakest=0.25,  # ... to faint ones, a quarter of that
            min_side=8,  # small foci: what is smaller ends below a cell of the finest map
            max_share=0.3,  # a large tumour
            channels="shared",  # grey
        ),
        "Most lesions are brighter or darker than the tissue around (shift); tumours displace it"
        " (deform) and look like tissue in a wrong place (blend); motion leaves ghosts."),
    "chest-xray": Preset(
        NoiseConfig(
            mixture=(("shift", 3), ("blend", 1), ("simplex", 1), ("blur", 0.5)),
            strength=0.25,  # a projection: what lies before and behind makes findings faint
            weakest=0.25,
            min_side=8,  # a nodule
            max_share=0.4,  # a consolidated lobe
            channels="shared",  # grey
        ),
        "Nodules, consolidations and fluid add opacity with soft borders (shift), some of which"
        " hide the structures behind them (blur); anatomy in a wrong place is a blend."),
    "dermatoscopy": Preset(
        NoiseConfig(
            mixture=(("shift", 2), ("gaussian", 1), ("perlin", 1), ("paste", 1), ("simplex", 1)),
            strength=0.3,  # pigment, blood and scales are plain to see
            weakest=0.3,  # faint redness
            min_side=10,
            max_share=0.5,  # a lesion may fill much of the picture
            channels="independent",  # the colour tells
        ),
        "Colour and its evenness tell lesions: uneven pigment (gaussian), coarse texture (perlin),"
        " spots of another colour (shift), borders to skin of another look (paste)."),
    "histology": Preset(
        NoiseConfig(
            mixture=(("paste", 2), ("blend", 2), ("perlin", 1), ("deform", 1), ("blur", 1)),
            strength=0.4,  # stains have strong contrast
            weakest=0.3,
            min_side=12,  # some nuclei: a single one is no finding
            max_share=0.4,
            wavelength=16.0,  # texture of the size of nuclei, finer than by default
            channels="independent",  # stains are colours
        ),
        "Tissue where it does not belong (paste, blend), changed texture (perlin) and architecture"
        " (deform); blur is a section out of focus."),
    "endoscopy": Preset(
        NoiseConfig(
            mixture=(("shift", 2), ("deform", 2), ("blend", 1), ("gaussian", 1), ("blur", 0.5)),
            strength=0.3,  # the mucosa's own brightness varies with the light
            weakest=0.3,
            min_side=10,
            max_share=0.4,  # a polyp near the lens
            channels="independent",  # redness and bleeding are colours
        ),
        "Polyps bulge (deform), inflammation and blood change the colour (shift, gaussian), other"
        " mucosa has another pattern (blend)."),
    "industrial": Preset(
        NoiseConfig(
            mixture=(("paste", 2), ("perlin", 2), ("blend", 1), ("deform", 1), ("simplex", 1)),
            strength=0.6,  # scratches and holes have strong contrast
            weakest=0.2,  # dents and stains do not
            min_side=6,
            max_share=0.4,
            channels="independent",  # rust, oil and foreign parts have colours of their own
        ),
        "Misplaced parts are what CutPaste and NSA make (paste, blend), damaged surfaces what DRAEM"
        " makes (perlin); bent parts are a deform."),
}


def noise_preset(name: str, **changes: Any) -> NoiseConfig:
    """The law for images of this kind, with some fields changed; raises InputError.

    Names: brain-mri, chest-xray, dermatoscopy, histology, endoscopy, industrial.
    """
    expect(name in PRESETS, "noise preset", f"one of {tuple(PRESETS)}", repr(name))
    return replace(PRESETS[name].noise, **changes)
