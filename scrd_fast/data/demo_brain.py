"""The demo set: synthetic subjects made from one real brain, and synthetic lesions.

The anatomy is real: the MNI152 T1 template that nilearn's package carries (197 x 233 x 189 voxels
of 1 mm). One brain is not a cohort, so a subject is that template under its own smooth warp, small
affine, bias field, gain and noise, all drawn from the subject's seed. Everything is generated;
nothing is downloaded.

The law of subjects and lesions, written before any training, never tuned:

| what | law |
|---|---|
| image | axial slice, 128 x 128 px of 1.8 mm, uint8, white matter at grey level 140 |
| slices | uniform in template planes 60 to 120 (MNI z = -12 to 48 mm) |
| warp | cubic B-spline, control points 28 mm apart, displacement sd 3 mm per axis |
| affine | rotation sd 3 degrees per axis, scale sd 4 % per axis, shift sd 2 mm per axis |
| bias field | exp of a B-spline field, control points 84 mm apart, sd 8 % |
| gain | 1 + normal of sd 4 % |
| noise | normal, sd 2 % of the white-matter level, before quantisation |
| lesion centre | uniform in the brain mask of the slice |
| lesion radius r | uniform in 4 to 9 px |
| lesion profile | contrast * exp(-(d^2 / r^2)^2), d = distance to the centre in px |
| lesion contrast | +0.35 or -0.35 of the white-matter level, each with probability 1/2 |
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from scrd_fast.errors import BackendUnavailable

SIZE = 128
PIXEL_MM = 1.8
PLANES = (60, 120)
WHITE_MATTER_GREY = 140.0
LESION_RADIUS_PX = (4.0, 9.0)
LESION_CONTRAST = 0.35


@lru_cache(maxsize=1)
def load_template() -> torch.Tensor:
    """The brain in units of its white-matter level, and its mask: (1, 2, 197, 233, 189) float32.

    Raises BackendUnavailable without nilearn.
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise BackendUnavailable(
            "the demo's brain template: needs nilearn; pip install 'scrd-fast[demo]'"
        ) from error
    brain = np.asarray(datasets.load_mni152_template(resolution=1).dataobj, dtype=np.float32)
    mask = np.asarray(datasets.load_mni152_brain_mask(resolution=1).dataobj, dtype=np.float32)
    white = np.asarray(datasets.load_mni152_wm_mask(resolution=1).dataobj) > 0
    level = float(np.median(brain[white]))
    return torch.from_numpy(np.stack([brain * mask / level, mask])[None])


def _spline_basis(positions: NDArray[np.float64], spacing: float) -> NDArray[np.float64]:
    """(P, K) cubic B-spline values of K control points `spacing` apart around 0."""
    reach = int(np.ceil(np.abs(positions).max() / spacing)) + 3
    knots = np.arange(-reach - 2, reach + 3) * spacing
    return BSpline.design_matrix(positions, knots, 3).toarray()


def _spline_field(
    rng: np.random.Generator, axes: list[NDArray[np.float64]], spacing: float, count: int
) -> NDArray[np.float64]:
    """`count` smooth random fields of sd 1 (at control points) on a grid: (count, x, y, z)."""
    bx, by, bz = (_spline_basis(a, spacing) for a in axes)
    control = rng.standard_normal((count, bx.shape[1], by.shape[1], bz.shape[1]))
    # A cubic B-spline averages its controls: restore the variance at the middle of a cell.
    gain = 1 / np.sqrt((_spline_basis(np.zeros(1), spacing) ** 2).sum()) ** 3
    return gain * np.einsum("cijk,xi,yj,zk->cxyz", control, bx, by, bz, optimize=True)


