"""Maps as files: what a map says of a place is found at that place in the file."""

import gzip
import os
import re
import sys
import warnings
from dataclasses import replace

import cv2
import numpy as np
import pytest

pytest.importorskip("nibabel", reason="nibabel reads and writes NIfTI")
pytest.importorskip("pydicom", reason="pydicom reads DICOM")

import nibabel

import scrd_fast
from scrd_fast.errors import DataError, InputError, MissingExtra, OutputError
from scrd_fast.outputs.maps import FORMATS, write_maps
from scrd_fast.spec import PLANES
from tests.data.decode.dicom_by_hand import enhanced, save
from tests.outputs.maps_by_hand import (
    AFFINE,
    DIRECTIONS,
    ORIENTATIONS,
    SHAPE,
    SIDE,
    brightness,
    read,
    save_volume,
    scored,
    world_of,
    world_x_and_z,
    write_series,
)


def assert_says_where_it_is(written, scored_voxels=slice(None)):
    """nibabel's coordinates of each voxel are what the map says of them, to 0.01 mm."""
    expected = world_of(written.affine, written.shape) @ [1, 0, 1000]
    got = np.asarray(written.dataobj)
    np.testing.assert_allclose(got[scored_voxels], expected[scored_voxels], atol=10 * 0.01)
    return got


PLACE = ["sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "quatern_b", "quatern_c",
         "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"]


def assert_same_grid(written, source):
    assert type(written) is type(source)
    assert written.shape == source.shape[:3]
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(written.affine, source.affine)
    for name in PLACE:
        np.testing.assert_array_equal(written.header[name], source.header[name], err_msg=name)
    np.testing.assert_array_equal(written.header["pixdim"][:4], source.header["pixdim"][:4])


# --- NIfTI of NIfTI ---------------------------------------------------------------------------

@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("number", range(48))
def test_a_place_in_all_orientations(tmp_path, number, plane):
    lesion = (9, 5, 3)
    path = save_volume(tmp_path / "a.nii", orientation=ORIENTATIONS[number], lesion=lesion)
    images = read(path, plane=plane)
    written = nibabel.load(write_maps(scored(images, world_x_and_z), tmp_path, "a", "nifti"))
    assert_same_grid(written, nibabel.load(path))
    assert_says_where_it_is(written)

    bright = nibabel.load(write_maps(scored(images, brightness), tmp_path, "b", "nifti"))
    peak = np.unravel_index(np.asarray(bright.dataobj).argmax(), bright.shape)
    np.testing.assert_allclose((bright.affine @ [*peak, 1])[:3], (AFFINE @ [*lesion, 1])[:3],
                               atol=1e-4)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("flip", [1, -1])
def test_slices_that_were_not_scored_are_nan(tmp_path, plane, flip):
    path = save_volume(tmp_path / "a.nii.gz", orientation=np.column_stack([[2, 0, 1], [flip] * 3]))
    items = scored(read(path, plane=plane, slices=(3, 7)), world_x_and_z)
    written = nibabel.load(write_maps(items, tmp_path, "a", "nifti"))
    assert_same_grid(written, nibabel.load(path))
    known = np.isfinite(np.asarray(written.dataobj))
    assert_says_where_it_is(written, known)
    through = PLANES[::-1].index(plane)  # sagittal slices go through axis 0 of canonical voxels
    canonical = nibabel.as_closest_canonical(written)
    assert np.flatnonzero(np.isfinite(canonical.get_fdata()).all(
        axis=tuple({0, 1, 2} - {through}))).tolist() == [3, 4, 5, 6]
    assert known.sum() == 4 * np.prod(SHAPE) / SHAPE[through]


def test_a_slice_that_failed_is_nan(tmp_path):
    items = scored(read(save_volume(tmp_path / "a.nii")), world_x_and_z)
    items[2] = replace(items[2], map=np.full((SIDE, SIDE), np.nan, np.float32), error="a reason")
    values = nibabel.load(write_maps(items, tmp_path, "a", "nifti")).get_fdata()
    assert np.flatnonzero(np.isnan(values).any(axis=(0, 1))).tolist() == [2]
    assert np.isnan(values[..., 2]).all()


