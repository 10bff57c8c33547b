"""A real head, and the ways in which a volume can lie in its file."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

#: For nibabel's as_reoriented: which axis comes first, and which are flipped.
ORIENTATIONS = [np.column_stack([axes, flips])
                for axes in itertools.permutations(range(3))
                for flips in itertools.product([1, -1], repeat=3)]


def read_head() -> tuple[np.ndarray, np.ndarray]:
    """The MNI152 template at 3 mm: voxels (X, Y, Z) float32 in RAS+ order, and affine."""
    nilearn = pytest.importorskip("nilearn", reason="nilearn ships the template")
    path = (Path(nilearn.__file__).parent / "datasets/data"
            / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    if not path.exists():
        pytest.skip("this nilearn has no template")
    template = nibabel.as_closest_canonical(nibabel.load(path))
    voxels = np.asarray(template.dataobj)[::3, ::3, ::3].astype(np.float32)
    return voxels, template.affine @ np.diag([3, 3, 3, 1])
