"""A second test set of the demo's brain: other subjects, and anomalies of four groups.

Its normal subjects follow the demo's law (`data.demo_brain`), with seeds that no part of the demo
has; what is trained on is the demo's. Each subject has one anomalous slice of each group, and as
many normal ones, so that the groups have equal shares.

The law of the anomalies, written before anything was trained on or scored with it, never tuned. d
is the distance to the centre in px, w the white-matter level; every anomaly ends where the brain
does, and its centre is uniform in the brain mask of the slice unless the table says otherwise.

| group | what | law |
|---|---|---|
| textured | outline | profile p = exp(-(d^2 / r^2)^2), radius r uniform in 5 to 10 px |
| textured | grey | multiplied by 1 + p (c + 0.15 t); c = +0.25 or -0.25, each with chance 1/2 |
| textured | texture t | white noise smoothed by a Gaussian of sd 1 px, brought to mean 0 and sd 1 |
| small | outline | p = exp(-ln 2 (2 d / D)^4), 1/2 at the diameter D, uniform in 3 to 5 px |
| small | grey | c p w added, c = +0.4 or -0.4, each with chance 1/2 |
| oedema | outline | p = exp(-e^2 / 2), e = d in units of two half axes, each uniform in |
| | | 9 to 15 px, turned by a uniform angle |
| oedema | grey | c p w added, c = -0.15 |
| missing | outline | a star around a point of the brain's edge: its radius at angle a is |
| | | r (1 + sum of b_k cos(k a + f_k), k = 2 to 6), r uniform in 8 to 14 px, b_k normal of sd |
| | | 0.12, f_k uniform; the bracket is at least 0.4; the edge is 1.5 px wide |
| missing | grey | replaced by 0.2 w, about that of fluid |

The mask of an anomaly is the part of the brain where its profile (missing: what is replaced)
exceeds 1/2.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, gaussian_filter

from scrd_fast.data.demo_brain import PLANES, SIZE, subject_slices, to_grey
from scrd_fast.errors import expect

TEXTURED_RADIUS_PX, TEXTURED_CONTRAST, TEXTURE = (5.0, 10.0), 0.25, 0.15
SMALL_DIAMETER_PX, SMALL_CONTRAST = (3.0, 5.0), 0.4
OEDEMA_HALF_AXES_PX, OEDEMA_CONTRAST = (9.0, 15.0), -0.15
MISSING_RADIUS_PX, MISSING_GREY = (8.0, 14.0), 0.2

Array = NDArray[Any]
Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
# From a slice in units of the white-matter level (H, W), its brain mask and a generator to the
# slice with the anomaly and its profile, before both are cut to the brain.
_Draw = Callable[[Image, Mask, np.random.Generator], tuple[Array, Array]]


def _offsets(where: Mask, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns (H, W) from a centre that is uniform in `where`."""
    rows, columns = np.nonzero(where)
    pick = rng.integers(len(rows))
    y, x = np.indices(where.shape)
    return y - rows[pick], x - columns[pick]


def _draw_textured(image: Image, brain: Mask, rng: np.random.Generator) -> tuple[Array, Array]:
    y, x = _offsets(brain, rng)
    radius = rng.uniform(*TEXTURED_RADIUS_PX)
    contrast = rng.choice((-1.0, 1.0)) * TEXTURED_CONTRAST
    texture = gaussian_filter(rng.standard_normal(image.shape), 1.0)
    texture = (texture - texture.mean()) / texture.std()
    profile = np.exp(-(((y**2 + x**2) / radius**2) ** 2))
    return image * (1 + profile * (contrast + TEXTURE * texture)), profile


def _draw_small(image: Image, brain: Mask, rng: np.random.Generator) -> tuple[Array, Array]:
    y, x = _offsets(brain, rng)
    diameter = rng.uniform(*SMALL_DIAMETER_PX)
    contrast = rng.choice((-1.0, 1.0)) * SMALL_CONTRAST
    profile = np.exp(-np.log(2) * (4 * (y**2 + x**2) / diameter**2) ** 2)
    return image + contrast * profile, profile


def _draw_oedema(image: Image, brain: Mask, rng: np.random.Generator) -> tuple[Array, Array]:
    y, x = _offsets(brain, rng)
    (a, b), angle = rng.uniform(*OEDEMA_HALF_AXES_PX, 2), rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    profile = np.exp(-((along / a) ** 2 + (across / b) ** 2) / 2)
    return image + OEDEMA_CONTRAST * profile, profile


def _draw_missing(image: Image, brain: Mask, rng: np.random.Generator) -> tuple[Array, Array]:
    y, x = _offsets(brain & ~binary_erosion(brain), rng)
    angle = np.arctan2(y, x)
    radius = rng.uniform(*MISSING_RADIUS_PX)
    waves = sum(rng.normal(0, 0.12) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
                for k in range(2, 7))
    reach = radius * np.maximum(1 + waves, 0.4)
    profile = np.clip((reach - np.hypot(y, x)) / 1.5 + 0.5, 0, 1)
    return image + profile * (MISSING_GREY - image), profile


_DRAW: dict[str, _Draw] = {"textured": _draw_textured, "small": _draw_small,
                           "oedema": _draw_oedema, "missing": _draw_missing}
GROUPS = tuple(_DRAW)
SLICES = 2 * len(GROUPS)  # of a subject: one anomalous one per group, and as many normal ones


def subjects(count: int, seed: int) -> range:
    """Seeds of the subjects of a run; no part of the demo, of any seed, has one of them."""
    expect(0 < count <= 100_000, "count", "from 1 to 100 000 subjects", count)
    first = 10_500_000 + 1_000_000 * seed  # the demo's own end 300 000 after each million
    return range(first, first + count)


def add_anomaly(
    image: Image, brain: Mask, group: str, rng: np.random.Generator
) -> tuple[Image, Mask]:
    """One anomaly of a group by the law above: the slice (H, W) with it, in units of the
    white-matter level, and its mask. Raises InputError."""
    expect(group in _DRAW, "group", f"one of {GROUPS}", repr(group))
    changed, profile = _DRAW[group](image, brain, rng)
    return np.where(brain, changed, image).astype(np.float32), brain & (profile > 0.5)


@dataclass(frozen=True)
class LesionImages:
    """uint8 images (N, 128, 128), masks (N, 128, 128), subject seeds (N,), and the group of each
    (N,), an index into GROUPS, -1 of normal ones."""

    images: NDArray[np.uint8]
    masks: Mask
    subjects: NDArray[np.int64]
    groups: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), 1 = anomalous."""
        return (self.groups >= 0).astype(np.int64)


def make_lesions(subject_seeds: Iterable[int]) -> LesionImages:
    """SLICES images of each subject: one of each group, then the normal ones."""
    images, masks, seeds, groups = [], [], [], []
    for seed in subject_seeds:
        rng = np.random.Generator(np.random.Philox(key=[int(seed), 2]))
        slices, brains = subject_slices(int(seed), rng.uniform(*PLANES, SLICES))
        for i, (image, brain) in enumerate(zip(slices, brains, strict=True)):
            group = i if i < len(GROUPS) else -1
            mask = np.zeros((SIZE, SIZE), bool)
            if group >= 0:
                image, mask = add_anomaly(image, brain, GROUPS[group], rng)
            images.append(to_grey(image, rng))
            masks.append(mask)
            seeds.append(int(seed))
            groups.append(group)
    return LesionImages(np.stack(images), np.stack(masks), np.array(seeds), np.array(groups))
