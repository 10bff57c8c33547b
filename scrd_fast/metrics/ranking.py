"""How scores order images, and how good the decisions are that a threshold makes of them.

An image is called anomalous where its score lies above the threshold, as in `decisions`. Labels are
(N,), 0 = normal, 1 = anomalous, both there; scores (N,), finite. Each function raises InputError
for others, NotFiniteError for NaN or infinity among the scores.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.errors import NotFiniteError, expect

Array = NDArray[Any]
_ROUNDING = 1e-9  # 0.9 of 10 images are 9


@dataclass(frozen=True, eq=False)
class Steps:
    """What a falling threshold finds, step by step at the K distinct scores of anomalies.

    These are images, or pixels. Between two of the scores a lower threshold adds false alarms only.
    All are sums of weights: hits (..., K) of anomalies with that score, above and alarms (..., K)
    of normal images with a higher one and with at least that, normal (...,) of all normal images.
    Leading axes are of weights, so that replicates of a bootstrap are computed at once.
    """

    hits: Array
    above: Array
    alarms: Array
    normal: Array

    @cached_property
    def found(self) -> Array:
        """Sums of weights (..., K) of anomalous images with at least that score."""
        return self.hits.cumsum(-1)

    def auroc(self) -> Array:
        """Area under the ROC curve (...,), ties counted by half."""
        won_twice = 2 * self.normal[..., None] - self.above - self.alarms
        return (self.hits * won_twice).sum(-1) / (2 * self.hits.sum(-1) * self.normal)

    def average_precision(self) -> Array:
        """Mean precision (...,) over the anomalous images, each at its own score."""
        found = self.found
        called = found + self.alarms
        precision = found / np.where(called > 0, called, 1)  # the first weights may be 0
        return (self.hits * precision).sum(-1) / found[..., -1]

    def f1(self) -> Array:
        """F1 (..., K) where the step's score is the lowest that is called anomalous."""
        found = self.found
        return 2 * found / (found + self.alarms + found[..., -1:])

    def accuracy(self) -> Array:
        """Accuracy (..., 1 + K), first of a threshold above all scores."""
        found = self.found
        right = np.concatenate([np.zeros_like(found[..., :1]), found - self.alarms], -1)
        normal = self.normal[..., None]
        return (normal + right) / (normal + found[..., -1:])

    def sensitivity(self, specificity: float) -> Array:
        """Largest sensitivity (...,) at a specificity of at least that."""
        allowed = (1 - specificity + _ROUNDING) * self.normal[..., None]
        found = self.found
        return np.where(self.alarms <= allowed, found, 0).max(-1) / found[..., -1]


@dataclass(frozen=True, eq=False)
class Ranked:
    """Labels and scores, sorted once for all weights.

    anomalous, normal: indices of images by falling score; scores (K,): the distinct ones of
    anomalous images; starts (K,): where each begins; above, alarms (K,): how many normal images
    score higher, and at least that.
    """

    anomalous: NDArray[np.intp]
    normal: NDArray[np.intp]
    scores: Array
    starts: NDArray[np.intp]
    above: NDArray[np.intp]
    alarms: NDArray[np.intp]

    def steps(self, weights: Array) -> Steps:
        """Of weights (..., N), how often an image counts; whole numbers are counted exactly."""
        hits = np.add.reduceat(weights[..., self.anomalous], self.starts, axis=-1)
        normal = weights[..., self.normal]
        sums = np.zeros((*normal.shape[:-1], normal.shape[-1] + 1), normal.dtype)
        np.cumsum(normal, axis=-1, out=sums[..., 1:])
        return Steps(hits, sums[..., self.above], sums[..., self.alarms], sums[..., -1])


@dataclass(frozen=True, eq=False)
class Decided:
    """How many images a threshold judges in which way, as sums of weights (...,)."""

    found: Array
    missed: Array
    alarms: Array
    spared: Array

    @property
    def sensitivity(self) -> Array:
        return self.found / (self.found + self.missed)

    @property
    def specificity(self) -> Array:
        return self.spared / (self.spared + self.alarms)

    @property
    def accuracy(self) -> Array:
        right = self.found + self.spared
        return right / (right + self.missed + self.alarms)

    @property
    def f1(self) -> Array:
        return 2 * self.found / (2 * self.found + self.missed + self.alarms)


def rank(labels: Any, scores: Any) -> Ranked:
    """Sort labels (N,) and scores (N,) for figures of any weights."""
    labels, scores = _checked(labels, scores)
    falling = np.argsort(-scores, kind="stable")
    anomalous, normal = falling[labels[falling] == 1], falling[labels[falling] == 0]
    values = scores[anomalous]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    above, alarms = count_above(scores[normal[::-1]], values[starts])
    return Ranked(anomalous, normal, values[starts], starts, above, alarms)


