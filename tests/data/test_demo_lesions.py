"""The second test set follows the law in the head of its module."""

import numpy as np
import pytest

pytest.importorskip("nilearn", reason="needs the demo extra")

from scrd_fast import demo
from scrd_fast.data import demo_lesions as lesions
from scrd_fast.errors import InputError

BRAIN = np.zeros((128, 128), bool)
BRAIN[30:100, 34:94] = True
DRAWS = 120


def drawn(group: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """What anomalies add to a brain of 1 everywhere, and their masks."""
    flat = np.ones((128, 128), np.float32)
    found = []
    for seed in range(DRAWS):
        image, mask = lesions.add_anomaly(flat, BRAIN, group, np.random.default_rng(seed))
        found.append((image.astype(float) - 1, mask))
    return found


def clear_of_the_edge(found):
    """Those that the brain's edge does not cut."""
    inner = BRAIN.copy()
    inner[30:32] = inner[98:100] = inner[:, 34:36] = inner[:, 92:94] = False
    return [(change, mask) for change, mask in found if (mask & ~inner).sum() == 0]


@pytest.mark.parametrize("group", lesions.GROUPS)
def test_an_anomaly_ends_where_the_brain_does_and_is_marked(group):
    for change, mask in drawn(group):
        assert mask.any()
        assert not change[~BRAIN].any()
        assert not mask[~BRAIN].any()
        # Small ones are cut by the pixel grid; of the others more than half lies in the mask.
        assert np.abs(change[mask]).mean() > 2 * np.abs(change[BRAIN & ~mask]).mean()


def test_small_ones_are_of_3_to_5_px():
    found = clear_of_the_edge(drawn("small"))
    diameters = [max(np.ptp(np.nonzero(mask)[axis]) + 1 for axis in (0, 1)) for _, mask in found]
    assert set(diameters) <= {3, 5}  # the centre is a pixel's: the width is odd
    areas = [mask.sum() for _, mask in found]
    assert np.pi * 1.5**2 < max(areas) <= 21
    peaks = [change[np.unravel_index(np.abs(change).argmax(), change.shape)]
             for change, _ in found]
    np.testing.assert_allclose(np.abs(peaks), lesions.SMALL_CONTRAST, atol=1e-6)
    assert 0.3 < np.mean(np.array(peaks) > 0) < 0.7


def test_oedemas_are_large_soft_and_dark():
    found = clear_of_the_edge(drawn("oedema"))
    # exp(-e^2 / 2) > 1/2 within e = sqrt(2 ln 2); the area of an ellipse is pi a b.
    sides = [np.sqrt(mask.sum() / np.pi) / np.sqrt(2 * np.log(2)) for _, mask in found]
    assert 8.8 < min(sides) < 11
    assert 13 < max(sides) < 15.2
    for change, mask in found:
        assert change.max() <= 0
        assert change.min() == pytest.approx(lesions.OEDEMA_CONTRAST, abs=1e-5)
        steps = np.abs(np.diff(change, axis=1))[:, 36:91]
        assert steps.max() < 0.15 * 0.61 / 9 * 1.01  # a Gaussian's steepest, exp(-1/2) / sd
        assert mask.sum() > 300


def test_textured_ones_multiply_and_have_texture():
    rng = np.random.default_rng(0)
    image = rng.uniform(0.2, 1, (128, 128)).astype(np.float32)
    contrasts, textures, radii = [], [], []
    for seed in range(DRAWS):
        one, mask = lesions.add_anomaly(image, BRAIN, "textured", np.random.default_rng(seed))
        double, _ = lesions.add_anomaly(2 * image, BRAIN, "textured", np.random.default_rng(seed))
        np.testing.assert_allclose(double, 2 * one, rtol=1e-5)
        factor = (one / image)[mask] - 1
        contrasts.append(factor.mean())
        textures.append(factor.std())
        # exp(-(d^2/r^2)^2) > 1/2 within d = r (ln 2)^(1/4)
        radii.append(np.sqrt(mask.sum() / np.pi) / np.log(2) ** 0.25)
    assert np.median(np.abs(contrasts)) == pytest.approx(lesions.TEXTURED_CONTRAST, abs=0.06)
    assert 0.3 < np.mean(np.array(contrasts) > 0) < 0.7
    assert np.median(textures) == pytest.approx(lesions.TEXTURE, abs=0.05)
    assert 9 < max(radii) < 10.3


def test_missing_tissue_is_dark_irregular_and_at_the_edge():
    shapes = []
    for change, mask in drawn("missing"):
        rows, columns = np.nonzero(mask)
        assert min(rows.min() - 30, 99 - rows.max(), columns.min() - 34, 93 - columns.max()) == 0
        assert change.min() == pytest.approx(lesions.MISSING_GREY - 1, abs=1e-5)
        spread = np.ptp(rows) + 1, np.ptp(columns) + 1
        shapes.append(mask.sum() / (spread[0] * spread[1]))
        assert max(spread) < 2 * 14 * 2
    assert np.std(shapes) > 0.03  # half discs, or boxes, would all fill the same share of a box


def test_images_are_reproducible_and_of_all_groups_alike():
    found = lesions.make_lesions([5, 6])
    assert found.images.shape == found.masks.shape == (2 * lesions.SLICES, 128, 128)
    assert found.images.dtype == np.uint8
    assert found.groups.tolist() == [0, 1, 2, 3, -1, -1, -1, -1] * 2
    assert found.labels.tolist() == [1, 1, 1, 1, 0, 0, 0, 0] * 2
    assert found.masks.any(axis=(1, 2)).tolist() == [label == 1 for label in found.labels]
    assert found.subjects.tolist() == [5] * 8 + [6] * 8
    alone = lesions.make_lesions([6])
    np.testing.assert_array_equal(alone.images, found.images[8:])
    np.testing.assert_array_equal(alone.masks, found.masks[8:])
    assert not np.array_equal(found.images[4], found.images[12])


def test_no_subject_is_one_of_the_demo():
    for seed in range(3):
        mine = set(lesions.subjects(100_000, seed))
        assert not any(mine & set(demo.subjects(part, other)) for other in range(4)
                       for part in demo.SUBJECTS)
        assert not mine & set(lesions.subjects(100_000, seed + 1))


def test_an_unknown_group_is_named():
    with pytest.raises(InputError, match=r"group: expected one of .*textured.*'rash'"):
        lesions.add_anomaly(np.ones((128, 128), np.float32), BRAIN, "rash",
                            np.random.default_rng(0))
    with pytest.raises(InputError, match="count: expected from 1"):
        lesions.subjects(0, 0)