def subject_slices(
    seed: int, planes: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Slices of one synthetic subject before lesions and noise.

    planes: template plane of each slice. Returns the slices in units of the white-matter level,
    float32 (P, 128, 128), and their brain masks.
    """
    template = load_template()
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    shape = np.array(template.shape[2:])
    line = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
    axes = [line, line, planes - shape[2] / 2]
    warp = 3.0 * _spline_field(rng, axes, 28.0, 3)
    bias = np.exp(0.08 * _spline_field(rng, axes, 84.0, 1)[0])
    matrix = Rotation.from_euler("xyz", rng.normal(0, 3, 3), degrees=True).as_matrix()
    matrix = matrix * (1 + rng.normal(0, 0.04, 3))
    shift, gain = rng.normal(0, 2, 3), 1 + rng.normal(0, 0.04)

    points = np.stack(np.meshgrid(*axes, indexing="ij")) + warp
    points = np.einsum("ab,bxyz->axyz", matrix, points) + shift[:, None, None, None]
    voxels = points + (shape / 2)[:, None, None, None]
    # grid_sample wants (z, y, x)-ordered coordinates in [-1, 1], last axis of the volume first.
    grid = np.stack([2 * voxels[a] / (shape[a] - 1) - 1 for a in (2, 1, 0)], axis=-1)
    sampled = torch.nn.functional.grid_sample(
        template, torch.from_numpy(grid[None].astype(np.float32)), align_corners=True
    )[0].numpy()
    # (x, y, plane) -> (plane, row, column) with the front of the head up.
    slices, masks = (np.flip(v.transpose(2, 1, 0), axis=1) for v in sampled)
    bias = np.flip(bias.transpose(2, 1, 0), axis=1)
    return (slices * bias * gain).astype(np.float32), masks > 0.5


def to_grey(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A slice in units of the white-matter level with its noise, as uint8."""
    noisy = image + rng.normal(0, 0.02, image.shape)
    return np.clip(np.round(noisy * WHITE_MATTER_GREY), 0, 255).astype(np.uint8)


def add_lesion(
    image: NDArray[np.float32], mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """One lesion by the law above: the image with it, and where it exceeds half its contrast."""
    rows, columns = np.nonzero(mask)
    pick = rng.integers(len(rows))
    radius = rng.uniform(*LESION_RADIUS_PX)
    sign = rng.choice((-1.0, 1.0))
    y, x = np.indices(image.shape)
    distance = (y - rows[pick]) ** 2 + (x - columns[pick]) ** 2
    profile = np.exp(-((distance / radius**2) ** 2))
    lesion = sign * LESION_CONTRAST * profile
    return (image + lesion).astype(np.float32), profile > 0.5


@dataclass(frozen=True)
class DemoImages:
    """uint8 images (N, 128, 128), labels (N,) 1 = lesion, subject seeds (N,), plane of each."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    subjects: NDArray[np.int64]
    planes: NDArray[np.float64]
    lesions: NDArray[np.bool_]


def make_images(
    subject_seeds: Any, slices_per_subject: int, *, anomalous_share: float = 0.0
) -> DemoImages:
    """Images of several subjects; the first share of each subject's slices gets a lesion."""
    parts: list[tuple[NDArray[np.uint8], int, int, float, NDArray[np.bool_]]] = []
    for seed in subject_seeds:
        rng = np.random.Generator(np.random.Philox(key=[int(seed), 1]))
        planes = rng.uniform(*PLANES, slices_per_subject)
        slices, masks = subject_slices(int(seed), planes)
        for i, (image, mask) in enumerate(zip(slices, masks, strict=True)):
            anomalous = i < round(anomalous_share * slices_per_subject)
            lesion = np.zeros_like(mask)
            if anomalous:
                image, lesion = add_lesion(image, mask, rng)
            parts.append((to_grey(image, rng), int(anomalous), int(seed), planes[i], lesion))
    images, labels, subjects, planes_, lesions = zip(*parts, strict=True)
    return DemoImages(np.stack(images), np.array(labels), np.array(subjects),
                      np.array(planes_), np.stack(lesions))
