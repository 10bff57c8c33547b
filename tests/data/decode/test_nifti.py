"""NIfTI: whichever way a volume lies in its file, a place in the patient is found."""

import gzip
import logging
import re
import warnings

import numpy as np
import pytest

pytest.importorskip("nibabel", reason="nibabel reads NIfTI")

import nibabel

import scrd_fast
from scrd_fast.errors import DataError
from scrd_fast.spec import PLANES, DecodingRule
from tests.support.heads import ORIENTATIONS, read_head

LESION = np.array([30.0, -22.0, 40.0])  # mm: right, back, up


@pytest.fixture(scope="module")
def head():
    """The MNI152 template at 3 mm, a lesion in it: voxels (X, Y, Z) and affine."""
    voxels, affine = read_head()
    at = tuple(np.rint(np.linalg.inv(affine) @ [*LESION, 1]).astype(int)[:3])
    voxels[at] = 2 * voxels.max()
    return voxels, affine


def turned(voxels, affine, orientation):
    """The same volume, stored with other axes: voxels and affine."""
    found = nibabel.Nifti1Image(voxels, affine).as_reoriented(orientation)
    return np.asarray(found.dataobj), found.affine


def save(path, voxels, affine, kind=nibabel.Nifti1Image, **codes):
    image = kind(voxels, affine)
    image.header["sform_code"], image.header["qform_code"] = (
        codes.get("sform", 1), codes.get("qform", 1))
    image.to_filename(path)
    return path


def read(path, rule=None):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return scrd_fast.read_images(path, rule)


def brightest(images):
    """Where the brightest pixel lies in the patient."""
    image = max(images, key=lambda image: image.pixels.max())
    row, column = np.unravel_index(image.pixels.argmax(), image.pixels.shape)
    return (image.geometry @ [row, column, 0, 1])[:3]


@pytest.mark.parametrize("number", range(48))
def test_a_lesion_in_all_orientations(head, tmp_path, number):
    voxels, affine = head
    # Tilted as well, so that no axis is the world's.
    tilt = np.eye(4)
    tilt[:3, :3] = [[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]]
    path = save(tmp_path / "a.nii", *turned(voxels, tilt @ affine, ORIENTATIONS[number]))
    plane = PLANES[number % 3]
    images = read(path, DecodingRule("percentile", percentiles=(1.0, 100.0), plane=plane))
    place = (tilt @ [*LESION, 1])[:3]
    assert np.linalg.norm(brightest(images) - place) <= 3 * np.sqrt(3) / 2 + 1e-3
    reference = read(save(tmp_path / "b.nii", voxels, tilt @ affine),
                     DecodingRule("percentile", percentiles=(1.0, 100.0), plane=plane))
    assert len(images) == len(reference)
    for image, other in zip(images, reference, strict=True):
        np.testing.assert_array_equal(image.pixels, other.pixels)
        np.testing.assert_allclose(image.geometry, other.geometry, atol=1e-3)


@pytest.mark.parametrize(("plane", "column", "row", "through"), [
    ("axial", [-1, 0, 0], [0, -1, 0], [0, 0, 1]),      # to the left, to the back, to the head
    ("coronal", [-1, 0, 0], [0, 0, -1], [0, 1, 0]),    # to the left, to the feet, to the front
    ("sagittal", [0, -1, 0], [0, 0, -1], [1, 0, 0])])  # to the back, to the feet, to the right
def test_slices_as_they_are_looked_at(tmp_path, plane, column, row, through):
    voxels = np.arange(1, 4 * 5 * 6 + 1, dtype=np.int16).reshape(4, 5, 6)
    affine = np.diag([2.0, 3, 4, 1])
    path = save(tmp_path / "a.nii", voxels, affine)
    rule = DecodingRule("window", (0.0, 200.0), plane=plane)
    images = read(path, rule)
    for image in images:
        assert image.pixels.dtype == np.float32
        for (i, j), value in np.ndenumerate(image.pixels):
            x, y, z = np.rint(np.linalg.inv(affine) @ image.geometry @ [i, j, 0, 1])[:3].astype(int)
            assert value == pytest.approx(voxels[x, y, z] / 200, abs=1e-6)
    spacing = np.array([2, 3, 4])
    np.testing.assert_allclose(images[0].geometry[:3, 1], column * spacing)
    np.testing.assert_allclose(images[0].geometry[:3, 0], row * spacing)
    np.testing.assert_allclose(images[0].geometry[:3, 2], through * spacing)
    assert [image.source.frame for image in images] == list(range(len(images)))


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("flip", [1, -1])
def test_a_range_is_those_of_all(head, tmp_path, plane, flip):
    turns = np.column_stack([[2, 0, 1], [flip] * 3])
    path = save(tmp_path / "a.nii.gz", *turned(*head, turns))
    everything = read(path, DecodingRule(plane=plane))
    some = read(path, DecodingRule(plane=plane, slices=(10, 13)))
    assert [image.source.frame for image in some] == [10, 11, 12]
    for image, other in zip(some, everything[10:13], strict=True):
        np.testing.assert_array_equal(image.pixels, other.pixels)
        np.testing.assert_array_equal(image.geometry, other.geometry)
    with pytest.raises(DataError, match=f"expected at least 1000 {plane} slices"):
        read(path, DecodingRule(plane=plane, slices=(0, 1000)))


