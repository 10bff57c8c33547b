"""Pictures through the decoder of all formats: as the reader of pictures has them."""

import struct

import cv2
import numpy as np
import pytest

import scrd_fast
from scrd_fast.data.images import read_image
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule


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
