"""What is scored where a data set, a table, folders and files are named."""

import cv2
import numpy as np
import pytest

from scrd_fast.data.to_score import find_to_score
from scrd_fast.errors import DataError


def write(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), np.full((8, 8), number, np.uint8))
    return [root / name for name in names]


def test_masks_of_a_data_set_are_no_images(tmp_path):
    images = write(tmp_path, "test/crack/a.png", "test/good/b.png", "train/good/c.png")
    write(tmp_path, "ground_truth/crack/a_mask.png")
    assert sorted(find_to_score([tmp_path]).paths) == sorted(images)
    # A folder of them alone is no data set: whoever names it wants it scored.
    assert len(find_to_score([tmp_path / "ground_truth"]).paths) == 1


def test_a_table_names_its_images(tmp_path):
    a, b, _ = write(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "some.csv").write_text("path,label,split\nb.png,1,test\na.png,0,train\n")
    assert sorted(find_to_score([tmp_path / "some.csv"]).paths) == [a, b]
    (tmp_path / "some.csv").rename(tmp_path / "data.csv")
    assert sorted(find_to_score([tmp_path]).paths) == [a, b]


def test_places_in_their_order_each_file_once(tmp_path):
    a, b, c = write(tmp_path, "one/a.png", "two/b.png", "two/c.png")
    gone = tmp_path / "gone.png"
    assert find_to_score([tmp_path / "two", gone, a, c, tmp_path / "one"]).paths == [b, c, gone, a]


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"none: expected an image file, .* got no such place"):
        find_to_score([tmp_path / "none", tmp_path / "no"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="below it, got none"):
        find_to_score([tmp_path / "empty"])
