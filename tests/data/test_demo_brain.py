"""The demo set follows its law."""

import numpy as np
import pytest

pytest.importorskip("nilearn", reason="needs the demo extra")

from scrd_fast.data import demo_brain as demo
from scrd_fast.demo import subjects


def test_images_are_reproducible_and_differ_between_subjects():
    a, b = demo.make_images([5, 6], 3), demo.make_images([5, 6], 3)
    np.testing.assert_array_equal(a.images, b.images)
    assert a.images.dtype == np.uint8
    assert a.images.shape == (6, 128, 128)
    alone = demo.make_images([6], 3)
    np.testing.assert_array_equal(alone.images, a.images[3:])
    assert not np.array_equal(a.images[0], a.images[3])
    assert ((demo.PLANES[0] <= a.planes) & (a.planes <= demo.PLANES[1])).all()


def test_brain_is_inside_the_picture_and_white_matter_at_its_grey_level():
    images = demo.make_images(range(3), 6).images.astype(float)
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]])
    assert border.max() < 40
    brain = images[images > 60]
    assert 0.25 < brain.size / images.size < 0.7
    assert 110 < np.quantile(brain, 0.8) < 170


def test_lesions_are_smooth_and_follow_the_table():
    mask = np.zeros((128, 128), bool)
    mask[40:90, 40:90] = True
    radii, signs = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        with_lesion, where = demo.add_lesion(np.ones((128, 128), np.float32), mask, rng)
        change = with_lesion - 1
        peak = np.unravel_index(np.abs(change).argmax(), change.shape)
        assert mask[peak]
        assert abs(change[peak]) == pytest.approx(demo.LESION_CONTRAST, abs=1e-5)
        signs.append(np.sign(change[peak]))
        # exp(-(d^2/r^2)^2) > 1/2 within d = r (ln 2)^(1/4)
        radii.append(np.sqrt(where.sum() / np.pi) / np.log(2) ** 0.25)
    assert 3.8 < min(radii) < 4.6
    assert 8.4 < max(radii) < 9.2
    assert 60 < sum(s > 0 for s in signs) < 140


def test_share_of_anomalous_slices():
    test = demo.make_images([1, 2], 4, anomalous_share=0.5)
    assert test.labels.tolist() == [1, 1, 0, 0] * 2
    assert test.lesions.any(axis=(1, 2)).tolist() == [True, True, False, False] * 2


def test_no_subject_is_in_two_parts():
    seen: list[int] = []
    for seed in range(3):
        for part in ("train", "validation", "test"):
            seen += subjects(part, seed)
    assert len(seen) == len(set(seen))
