"""Values of maps: their quantiles, and scales that are learned from those of normal images."""

import numpy as np
import pytest

from scrd_fast.errors import InputError
from scrd_fast.metrics.decisions import conformal
from scrd_fast.metrics.map_scale import (
    LARGEST,
    MapScale,
    MapValues,
    choose_scale,
    conformal_threshold,
    learn_scale,
)


def values_of(maps):
    values = MapValues()
    for each in maps:
        values.add(each)
    return values


def random_maps(seed, count=50, shape=(33, 17)):
    rng = np.random.default_rng(seed)
    return (rng.gamma(2.0, 0.1, (count, *shape))).astype(np.float32)


def test_quantiles_are_those_of_all_pixels():
    maps = random_maps(0)
    values = values_of(maps)
    for share in (0.01, 0.5, 0.99, 0.999):
        exact = np.quantile(maps, share, method="inverted_cdf")
        assert values.quantile(share) == pytest.approx(exact, abs=1e-5)
    assert values.largest == [float(each.max()) for each in maps]
    assert choose_scale(values) == (values.quantile(0.5), values.quantile(0.999))


def test_values_at_and_beyond_the_bounds():
    values = values_of([np.float32([[-1e-7, LARGEST, LARGEST + 1e-6]])])
    assert values.quantile(0.3) == pytest.approx(0, abs=1e-5)
    assert values.quantile(1) == pytest.approx(LARGEST, abs=1e-4)


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.1, 0.29, 0.5])
@pytest.mark.parametrize("count", [50, 99, 100, 137])
def test_the_threshold_is_the_largest_value_that_is_no_exception(rate, count):
    """As the conformal p-values have it that decisions on images are made by."""
    scores = np.random.default_rng(count).normal(size=count).astype(np.float32)
    found = conformal_threshold(scores, rate)
    decisions = conformal(scores, np.full((count, 3), 1 / 3), rate)
    assert found == decisions.threshold
    just_above = np.nextafter(np.float32(found), np.float32(np.inf))
    # In float32, in which p-values are, a rate may be a little larger than itself.
    assert decisions.p_values(np.array([just_above]))[0] <= np.float32(rate) * (1 + 1e-6)
    assert decisions.p_values(np.array([found]))[0] > rate


def test_of_new_normal_images_few_have_a_pixel_above_the_threshold():
    """At most the promised share, on average over draws: three standard errors are allowed."""
    rate, shares = 0.1, []
    for seed in range(200):
        largest = random_maps(seed, 40, (8, 8)).max(axis=(1, 2))
        shares.append((largest[20:] > conformal_threshold(largest[:20], rate)).mean())
    error = np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) <= rate + 3 * error
    assert np.mean(shares) >= rate / 2 - 3 * error  # and the threshold is not merely out of reach


def test_normal_images_are_calm_on_the_learned_scale():
    normals, fresh = values_of(random_maps(1)), random_maps(2)
    threshold = conformal_threshold(normals.largest, 0.05)
    learned = learn_scale(normals, threshold)
    low, high = learned.scale
    assert learned.pixel_threshold == threshold
    assert (low + high) / 2 == pytest.approx(threshold)
    assert (fresh > low).mean() == pytest.approx(0.01, abs=0.003)
    assert (fresh > high).mean() < 1e-3


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 0.995])
def test_a_threshold_among_normal_values_has_colour(share):
    normals = values_of(random_maps(1))
    threshold = normals.quantile(share)
    low, high = learn_scale(normals, threshold).scale
    assert low < threshold < high
    assert threshold - low >= 0.02 * (high - low)


def test_too_few_values():
    assert conformal_threshold(np.arange(19), 0.05) == 18
    with pytest.raises(InputError, match=r"values: expected at least 1 / 0\.05 - 1, got 18"):
        conformal_threshold(np.arange(18), 0.05)


def test_maps_of_one_value_have_a_scale_too():
    learned = learn_scale(values_of([np.full((4, 4), 0.25, np.float32)] * 3), 0.25)
    assert learned.scale[0] < learned.scale[1]


@pytest.mark.parametrize("scale", [(0.2, 0.2), (0.3, 0.2), (float("nan"), 1), (0.1, float("inf")),
                                   (0.1,)])
def test_scales_that_are_none(scale):
    with pytest.raises(InputError, match=r"calibration\.maps\.scale: expected two rising"):
        MapScale(scale, 1.0)
    with pytest.raises(InputError, match=r"calibration\.maps\.pixel_threshold"):
        MapScale((0.1, 0.2), float("nan"))