@pytest.mark.parametrize(("shape", "rule"), [
    ((5, 6), {}), ((5, 6, 1), {}), ((5, 6, 2, 1, 1), {}), ((7, 9, 5, 3), {"volume": 1}),
    ((7, 9, 5, 3), {"volume": 2, "plane": "coronal", "slices": (1, 8)}),
    ((1, 9, 5), {"plane": "sagittal"}), ((1, 9, 5), {})])
def test_all_dimensions(tmp_path, shape, rule):
    path = tmp_path / "a.nii"
    image = nibabel.Nifti1Image(np.arange(1, np.prod(shape) + 1, dtype=np.int16).reshape(shape),
                                AFFINE)
    image.header["pixdim"][3] = 2.5  # which says nothing where there are two dimensions
    image.to_filename(path)
    written = nibabel.load(write_maps(scored(read(path, **rule), world_x_and_z), tmp_path, "a",
                                      "nifti"))
    assert_same_grid(written, nibabel.load(path))
    values = np.asarray(written.dataobj)
    volume = nibabel.Nifti1Image(values.reshape((*values.shape, 1, 1)[:3]), written.affine)
    assert_says_where_it_is(volume, np.isfinite(np.asarray(volume.dataobj)))
    assert np.isfinite(values).any()


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_kinds_of_files_whatever_the_name(tmp_path, kind, order, pack):
    voxels = np.random.default_rng(1).integers(1, 900, SHAPE).astype(f"{order}i2")
    image = kind(voxels, AFFINE, kind.header_class(endianness=order))
    image.header.set_slope_inter(0.5, 7)
    path = tmp_path / "a.dcm"
    path.write_bytes(pack(image.to_bytes()))
    written = nibabel.load(write_maps(scored(read(path), world_x_and_z), tmp_path, "a", "nifti"))
    assert_same_grid(written, kind.from_bytes(image.to_bytes()))
    assert_says_where_it_is(written)


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (4, 1), (2, 3)])
def test_both_forms_stay(tmp_path, sform, qform):
    """Also where they differ, and where the qform is damaged."""
    image = nibabel.Nifti1Image(np.ones(SHAPE, np.int16), None)
    image.set_sform(AFFINE, sform)
    image.set_qform(np.diag([-1.5, 2, 3, 1]), qform)
    if sform == 4:
        image.header["quatern_b"] = 3
    image.to_filename(tmp_path / "a.nii")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        items = scored(read(tmp_path / "a.nii"), world_x_and_z)
    written = nibabel.load(write_maps(items, tmp_path, "a", "nifti"))
    assert_same_grid(written, nibabel.load(tmp_path / "a.nii"))
    assert_says_where_it_is(written)


def test_small_maps_of_large_slices(tmp_path):
    """Between the centres of the outermost pixels of the map it is linear."""
    shape = (90, 70, 3)
    path = save_volume(tmp_path / "a.nii", shape=shape)
    written = nibabel.load(write_maps(scored(read(path), world_x_and_z), tmp_path, "a", "nifti"))
    assert_says_where_it_is(written, np.s_[2:-2, 2:-2])


@pytest.mark.slow
def test_what_an_engine_gives(tmp_path, small_file):
    path = save_volume(tmp_path / "a.nii", orientation=ORIENTATIONS[29], shape=(40, 50, 30))
    with scrd_fast.load_engine(small_file) as engine:
        items = list(engine.stream([path], maps=True))
    written = nibabel.load(write_maps(items, tmp_path, "a", "nifti"))
    assert_same_grid(written, nibabel.load(path))
    got = nibabel.as_closest_canonical(written).get_fdata()
    for k, item in enumerate(items):
        shown = cv2.resize(item.map, item.image.shape[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(got[::-1, ::-1, k].T, shown)
    assert np.isfinite(got).all()
    for kind in ("npz", "tiff"):
        assert write_maps(items, tmp_path, "a", kind).stat().st_size > 30 * items[0].map.nbytes


def test_nothing_of_the_source_but_its_grid_is_written(tmp_path):
    image = nibabel.Nifti1Image(np.ones(SHAPE, np.int16), AFFINE)
    image.header["descrip"] = b"Zebedeus"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"Ypsilanti"))
    image.to_filename(tmp_path / "a.nii")
    path = write_maps(scored(read(tmp_path / "a.nii"), world_x_and_z), tmp_path, "b", "nifti")
    content = gzip.decompress(path.read_bytes())
    assert b"Zebedeus" not in content
    assert b"Ypsilanti" not in content
    assert path.read_bytes()[3:8] == bytes(5)  # neither a name nor a time: they would differ


