"""Intervals by patient: they hold the truth as often as they say."""

import math
import time
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import t as student

from scrd_fast.errors import InputError
from scrd_fast.metrics import bootstrap
from scrd_fast.metrics.bootstrap import image_intervals, intervals, pixel_intervals
from scrd_fast.metrics.pixel import gather_pixels
from scrd_fast.metrics.ranking import (
    auroc,
    average_precision,
    best_accuracy,
    best_f1,
    decide,
    rank,
    sensitivity_at_specificity,
)


def draw_binormal(rng: np.random.Generator, area: float) -> tuple[np.ndarray, ...]:
    """Patient, label and score of images of 60 to 200 patients, one to four of each.

    A quarter to a half of the patients have anomalous images, in some draws besides normal ones.
    Half of a score's variance is the patient's, in some draws none. The true AUROC, of images of
    two patients, is `area`.
    """
    count = int(rng.integers(60, 201))
    sick = int(count * rng.uniform(0.25, 0.5))
    groups = np.arange(count).repeat(rng.integers(1, 5, count))
    labels = (groups < sick).astype(np.int64)
    if rng.random() < 0.5:
        first = np.diff(groups, prepend=-1) > 0
        labels[~first & (rng.random(len(groups)) < 0.5)] = 0
    shared = rng.choice([0.0, 0.5])
    scores = (math.sqrt(shared) * rng.normal(size=count)[groups]
              + math.sqrt(1 - shared) * rng.normal(size=len(groups))
              + math.sqrt(2) * NormalDist().inv_cdf(area) * labels)
    return groups, labels, scores


def auroc_interval(groups, labels, scores, seed=0):
    ranked = rank(labels, scores)
    return intervals(groups, labels, lambda w: {"auroc": ranked.steps(w).auroc()},
                     seed=seed)["auroc"]


def share_covered(draws: int, seed: int, area: float = 0.85) -> float:
    rng, covered = np.random.default_rng(seed), 0
    for _ in range(draws):
        found = auroc_interval(*draw_binormal(rng, area))
        assert found is not None
        covered += found.low <= area <= found.high
    return covered / draws


@pytest.mark.slow
def test_coverage():
    """Of 150 draws: 95 % but for three standard errors."""
    assert share_covered(150, seed=1) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 150))


@pytest.mark.slow
def test_coverage_of_2000_draws():
    assert 0.94 <= share_covered(2000, seed=2) <= 0.96


@pytest.mark.slow
@pytest.mark.parametrize("area", [0.7, 0.95])
def test_coverage_of_other_areas(area):
    assert 0.93 <= share_covered(1000, seed=3, area=area) <= 0.97


def test_patients_are_drawn_not_images():
    """Six copies of each image tell no more than one; without patients they seem to."""
    groups, labels, scores = draw_binormal(np.random.default_rng(0), 0.85)
    groups = np.arange(len(groups))
    once = image_intervals(groups, labels, scores)["auroc"]
    copied = [each.repeat(6) for each in (groups, labels, scores)]
    of_patients = image_intervals(*copied)["auroc"]
    of_images = image_intervals(np.arange(len(copied[0])), *copied[1:])["auroc"]
    assert of_patients.high - of_patients.low == pytest.approx(once.high - once.low, rel=0.1)
    assert of_images.high - of_images.low < 0.5 * (once.high - once.low)


def test_all_figures_and_their_intervals():
    groups, labels, scores = draw_binormal(np.random.default_rng(5), 0.85)
    found = image_intervals(groups, labels, scores, threshold=0.7, specificity=0.9)
    decided = decide(labels, scores, 0.7)
    values = {
        "auroc": auroc(labels, scores), "average_precision": average_precision(labels, scores),
        "best_f1": best_f1(labels, scores)[0], "best_accuracy": best_accuracy(labels, scores)[0],
        "sensitivity_at_specificity": sensitivity_at_specificity(labels, scores, 0.9),
        "sensitivity": decided.sensitivity, "specificity": decided.specificity,
        "accuracy": decided.accuracy, "f1": decided.f1}
    assert set(found) == set(values)
    for name, value in values.items():
        each = found[name]
        assert 0 <= each.low < value < each.high <= 1
        assert each.high - each.low < 0.5
        assert not each.limit
    assert set(image_intervals(groups, labels, scores)) == set(values) - {
        "sensitivity", "specificity", "accuracy", "f1"}


def test_one_figure_is_as_among_many():
    groups, labels, scores = draw_binormal(np.random.default_rng(6), 0.85)
    one = auroc_interval(groups, labels, scores, seed=4)
    assert one == image_intervals(groups, labels, scores, seed=4)["auroc"]
    assert one == auroc_interval(groups, labels, scores, seed=4)
    assert one != auroc_interval(groups, labels, scores, seed=5)
    names = np.array([f"patient {g}" for g in groups])
    of_names = auroc_interval(names, labels, scores)
    assert of_names.low == pytest.approx(one.low, abs=0.02)


