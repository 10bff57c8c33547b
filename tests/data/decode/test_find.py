"""Some images of many files, evenly."""

import cv2
import nibabel
import numpy as np
import pytest

from scrd_fast.data.decode.find import read_some
from scrd_fast.errors import DataError
from scrd_fast.spec import DecodingRule

RULE = DecodingRule("percentile")


def test_few_files_are_read_as_they_are(tmp_path):
    paths = []
    for i in range(9):
        paths.append(tmp_path / f"{i}.png")
        cv2.imwrite(str(paths[-1]), np.full((8, 9), i, np.uint8))
    assert [int(pixels[0, 0]) for pixels in read_some(paths, RULE)] == list(range(9))
    assert [int(pixels[0, 0]) for pixels in read_some(paths, RULE, most=3)] == [0, 4, 8]
    paths[4].write_bytes(b"none")
    with pytest.raises(DataError, match=r"4\.png: expected"):
        read_some(paths, RULE, most=3)


def test_of_each_volume_some(tmp_path):
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.nii")
        slices = np.arange(1, 31, dtype=np.int16) + 100 * i
        nibabel.Nifti1Image(np.tile(slices, (5, 6, 1)), np.eye(4)).to_filename(paths[-1])
    assert len(read_some(paths, RULE)) == 4 * 30
    few = read_some(paths, DecodingRule("window", (0.0, 1000.0)), most=8)
    assert [round(float(pixels[0, 0]) * 1000) for pixels in few] == [
        1, 30, 101, 130, 201, 230, 301, 330]
