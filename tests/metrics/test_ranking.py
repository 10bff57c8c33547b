"""Figures of ranks and of thresholds, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from scrd_fast.errors import InputError, NotFiniteError
from scrd_fast.metrics.ranking import (
    auroc,
    auroc_standard_error,
    average_precision,
    best_accuracy,
    best_f1,
    decide,
    rank,
    sensitivity_at_specificity,
)

FIGURES = {
    "auroc": auroc, "average precision": average_precision, "best F1": best_f1,
    "best accuracy": best_accuracy,
    "sensitivity": lambda *a: sensitivity_at_specificity(*a, 0.9),
    "decide": lambda *a: decide(*a, 0.0)}


def pairs(seed: int, levels: int | None, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of 2 to some hundred images, or of 10 000; levels: of scores that tie."""
    rng = np.random.default_rng(seed)
    count = 10_000 if seed == 0 else int(rng.integers(2, 300))
    labels = (rng.random(count) < rng.uniform(0.05, 0.95)).astype(np.int64)
    labels[:2] = 0, 1
    scores = rng.normal(size=count) + labels * rng.uniform(-1, 3)
    if levels:
        scores = np.round(scores * levels / 6)
    return labels, rng.permuted(scores).astype(dtype) if seed % 5 == 4 else scores.astype(dtype)


WITH_TIES = pytest.mark.parametrize("levels", [None, 2, 5, 60])
EACH_TYPE = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@WITH_TIES
@EACH_TYPE
def test_against_scikit_learn(levels, dtype):
    """Of 10 000 images, and of 25 sets of other sizes."""
    for seed in range(26):
        labels, scores = pairs(seed, levels, dtype)
        assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert average_precision(labels, scores) == pytest.approx(
            average_precision_score(labels, scores), abs=1e-12)
        value, threshold = best_f1(labels, scores)
        assert value == pytest.approx(best_of_curve(labels, scores), abs=1e-12)
        assert f1_score(labels, scores > threshold) == pytest.approx(value, abs=1e-12)
        value, threshold = best_accuracy(labels, scores)
        assert accuracy_score(labels, scores > threshold) == pytest.approx(value, abs=1e-12)


def test_the_standard_error_is_that_of_many_studies():
    """Of two normal distributions; and the example of Hanley and McNeil, 51 and 58 images."""
    assert auroc_standard_error(0.893, 51, 58) == pytest.approx(0.032, abs=1e-3)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [60, 40])
    for distance in (0.0, 1.0, 2.0):
        found = [auroc(labels, rng.normal(labels * distance)) for _ in range(600)]
        assert auroc_standard_error(float(np.mean(found)), 40, 60) == pytest.approx(
            np.std(found), rel=0.2)
    assert 0.001 < auroc_standard_error(1.0, 200, 200) < 0.005  # none was wrong, so far


def best_of_curve(labels, scores, weights=None) -> float:
    """The best F1, by scikit-learn's precision and recall."""
    precision, recall, _ = precision_recall_curve(labels, scores, sample_weight=weights)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))


@WITH_TIES
@EACH_TYPE
def test_weighted_against_scikit_learn(levels, dtype):
    for seed in range(26):
        labels, scores = pairs(seed, levels, dtype)
        weights = np.random.default_rng(seed).integers(0, 4, len(labels))
        weights[:2] = 1
        steps = rank(labels, scores).steps(weights)
        for value, expected in (
                (steps.auroc(), roc_auc_score(labels, scores, sample_weight=weights)),
                (steps.average_precision(),
                 average_precision_score(labels, scores, sample_weight=weights)),
                (steps.f1().max(), best_of_curve(labels, scores, weights))):
            assert value == pytest.approx(expected, abs=1e-12)


@WITH_TIES
@EACH_TYPE
def test_best_thresholds_are_the_best(levels, dtype):
    """Of all that there are, tried one by one; and the lowest of equally good ones."""
    for seed in range(1, 30):
        labels, scores = pairs(seed, levels, dtype)
        candidates = [np.nextafter(scores.min(), -np.inf), *np.unique(scores)]
        decided = [decide(labels, scores, float(t)) for t in candidates]
        for found, name in ((best_f1, "f1"), (best_accuracy, "accuracy")):
            values = np.array([getattr(each, name) for each in decided])
            value, threshold = found(labels, scores)
            assert value == pytest.approx(values.max(), abs=1e-12)
            best = [t for t, v in zip(candidates, values, strict=True)
                    if v > values.max() - 1e-12]
            # Below it lies no other step at which an anomalous image is found.
            lower = (scores <= threshold) & (scores > best[0])
            assert not (lower & (labels == 1)).any()
        for specificity in (0.0, 0.5, 0.9, 1.0):
            allowed = [float(d.sensitivity) for d in decided
                       if d.specificity >= specificity - 1e-12]
            assert sensitivity_at_specificity(labels, scores, specificity) == pytest.approx(
                max(allowed), abs=1e-12)


def test_sensitivity_at_a_specificity_is_on_the_roc_curve():
    labels, scores = pairs(0, None, np.float64)
    rates = roc_curve(labels, scores, drop_intermediate=False)
    for specificity in (0.5, 0.9, 0.95, 0.99, 1.0):
        best = rates[1][rates[0] <= 1 - specificity + 1e-9].max()
        assert sensitivity_at_specificity(labels, scores, specificity) == pytest.approx(best)


def test_a_share_that_floats_do_not_hold_is_reached():
    """9 of 10 normal images lie below the second highest: a specificity of 0.9."""
    labels = np.array([0] * 10 + [1])
    scores = np.array([*range(10), 8.5])
    assert sensitivity_at_specificity(labels, scores, 0.9) == 1
    assert sensitivity_at_specificity(labels, scores, 0.91) == 0