def test_a_source_that_changed(tmp_path):
    path = save_volume(tmp_path / "a.nii")
    items = scored(read(path), world_x_and_z)
    half = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    shifted, moved = AFFINE.copy(), AFFINE.copy()
    shifted[0, 3] += 1
    moved[:, 3] += AFFINE[:, 2]  # by one slice
    flat = AFFINE * [1, 1, 0, 1]
    for affine, shape in ((AFFINE, (13, 17, 9)), (AFFINE, (13, 18, 12)), (AFFINE, (12, 17, 11)),
                          (half, (26, 34, 22)), (shifted, SHAPE), (moved, SHAPE),
                          (flat, SHAPE)):
        image = nibabel.Nifti1Image(np.ones(shape, np.int16), None)
        image.set_sform(affine, 1)
        image.to_filename(path)
        with pytest.raises(DataError, match=rf"^{path}: expected the volume that was scored, got"
                                            rf" another one of {shape[0]} x {shape[1]} x"):
            write_maps(items, tmp_path, "b", "nifti")
    content = path.read_bytes()
    wrong = bytearray(content)
    wrong[70:72] = b"\xff\xff"  # a kind of voxels that does not exist
    for damaged, reason in ((gzip.compress(content)[:60], "expected DICOM or NIfTI"), (
            b"", "expected DICOM or NIfTI"), (wrong, "data code -1 not recognized")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"^{path}: cannot be read again: {reason}"):
            write_maps(items, tmp_path, "b", "nifti")
    path.unlink()
    with pytest.raises(DataError, match=f"^{path}: cannot be read again: No such file"):
        write_maps(items, tmp_path, "b", "nifti")
    assert list(tmp_path.iterdir()) == []


# --- NIfTI of DICOM ---------------------------------------------------------------------------


@pytest.mark.parametrize("plane", DIRECTIONS)
@pytest.mark.parametrize("heights", [[0, 3, 6, 9], [9, 6, 3, 0], [0]])
def test_slices_of_a_series(tmp_path, plane, heights):
    folder = write_series(tmp_path / "a", heights, plane)
    items = scored(read(sorted(folder.iterdir())), world_x_and_z)
    written = nibabel.load(write_maps(items, tmp_path, "a", "nifti"))
    assert written.shape == (23, 19, len(heights))
    assert_says_where_it_is(written)
    np.testing.assert_allclose(nibabel.affines.voxel_sizes(written.affine),
                               [0.9, 0.7, 3 if len(heights) > 1 else 5], atol=1e-5)
    assert (written.header["sform_code"], written.header["qform_code"]) == (1, 1)
    np.testing.assert_allclose(written.get_qform(), written.affine, atol=1e-4)
    assert written.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("plane", DIRECTIONS)
def test_the_brightest_pixel_of_a_series(tmp_path, plane):
    folder = write_series(tmp_path / "a", [0, 3, 6, 9], plane)
    images = read(folder)
    images[2].pixels[4, 15] = 5
    written = nibabel.load(write_maps(scored(images, brightness), tmp_path, "a", "nifti"))
    peak = np.unravel_index(np.asarray(written.dataobj).argmax(), written.shape)
    place = (images[2].geometry @ [4, 15, 0, 1])[:3]
    np.testing.assert_allclose((written.affine @ [*peak, 1])[:3], place, atol=1e-4)


def test_a_tilted_gantry(tmp_path):
    folder = write_series(tmp_path / "a", [0, 3, 6], shift=(0, 0.2, 0))
    with pytest.warns(UserWarning, match="the gantry was tilted"):
        items = scored(read(folder), world_x_and_z)
    written = nibabel.load(write_maps(items, tmp_path, "a", "nifti"))
    assert_says_where_it_is(written)
    assert (written.header["sform_code"], written.header["qform_code"]) == (1, 0)