def count_above(rising: Array, values: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """How many of sorted scores are larger than each of the values, and at least as large."""
    return (len(rising) - np.searchsorted(rising, values, side="right"),
            len(rising) - np.searchsorted(rising, values, side="left"))


def decide(labels: Any, scores: Any, threshold: float) -> Decided:
    """What a threshold makes of scores (N,): counts, and the figures of them."""
    return Decided(*find_outcomes(labels, scores, threshold).sum(0))


def find_outcomes(labels: Any, scores: Any, threshold: float) -> NDArray[np.bool_]:
    """Which images a threshold finds, misses, calls falsely and spares (N, 4), as in `Decided`.

    The threshold is rounded to the type of the scores, as `Decisions.anomalous` does.
    """
    labels, scores = _checked(labels, scores)
    expect(bool(np.isfinite(threshold)), "threshold", "a finite number", threshold)
    called, anomalous = scores > scores.dtype.type(threshold), labels == 1
    return np.stack([called & anomalous, ~called & anomalous, called & ~anomalous,
                     ~called & ~anomalous], axis=1)


def auroc(labels: Any, scores: Any) -> float:
    """Area under the ROC curve of scores (N,) for labels (N,), 1 = anomalous.

    It is Mann and Whitney's U over the number of pairs: the share of pairs of an anomalous and a
    normal image in which the anomalous one scores higher, ties counted by half. Counted in whole
    numbers.
    """
    return float(_steps(labels, scores)[1].auroc())


def auroc_standard_error(auroc: float, anomalous: int, normal: int) -> float:
    """Standard error of an AUROC of so many images.

    By Hanley and McNeil (Radiology 143, 1982, p. 29). Theirs is 0 where the images are told apart
    without fault, whatever their number; here an AUROC counts as at most half an image of the
    smaller class below 1.
    """
    area = min(auroc, 1 - 0.5 / min(anomalous, normal))
    of_two_anomalous = area / (2 - area)
    of_two_normal = 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (anomalous - 1) * (of_two_anomalous - area**2)
                + (normal - 1) * (of_two_normal - area**2)) / (anomalous * normal)
    return math.sqrt(variance)


def average_precision(labels: Any, scores: Any) -> float:
    """Area under the precision-recall curve by steps: precision times the gain in recall, summed
    over the distinct scores from the highest on. Nothing is interpolated; tied images are found
    together."""
    return float(_steps(labels, scores)[1].average_precision())


def best_f1(labels: Any, scores: Any) -> tuple[float, float]:
    """The largest F1 of any threshold, and the lowest threshold that has it.

    It has seen the labels that it is judged by: an upper limit of what a threshold can reach. The
    threshold lies in the middle between two neighbouring scores, as `decisions` chooses it.
    """
    ranked, steps = _steps(labels, scores)
    f1 = steps.f1()
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    return float(f1[best]), _threshold_below(ranked.scores[best], np.asarray(scores))


def best_accuracy(labels: Any, scores: Any) -> tuple[float, float]:
    """The largest accuracy of any threshold, and the lowest threshold that has it; see best_f1.

    Where it is best to call no image anomalous the threshold is the highest score.
    """
    ranked, steps = _steps(labels, scores)
    accuracy = steps.accuracy()
    best = len(accuracy) - 1 - int(np.argmax(accuracy[::-1]))
    scores = np.asarray(scores)
    threshold = _threshold_below(ranked.scores[best - 1], scores) if best else float(scores.max())
    return float(accuracy[best]), threshold


def sensitivity_at_specificity(labels: Any, scores: Any, specificity: float) -> float:
    """Largest sensitivity of a threshold whose specificity is at least `specificity`."""
    expect(0 <= specificity <= 1, "specificity", "a share from 0 to 1", specificity)
    return float(_steps(labels, scores)[1].sensitivity(specificity))


def rank_correlation(scores: Any, reference: Any) -> float:
    """Spearman's, of scores (N,)."""
    from scipy.stats import spearmanr

    return float(spearmanr(scores, reference).statistic)


def threshold_between(lower: Any, upper: Any) -> float:
    """The middle of two scores of one type, in that type; below `upper` also where they are
    neighbours."""
    middle = lower / 2 + upper / 2
    return float(middle if lower <= middle < upper else lower)


def _threshold_below(value: Any, scores: Array) -> float:
    """Above which `value` is the lowest score."""
    below = scores[scores < value]
    if len(below):
        return threshold_between(below.max(), value)
    gap = max(float(np.ptp(scores)) / len(scores), 1e-6)
    return float(min(value - gap, np.nextafter(value, -np.inf)))


def _steps(labels: Any, scores: Any) -> tuple[Ranked, Steps]:
    ranked = rank(labels, scores)
    return ranked, ranked.steps(np.ones(np.shape(labels), np.int64))


def _checked(labels: Any, scores: Any) -> tuple[Array, Array]:
    labels, scores = np.asarray(labels), np.asarray(scores)
    expect(labels.ndim == 1 and labels.shape == scores.shape, "scores", f"(N,) as the labels'"
           f" {labels.shape}", scores.shape)
    kinds = np.unique(labels).tolist()
    expect(kinds == [0, 1], "labels", "0 (normal) and 1 (anomalous), both there", kinds[:5])
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    if not np.isfinite(scores).all():
        raise NotFiniteError("scores: expected finite ones, got NaN or infinity among them")
    return labels, scores