def test_a_range_is_read_alone(tmp_path, monkeypatch):
    read_parts = []
    from scrd_fast.data.decode import nifti

    plain = nifti._read
    monkeypatch.setattr(nifti, "_read", lambda image, part, volume: (
        read_parts.append(part) or plain(image, part, volume)))
    path = save(tmp_path / "a.nii", np.ones((9, 8, 7), np.int16), np.eye(4))
    read(path, DecodingRule("window", (0.0, 2.0), slices=(2, 4)))
    assert read_parts == [[slice(None), slice(None), slice(2, 4)]]


def test_percentiles_of_what_is_not_zero(tmp_path):
    rng = np.random.default_rng(3)
    voxels = rng.integers(100, 1000, (10, 11, 12)).astype(np.int16)
    voxels[:6] = 0
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    image = nibabel.Nifti1Image.from_bytes(image.to_bytes())
    raw = np.asarray(image.dataobj.get_unscaled())
    assert raw.min() == 0
    image.to_filename(tmp_path / "a.nii")
    values = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj)
    low, high = np.percentile(values[values != 0], [2, 98])
    images = read(tmp_path / "a.nii", DecodingRule("percentile", percentiles=(2.0, 98.0)))
    got = np.stack([each.pixels[::-1, ::-1].T for each in images], -1)
    np.testing.assert_allclose(got, np.clip((values - low) / (high - low), 0, 1), atol=1e-6)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<i4", "<f4", ">f8", "u8"])
def test_kinds_of_files_and_voxels_whatever_the_name(tmp_path, kind, packed, dtype):
    voxels = np.arange(60, dtype=dtype).reshape(3, 4, 5)
    header = kind.header_class(endianness=dtype[0] if dtype[0] in "<>" else "<")
    image = kind(voxels, np.eye(4), header, dtype=np.dtype(dtype))
    data = image.to_bytes()
    (tmp_path / "a.dcm").write_bytes(gzip.compress(data) if packed else data)
    images = read(tmp_path / "a.dcm", DecodingRule("window", (0.0, 60.0)))
    got = np.stack([each.pixels[::-1, ::-1].T for each in images], -1)
    np.testing.assert_allclose(got, voxels.astype(float) / 60, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 2, 1), (5, 6, 2, 1, 1)])
def test_one_volume_of_any_dimensions(tmp_path, shape):
    voxels = np.arange(1, np.prod(shape) + 1, dtype=np.int16).reshape(shape)
    images = read(save(tmp_path / "a.nii", voxels, np.eye(4)))
    assert len(images) == (shape[2] if len(shape) > 2 else 1)
    assert images[0].pixels.shape == (6, 5)


# --- what the header says of the place --------------------------------------------------------

def with_forms(path, sform, qform, sform_code=1, qform_code=1):
    image = nibabel.Nifti1Image(np.arange(1, 1001, dtype=np.int16).reshape(10, 10, 10), np.eye(4))
    image.set_sform(sform, sform_code)
    image.set_qform(qform, qform_code)
    image.to_filename(path)
    return path


def test_the_sform_counts_and_a_difference_warns(tmp_path):
    sform, qform = np.diag([2.0, 2, 2, 1]), np.diag([2.0, 2, 2, 1])
    qform[0, 3] = 5
    path = with_forms(tmp_path / "a.nii", sform, qform, sform_code=4)
    with pytest.warns(UserWarning, match=re.escape(str(path)) + (
            r": its sform \(code 4\) and qform \(code 1\) are up to 5 mm apart; the sform is used")
            ) as told:
        images = scrd_fast.read_images(path)
    assert told[0].filename == __file__  # the caller's line
    np.testing.assert_allclose(images[0].geometry[:3, 3], [18, 18, 0])
    qform[0, 3] = 0.1  # a twentieth of a voxel
    read(with_forms(path, sform, qform))


