"""data.ImageSet: every image is looked at before work is spent on the others."""

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from scrd_fast.data.dataset import ImageSet
from scrd_fast.errors import DataError, InputError
from scrd_fast.spec import ScoringSpec

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 9, 11), dtype=np.uint8)


def write(folder: Path, images: np.ndarray = IMAGES) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        cv2.imwrite(str(folder / f"{i:02d}.png"), image)
    return folder


def cut(folder: Path, *numbers: int) -> None:
    for i in numbers:
        path = folder / f"{i:02d}.png"
        path.write_bytes(path.read_bytes()[:60])


def digest(source) -> str:
    images = ImageSet(source)
    images.check()
    return images.digest


def test_all_bad_files_are_listed(tmp_path):
    folder = write(tmp_path / "a")
    cut(folder, 3, 7)
    with pytest.raises(DataError, match=(
            r"^data: 2 of 30 images cannot be used: .*03\.png: .*; .*07\.png: .*skip_bad=True \(--s"
            )):
        ImageSet(folder).check()
    cut(folder, *range(25))
    with pytest.raises(DataError, match=r"25 of 30 .*19\.png: [^;]*; and 5 more; leave") as error:
        ImageSet(folder).check()
    assert "20.png" not in str(error.value)


def test_bad_files_are_left_out_and_named(tmp_path):
    folder = write(tmp_path / "a")
    cut(folder, 3, 7)
    (folder / "08.png").unlink()
    images = ImageSet([folder / f"{i:02d}.png" for i in range(30)], "validation")
    with pytest.warns(UserWarning, match=(
            r"^validation: 3 of 30 images cannot be used and are left out: .*03.*07.*08\.png")):
        kept = images.check(skip_bad=True)
    others = [i for i in range(30) if i not in (3, 7, 8)]
    assert kept.tolist() == others
    assert len(images) == 27
    assert images.digest == digest(IMAGES[others])
    spec = ScoringSpec(input_size=32)
    assert torch.equal(images.pixels(np.arange(27), spec),
                       ImageSet(IMAGES).pixels(kept, spec))
    cut(folder, *(i for i in others))
    with pytest.raises(DataError, match=r"30 of 30 images cannot be used: (?!.*skip_bad)"):
        ImageSet([folder / f"{i:02d}.png" for i in range(30)]).check(skip_bad=True)


@pytest.mark.parametrize("form", ["array", "tensor", "list"])
def test_bad_images_in_memory_are_listed_or_left_out(form):
    source = (IMAGES / 255).astype(np.float32)
    source[4, 2, 1] = np.nan
    source[9, 0, 0] = np.inf
    given = {"array": source, "tensor": torch.from_numpy(source), "list": list(source)}[form]
    with pytest.raises(InputError, match=(
            r"^data: 2 of 30 .*: data\[4\]: expected finite .*; data\[9\]: expected finite")):
        ImageSet(given).check()
    images = ImageSet(given)
    with pytest.warns(UserWarning, match="2 of 30"):
        images.check(skip_bad=True)
    others = [i for i in range(30) if i not in (4, 9)]
    assert torch.equal(images.pixels(np.arange(28), ScoringSpec(input_size=32)),
                       ImageSet(source[others]).pixels(np.arange(28), ScoringSpec(input_size=32)))


def test_what_is_wrong_with_a_whole_array_is_said_once():
    for source, words in ((IMAGES.astype(np.int64), "dtype uint8, uint16 or float32, got int64"),
                          (np.zeros((5, 8, 8, 4), np.uint8), r"\(N, H, W, 3\), got"),
                          (torch.zeros(5), "got torch.float32")):
        with pytest.raises(InputError, match=rf"^data: expected .*{words}"):
            ImageSet(source).check(skip_bad=True)
    for source in ([], np.zeros((0, 8, 8), np.uint8), np.array(3), 5, "x" * 3):
        with pytest.raises((InputError, DataError)):
            ImageSet(source)


def test_lists_may_hold_anything():
    given = [IMAGES[0], IMAGES[1].astype(int), np.zeros((8, 8, 4), np.uint8), None, [[1, 2]],
             np.zeros(3, np.uint8), torch.zeros(8, 9, 3)]
    with pytest.raises(InputError, match=r"5 of 7") as error:
        ImageSet(given).check()
    assert all(f"data[{i}]: expected" in str(error.value) for i in range(1, 6))


def test_the_digest_is_of_pixels_and_order_whatever_holds_them(tmp_path):
    expected = digest(IMAGES)
    folder = write(tmp_path / "a")
    assert digest(folder) == digest(list(IMAGES)) == digest(torch.from_numpy(IMAGES)) == expected
    assert digest(np.asfortranarray(IMAGES)) == digest(folder.rename(tmp_path / "b")) == expected
    assert digest([IMAGES[0], *torch.from_numpy(IMAGES[1:])]) == expected
    assert digest(IMAGES[::-1]) != expected
    assert digest(IMAGES.astype(np.uint16)) != expected
    assert digest(IMAGES.transpose(0, 2, 1)) != expected
    assert digest(IMAGES.reshape(30, 11, 9)) != expected
    changed = IMAGES.copy()
    changed[29, 8, 10] ^= 1
    assert digest(changed) != expected


def test_good_images_are_not_copied_or_told_of():
    images = ImageSet(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.check(skip_bad=True).tolist() == list(range(30))
    assert images._images is IMAGES


def test_a_file_that_is_damaged_later_is_named(tmp_path):
    folder = write(tmp_path / "a")
    images = ImageSet(folder)
    images.check()
    cut(folder, 5)
    with pytest.raises(DataError, match=r"05\.png"):
        images.pixels(np.array([4, 5]), ScoringSpec(input_size=32))
