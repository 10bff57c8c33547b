"""DICOM series, NIfTI volumes and TIFF pages through an engine: each image's own score, the same
whichever way it comes, and by the engine's own rule."""

import threading
import warnings
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("pydicom", reason="pydicom reads DICOM")
pytest.importorskip("nibabel", reason="nibabel reads NIfTI")

import nibabel

import scrd_fast
from scrd_fast.data.dataset import ImageSet
from scrd_fast.engine.engine_file import read_engine_file, write_engine_file
from scrd_fast.engine.stream import BATCH
from scrd_fast.errors import InputError
from scrd_fast.ops.preprocess import preprocess
from scrd_fast.spec import DecodingRule, ScoringSpec
from tests.data.decode.dicom_by_hand import dicom, enhanced, save
from tests.support.models import organs, pictures

WINDOW = {"WindowCenter": 600, "WindowWidth": 1200}
RULES = {"voi": DecodingRule(), "window": DecodingRule("window", (100.0, 900.0)),
         "percentile": DecodingRule("percentile")}
# Multiples of 5, so that 20 % more are whole numbers, too: what a scanner's gain does.
BODY = 5 * organs(11, 72).astype(np.int16)


@pytest.fixture(scope="module")
def engines(small_file, tmp_path_factory):
    """An engine for each way to scale intensities, which the network knows nothing of."""
    folder = tmp_path_factory.mktemp("engines")
    manifest, members = read_engine_file(small_file)
    for name in ("window", "percentile"):
        spec = replace(manifest.spec, decoding=RULES[name])
        write_engine_file(folder / f"{name}.scrd", replace(manifest, spec=spec), members)
    paths = {name: folder / f"{name}.scrd" for name in RULES} | {"voi": small_file}
    opened = {name: scrd_fast.load_engine(path) for name, path in paths.items()}
    yield opened
    for engine in opened.values():
        engine.close()


def write_frames(path):
    """A multi-frame object whose frames have their own place and window."""
    return save(enhanced(BODY, [1.0 + i / 10 for i in range(11)], [(600 + i, 1200)
                                                                  for i in range(11)],
                         [[0, 0, 3 * i] for i in range(11)]), path)


def write_series(folder, stored=BODY, **elements):
    """A file for each slice, named the other way round than they lie."""
    folder.mkdir(exist_ok=True)
    shared = {"SeriesInstanceUID": "1.2.3", "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
              "PixelSpacing": [1, 1], **WINDOW} | elements
    return [save(dicom(each, ImagePositionPatient=[0, 0, -i], InstanceNumber=i, **shared),
                 folder / f"{i:02d}.dcm") for i, each in enumerate(stored)]


def write_volume(path, voxels=BODY):
    nibabel.Nifti1Image(voxels.transpose(2, 1, 0), np.diag([-1, -1, 2, 1.0])).to_filename(path)
    return path


def write_pages(path):
    assert cv2.imwritemulti(str(path), list(pictures(5, 70)[..., 0].astype(np.uint16) * 257))
    return path


def score_one_by_one(engine, paths):
    return [item.score for item in engine.stream(paths, maps=False)]


# --- each image its own score --------------------------------------------------------------

@pytest.mark.parametrize("intensity", RULES)
def test_every_image_of_every_file_has_its_own_score(engines, tmp_path, intensity):
    engine, rule = engines[intensity], RULES[intensity]
    assert engine.spec.decoding == rule
    paths = [write_frames(tmp_path / "frames"), *write_series(tmp_path / "series"),
             write_volume(tmp_path / "volume.nii.gz")]
    images = scrd_fast.read_images(paths, rule)
    assert len(images) == 33 > 4 * BATCH
    whole = engine.score([image.pixels for image in images])
    items = list(engine.stream(paths))
    result = engine.score(paths)
    for scores in ([item.score for item in items], result.scores):
        np.testing.assert_array_equal(scores, whole.scores)
    for maps in ([item.map for item in items], result.maps):
        np.testing.assert_array_equal(maps, whole.maps)
    np.testing.assert_array_equal(result.scale_weights, whole.scale_weights)
    assert result.errors == {}
    assert [item.index for item in items] == list(range(33))
    sources = [image.source for image in images]
    assert result.sources == sources == [item.source for item in items]
    assert [source.frame for source in sources] == [*range(11), *[None] * 11, *range(11)]
    assert len({float(score) for score in whole.scores}) == (33 if intensity == "voi" else 22)
    if intensity != "voi":  # which windows the series, and scales the volume by percentiles
        np.testing.assert_array_equal(whole.scores[11:22], whole.scores[22:])
    for item, image in zip(items, images, strict=True):
        np.testing.assert_array_equal(item.image, image.pixels)
        np.testing.assert_array_equal(item.geometry, image.geometry)
        assert item.path == image.source.path


