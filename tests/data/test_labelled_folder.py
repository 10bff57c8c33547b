"""Test folders whose subfolders are labels."""

import pytest

from scrd_fast.data.dataset import labelled_folder
from scrd_fast.errors import InputError


def test_labels_are_subfolders(tmp_path):
    for name in ("good/b.png", "good/sub/a.png", "lesion/c.tif", "tumour/d.jpg", "._x.png",
                 "__MACOSX/good/b.png", "lesion/.DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths, labels = labelled_folder(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "good/b.png", "good/sub/a.png", "lesion/c.tif", "tumour/d.jpg"]
    assert labels.tolist() == [0, 0, 1, 1]
    (tmp_path / "lesion" / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"skipped 1 file .*notes\.txt"):
        labelled_folder(str(tmp_path))


def test_an_image_without_a_label_is_refused(tmp_path):
    for name in ("good/a.png", "lesion/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"all images in subfolders.*c\.png"):
        labelled_folder(tmp_path)
    (tmp_path / "c.png").unlink()
    (tmp_path / "lesion" / "b.png").unlink()
    with pytest.raises(InputError, match=r"a subfolder good/ and at least one other"):
        labelled_folder(tmp_path)
