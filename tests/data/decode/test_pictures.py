"""Pictures through the decoder of all formats: as the reader of pictures has them."""

import struct

import cv2
import numpy as np
import pytest

import scrd_fast
from scrd_fast.data.decode.pictures import read_one_picture
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule
from tests.data.pictures.by_hand import GREY, RGB, UPRIGHT, exif, jpeg, tiff
from tests.support.pictures import read_image


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3)])
@pytest.mark.parametrize("rule", [None, DecodingRule("percentile")])
def test_as_they_are(tmp_path, dtype, shape, rule):
    image = np.random.default_rng(1).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    (tmp_path / "a.png").rename(tmp_path / "a.dcm")
    (got,) = scrd_fast.read_images(tmp_path / "a.dcm", rule)
    assert got.pixels.dtype == np.float32
    expected = read_image(tmp_path / "a.dcm") / float(np.iinfo(dtype).max)
    np.testing.assert_allclose(got.pixels, expected, rtol=1e-7)
    assert got.geometry is None
    assert got.source.path == tmp_path / "a.dcm"


def test_pages_in_the_type_of_their_file(tmp_path):
    path = tmp_path / "a.tif"
    pages = [GREY, RGB.astype(np.uint16) * 200, GREY / np.float32(255)]
    path.write_bytes(tiff({0: pages[0]}, {0: pages[1]}, {0: pages[2], 339: 3}))
    got = read_one_picture(path, DecodingRule())
    assert [each.source.frame for each in got] == [0, 1, 2]
    for each, page in zip(got, pages, strict=True):
        assert each.pixels.dtype == page.dtype
        assert np.array_equal(each.pixels, page)
        assert each.source.path == path
        assert each.geometry is None
    scaled = scrd_fast.read_images(path)
    assert [each.source.frame for each in scaled] == [0, 1, 2]
    for each, page, most in zip(scaled, pages, (255, 65535, 1), strict=True):
        assert each.pixels.dtype == np.float32
        np.testing.assert_allclose(each.pixels, page / most, rtol=1e-6)
    path.write_bytes(tiff({0: GREY}))
    assert read_one_picture(path, DecodingRule())[0].source.frame is None


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_rule_says_whether_exif_turns(tmp_path, orientation):
    for name, data in (("a.jpg", jpeg(RGB, b"Exif\0\0" + exif(orientation))),
                       ("a.tif", tiff({0: RGB, 274: orientation}))):
        (tmp_path / name).write_bytes(data)
        (turned,) = scrd_fast.read_images(tmp_path / name)
        (stored,) = scrd_fast.read_images(tmp_path / name, DecodingRule(exif=False))
        assert stored.pixels.shape == RGB.shape
        assert np.array_equal(turned.pixels, UPRIGHT[orientation](stored.pixels))


def test_the_rule_says_how_many_pixels_are_too_many(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((1001, 1000), np.uint8))
    with pytest.raises(DataError, match=r"got 1000 x 1001; .*most_megapixels"):
        scrd_fast.read_images(tmp_path / "a.png", DecodingRule(most_megapixels=1))
    (got,) = scrd_fast.read_images(tmp_path / "a.png", DecodingRule(most_megapixels=2))
    assert got.pixels.shape == (1001, 1000)


def test_no_window_without_units(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((5, 5), np.uint8))
    with pytest.raises(DataError, match=r"a.png: expected values in units .* got a picture$"):
        scrd_fast.read_images(tmp_path / "a.png", DecodingRule("window", "brain"))


def test_at_most_100_megapixels(tmp_path):
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 20000, 20000, 1, 8, 0, 0,
                         0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(header)
    with pytest.raises(DataError, match=r"a.bmp: (truncated|expected 1 to 100 000 000 pixels)"):
        scrd_fast.read_images(tmp_path / "a.bmp")
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((10001, 10000), np.uint8))
    with pytest.raises(DataError, match=r"b.png: expected 1 to 100 000 000 pixels, got 10000 x 1"):
        scrd_fast.read_images(tmp_path / "b.png")