def test_the_pages_of_a_tiff(engines, tmp_path):
    """Between files of one picture, with more images than files."""
    one = tmp_path / "one.png"
    cv2.imwrite(str(one), pictures(1, 70, seed=4)[0])
    paths = [one, write_pages(tmp_path / "pages.tif"), one]
    engine = engines["voi"]
    images = scrd_fast.read_images(paths)
    result, items = engine.score(paths), list(engine.stream(paths))
    assert [(source.path, source.frame) for source in result.sources] == [
        (one, None), *((paths[1], page) for page in range(5)), (one, None)]
    np.testing.assert_array_equal(result.scores, [item.score for item in items])
    np.testing.assert_array_equal(result.maps, np.stack([item.map for item in items]))
    np.testing.assert_array_equal(result.scores, engine.score([i.image for i in items]).scores)
    np.testing.assert_allclose(
        result.scores, engine.score([image.pixels for image in images]).scores, rtol=1e-5)
    assert result.maps.shape == (7, 64, 64)
    assert all(item.geometry is None for item in items)
    assert items[1].image.dtype == np.uint16
    assert engine.score(paths, maps=False).maps is None


@pytest.mark.slow
def test_bad_files_among_files_of_several_images(engines, tmp_path):
    series = write_series(tmp_path / "series")
    series[4].write_bytes(series[4].read_bytes()[:-99])
    volume, empty = write_volume(tmp_path / "volume.nii"), tmp_path / "empty.dcm"
    empty.write_bytes(b"")
    for name in ("voi", "percentile"):
        result = engines[name].score([volume, empty, *series])
        assert [*result.errors] == [11, 16]
        assert result.errors[11] == f"{empty}: expected a DICOM, NIfTI, PNG, JPEG, TIFF or BMP" \
                                    " file, got no byte"
        assert result.errors[16].startswith(f"{series[4]}: cut, or its header lies")
        assert [source.path for source in result.sources] == [*[volume] * 11, empty, *series]
        assert np.flatnonzero(np.isnan(result.scores)).tolist() == [11, 16]
        good = engines[name].score([volume, *series[:4], *series[5:]])
        np.testing.assert_array_equal(np.delete(result.scores, [11, 16]), good.scores)
        np.testing.assert_array_equal(np.delete(result.maps, [11, 16], axis=0), good.maps)


def test_remarks_are_warnings_at_the_callers_line(engines, tmp_path):
    series = write_series(tmp_path / "series", WindowCenter=None, WindowWidth=None)
    engine = engines["voi"]
    for score in (engine.score, lambda paths: [item.score for item in engine.stream(paths)]):
        with pytest.warns(UserWarning, match="and 10 more name no window: scaled by") as caught:
            score(series)
        assert [each.filename for each in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engines["percentile"].score(series)


def test_a_stream_that_is_left_leaves_no_thread(engines, tmp_path):
    """Whether its user goes away or its images are bad; the engine scores on."""
    series, engine = write_series(tmp_path / "series"), engines["percentile"]
    before = threading.active_count()
    stream = engine.stream(series)
    assert next(stream).error is None
    del stream
    assert threading.active_count() == before
    with pytest.raises(InputError, match=r"^images: expected|^images\[\d+\]: expected"):
        list(engine.stream([np.zeros((3, 3, 2), np.uint8)] * 8 + series))
    assert len(score_one_by_one(engine, series)) == 11
    assert threading.active_count() == before


# --- by the engine's own rule ------------------------------------------------------------------

def test_the_rule_decides(engines, tmp_path):
    series = write_series(tmp_path / "series")
    scores = {name: engine.score(series).scores for name, engine in engines.items()}
    for one, other in pairwise([*scores.values(), scores["voi"]]):
        assert np.abs(one / other - 1).min() > 1e-5
        assert np.abs(one / other - 1).max() > 1e-3
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), pictures(1, 70)[0])
    assert engines["window"].score([picture]).errors[0].endswith("got a picture")
    np.testing.assert_array_equal(engines["percentile"].score([picture]).scores,
                                  engines["voi"].score([picture]).scores)