def test_frames_of_one_file(tmp_path):
    frames = np.random.default_rng(3).integers(1, 900, (3, 8, 10)).astype(np.uint16)
    save(enhanced(frames, [1, 1, 1], [(400, 800)] * 3, [[1, 2, z] for z in (4, 0, 2)]),
         tmp_path / "a")
    written = nibabel.load(write_maps(scored(read(tmp_path / "a"), world_x_and_z), tmp_path, "a",
                                      "nifti"))
    assert written.shape == (10, 8, 3)
    assert_says_where_it_is(written)


def test_places_are_rounded(tmp_path):
    """By less than a tenth of a voxel."""
    folder = write_series(tmp_path / "a", [0, 3.05, 6, 8.95])
    items = scored(read(folder), brightness)
    written = nibabel.load(write_maps(items, tmp_path, "a", "nifti"))
    np.testing.assert_allclose(written.affine[:3, 2], [0, 0, 8.95 / 3], atol=1e-6)


def test_slices_too_long_for_nifti_1(tmp_path):
    folder = write_series(tmp_path / "a", [0, 3], size=(2, 33000))
    written = nibabel.load(write_maps(scored(read(folder), brightness), tmp_path, "a", "nifti"))
    assert (type(written), written.shape) == (nibabel.Nifti2Image, (33000, 2, 2))


@pytest.mark.parametrize(("heights", "reason"), [
    ([0, 3, 6, 12], r"03: .* evenly spaced, each \(0, 0, 3\) mm from the one before, got"
                    r" \(0, 0, 6\) mm from \S+02; choose npz or tiff"),
    ([0, 3, 3, 6], r"02: .* got \(0, 0, 0\) mm from \S+01"),
    ([0, 0], r"01: .* each \(0, 0, 0\) mm from the one before"),
    ([0, 3, 7], r"evenly spaced")])
def test_uneven_slices(tmp_path, heights, reason):
    items = scored(read(sorted(write_series(tmp_path / "a", heights).iterdir())), world_x_and_z)
    with pytest.raises(DataError, match=reason):
        write_maps(items, tmp_path, "a", "nifti")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("elements", "reason"), [
    ({"ImagePositionPatient": [6, -70, 18]}, r"got \(-1, 0, 3\) mm"),  # the others lie at x = -5
    ({"ImageOrientationPatient": [1, 0, 0, 0, 0.99619, 0.08716]}, "03: expected .* parallel"),
    ({"PixelSpacing": [0.8, 0.9]}, "03: expected .* of one pixel spacing"),
    ({"size": (19, 22)}, r"03: expected slices of one size, got 19 x 22 .* and 19 x 23 of \S+00$"),
    ({"ImagePositionPatient": None}, "03: expected a file that tells where")])
def test_a_slice_that_is_unlike_the_others(tmp_path, elements, reason):
    write_series(tmp_path / "a", [0, 3, 6])
    other = write_series(tmp_path / "b", [9], **elements) / "00"
    os.rename(other, tmp_path / "a/03")
    items = scored(read([tmp_path / f"a/0{i}" for i in range(4)]), brightness)
    with pytest.raises(DataError, match=reason) as caught:
        write_maps(items, tmp_path, "a", "nifti")
    assert not any(name in str(caught.value) for name in ("Zebedeus", "Ypsilanti", "P1"))


# --- NPZ and TIFF -----------------------------------------------------------------------------


def test_npz(tmp_path, pictures):
    for items, frames in zip(pictures, ([0, 1, 2], [-1]), strict=True):
        path = write_maps(items, tmp_path / "deep/er", "a", "npz")
        assert path == tmp_path / "deep/er/a_desc-anomaly_map.npz"
        with np.load(path, allow_pickle=False) as found:
            assert set(found) == {"maps", "scores", "frames", "geometry", "sizes", "paths"}
            assert (found["maps"].dtype, found["scores"].dtype) == (np.float32, np.float32)
            np.testing.assert_array_equal(found["maps"], [item.map for item in items])
            assert found["scores"].tolist() == [item.score for item in items]
            assert found["frames"].tolist() == frames
            assert found["geometry"].shape == (len(items), 4, 4)
            assert np.isnan(found["geometry"]).all()
            assert found["sizes"].tolist() == [[20, 30]] * len(items)
            assert found["paths"].tolist() == [str(item.path) for item in items]