@WITH_TIES
def test_whole_weights_are_copies(levels):
    for seed in range(1, 20):
        labels, scores = pairs(seed, levels, np.float32)
        weights = np.random.default_rng(seed).integers(0, 3, len(labels))
        weights[:2] = 2
        copied, steps = (labels.repeat(weights), scores.repeat(weights)), rank(
            labels, scores).steps(weights)
        assert auroc(*copied) == steps.auroc()
        assert average_precision(*copied) == pytest.approx(steps.average_precision(), abs=1e-12)
        assert best_f1(*copied)[0] == steps.f1().max()
        assert best_accuracy(*copied)[0] == steps.accuracy().max()
        assert sensitivity_at_specificity(*copied, 0.9) == steps.sensitivity(0.9)


def test_many_weights_at_once():
    labels, scores = pairs(7, 20, np.float32)
    weights = np.random.default_rng(0).integers(0, 3, (50, len(labels)))
    weights[:, :2] = 1
    steps = rank(labels, scores).steps(weights)
    for k in range(50):
        one = rank(labels, scores).steps(weights[k])
        assert steps.auroc()[k] == one.auroc()
        assert steps.average_precision()[k] == one.average_precision()
        assert np.array_equal(steps.f1()[k], one.f1())
        assert np.array_equal(steps.accuracy()[k], one.accuracy())
        assert steps.sensitivity(0.8)[k] == one.sensitivity(0.8)
    halves = rank(labels, scores).steps(weights / 2)  # fractions
    np.testing.assert_allclose(halves.average_precision(), steps.average_precision(), rtol=1e-12)
    np.testing.assert_allclose(halves.auroc(), steps.auroc(), rtol=1e-12)


def test_at_a_threshold_by_hand():
    decided = decide([0, 0, 0, 1, 1], [0.1, 0.2, 0.6, 0.2, 0.7], 0.2)
    assert [int(n) for n in vars(decided).values()] == [1, 1, 1, 2]
    assert (decided.sensitivity, decided.specificity) == (0.5, 2 / 3)
    assert (decided.accuracy, decided.f1) == (0.6, 0.5)
    assert decide([0, 1], [1, 2], 5).f1 == 0


def test_a_threshold_is_rounded_as_scores_are():
    """0.1 as float32 lies above 0.1: it is no higher than the threshold 0.1 of float32 scores."""
    scores = np.float32([0.1, 0.2])
    assert decide([0, 1], scores, np.float64(0.1)).alarms == 0
    assert decide([0, 1], scores.astype(np.float64), 0.1).alarms == 1


@EACH_TYPE
@pytest.mark.parametrize("low", [0.0, 1.0, -1.0, 1e30, -1e30, 1e-45])
def test_thresholds_between_neighbours(low, dtype):
    """No number lies between two scores: the threshold still parts them, also after rounding."""
    low = dtype(low)
    scores = np.array([low, np.nextafter(low, dtype(np.inf))], dtype)
    for labels, figure in (([0, 1], best_f1), ([0, 1], best_accuracy)):
        value, threshold = figure(labels, scores)
        assert value == 1
        assert (scores > dtype(threshold)).tolist() == [False, True]
    _, all_called = best_f1([1, 0], scores)  # the anomalous one is the lowest
    assert (scores > dtype(all_called)).all()
    value, none_called = best_accuracy([1, 0, 0], [low, *scores[1:], *scores[1:]])
    assert value == pytest.approx(2 / 3)
    assert not (scores > dtype(none_called)).any()


def test_the_middle_between_scores():
    assert best_f1([0, 1], [1, 2]) == (1, 1.5)
    assert best_f1([0, 0, 1], [-3, 1, 5]) == (1, 3)
    largest = np.finfo(np.float64).max
    assert best_f1([0, 1], [-largest, largest]) == (1, 0)


def test_counts_are_exact():
    """Of 10**5 images of each kind, one pair the wrong way round."""
    labels = np.repeat([0, 1], 10**5)
    scores = np.arange(2 * 10**5)
    scores[10**5 - 1 : 10**5 + 1] = scores[10**5 - 1 : 10**5 + 1][::-1]
    assert auroc(labels, scores) == 1 - 1e-10
    weights = np.full(2 * 10**5, 10**4)
    assert rank(labels, scores).steps(weights).auroc() == 1 - 1e-10


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(("labels", "scores", "error", "message"), [
    ([0, 1], [0.5, np.nan], NotFiniteError, "^scores: expected finite ones, got NaN"),
    ([0, 1], [0.5, np.inf], NotFiniteError, "^scores: expected finite"),
    ([0, 1], [0.5], InputError, r"^scores: expected \(N,\) as the labels' \(2,\), got \(1,"),
    ([[0, 1]], [[1, 2]], InputError, "^scores: expected"),
    ([], [], InputError, r"^labels: expected 0 \(normal\) and 1 \(anomalous\), both there"),
    ([0, 0], [1, 2], InputError, r"^labels: expected .* got \[0\]"),
    ([1, 1], [1, 2], InputError, r"^labels: expected .* got \[1\]"),
    ([0, 1, 2], [1, 2, 3], InputError, r"^labels: expected .* got \[0, 1, 2\]"),
])
def test_bad_input(name, labels, scores, error, message):
    with pytest.raises(error, match=message):
        FIGURES[name](labels, scores)


@pytest.mark.parametrize("specificity", [-0.1, 1.1, np.nan])
def test_bad_specificity(specificity):
    with pytest.raises(InputError, match=r"^specificity: expected a share from 0 to 1"):
        sensitivity_at_specificity([0, 1], [0, 1], specificity)


def test_bad_threshold():
    with pytest.raises(InputError, match=r"^threshold: expected a finite number"):
        decide([0, 1], [0, 1], np.nan)