@pytest.mark.parametrize("write", [
    lambda path, stored: write_series(path, stored), lambda path, stored: [
        write_volume(path.with_suffix(".nii"), stored)]], ids=["DICOM", "NIfTI"])
def test_a_series_that_is_brighter(engines, tmp_path, write):
    """By a fifth and a constant: percentiles take that out, a fixed window cannot."""
    brighter = (BODY * 6 // 5 + 35).astype(np.int16)
    np.testing.assert_array_equal(brighter, np.float64(BODY) * 1.2 + 35)
    # Zero is no voxel of a NIfTI volume: neither has one.
    files = write(tmp_path / "a", BODY + np.int16(5)), write(tmp_path / "b", brighter + np.int16(6))
    change = {name: np.abs(np.divide(*(engines[name].score(each).scores for each in files)) - 1)
              for name in ("window", "percentile")}
    assert change["percentile"].max() < 1e-4
    assert change["window"].min() > 1e-3


@pytest.mark.parametrize("intensity", ["voi", "percentile"])
def test_where_zero_is_white(engines, tmp_path, intensity):
    stored = BODY.astype(np.uint16)
    shared = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}
    one = write_series(tmp_path / "1", stored, PhotometricInterpretation="MONOCHROME1", **shared)
    two = write_series(tmp_path / "2", 4095 - stored, **shared)
    engine = engines[intensity]
    np.testing.assert_allclose(engine.score(one).scores, engine.score(two).scores, rtol=1e-5)
    same = write_series(tmp_path / "3", stored, **shared)
    assert np.abs(engine.score(one).scores / engine.score(same).scores - 1).max() > 1e-3


# --- all levels arrive -------------------------------------------------------------------------

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


@pytest.mark.parametrize("intensity", RULES)
@pytest.mark.parametrize("kind", ["DICOM", "NIfTI"])
def test_a_12_bit_ramp_keeps_its_levels_up_to_the_network(tmp_path, intensity, kind):
    rule = replace(RULES[intensity], window=(0.0, 4095.0) if intensity == "window" else None)
    path = tmp_path / "a.nii"
    if kind == "DICOM":
        save(dicom(RAMP, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096), path)
    else:
        write_volume(path, RAMP[None].astype(np.int16))
    (image,) = scrd_fast.read_images(path, rule)
    spec = ScoringSpec(input_size=64, decoding=rule)
    least = 4096 if intensity == "window" or (intensity, kind) == ("voi", "DICOM") else 4050
    implementations = ["native", "reference"]
    inputs = {impl: preprocess([image.pixels], spec, impl=impl) for impl in implementations}
    if torch.cuda.is_available():
        pixels = torch.from_numpy(image.pixels).cuda()
        inputs["triton"] = preprocess([pixels], spec, impl="triton").cpu()
    for found in inputs.values():
        assert all(len(channel.unique()) >= least for channel in found[0])
    images = ImageSet([path], spec=spec)
    images.check()
    pixels = images.pixels(np.array([0]), spec)
    assert all(len(channel.unique()) >= least for channel in pixels[0])
    # At another size, too, where neighbours are averaged.
    small = replace(spec, input_size=32)
    assert len(preprocess([image.pixels], small)[0, 0].unique()) > 900
