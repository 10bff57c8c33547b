"""From raw scores to decisions: conformal p-values, thresholds, and whether they still hold.

Raw scores come out of the engine; what they mean is learned from held-out images and kept beside
it in the manifest, where it can be replaced without building again. An image is called anomalous
where its score lies above `Decisions.threshold`, whichever rule has set that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.errors import NotFiniteError, expect
from scrd_fast.metrics.bootstrap import image_intervals
from scrd_fast.metrics.map_scale import MapScale, conformal_threshold
from scrd_fast.metrics.ranking import auroc, decide
from scrd_fast.metrics.two_samples import ks_p_value
from scrd_fast.records import is_number

Array = NDArray[Any]
RULES = ("conformal", "f1", "sensitivity", "specificity")
FEWEST_LABELLED = 20  # of each class; half of them choose a threshold, half tell how good it is
FEWEST_PATIENTS = 4  # of each class: two in each half, for one patient shows no scatter
FEWEST_RECENT = 20
_SHUFFLES = 100
_WEIGHT_STEP = 1e-3  # scale weights that differ by less are the same: rounding is no drift


@dataclass(frozen=True)
class Decisions:
    """How scores are read.

    normal_scores: of the held-out normal images, rising, finite; scale_weights: of the same images,
    three per image, in any order. rule, target: how `threshold` was chosen; for "conformal", target
    is the largest share of normal images that may be called anomalous. report: with labels, the
    figures on images that did not choose the threshold, each (value, low, high) with a 95 %
    interval by patient, of `bootstrap`, from 0 to 1 where nothing tells it; "images" and "patients"
    say of how many, normal and anomalous. A patient with images of both kinds counts in both. maps:
    how maps are read, None in engine files of format 3 and before.
    """

    normal_scores: tuple[float, ...]
    scale_weights: tuple[tuple[float, float, float], ...]
    rule: str
    target: float | None
    threshold: float
    report: Mapping[str, tuple[float, float, float] | Mapping[str, int]] = field(
        default_factory=dict)
    maps: MapScale | None = None

    def __post_init__(self) -> None:
        scores, weights = self._normal, np.asarray(self.scale_weights, np.float32)
        expect(scores.ndim == 1 and len(scores) > 0 and bool(np.isfinite(scores).all())
               and bool((np.diff(scores) >= 0).all()), "calibration.normal_scores",
               "rising finite scores", "others")
        expect(weights.shape == (len(scores), 3) and bool(np.isfinite(weights).all()),
               "calibration.scale_weights", "three finite weights per score", "others")
        expect(self.rule in RULES, "calibration.rule", f"one of {RULES}", repr(self.rule))
        expect(is_number(self.threshold), "calibration.threshold", "a finite number",
               self.threshold)

    @cached_property
    def _normal(self) -> NDArray[np.float32]:
        return np.asarray(self.normal_scores, np.float32)

    def p_values(self, scores: Array) -> NDArray[np.float32]:
        """Conformal p-values (N,) of scores (N,); NaN where a score is.

        (1 + the number of calibration scores at least as large) / (their number + 1): for a normal
        image exchangeable with them, P(p <= a) <= a for every a (Vovk, Gammerman and Shafer,
        Algorithmic Learning in a Random World, 2005).
        """
        normal, scores = self._normal, np.asarray(scores, np.float32)
        larger = len(normal) - np.searchsorted(normal, scores, side="left")
        p = ((1 + larger) / (len(normal) + 1)).astype(np.float32)
        return np.where(np.isnan(scores), np.float32("nan"), p)

    def anomalous(self, scores: Array) -> NDArray[np.bool_]:
        """Whether scores (N,) lie above the threshold; False where a score is NaN."""
        return np.asarray(scores, np.float32) > np.float32(self.threshold)


def normals_needed(rate: float) -> int:
    """How many normal images a false-alarm rate needs: the smallest p-value of n is 1 / (n + 1)."""
    return math.ceil(1 / rate - 1e-9) - 1


def _checked(scores: Array, weights: Array, name: str) -> tuple[Array, Array]:
    scores, weights = np.asarray(scores, np.float32), np.asarray(weights, np.float32)
    expect(scores.ndim == 1 and weights.shape == (len(scores), 3), name,
           "scores (N,) and scale weights (N, 3)", f"{scores.shape} and {weights.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(weights).all()):
        raise NotFiniteError(f"{name}: expected finite scores and scale weights, got NaN or"
                             " infinity among them")
    return scores, weights


def check_rate(rate: Any) -> None:
    """Raise InputError unless it can be a false-alarm rate."""
    expect(isinstance(rate, int | float) and 0 < rate <= 0.5, "fpr", "a share above 0, up to 0.5",
           rate)


def check_rule(rule: Any, target: Any, seed: Any) -> None:
    """Raise InputError unless `labelled` can choose by them."""
    expect(rule in RULES[1:], "rule", f"one of {RULES[1:]}", repr(rule))
    good = target is None if rule == "f1" else isinstance(target, int | float) and 0 < target < 1
    expect(good, "target", "a share between 0 and 1 with 'sensitivity' and 'specificity', none"
           " with 'f1'", target)
    expect(type(seed) is int and 0 <= seed < 2**64, "seed", "an integer from 0", seed)


def conformal(scores: Array, weights: Array, rate: float) -> Decisions:
    """Decisions from the scores (N,) and scale weights (N, 3) of held-out normal images alone.

    rate: the largest share of normal images that may be called anomalous, which is promised on
    average over draws of these images and of new ones exchangeable with them. Raises InputError
    where the images are too few for it.
    """
    check_rate(rate)
    scores, weights = _checked(scores, weights, "normals")
    needed = normals_needed(rate)
    expect(len(scores) >= needed, "normals", f"at least {needed} images for a false-alarm rate of"
           f" {rate:g}", len(scores))
    return _decisions(scores, weights, "conformal", rate, conformal_threshold(scores, rate))


def _decisions(scores: Array, weights: Array, rule: str, target: float | None, threshold: float,
               report: dict[str, Any] | None = None) -> Decisions:
    order = np.argsort(scores, kind="stable")
    return Decisions(tuple(scores[order].tolist()), tuple(map(tuple, weights[order].tolist())),
                     rule, target, threshold, report or {})


def labelled(
    scores: Array, weights: Array, anomalous_scores: Array, rule: str, target: float | None = None,
    *, patients: Sequence[str | None] | None = None, seed: int = 0,
) -> Decisions:
    """Decisions from held-out images of both kinds.

    scores (N,), weights (N, 3): of normal images; anomalous_scores (M,); patients (N + M,): whom
    the images are of, the normal ones first, None for a patient of its own, as all are without. Of
    each kind half of the patients, with about half of the images, choose the threshold: the best
    F1, or the fewest errors of the other kind at a sensitivity or specificity of at least `target`.
    They are drawn by `seed`. The other half tells how good it is. Raises InputError.
    """
    check_rule(rule, target, seed)
    scores, weights = _checked(scores, weights, "normals")
    sick, _ = _checked(anomalous_scores, np.zeros((len(anomalous_scores), 3)), "anomalous")
    for name, found in (("normals", scores), ("anomalous", sick)):
        expect(len(found) >= FEWEST_LABELLED, name, f"at least {FEWEST_LABELLED} images of each"
               " kind", len(found))
    together = np.concatenate([scores, sick])
    labels = np.repeat([0, 1], [len(scores), len(sick)])
    groups = number_patients([None] * len(labels) if patients is None else patients)
    expect(groups.shape == labels.shape, "patients", f"({len(labels)},)", groups.shape)
    sizes = np.stack([np.bincount(groups[labels == kind], minlength=groups.max() + 1)
                      for kind in (0, 1)], axis=1)
    for name, count in zip(("normals", "anomalous"), (sizes > 0).sum(0), strict=True):
        expect(count >= FEWEST_PATIENTS, name, f"images of at least {FEWEST_PATIENTS} patients of"
               " each kind, two of them in the half that chooses the threshold and two in the half"
               " that tells how good it is", count)
    rng = np.random.Generator(np.random.Philox(seed))
    choosing = _choose_half(rng, sizes)[groups]
    threshold = _threshold(together[choosing & (labels == 0)], together[choosing & (labels == 1)],
                           rule, target)
    report = _report(groups[~choosing], labels[~choosing], together[~choosing], threshold,
                     seed=int(rng.integers(2**63)))
    return _decisions(scores, weights, rule, target, threshold, report)


def number_patients(patients: Sequence[str | None]) -> NDArray[np.int64]:
    """Numbers (N,) of patients (N,) from 0, as they first come; None: a patient of its own."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(place if patient is None else patient, len(numbers))
                     for place, patient in enumerate(patients)], np.int64)