def test_one_form_alone(tmp_path):
    affine = np.diag([-1.5, 2, 3, 1])
    for codes in ((1, 0), (0, 1)):
        images = read(with_forms(tmp_path / "a.nii", affine, affine, *codes))
        np.testing.assert_allclose(images[0].geometry[:3, 2], [0, 0, 3], atol=1e-6)
    path = with_forms(tmp_path / "a.nii", affine, affine, 0, 0)
    with pytest.warns(UserWarning, match="neither sform nor qform"):
        images = scrd_fast.read_images(path)
    assert images[0].geometry is None


# --- refused ------------------------------------------------------------------------------------

def refused(path, reason, rule=None):
    with pytest.raises(DataError) as caught:
        read(path, rule)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert re.search(reason, message), message


@pytest.mark.parametrize(("voxels", "reason"), [
    (np.ones((4, 4, 4, 2), np.int16), "expected one volume, got a series: 4 x 4 x 4 x 2"),
    (np.ones((4, 4, 4), np.complex64), "one real number"),
    (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "one real number"),
    (np.where(np.arange(64).reshape(4, 4, 4) == 9, np.nan, 1).astype("f4"), "NaN or infinity"),
    (np.where(np.arange(64).reshape(4, 4, 4) == 9, np.inf, 1).astype("f8"), "NaN or infinity"),
    (np.zeros((4, 4, 4), np.int16), "voxels other than 0 .* got none"),
    (np.ones((4, 4, 4), np.int16), "both 1"),
])
def test_voxels(tmp_path, voxels, reason):
    path = tmp_path / "a.nii"
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(path)
    refused(path, reason)


def header_of(shape, dtype="<i2"):
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header["magic"], header["vox_offset"], header["sform_code"] = b"n+1", 352, 1
    header["srow_x"], header["srow_y"], header["srow_z"] = np.eye(4)[:3]
    return header.binaryblock + bytes(4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(("shape", "reason"), [
    ((30000, 30000, 2), "100 megapixels"), ((9000, 9000, 9000), r"2\^30 pixels"),
    ((300, 300, 300), "cut, or its header lies"), ((0, 4, 4), "at least one pixel")])
def test_sizes_that_lie(tmp_path, pack, shape, reason):
    (tmp_path / "a").write_bytes(pack(header_of(shape) + bytes(300)))
    refused(tmp_path / "a", reason)


def test_cut_and_damaged(tmp_path, head):
    rng = np.random.default_rng(5)
    voxels = rng.integers(1, 2000, (20, 20, 20)).astype(np.int16)
    whole = save(tmp_path / "a.nii", voxels, np.eye(4)).read_bytes()
    packed = gzip.compress(whole)
    for share in (0.2, 0.5, 0.99):
        for data in (whole, packed):
            (tmp_path / "b").write_bytes(data[:int(len(data) * share)])
            refused(tmp_path / "b", "cut")
    for at in (len(packed) // 2, len(packed) - 6):  # the checksum is the last
        data = bytearray(packed)
        data[at] ^= 255
        (tmp_path / "b").write_bytes(data)
        refused(tmp_path / "b", "cut or damaged")
    singular = np.eye(4)
    singular[2, 2] = 0
    image = nibabel.Nifti1Image(voxels, None)
    image.set_sform(singular, 1)
    image.to_filename(tmp_path / "c.nii")
    refused(tmp_path / "c.nii", "singular")


def test_a_pair(tmp_path):
    nibabel.Nifti1Pair(np.ones((3, 3, 3), np.int16), np.eye(4)).to_filename(tmp_path / "a.hdr")
    refused(tmp_path / "a.hdr", "a pair of files")


def test_nibabel_is_silent(tmp_path, capfd):
    """Its logger prints what it mends in a header."""
    data = bytearray(header_of((3, 3, 3)) + np.arange(1, 28, dtype="<i2").tobytes())
    data[76:80] = np.float32(-3).tobytes()  # pixdim[0], which is 1 or -1
    data[84:88] = np.float32(0).tobytes()
    (tmp_path / "a.nii").write_bytes(data)
    level = logging.getLogger("nibabel.global").level
    read(tmp_path / "a.nii")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("nibabel.global").level == level
