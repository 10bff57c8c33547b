"""A lesion is found where it lies in the patient, whichever way its volume is stored."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("nibabel", reason="nibabel reads NIfTI")

import nibabel

import scrd_fast
from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from scrd_fast.spec import DecodingRule
from tests.golden.trained_resnet18 import SPEC, recorded
from tests.support.heads import ORIENTATIONS, read_head

LESION, RADIUS = np.array([30.0, -22.0, 40.0]), 8.0  # mm: right, back, up
VOXEL = 3.0  # mm
SIDE, STRIDE = 192, 16  # of the network's input, and of its coarsest grid, in pixels


@pytest.fixture(scope="module")
def heads():
    """The MNI152 template at 3 mm, and the same with a lesion; and its brightest voxel."""
    voxels, affine = read_head()
    places = np.stack(np.indices(voxels.shape), -1) @ affine[:3, :3].T + affine[:3, 3]
    sick = np.where(np.linalg.norm(places - LESION, axis=-1) < RADIUS, 1.15 * voxels.max(), voxels)
    return (nibabel.Nifti1Image(voxels, affine),
            nibabel.Nifti1Image(sick.astype(np.float32), affine), float(voxels.max()))


@pytest.fixture(scope="module")
def engine(heads, tmp_path_factory):
    rule = DecodingRule("window", (0.0, 1.2 * heads[2]), slices=(37, 41))
    spec = replace(SPEC, decoding=rule, input_size=SIDE, blur_sigma=2.0)
    path = tmp_path_factory.mktemp("lesion") / "model.safetensors"
    save_checkpoint(Checkpoint(recorded(), spec, ModelConfig("resnet18", "random")), path)
    few = np.zeros((2, 8, 8), np.uint8)  # to be judged by: 200 golden ones of this size take long
    with scrd_fast.build_engine(path, precision="fp32", images=few) as engine:
        yield engine


@pytest.fixture(scope="module")
def healthy(engine, heads, tmp_path_factory):
    """The maps of the head without the lesion."""
    path = tmp_path_factory.mktemp("healthy") / "head.nii"
    heads[0].to_filename(path)
    return np.stack([item.map for item in engine.stream([path])])


@pytest.mark.parametrize("number", range(48))
def test_the_lesion_is_found_in_all_orientations(engine, heads, healthy, tmp_path, number):
    """What it changes in the maps most lies within one voxel of the network's coarsest grid, in
    each direction, and within a slice of the volume's."""
    path = tmp_path / "head.nii"
    heads[1].as_reoriented(ORIENTATIONS[number]).to_filename(path)
    items = list(engine.stream([path]))
    changes = np.stack([item.map for item in items]) - healthy
    frame, row, column = np.unravel_index(changes.argmax(), changes.shape)
    off = np.abs(items[frame].locate(row, column) - LESION)
    pixel = VOXEL * np.array(items[frame].image.shape[::-1]) / SIDE
    assert (off[:2] <= STRIDE * pixel).all(), off
    assert off[2] <= RADIUS + VOXEL