def _choose_half(rng: np.random.Generator, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Half of P patients (P,), of those with images of each kind, of both kinds, and of one alone.

    sizes (P, 2): how many images of each kind each has. Of many such halves the first of those with
    the most even share of images of either kind.
    """
    normal, anomalous = (sizes > 0).T
    both = np.flatnonzero(normal & anomalous)
    alone = [np.flatnonzero(normal & ~anomalous), np.flatnonzero(anomalous & ~normal)]
    best, least = np.zeros(len(sizes), bool), np.inf
    for _ in range(_SHUFFLES):
        half = np.zeros(len(sizes), bool)
        half[rng.permutation(both)[: len(both) // 2]] = True
        for part in alone:
            count = (len(both) + len(part)) // 2 - len(both) // 2
            half[rng.permutation(part)[:count]] = True
        off = float(np.abs(sizes[half].sum(0) / sizes.sum(0) - 0.5).max())
        if off < least:
            best, least = half, off
    return best


def _rates(healthy: Array, sick: Array, threshold: Array) -> dict[str, Array]:
    """Figures of samples (..., n) and (..., m) by thresholds that broadcast to (..., 1)."""
    false = (healthy > threshold).sum(-1)
    found = (sick > threshold).sum(-1)
    missed = sick.shape[-1] - found
    return {"sensitivity": found / sick.shape[-1], "specificity": 1 - false / healthy.shape[-1],
            "f1": 2 * found / np.maximum(2 * found + false + missed, 1)}


def _threshold(healthy: Array, sick: Array, rule: str, target: float | None) -> float:
    """In the middle between two neighbouring scores, so that rounding moves none across it."""
    values = np.unique(np.concatenate([healthy, sick]).astype(np.float64))
    gap = max(float(np.diff(values).mean()), 1e-6) if len(values) > 1 else 1e-6
    between = (values[1:] + values[:-1]) / 2
    candidates = np.concatenate([[values[0] - gap], between, [values[-1] + gap]])
    rates = _rates(healthy, sick, candidates[:, None])
    if rule == "f1":
        return float(candidates[np.argmax(rates["f1"])])
    assert target is not None
    enough = candidates[rates[rule] >= target]
    return float(enough.max() if rule == "sensitivity" else enough.min())


def _report(groups: NDArray[np.int64], labels: NDArray[np.int64], scores: Array,
            threshold: float, *, seed: int) -> dict[str, Any]:
    decided = decide(labels, scores, threshold)
    values: dict[str, Any] = {
        "sensitivity": decided.sensitivity, "specificity": decided.specificity,
        "f1": decided.f1, "auroc": auroc(labels, scores)}
    found = image_intervals(groups, labels, scores, threshold=threshold, seed=seed)
    kinds = {"normal": 0, "anomalous": 1}
    report: dict[str, Any] = {
        "images": {name: int((labels == kind).sum()) for name, kind in kinds.items()},
        "patients": {name: len(np.unique(groups[labels == kind])) for name, kind in kinds.items()}}
    for name, value in values.items():
        each = found[name]
        report[name] = float(value), *((0.0, 1.0) if each is None else (each.low, each.high))
    return report


@dataclass(frozen=True)
class Drift:
    """Whether recent images look like the calibration's normal ones.

    p_values: of two-sample Kolmogorov-Smirnov tests, of the scores and of each scale weight;
    drifted: names of those below `level`, which Bonferroni's rule has divided by their number.
    """

    images: int
    p_values: dict[str, float]
    level: float
    drifted: tuple[str, ...]


def drift(decisions: Decisions, scores: Array, weights: Array, *, alpha: float = 0.01) -> Drift:
    """Test recent scores (N,) and scale weights (N, 3) against the calibration's.

    alpha: the chance of a false alarm where nothing has changed. More anomalies among the recent
    images than before are a change, too. Raises InputError.
    """
    expect(0 < alpha < 1, "alpha", "a share between 0 and 1", alpha)
    scores, weights = _checked(scores, weights, "recent")
    expect(len(scores) >= FEWEST_RECENT, "recent", f"at least {FEWEST_RECENT} images", len(scores))
    pairs = {"score": (np.asarray(decisions.normal_scores), scores)}
    for k, (before, now) in enumerate(zip(np.asarray(decisions.scale_weights).T, weights.T,
                                          strict=True)):
        rounded = [np.round(part.astype(np.float64) / _WEIGHT_STEP) for part in (before, now)]
        if len(np.unique(np.concatenate(rounded))) > 1:  # a model that does not weight has none
            pairs[f"scale weight {k + 1}"] = (rounded[0], rounded[1])
    p_values = {name: ks_p_value(*pair) for name, pair in pairs.items()}
    level = alpha / len(p_values)
    return Drift(len(scores), p_values, level,
                 tuple(name for name, p in p_values.items() if p < level))