def test_share_of_one_kind_against_its_error():
    """The scatter of a sensitivity is known: sqrt(p (1 - p) / (n - 1)), as estimated."""
    labels = np.repeat([0, 1], 200)
    scores = np.concatenate([np.zeros(200), np.arange(200)])
    found = image_intervals(np.arange(400), labels, scores, threshold=139.5)["sensitivity"]
    odds = math.exp(student.ppf(0.975, 199) / math.sqrt(0.3 * 0.7 * 199))
    low, high = 0.3 / (0.3 + 0.7 * odds), 0.3 / (0.3 + 0.7 / odds)
    assert found.low == pytest.approx(low, abs=0.004)
    assert found.high == pytest.approx(high, abs=0.004)


def test_no_error_at_all_is_no_certainty():
    """All right in 20 patients: a share of 0.025 ** (1 / 20) still does so once in 40 times."""
    labels = np.repeat([0, 1], [30, 20])
    found = image_intervals(np.arange(50), labels, labels, threshold=0.5)
    for each in found.values():
        assert (each.low, each.high) == (pytest.approx(0.025 ** (1 / 20), rel=1e-12), 1)
        assert each.limit
    found = image_intervals(np.arange(50), labels, -labels, threshold=-0.5)
    for name in ("auroc", "sensitivity", "specificity", "accuracy", "f1"):
        assert (found[name].low, found[name].high) == (
            0, pytest.approx(1 - 0.025 ** (1 / 20), rel=1e-12))
        assert found[name].limit


@pytest.mark.parametrize("groups", [
    [0, 1, 2, 3, 4, 4],  # one patient with anomalous images
    [0, 0, 0, 0, 1, 2],  # one with normal images
    [0, 0, 0, 0, 0, 0]])
def test_one_patient_of_a_kind_tells_nothing(groups):
    found = image_intervals(groups, [0, 0, 0, 0, 1, 1], [1, 2, 3, 4, 5, 2.5], threshold=2)
    assert list(found.values()) == [None] * 9


def test_two_patients_of_a_kind_tell_little():
    found = image_intervals([0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 1], [1, 2, 3, 4, 5, 2.5])["auroc"]
    assert found.low < 0.1
    assert found.high > 0.99


def test_equal_scores_tell_nothing():
    """Every replicate has an AUROC of 1/2: that is no certainty."""
    assert image_intervals(np.arange(40), np.arange(40) % 2, np.ones(40))["auroc"] is None


@pytest.mark.parametrize(("anomalous", "normal"), [
    ([1, 1, 1, 1], [1, 1, 1, 1]),  # each patient has both kinds
    ([1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]), ([1, 1, 0], [0, 1, 1]), ([1, 1], [1, 1]),
    ([1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1])])
def test_no_replicate_lacks_a_kind(anomalous, normal):
    patients = bootstrap._Patients(np.array(anomalous, bool), np.array(normal, bool))
    weights = patients.draw(np.random.default_rng(0), 5000)
    assert (weights @ patients.anomalous > 0).all()
    assert (weights @ patients.normal > 0).all()
    assert weights.sum(1) == pytest.approx(len(anomalous))
    assert len(np.unique(weights, axis=0)) > 1


def test_of_the_right_scatter():
    """Weights of drawing all but one: of variance 1, not (n - 1) / n."""
    patients = bootstrap._Patients(np.repeat([True, False], 3), np.repeat([False, True], 3))
    weights = patients.draw(np.random.default_rng(0), 100_000)
    assert weights.mean(0) == pytest.approx(1, abs=0.02)
    means = weights[:, :3] @ [1, 2, 3] / 3
    assert means.var() == pytest.approx(np.var([1, 2, 3], ddof=1) / 3, rel=0.03)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 30, 1000, 20_000])
def test_students_quantile(freedom):
    assert bootstrap._student(freedom) == pytest.approx(student.ppf(0.975, freedom), rel=1e-4)


def test_ten_thousand_images_take_seconds():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, 10_000), rng.integers(0, 3000, 10_000)
    scores = rng.normal(size=10_000) + labels
    start = time.process_time()
    image_intervals(groups, labels, scores, threshold=0.5)
    assert time.process_time() - start < 20


def brains(seed: int, count: int, shift: float = 1.5) -> tuple[list, list, np.ndarray]:
    """Maps and masks of `count` patients, one to three each; half have regions of any size."""
    rng = np.random.default_rng(seed)
    maps, masks, groups = [], [], []
    for patient in range(count):
        own = rng.normal(scale=0.3)
        for _ in range(rng.integers(1, 4)):
            mask = np.zeros((24, 20), bool)
            if patient % 2:
                for _ in range(rng.integers(1, 4)):
                    y, x, size = rng.integers(0, 18), rng.integers(0, 14), rng.integers(1, 6)
                    mask[y : y + size, x : x + size] = True
            values = rng.normal(size=mask.shape) + own + shift * mask * rng.uniform(0.5, 1.5)
            maps.append(values.astype(np.float32))
            masks.append(mask)
            groups.append(patient)
    return maps, masks, np.array(groups)


