"""Names of overlays: of what every file system takes, and told apart by their numbers."""

from pathlib import Path

import numpy as np
import pytest

from scrd_fast.data.decode.image import Source
from scrd_fast.engine.stream import Scored
from scrd_fast.report.file_names import clean, name_after
from scrd_fast.report.overlays import collect_overlays
from scrd_fast.report.scores import draw_overlay


@pytest.mark.parametrize(("path", "name"), [
    ("a/v.nii.gz", "v"), ("v.NII", "v"), ("c.d.png", "c.d"), ("1.2.840.10008", "1.2.840.10008"),
    ("..x.png", "x"), (".nii.gz", ""), ("a\x1b[31m\n\udcff.png", "a_[31m__"), ("é x.tif", "é x"),
    ('<>:"\\|?*.dcm', "_" * 8)])
def test_what_is_made_of_a_file_is_called_after_it(path, name):
    assert name_after(Path(path)) == name


def test_no_folder_is_left_by_a_text():
    assert clean("../../x") == ".._.._x"


def test_overlays(tmp_path):
    image, heat = np.full((9, 7), 90, np.uint8), np.ones((4, 4), np.float32)
    sources = [Source(Path("a/v.nii.gz"), frame=0), Source(Path("b/v.nii"), frame=12),
               Source(Path("x\x1b<y>\n.png")), Source(Path("y" * 400)), Source(Path(".png"))]
    with collect_overlays(tmp_path, scale=(0, 1)) as drawn:
        for i, source in enumerate(sources):
            draw_overlay(drawn, Scored(i, source, image, np.float32(1), heat,
                                       np.zeros(3, np.float32)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000_v_0.png", "00001_v_12.png", "00002_x__y__.png", f"00003_{'y' * 245}.png",
        "00004_.png"]
