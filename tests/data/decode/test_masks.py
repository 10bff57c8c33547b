"""Masks: which pixels are anomalous, in each kind of file."""

import cv2
import numpy as np
import pytest

from scrd_fast.data.decode.masks import read_masks
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule

RULE = DecodingRule()
MASK = np.zeros((24, 32), bool)
MASK[4:12, 8:24] = True


def write(path, pixels):
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.mark.parametrize(("name", "pixels"), [
    ("a.png", MASK * np.uint8(255)),
    ("one.png", MASK * np.uint8(1)),  # as labels are often saved: it looks black
    ("deep.png", MASK * np.uint16(1)),
    ("red.png", np.dstack([0 * MASK, 0 * MASK, MASK]).astype(np.uint8)),
    ("a.bmp", MASK * np.uint8(7)),
    ("a.tif", MASK * np.uint8(255)),
    ("float.tif", MASK * np.float32(0.01)),
    ("a.jpg", MASK * np.uint8(255)),
])
def test_pictures(tmp_path, name, pixels):
    path = write(tmp_path / name, pixels)
    (mask,) = read_masks(path, RULE)
    np.testing.assert_array_equal(mask.pixels, MASK)
    assert mask.pixels.dtype == bool
    assert mask.geometry is None
    for rule in (DecodingRule(intensity="window", window="brain"),
                 DecodingRule(intensity="percentile"), DecodingRule(slices=(1, 2), volume=1)):
        np.testing.assert_array_equal(read_masks(path, rule)[0].pixels, MASK)


def test_what_jpeg_makes_of_zeros_is_no_anomaly(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.jpg"
    for quality in (95, 30):
        mask = rng.random((24, 32)) < 0.5
        blocks = np.kron(mask[:3, :4], np.ones((8, 8))) > 0
        assert cv2.imwrite(str(path), blocks * np.uint8(255), [cv2.IMWRITE_JPEG_QUALITY, quality])
        np.testing.assert_array_equal(read_masks(path, RULE)[0].pixels, blocks)


def test_pages_of_a_tiff(tmp_path):
    path = tmp_path / "a.tif"
    assert cv2.imwritemulti(str(path), [MASK * np.uint8(255), 0 * MASK.astype(np.uint8)])
    assert [mask.pixels.sum() for mask in read_masks(path, RULE)] == [MASK.sum(), 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_nifti_lies_as_its_image_does(tmp_path, dtype):
    """Whatever the rule says of intensities, which is of images, and of volumes of a series."""
    nibabel = pytest.importorskip("nibabel", reason="nibabel reads NIfTI")
    voxels = np.zeros((6, 8, 3), dtype)
    voxels[1, 2, 0] = voxels[4, 7, 2] = 1
    voxels[5, 5, 1] = 3  # of several labels
    affine = np.diag([-2.0, 1, 4, 1])
    path = tmp_path / "m.nii.gz"
    nibabel.Nifti1Image(voxels, affine).to_filename(path)
    rules = (RULE, DecodingRule(intensity="window", window=(40, 80)), DecodingRule(volume=2),
             DecodingRule(intensity="percentile"))
    for rule in rules:
        masks = read_masks(path, rule)
        found = [np.argwhere(mask.pixels) for mask in masks]
        # Rows from the front, columns from the patient's right: this file's x already grows there.
        assert [each.tolist() for each in found] == [[[5, 1]], [[2, 5]], [[0, 4]]]
        at = masks[2].geometry @ [0, 4, 0, 1]
        np.testing.assert_allclose(at[:3], [-8, 7, 8])
    (one,) = read_masks(path, DecodingRule(slices=(1, 2)))
    assert np.argwhere(one.pixels).tolist() == [[2, 5]]
    assert read_masks(path, DecodingRule(plane="sagittal"))[0].pixels.shape == (3, 8)


def test_dicom(tmp_path):
    pytest.importorskip("pydicom", reason="pydicom reads DICOM")
    from tests.data.decode.dicom_by_hand import dicom, save

    path = save(dicom(MASK.astype(np.uint8), WindowCenter=1000, WindowWidth=10), tmp_path / "m")
    np.testing.assert_array_equal(read_masks(path, RULE)[0].pixels, MASK)
    path = save(dicom(3 * MASK.astype(np.int16)), tmp_path / "n")
    np.testing.assert_array_equal(read_masks(path, RULE)[0].pixels, MASK)


def test_what_is_no_mask_is_named(tmp_path):
    path = tmp_path / "m.png"
    with pytest.raises(DataError, match=rf"^{path}: cannot be read: No such file"):
        read_masks(path, RULE)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"^{path}: expected a .* file, got no byte"):
        read_masks(path, RULE)
    whole = write(tmp_path / "n.png", MASK * np.uint8(255)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"^{path}: "):
        read_masks(path, RULE)