def test_intervals_of_pixels():
    maps, masks, groups = brains(0, 30)
    pixels = gather_pixels(maps, masks)
    found = pixel_intervals(maps, masks, groups, pixels)
    values = {"auroc": pixels.auroc(), "average_precision": pixels.average_precision(),
              "aupro": pixels.aupro(), "best_dice": pixels.best_dice()[0]}
    assert set(found) == set(values)
    for name, value in values.items():
        assert found[name].low < value < found[name].high
        assert found[name].high - found[name].low < 0.4


def test_bins_scatter_as_pixels_do():
    """Against replicates that are sets of maps, with the pixels of a patient as often as drawn."""
    maps, masks, groups = brains(1, 16)
    pixels = gather_pixels(maps, masks)
    has = np.array([any(masks[i].any() for i in np.flatnonzero(groups == g)) for g in range(16)])
    patients = bootstrap._Patients(has, np.ones(16, bool))
    rng, exact = np.random.default_rng(0), {"auroc": [], "average_precision": [], "aupro": [],
                                            "best_dice": []}
    for _ in range(300):
        # 7 of 8 are drawn in both strata: equal weights, so that copies do for weights
        counts = np.round(patients.draw(rng, 1)[0] * 7 / 8).astype(int)
        chosen = np.arange(len(groups)).repeat(counts[groups])
        drawn = gather_pixels([maps[i] for i in chosen], [masks[i] for i in chosen])
        for name, values in exact.items():
            value = getattr(drawn, name)()
            values.append(value[0] if name == "best_dice" else value)
    found = pixel_intervals(maps, masks, groups, pixels)
    for name, values in exact.items():
        value = getattr(pixels, name)()
        value = value[0] if name == "best_dice" else value
        scatter = np.std(values) * student.ppf(0.975, 7) / (value * (1 - value))
        odds = math.exp(scatter)
        width = value / (value + (1 - value) / odds) - value / (value + (1 - value) * odds)
        assert found[name].high - found[name].low == pytest.approx(width, rel=0.15)


def test_bins_are_near_the_exact_figures():
    maps, masks, groups = brains(2, 40)
    pixels = gather_pixels(maps, masks)
    counts = bootstrap._count_pixels(maps, masks, groups, pixels)
    steps, shares = counts.weigh(np.ones((1, 40)))
    assert len(counts.normal[0]) <= 2101
    assert steps.auroc()[0] == pytest.approx(pixels.auroc(), abs=1e-3)
    assert steps.average_precision()[0] == pytest.approx(pixels.average_precision(), abs=1e-3)
    assert steps.f1().max() == pytest.approx(pixels.best_dice()[0], abs=1e-3)
    overlap = bootstrap.region_overlap(steps, shares, 0.3)[0]
    assert overlap == pytest.approx(pixels.aupro(), abs=1e-3)


def test_pixels_of_one_patient():
    maps, masks, groups = brains(3, 2)
    found = pixel_intervals(maps, masks, groups, gather_pixels(maps, masks))
    assert list(found.values()) == [None] * 4


def test_perfect_maps():
    _, masks, groups = brains(4, 20)
    maps = [mask.astype(np.float32) for mask in masks]
    found = pixel_intervals(maps, masks, groups, gather_pixels(maps, masks))
    for each in found.values():
        assert (each.low, each.high) == (pytest.approx(0.025 ** (1 / 10), rel=1e-12), 1)
        assert each.limit


@pytest.mark.parametrize(("groups", "labels", "message"), [
    ([0, 1], [0, 1, 1], r"^groups: expected \(N,\) as the labels' \(3,\), got \(2,\)"),
    ([0, 1, 2], [0, 0, 0], r"^labels: expected 0 \(normal\) and 1 \(anomalous\), both there, got"),
    ([0, 1, 2], [0, 1, 3], "^labels: expected 0")])
def test_bad_input(groups, labels, message):
    with pytest.raises(InputError, match=message):
        intervals(groups, labels, lambda w: {"sum": w.sum(1)})


def test_bad_input_of_figures():
    with pytest.raises(InputError, match=r"^specificity: expected a share"):
        image_intervals([0, 1], [0, 1], [0, 1], specificity=2)
    with pytest.raises(InputError, match=r"^seed: expected an integer from 0, got -1"):
        image_intervals([0, 1], [0, 1], [0, 1], seed=-1)
    maps, masks, groups = brains(3, 4)
    with pytest.raises(InputError, match=r"^groups: expected \(\d+,\), got \(1,\)"):
        pixel_intervals(maps, masks, groups[:1], gather_pixels(maps, masks))
