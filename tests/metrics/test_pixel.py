"""Figures of pixels, against scikit-learn and against a slow count by their definitions."""

import numpy as np
import pytest
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, roc_auc_score

from scrd_fast.errors import InputError, NotFiniteError
from scrd_fast.metrics.pixel import gather_pixels


def scene(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps of odd sizes, many or few ties; regions that touch by corners, of one pixel, none."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(int(rng.integers(1, 6))):
        shape = tuple(rng.integers(1, 24, 2)) if i else (7, 13)
        mask = rng.random(shape) < (0.0, 0.03, 0.2)[(i + seed) % 3]
        if not i:
            mask[1, 1] = mask[2, 2] = mask[3, 1] = True  # one region, by its corners
            mask[5, 4] = mask[5, 6:9] = mask[0, 12] = True
            mask[6, :] = False
        values = rng.normal(size=shape) + rng.uniform(0, 3) * mask
        if seed % 4:
            values = np.round(values * (1, 2, 8)[seed % 4 - 1])
        maps.append(values.astype(np.float32))
        masks.append(mask)
    return maps, masks


def slow_curve(maps: list[np.ndarray], masks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """False-positive rate and per-region overlap at every distinct threshold, from (0, 0) on."""
    normal = np.concatenate([m[~k] for m, k in zip(maps, masks, strict=True)])
    regions = []
    for map_, mask in zip(maps, masks, strict=True):
        numbered, count = label(mask, np.ones((3, 3)))
        regions += [map_[numbered == k] for k in range(1, count + 1)]
    thresholds = np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]
    rates = [np.mean(normal >= t) for t in thresholds]
    overlaps = [np.mean([np.mean(region >= t) for region in regions]) for t in thresholds]
    return np.array([0, *rates]), np.array([0, *overlaps])


def slow_area(rates: np.ndarray, overlaps: np.ndarray, limit: float) -> float:
    """Under the lines through the points, up to the limit, divided by it."""
    area = 0.0
    for x0, x1, y0, y1 in zip(rates[:-1], rates[1:], overlaps[:-1], overlaps[1:], strict=True):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit


@pytest.mark.slow
def test_aupro_by_its_definition():
    for seed in range(40):
        maps, masks = scene(seed)
        curve, pixels = slow_curve(maps, masks), gather_pixels(maps, masks)
        for limit in (0.3, 0.05, 1e-4, 1.0):
            expected = slow_area(*curve, limit)
            assert pixels.aupro(limit) == pytest.approx(expected, abs=1e-9)


def test_aupro_by_hand():
    """Regions of one and of two pixels, 7 normal pixels. The curve goes through (0, 1/2), (1/7,
    3/4), (2/7, 1), the last two of ties; it is cut in the middle between them, at 7/8."""
    map_ = np.float32([[9, 0, 0, 7, 6],
                       [0, 7, 0, 6, 0]])
    mask = np.zeros((2, 5), bool)
    mask[0, 0] = mask[0, 3] = mask[1, 3] = True
    area = 1 / 7 * (1 / 2 + 3 / 4) / 2 + 1 / 14 * (3 / 4 + 7 / 8) / 2
    pixels = gather_pixels([map_], [mask])
    assert pixels.regions == 2
    assert pixels.aupro(3 / 14) == pytest.approx(area / (3 / 14), abs=1e-12)


def test_regions_touch_by_corners():
    """Three pixels on a diagonal are one region, two apart are two."""
    mask = np.eye(3, dtype=bool)
    other = np.array([[1, 0, 1], [0, 0, 0]], bool)
    pixels = gather_pixels([np.ones((3, 3), np.float32), np.ones((2, 3), np.float32)],
                           [mask, other])
    assert pixels.regions == 3
    assert sorted(pixels.shares) == pytest.approx([1 / 3] * 3 + [1] * 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_scikit_learn(dtype):
    for seed in range(40):
        maps, masks = scene(seed)
        maps = [m.astype(dtype) for m in maps]
        values = np.concatenate([m.ravel() for m in maps])
        truth = np.concatenate([m.ravel() for m in masks])
        pixels = gather_pixels(maps, masks)
        assert pixels.auroc() == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
        assert pixels.average_precision() == pytest.approx(
            average_precision_score(truth, values), abs=1e-12)


def test_best_dice():
    """The best of all thresholds, each by its definition; and its threshold has it."""
    for seed in range(40):
        maps, masks = scene(seed)
        values = np.concatenate([m.ravel() for m in maps])
        truth = np.concatenate([m.ravel() for m in masks])
        pixels = gather_pixels(maps, masks)
        thresholds = [np.nextafter(values.min(), np.float32(-np.inf)), *np.unique(values)]
        best, threshold = pixels.best_dice()
        *found, at_best = (2 * (called & truth).sum() / (called.sum() + truth.sum())
                           for called in (values > t for t in [*thresholds,
                                                               np.float32(threshold)]))
        assert best == pytest.approx(max(found), abs=1e-12)
        assert at_best == pytest.approx(best, abs=1e-12)


def test_perfect_and_worthless_maps():
    masks = np.zeros((2, 6, 5), bool)
    masks[0, 1:3, 2] = masks[1, 4, 4] = True
    perfect = gather_pixels(masks.astype(np.float32), masks)
    assert (perfect.auroc(), perfect.average_precision(), perfect.aupro()) == (1, 1, 1)
    assert perfect.best_dice() == (1, 0.5)
    constant = gather_pixels(np.ones((2, 6, 5), np.float32), masks)
    assert constant.auroc() == 0.5
    assert constant.aupro() == pytest.approx(0.15)  # the line from (0, 0) to (1, 1), cut
    assert constant.best_dice()[0] == pytest.approx(6 / 63)
    assert constant.best_dice()[1] < 1
    reversed_ = gather_pixels(-masks.astype(np.float32), masks)
    assert (reversed_.auroc(), reversed_.aupro()) == (0, 0)
    assert reversed_.best_dice()[1] < -1


def test_an_array_is_a_list_and_stays_as_it_is():
    rng = np.random.default_rng(0)
    maps, masks = rng.random((3, 9, 8), np.float32), rng.random((3, 9, 8)) < 0.2
    before = maps.copy()
    a, b = gather_pixels(maps, masks), gather_pixels(list(maps), list(masks))
    assert a.aupro() == b.aupro()
    assert np.array_equal(maps, before)


@pytest.mark.parametrize(("maps", "masks", "error", "message"), [
    ([], [], InputError, r"^masks: expected one per map \(0\), from one on, got 0"),
    ([np.ones((2, 2), np.float32)], [], InputError, r"^masks: expected one per map \(1\)"),
    ([np.ones((2, 2), np.float32)], [np.ones((2, 3), bool)], InputError,
     r"^masks\[0\]: expected \(2, 2\) bool, got \(2, 3\) bool"),
    ([np.ones((2, 2), np.float32)], [np.ones((2, 2), np.uint8)], InputError, r"^masks\[0\]: expec"),
    ([np.ones((2, 2), np.uint8)], [np.ones((2, 2), bool)], InputError,
     r"^maps\[0\]: expected \(H, W\) float32 or float64, got \(2, 2\) uint8"),
    ([np.ones(4, np.float32)], [np.ones(4, bool)], InputError, r"^maps\[0\]: expected \(H, W\)"),
    ([np.ones((0, 4), np.float32)], [np.ones((0, 4), bool)], InputError, r"^maps\[0\]: expected"),
    ([np.full((1, 2), np.nan, np.float32)], [np.array([[True, False]])], NotFiniteError,
     r"^maps\[0\]: expected finite"),
    ([np.ones((2, 2), np.float32)], [np.ones((2, 2), bool)], InputError,
     "^masks: expected normal and anomalous pixels, got 0 and 4"),
    ([np.ones((2, 2), np.float32)], [np.zeros((2, 2), bool)], InputError,
     "^masks: expected normal and anomalous pixels, got 4 and 0"),
])
def test_bad_input(maps, masks, error, message):
    with pytest.raises(error, match=message):
        gather_pixels(maps, masks)


@pytest.mark.parametrize("limit", [0, -0.1, 1.1, np.nan])
def test_bad_limit(limit):
    pixels = gather_pixels([np.ones((1, 2), np.float32)], [np.array([[True, False]])])
    with pytest.raises(InputError, match=r"^limit: expected a share above 0, up to 1"):
        pixels.aupro(limit)


@pytest.mark.slow
def test_sixty_million_pixels():
    """Nine hundred maps of 256 x 256, of which one pixel in fifty is anomalous: in a minute."""
    import time

    rng = np.random.default_rng(0)
    masks = np.zeros((916, 256, 256), bool)
    masks[:300, 60:124, 60:124] = True
    maps = rng.random(masks.shape, np.float32)
    maps[masks] += np.float32(0.3)
    start = time.process_time()
    pixels = gather_pixels(maps, masks)
    # P(a > b) of uniform values, the one moved by 0.3: 1 - 0.7 ** 2 / 2
    assert pixels.auroc() == pytest.approx(0.755, abs=2e-3)
    # At a false-positive rate f it finds 0.3 + f, on average over f up to 0.3.
    assert pixels.aupro() == pytest.approx(0.45, abs=2e-3)
    assert 0 < pixels.average_precision() < 1
    assert 0 < pixels.best_dice()[0] < 1
    assert time.process_time() - start < 60
