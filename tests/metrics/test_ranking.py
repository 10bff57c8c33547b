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
    "sensitivity": lambda *a: sensitivity_at_specificity(a[0], a[1], 0.9, *a[2:]),
    "decide": lambda *a: decide(a[0], a[1], 0.0, *a[2:])}


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
    """Of 10 000 images, and of 25 sets of other sizes; weighted as well."""
    for seed in range(26):
        labels, scores = pairs(seed, levels, dtype)
        counts = np.random.default_rng(seed).integers(0, 4, len(labels))
        counts[:2] = 1
        for weights in (None, counts):
            area = roc_auc_score(labels, scores, sample_weight=weights)
            assert auroc(labels, scores, weights) == pytest.approx(area, abs=1e-12)
            mean = average_precision_score(labels, scores, sample_weight=weights)
            assert average_precision(labels, scores, weights) == pytest.approx(mean, abs=1e-12)
            precision, recall, _ = precision_recall_curve(labels, scores, sample_weight=weights)
            best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))
            value, threshold = best_f1(labels, scores, weights)
            assert value == pytest.approx(best, abs=1e-12)
            called = scores > threshold
            assert f1_score(labels, called, sample_weight=weights) == pytest.approx(value,
                                                                                   abs=1e-12)
            value, threshold = best_accuracy(labels, scores, weights)
            at = accuracy_score(labels, scores > threshold, sample_weight=weights)
            assert at == pytest.approx(value, abs=1e-12)


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
        copied = labels.repeat(weights), scores.repeat(weights)
        assert vars(decide(*copied, 0.1)) == vars(decide(labels, scores, 0.1, weights))
        assert auroc(*copied) == auroc(labels, scores, weights)
        assert average_precision(*copied) == pytest.approx(
            average_precision(labels, scores, weights), abs=1e-12)
        assert best_f1(*copied)[0] == best_f1(labels, scores, weights)[0]
        assert best_accuracy(*copied)[0] == best_accuracy(labels, scores, weights)[0]
        assert (sensitivity_at_specificity(*copied, 0.9)
                == sensitivity_at_specificity(labels, scores, 0.9, weights))


def test_many_weights_at_once():
    labels, scores = pairs(7, 20, np.float32)
    weights = np.random.default_rng(0).integers(0, 3, (50, len(labels)))
    weights[:, :2] = 1
    steps = rank(labels, scores).steps(weights)
    for k in range(50):
        assert steps.auroc()[k] == auroc(labels, scores, weights[k])
        assert steps.average_precision()[k] == average_precision(labels, scores, weights[k])
        assert steps.f1().max(-1)[k] == best_f1(labels, scores, weights[k])[0]
        assert steps.accuracy().max(-1)[k] == best_accuracy(labels, scores, weights[k])[0]
        assert steps.sensitivity(0.8)[k] == sensitivity_at_specificity(labels, scores, 0.8,
                                                                       weights[k])
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
    assert auroc(labels, scores, weights) == 1 - 1e-10


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(("labels", "scores", "weights", "error", "message"), [
    ([0, 1], [0.5, np.nan], None, NotFiniteError, "^scores: expected finite ones, got NaN"),
    ([0, 1], [0.5, np.inf], None, NotFiniteError, "^scores: expected finite"),
    ([0, 1], [0.5], None, InputError, r"^scores: expected \(N,\) as the labels' \(2,\), got \(1,"),
    ([[0, 1]], [[1, 2]], None, InputError, "^scores: expected"),
    ([], [], None, InputError, r"^labels: expected 0 \(normal\) and 1 \(anomalous\), both there"),
    ([0, 0], [1, 2], None, InputError, r"^labels: expected .* got \[0\]"),
    ([1, 1], [1, 2], None, InputError, r"^labels: expected .* got \[1\]"),
    ([0, 1, 2], [1, 2, 3], None, InputError, r"^labels: expected .* got \[0, 1, 2\]"),
    ([0, 1], [1, 2], [1], InputError, r"^weights: expected numbers \(2,\), got int64 \(1,\)"),
    ([0, 1], [1, 2], ["a", "b"], InputError, "^weights: expected numbers"),
    ([0, 1], [1, 2], [1, -1], InputError, "^weights: expected numbers from 0 on"),
    ([0, 1], [1, 2], [1, np.nan], InputError, "^weights: expected numbers from 0 on"),
    ([0, 1], [1, 2], [2**30, 2**30], InputError, "^weights: expected numbers from 0 on, below"),
    ([0, 1], [1, 2], [1, 0], InputError, "^weights: expected one above 0 of anomalous images"),
    ([0, 1], [1, 2], [0, 1], InputError, "^weights: expected one above 0 of normal images, got"),
])
def test_bad_input(name, labels, scores, weights, error, message):
    with pytest.raises(error, match=message):
        FIGURES[name](labels, scores, weights)


@pytest.mark.parametrize("specificity", [-0.1, 1.1, np.nan])
def test_bad_specificity(specificity):
    with pytest.raises(InputError, match=r"^specificity: expected a share from 0 to 1"):
        sensitivity_at_specificity([0, 1], [0, 1], specificity)


def test_bad_threshold():
    with pytest.raises(InputError, match=r"^threshold: expected a finite number"):
        decide([0, 1], [0, 1], np.nan)
