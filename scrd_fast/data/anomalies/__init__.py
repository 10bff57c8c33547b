"""Synthetic anomalies of several kinds behind one interface; docs/method.md has their laws."""

from scrd_fast.data.anomalies.draw import (
    Donors,
    Patches,
    Synthesised,
    add_patches,
    changed,
    draw_patches,
    image_generator,
    synthesise,
)

__all__ = ["Donors", "Patches", "Synthesised", "add_patches", "changed", "draw_patches",
           "image_generator", "synthesise"]
