"""A lesion is found where it lies in the patient, whichever way its volume is stored."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("nibabel", reason="nibabel reads NIfTI")

import nibabel

from scrd_fast.backends.backend import CompileRequest
from scrd_fast.backends.registry import make_runner
from scrd_fast.backends.source import Source
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.engine_file import read_engine_file
from scrd_fast.graph.portable import build_graph
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
def engine(heads, small_file):
    """Without a build, which is judged on 200 images: of this size that takes long."""
    rule = DecodingRule("window", (0.0, 1.2 * heads[2]), slices=(37, 41))
    spec = replace(SPEC, decoding=rule, input_size=SIDE, blur_sigma=2.0)
    manifest = replace(read_engine_file(small_file)[0], spec=spec)
    source = Source.of(build_graph(recorded(), spec))
    runner = make_runner(manifest.backend, CompileRequest(source, spec, "fp32", (1,)))
    with Engine(manifest, runner, small_file) as engine:
        yield engine


@pytest.fixture(scope="module")
def healthy(engine, heads, tmp_path_factory):
    """The maps of the head without the lesion."""
    path = tmp_path_factory.mktemp("healthy") / "head.nii"
    heads[0].to_filename(path)
    return np.stack([item.map for item in engine.stream([path])])


@pytest.mark.slow
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
