"""What results are made of; what needs pydicom is imported when a test asks for it."""

import numpy as np
import pytest

from scrd_fast.engine.load import load_engine


@pytest.fixture(scope="module")
def engine(small_file, tmp_path_factory):
    """A calibrated engine."""
    from tests.outputs.dicom_series import calibrate

    with load_engine(calibrate(small_file, tmp_path_factory.mktemp("engine"))) as engine:
        yield engine


@pytest.fixture(scope="module")
def enhanced(tmp_path_factory):
    from tests.outputs.dicom_series import write_enhanced

    return write_enhanced(tmp_path_factory.mktemp("enhanced"))


@pytest.fixture
def pictures(tmp_path):
    """Items of a TIFF with three pages, and of a picture in colour."""
    import cv2

    import scrd_fast
    from tests.outputs.maps_by_hand import SIDE, scored

    pages = [np.random.default_rng(i).integers(0, 255, (20, 30), np.uint8) for i in range(3)]
    cv2.imwritemulti(str(tmp_path / "pages.tif"), pages)
    cv2.imwrite(str(tmp_path / "one.png"), np.dstack(pages))
    rng = np.random.default_rng(5)
    return [scored(scrd_fast.read_images(tmp_path / name),
                   lambda _: rng.normal(size=(SIDE, SIDE)).astype(np.float32))
            for name in ("pages.tif", "one.png")]