def test_geometry_in_npz(tmp_path):
    items = scored(read(save_volume(tmp_path / "a.nii"), slices=(4, 6)), world_x_and_z)
    with np.load(write_maps(items, tmp_path, "a", "npz"), allow_pickle=False) as found:
        np.testing.assert_array_equal(found["geometry"], [item.geometry for item in items])
        assert found["frames"].tolist() == [4, 5]


def test_tiff(tmp_path, pictures):
    items = pictures[0]
    items[1].map[3, 4] = np.nan
    for items in pictures:
        path = write_maps(items, tmp_path, "ünd\udcff", "tiff")
        ok, pages = cv2.imdecodemulti(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        assert ok
        assert [page.dtype for page in pages] == [np.float32] * len(items)
        np.testing.assert_array_equal(pages, [item.map for item in items])


def test_pages_for_another_reader(tmp_path, pictures):
    image = pytest.importorskip("PIL.Image", reason="Pillow reads TIFF")
    with image.open(write_maps(pictures[0], tmp_path, "a", "tiff")) as file:
        assert (file.mode, file.n_frames) == ("F", 3)
        for number, item in enumerate(pictures[0]):
            file.seek(number)
            np.testing.assert_array_equal(np.array(file), item.map)


# --- bad input --------------------------------------------------------------------------------

def test_bad_items(tmp_path, pictures):
    pages, (one,) = pictures
    for items, reason in (
            ([], "^items: expected at least one, got none"),
            ([*pages, one], "^items: expected images of one file, or of one DICOM series, got thos"
                            "e of 2"),
            ([replace(one, map=None)], r"^items\[0\]: expected a map, got None"),
            ([pages[0], replace(pages[1], image=None, error="a.tif: cut")],
             r"^items\[1\]: expected an image that was read, got a\.tif: cut"),
            ([replace(one, source=None)], r"^items\[0\]: expected an image of a file")):
        for kind in FORMATS:
            with pytest.raises(InputError, match=reason):
                write_maps(items, tmp_path / "out", "a", kind)
    with pytest.raises(InputError, match=r"^kind: expected one of .*, got 'nii'"):
        write_maps(pages, tmp_path / "out", "a", "nii")
    assert not (tmp_path / "out").exists()


def test_a_series_is_no_other_series(tmp_path):
    items = scored(read(write_series(tmp_path / "a", [0, 3])), brightness)
    for kind in ("study", "series", "patient"):
        other = replace(items[1], source=replace(items[1].source, **{kind: "Betelgeuse"}))
        with pytest.raises(DataError) as error:
            write_maps([items[0], other], tmp_path, "a", "npz")
        assert str(error.value) == (
            f"{items[1].path}: expected the {kind} of {items[0].path}, got another")


def test_pictures_have_no_place(tmp_path, pictures):
    path = pictures[1][0].path
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: expected a file that tells where"
                                        " its pictures lie .* choose npz or tiff"):
        write_maps(pictures[1], tmp_path, "a", "nifti")


def test_a_volume_that_tells_no_place(tmp_path):
    image = nibabel.Nifti1Image(np.ones(SHAPE, np.int16), None)
    image.to_filename(tmp_path / "a.nii")
    with pytest.warns(UserWarning, match="neither sform nor qform"):
        items = scored(read(tmp_path / "a.nii"), brightness)
    with pytest.raises(DataError, match="expected a file that tells where"):
        write_maps(items, tmp_path, "a", "nifti")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_that_cannot_be_written(tmp_path, kind):
    items = scored(read(save_volume(tmp_path / "a.nii")), brightness)
    with pytest.raises(OutputError, match=r"a\.nii/a_desc.*: cannot be written"):
        write_maps(items, tmp_path / "a.nii", "a", kind)


def test_without_nibabel(tmp_path, monkeypatch):
    items = scored(read(save_volume(tmp_path / "a.nii")), brightness)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingExtra, match=r"^kind 'nifti' needs nibabel: .*\[medical\]"):
        write_maps(items, tmp_path, "a", "nifti")
    assert write_maps(items, tmp_path, "a", "npz").exists()
